"""Each kernel against the plain one in float32, forward and backward, and against itself: the same bits twice.

Tolerances are Euclidean errors relative to float32, of inputs that are bfloat16 numbers. On the CPU torch's flash
attention is 0.0019 away forward and 0.0036 backward (rounding the result alone makes 0.0016): twice that is allowed.
"""

from __future__ import annotations

import pytest
import torch
from on_devices import DEVICES, HEADS, kernels, kernels_by_device, random, relative_error
from torch import Tensor, nn

from upcycle.model.torch_kernels import cross_entropy, loop, plain_attention, rms_norm
from upcycle.study.shape import ModelSpec

FORWARD, BACKWARD = 4e-3, 8e-3
SIZES = {"even": [64, 64, 64, 64], "empty": [0, 200, 0, 56], "one": [0, 0, 256, 0], "odd": [1, 127, 3, 125]}
"""Slots by expert."""


def with_head(head_dim: int, n_kv_head: int) -> ModelSpec:
    return ModelSpec(n_layer=1, d_model=4 * head_dim, n_head=4, n_kv_head=n_kv_head, vocab_size=8, context=8)


@pytest.mark.parametrize(("head_dim", "n_kv_head"), [*((head_dim, 4) for head_dim in HEADS), (64, 2), (128, 1)])
@pytest.mark.parametrize(("where", "name"), kernels_by_device("attention", without=("plain",)))
def test_attention_is_the_plain_one_and_gives_the_same_bits_twice(
    where: str, name: str, head_dim: int, n_kv_head: int
) -> None:
    """On views of one tensor, as the model has them; at a length that is no multiple of any tile."""
    attention = kernels(with_head(head_dim, n_kv_head), where, attention=name).attention
    heads = [4, n_kv_head, n_kv_head]
    qkv = random(2, 150, sum(heads), head_dim, where=where).requires_grad_()
    exact = qkv.detach().float().requires_grad_()
    outgoing = random(2, 4, 150, head_dim, seed=1, where=where)

    def run(kernel, inputs: Tensor) -> tuple[Tensor, Tensor]:
        y = kernel(*(x.transpose(1, 2) for x in inputs.split(heads, dim=2)))
        return y, torch.autograd.grad(y, inputs, outgoing.type_as(inputs))[0]

    found, again, reference = run(attention, qkv), run(attention, qkv), run(plain_attention, exact)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    assert relative_error(found[0], reference[0]) <= FORWARD
    assert relative_error(found[1], reference[1]) <= BACKWARD
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("where", "name"), kernels_by_device("experts"))
def test_experts_are_the_loop_and_give_the_same_bits_twice(where: str, name: str, sizes: str) -> None:
    """Experts without a token too: their gradient is zero."""
    model = ModelSpec(n_layer=1, d_model=80, n_head=1, vocab_size=8, context=8, d_mlp=96)
    experts = kernels(model, where, experts=name).experts
    ends = torch.tensor(SIZES[sizes], device=where).cumsum(0, dtype=torch.int32)
    x, w_in, w_out = (
        random(256, 80, where=where),
        random(4, 192, 80, seed=1, where=where) / 8,
        random(4, 80, 96, seed=2, where=where) / 8,
    )
    inputs = [nn.Parameter(each) for each in (x, w_in, w_out)]
    exact = [nn.Parameter(each.detach().float()) for each in inputs]
    outgoing = random(256, 80, seed=3, where=where)

    def run(kernel, given: list[nn.Parameter]) -> list[Tensor]:
        y = kernel(given[0], ends, *given[1:])
        return [y, *torch.autograd.grad(y, given, outgoing.type_as(y))]

    found, again, reference = run(experts, inputs), run(experts, inputs), run(loop, exact)
    for one, other, true in zip(found, again, reference, strict=True):
        assert torch.equal(one, other)
        assert relative_error(one, true) <= BACKWARD
    for expert, size in enumerate(SIZES[sizes]):
        if not size:
            assert not found[2][expert].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("where", "name"), kernels_by_device("rms_norm"))
def test_rms_norm_is_the_formula_and_gives_the_same_bits_twice(where: str, name: str, dtype: torch.dtype) -> None:
    model = ModelSpec(n_layer=1, d_model=1504, n_head=16, vocab_size=8, context=8)
    norm = kernels(model, where, rms_norm=name).rms_norm
    x, weight = random(64, 1504, where=where, dtype=dtype), random(1504, seed=1, where=where, dtype=dtype)
    inputs = [x.requires_grad_(), nn.Parameter(weight)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    outgoing = random(64, 1504, seed=2, where=where, dtype=dtype)

    def run(kernel, given: list[Tensor]) -> list[Tensor]:
        y = kernel(*given, 1e-5)
        return [y, *torch.autograd.grad(y, given, outgoing.type_as(y))]

    def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    found, again, reference = run(norm, inputs), run(norm, inputs), run(formula, exact)
    for one, other, true in zip(found, again, reference, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)
        assert relative_error(one, true) <= (2e-6 if dtype == torch.float32 else BACKWARD)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("where", "name"), kernels_by_device("cross_entropy"))
def test_cross_entropy_is_float32s_and_gives_the_same_bits_twice(where: str, name: str, dtype: str) -> None:
    """Under autocast in bfloat16; 1,200 tokens of 8,192 pieces are two chunks."""
    model = ModelSpec(n_layer=1, d_model=64, n_head=1, vocab_size=8192, context=8)
    kernel = kernels(model, where, dtype, cross_entropy=name).cross_entropy
    hidden, head = random(2, 600, 64, where=where).float(), random(8192, 64, seed=1, where=where).float() / 8
    targets = torch.randint(0, 8192, (2, 600), generator=torch.Generator().manual_seed(0)).to(where)

    def run(kernel, number: torch.dtype, autocast: bool) -> list[Tensor]:
        given = [each.detach().to(number).requires_grad_() for each in (hidden, head)]
        with torch.autocast(where, torch.bfloat16, enabled=autocast):
            loss = kernel(given[0], given[1], targets)
        return [loss, *torch.autograd.grad(loss, given)]

    bfloat16 = dtype == "bfloat16"
    found, again = (run(kernel, torch.float32, bfloat16) for _ in range(2))
    reference = run(cross_entropy, torch.float32, False)
    assert found[0].dtype == torch.float32
    assert abs(found[0].item() - reference[0].item()) <= (1e-3 if bfloat16 else 2e-6)
    for one, other, true in zip(found[1:], again[1:], reference[1:], strict=True):
        assert torch.equal(one, other)
        assert relative_error(one, true) <= (BACKWARD if bfloat16 else 2e-6)


@pytest.mark.parametrize("where", DEVICES)
def test_torchs_rms_norm_takes_float32_under_autocast_as_the_model_hands_it(where: str) -> None:
    x, weight = random(4, 64, where=where, dtype=torch.float32), random(64, seed=1, where=where, dtype=torch.float32)
    with torch.autocast(where, torch.bfloat16):
        assert rms_norm(x, weight, 1e-5).dtype == torch.float32
