"""Wrappers of GPU libraries call them as their recorded signatures say, and hand back what the reference computes.

Contract tests: they prove nothing about a kernel. The kernels' own tests are in tests/gpu and need a GPU.
"""

from __future__ import annotations

import tomllib

import pytest
import recorded_libraries as recorded
import torch
from library_sources import RECORDS, ROOT, SIGNATURES
from torch import Tensor, nn

from upcycle.model import cuda_kernels, te_kernels
from upcycle.model.kernels import Kernels
from upcycle.model.torch_kernels import loop, plain_attention, rms_norm
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

HEADS = (60, 70, 80, 94, 104)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wrapped(name: str) -> cuda_kernels.Attention:
    """The project's attention around a stand-in of the library."""
    if name == "flash2":
        return cuda_kernels.flash2_attention(recorded.flash_attn_func())
    return te_kernels.te_attention(recorded.transformer_engine)


@pytest.mark.parametrize(("head_dim", "n_head"), [*((head_dim, 2) for head_dim in HEADS), (64, 6)])
@pytest.mark.parametrize("name", ["flash2", "te"])
def test_attention_is_called_as_recorded_and_is_the_plain_one(
    name: str, head_dim: int, n_head: int, monkeypatch
) -> None:
    """Also with the model's layout: views of one (B, S, H + 2G, C) tensor, G 2 heads of keys, and `flatten` afterwards.
    Of 6 heads of queries, three share one of keys."""
    monkeypatch.setenv(te_kernels.DETERMINISTIC, "1")  # put back afterwards
    attention = wrapped(name)
    qkv = random(2, 9, n_head + 4, head_dim).requires_grad_()
    inputs = [x.transpose(1, 2) for x in qkv.split([n_head, 2, 2], dim=2)]
    outgoing = random(2, n_head, 9, head_dim, seed=1)
    found, reference = attention(*inputs), plain_attention(*inputs)
    assert attention.__name__ == name
    assert found.shape == (2, n_head, 9, head_dim)
    assert found.transpose(1, 2).flatten(2).shape == (2, 9, n_head * head_dim)
    torch.testing.assert_close(found, reference)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, qkv, outgoing)[0].float() for y in (found, reference)), rtol=1.6e-2, atol=1e-2
    )


def test_transformer_engine_is_told_to_be_deterministic_before_its_module_is_made(monkeypatch) -> None:
    monkeypatch.setenv(te_kernels.DETERMINISTIC, "1")
    te_kernels.te_attention(recorded.transformer_engine)
    assert te_kernels.os.environ[te_kernels.DETERMINISTIC] == "0"


def test_the_stand_ins_refuse_what_the_libraries_refuse() -> None:
    """What the tests above would catch: a keyword of another release, a missing pad, float32, positional arguments."""
    q = random(1, 4, 2, 70)
    flash2 = recorded.flash_attn_func()
    with pytest.raises(TypeError, match="sink"):
        flash2(q=q, k=q, v=q, sink=None)
    with pytest.raises(AssertionError, match="half precision"):
        flash2(q=q.float(), k=q.float(), v=q.float(), deterministic=True)
    with pytest.raises(AssertionError, match="keyword only"):
        flash2(q, q, q)
    te = recorded.DotProductAttention(num_attention_heads=2, kv_channels=70, qkv_format="bshd", attention_dropout=0.0)
    with pytest.raises(AssertionError, match="no fused kernel"):
        te(query_layer=q, key_layer=q, value_layer=q)


def test_a_release_without_a_keyword_that_we_pass_is_refused_when_kernels_are_chosen() -> None:
    with pytest.raises(cuda_kernels.MissingLibraryError, match="does not know causal, deterministic: this release"):
        cuda_kernels.flash2_attention(lambda q, k, v, softmax_scale: q)


def test_rms_norm_of_transformer_engine_has_the_models_weight_forward_and_backward() -> None:
    """Two norms in one graph, each with its own weight."""
    kernel = te_kernels.te_rms_norm(recorded.transformer_engine)
    x = random(3, 16, dtype=torch.float32).requires_grad_()
    weights = [nn.Parameter(random(16, seed=seed, dtype=torch.float32)) for seed in (1, 2)]
    found = kernel(kernel(x, weights[0], 1e-5), weights[1], 1e-5)
    reference = rms_norm(rms_norm(x, weights[0], 1e-5), weights[1], 1e-5)
    torch.testing.assert_close(found, reference)
    outgoing = random(3, 16, seed=3, dtype=torch.float32)
    pairs = (torch.autograd.grad(y, [x, *weights], outgoing) for y in (found, reference))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sizes", [[5, 3, 4, 4], [0, 16, 0, 0], [7, 0, 0, 9]])
def test_experts_of_transformer_engine_are_the_loop_with_the_models_stacked_weights(sizes: list[int]) -> None:
    """Twice with other weights: the modules are kept, the weights are lent. Empty experts get a gradient of zero."""
    kernel = te_kernels.te_experts(recorded.transformer_engine)
    ends = torch.tensor(sizes).cumsum(0, dtype=torch.int32)
    for seed in (0, 10):
        x = random(16, 8, seed=seed).requires_grad_()
        w_in = nn.Parameter(random(4, 32, 8, seed=seed + 1))
        w_out = nn.Parameter(random(4, 8, 16, seed=seed + 2))
        outgoing = random(16, 8, seed=seed + 3)
        outputs = [experts(x, ends, w_in, w_out) for experts in (kernel, loop)]
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
        for one, other in zip(*(torch.autograd.grad(y, [x, w_in, w_out], outgoing) for y in outputs), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_model_trains_on_the_wrappers_of_transformer_engine_and_keeps_its_own_state_dict(monkeypatch) -> None:
    monkeypatch.setenv(te_kernels.DETERMINISTIC, "1")
    te = recorded.transformer_engine
    kernels = Kernels(attention=te_kernels.te_attention(te), experts=te_kernels.te_experts(te))
    spec = ModelSpec(n_layer=2, d_model=24, n_head=4, vocab_size=16, context=8)
    moe = MoESpec(n_expert=4, top_k=2, balance_group=1)
    ids = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    losses, gradients = [], []
    for model in (Transformer(spec, moe, kernels), Transformer(spec, moe, Kernels())):
        init_weights(model, seed=0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids[:, :-1], ids[:, 1:]).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 0.02 * gradients[1][name].norm(), name


def test_the_recorded_releases_are_those_pinned_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {pin for extra in project["optional-dependencies"].values() for pin in extra}
    assert {"flash-attn==2.8.3.post2", "transformer-engine[core_cu13,pytorch]==2.20.2"} <= pins
    for distribution, (version, file) in RECORDS.items():
        assert (SIGNATURES / file).is_file()
        assert any(
            pin.partition("==")[0].partition("[")[0] == distribution and pin.endswith(f"=={version}") for pin in pins
        )
