"""Each kernel of torch against the plain one of its op, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from upcycle.model import torch_kernels
from upcycle.model.torch_kernels import (
    chunked_cross_entropy,
    chunked_token_cross_entropy,
    compiled_chunked_cross_entropy,
    cross_entropy,
    grouped_mm,
    loop,
    plain_attention,
    rms_norm,
    sdpa,
    sdpa_flash,
    token_cross_entropy,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fused", [sdpa, sdpa_flash])
@pytest.mark.parametrize("head_dim", [8, 60, 70])
def test_fused_attention_equals_the_plain_one_forward_and_backward(head_dim: int, fused) -> None:
    inputs = [random(2, 3, 17, head_dim, seed=seed).requires_grad_() for seed in range(3)]
    outgoing = random(2, 3, 17, head_dim, seed=3)
    found, reference = fused(*inputs), plain_attention(*inputs)
    torch.testing.assert_close(found, reference)
    pairs = zip(
        torch.autograd.grad(found, inputs, outgoing), torch.autograd.grad(reference, inputs, outgoing), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_rms_norm_divides_by_the_root_mean_square_with_epsilon_inside() -> None:
    x, weight = random(4, 8), random(8, seed=1)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 0.1), expected)


def test_rms_norm_has_the_gradient_of_what_it_computes() -> None:
    x, weight = random(2, 3, 8).double().requires_grad_(), random(8, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 0.1), (x, weight))


def test_cross_entropy_is_in_nats_and_float32_whatever_the_logits() -> None:
    logits = random(2, 3, 8).bfloat16()
    targets = torch.tensor([[0, 1, 2], [3, 4, 7]])
    by_hand = [
        math.log(sum(math.exp(z) for z in row.tolist())) - row[target].item()
        for row, target in zip(logits.flatten(0, 1), targets.flatten(), strict=True)
    ]
    identity = torch.eye(8, dtype=torch.bfloat16)  # a head that passes the hidden state on as logits
    losses, mean = token_cross_entropy(logits, identity, targets), cross_entropy(logits, identity, targets)
    assert losses.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(losses.flatten(), torch.tensor(by_hand))
    assert mean.item() == pytest.approx(sum(by_hand) / 6, rel=1e-6)


@pytest.mark.parametrize("tokens", [6, 300])
def test_cross_entropy_has_the_gradient_softmax_minus_target(tokens: int) -> None:
    """Over the number of tokens, times whatever the loss is multiplied by afterwards."""
    logits = random(1, tokens, 8).requires_grad_()
    targets = torch.randint(0, 8, (1, tokens), generator=torch.Generator().manual_seed(0))
    (cross_entropy(logits, torch.eye(8), targets) * 3).backward()
    expected = (logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 8)) * (3 / tokens)
    torch.testing.assert_close(logits.grad, expected)


# --- the chunked cross-entropy


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens a chunk of 24 pieces, so that 40 tokens are five chunks and a rest."""
    monkeypatch.setattr(torch_kernels, "CHUNK_ELEMENTS", 7 * 24 + 5)


def loss_and_gradients(kernel, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, head = hidden.detach().requires_grad_(), head.detach().requires_grad_()
    loss = kernel(hidden, head, targets)
    (loss * 3).backward()
    return loss.detach(), hidden.grad, head.grad


@pytest.mark.usefixtures("small_chunks")
def test_chunked_cross_entropy_is_the_plain_one_in_float32() -> None:
    hidden, head = random(4, 10, 16), random(24, 16, seed=1)
    targets = torch.randint(0, 24, (4, 10), generator=torch.Generator().manual_seed(0))
    chunked = loss_and_gradients(chunked_cross_entropy, hidden, head, targets)
    for found, expected in zip(chunked, loss_and_gradients(cross_entropy, hidden, head, targets), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(
        chunked_token_cross_entropy(hidden, head, targets), token_cross_entropy(hidden, head, targets), rtol=0, atol=0
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_chunks_give_the_same(dtype: torch.dtype) -> None:
    """To the rounding of float32 sums; in bfloat16 the gradient of a logit, rounded once, to one unit."""
    hidden, head = random(4, 10, 16).to(dtype), random(24, 16, seed=1).to(dtype)
    targets = torch.randint(0, 24, (4, 10), generator=torch.Generator().manual_seed(0))
    eager = loss_and_gradients(chunked_cross_entropy, hidden, head, targets)
    compiled = loss_and_gradients(compiled_chunked_cross_entropy, hidden, head, targets)
    for found, expected in zip(compiled, eager, strict=True):
        tolerance = 1e-2 if found.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("autocast", [True, False])
def test_chunked_cross_entropy_of_bfloat16_is_float32(autocast: bool) -> None:
    """Under autocast from float32 tensors, as we train, or of bfloat16 tensors, as FSDP's mixed precision hands them.

    torch's own chunked `linear_cross_entropy` gives a bfloat16 loss here, which is why it is not used.
    """
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, head = random(4, 10, 16).to(dtype), random(24, 16, seed=1).to(dtype)
    targets = torch.randint(0, 24, (4, 10), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, *gradients = loss_and_gradients(chunked_cross_entropy, hidden, head, targets)
        expected, *references = loss_and_gradients(cross_entropy, hidden, head, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    rounded = (hidden.bfloat16().float(), head.bfloat16().float())
    _, *exact = loss_and_gradients(cross_entropy, *rounded, targets)
    for gradient, plain_one, true in zip(gradients, references, exact, strict=True):
        assert gradient.dtype == plain_one.dtype == dtype
        error, plain_error = ((each.float() - true).norm() / true.norm() for each in (gradient, plain_one))
        assert error <= 1.25 * plain_error < 0.01  # as far from float32's as the plain kernel in bfloat16
    torchs = F.linear_cross_entropy(
        hidden.bfloat16().flatten(0, 1),
        head.bfloat16(),
        targets.flatten(),
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=7, chunking_method=None),
    )
    assert torchs.dtype == torch.bfloat16


@pytest.mark.usefixtures("small_chunks")
def test_chunked_cross_entropy_holds_no_more_logits_than_a_chunk(monkeypatch) -> None:
    rows = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight: rows.append(len(x)) or linear(x, weight))
    hidden, head = random(4, 10, 16).requires_grad_(), random(24, 16, seed=1).requires_grad_()
    chunked_cross_entropy(hidden, head, torch.zeros(4, 10, dtype=torch.long)).backward()
    assert rows == [7, 7, 7, 7, 7, 5]
    with torch.no_grad():
        chunked_token_cross_entropy(hidden, head, torch.zeros(4, 10, dtype=torch.long))
    assert rows[6:] == [7, 7, 7, 7, 7, 5]


def test_chunked_cross_entropy_needs_no_gradient_to_give_a_loss() -> None:
    hidden, head, targets = random(1, 3, 16), random(24, 16, seed=1), torch.zeros(1, 3, dtype=torch.long)
    torch.testing.assert_close(chunked_cross_entropy(hidden, head, targets), cross_entropy(hidden, head, targets))


# --- experts


@pytest.mark.parametrize("sizes", [[5, 3, 4, 4], [0, 16, 0, 0], [0, 0, 0, 0]])
def test_experts_take_the_dtype_of_their_weights(sizes: list[int]) -> None:
    """Float32 activations and bfloat16 weights, without autocast; bit-equal to the loop, empty experts too."""
    ends = torch.tensor(sizes).cumsum(0, dtype=torch.int32)
    x = random(sum(sizes), 16)
    w_in, w_out = random(4, 48, 16, seed=1).bfloat16(), random(4, 16, 24, seed=2).bfloat16()
    grouped, looped = grouped_mm(x, ends, w_in, w_out), loop(x, ends, w_in, w_out)
    assert grouped.dtype == torch.bfloat16
    assert torch.equal(grouped, looped)
