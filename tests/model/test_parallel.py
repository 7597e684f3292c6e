"""Stacked shapes and the choice of dimensions; what processes do together is in tests/train/test_distributed.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upcycle.model.kernels import Kernels
from upcycle.model.parallel import _even_dimension, fill_parts, full_state
from upcycle.model.stacks import own, stacked, unstacked
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

MODEL = ModelSpec(n_layer=2, d_model=16, n_head=2, vocab_size=32, context=8)
OTHER = ModelSpec(
    n_layer=2, d_model=16, n_head=6, n_kv_head=2, d_head=4, vocab_size=32, context=8, tied=True, qkv_bias=True,
    qk_norm=True,
)  # fmt: skip
MOE = MoESpec(n_expert=3, top_k=2)


def stacked_state(model: Transformer) -> dict[str, Tensor]:
    """The weights as several processes hold and save them, if each held all."""
    return {name: stacked(name, weight, model.model) for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("spec", [MODEL, OTHER], ids=["the paper's", "shared keys"])
@pytest.mark.parametrize("moe", [None, MOE])
def test_sharded_shapes_are_views_of_the_model(moe: MoESpec | None, spec: ModelSpec) -> None:
    """Stacks become a dimension, in the same memory, so that either shape loads the other; `unstacked` undoes it."""
    model = Transformer(spec, moe, Kernels())
    init_weights(model, seed=0)
    state = stacked_state(model)
    if spec is MODEL:
        assert state["blocks.0.attn.wqkv"].shape == (3, 16, 16)
        assert state["blocks.0.attn.wo"].shape == (16, 16)
    else:
        assert state["blocks.0.attn.wqkv"].shape == (5, 8, 16)
        assert state["blocks.0.attn.bqkv"].shape == (5, 8)
        assert state["blocks.0.attn.wo"].shape == (16, 3, 8)
    w_in = "blocks.1.mlp.w_in" if moe is None else "blocks.1.moe.w_in"
    assert state[w_in].shape == ((2, 64, 16) if moe is None else (3, 2, 64, 16))
    for name, parameter in model.named_parameters():
        assert unstacked(name, state[name]).shape == parameter.shape
        assert state[name].data_ptr() == parameter.data_ptr()
        assert torch.equal(state[name].flatten(), parameter.detach().flatten()), "the same order of memory"


def test_moments_have_the_shapes_of_their_parameters() -> None:
    assert stacked("exp_avg_sq.blocks.0.attn.wqkv", torch.empty(48, 16), MODEL).shape == (3, 16, 16)
    assert stacked("exp_avg.blocks.0.attn.wo", torch.empty(16, 16), MODEL).shape == (16, 16)


@pytest.mark.parametrize("spec", [MODEL, OTHER], ids=["the paper's", "shared keys"])
def test_layers_compute_the_same_bits_from_stacked_weights(spec: ModelSpec) -> None:
    """A model whose matrices have the stacked shape gives the logits of the plain one."""
    for moe in (None, MOE):
        plain, other = (Transformer(spec, moe, Kernels()) for _ in range(2))
        init_weights(plain, seed=1)
        for name, weight in stacked_state(plain).items():
            owner, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(owner), leaf, nn.Parameter(weight.clone()))
        ids = torch.arange(16).view(2, 8)
        plain.eval(), other.eval()
        assert torch.equal(plain.logits(ids), other.logits(ids))
        assert own(other.blocks[0].attn.wo) is other.blocks[0].attn.wo, "one process owns all of a weight"


def test_full_state_and_fill_are_inverse() -> None:
    model, copy = (Transformer(MODEL, MOE, Kernels()) for _ in range(2))
    init_weights(model, seed=2)
    whole = full_state(dict(model.named_parameters()), keep=True)
    with torch.no_grad():
        fill_parts(dict(copy.named_parameters()), lambda name, shape: whole[name].view(shape))
    for name, weight in copy.named_parameters():
        assert torch.equal(weight, whole[name]), name
    assert full_state(dict(model.named_parameters()), keep=False) == {}


@pytest.mark.parametrize(
    ("shape", "parts", "dimension"),
    [((3, 16, 16), 2, 1), ((3, 16, 16), 3, 0), ((8, 2, 64, 16), 8, 0), ((3, 2, 64, 16), 4, 2), ((5, 7), 2, 0)],
)
def test_data_ranks_split_the_first_dimension_that_is_even(shape: tuple[int, ...], parts: int, dimension: int) -> None:
    """Nothing even: the first one, which FSDP may split unevenly."""
    assert _even_dimension(nn.Parameter(torch.empty(shape)), parts) == dimension
