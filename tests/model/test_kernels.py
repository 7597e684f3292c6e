"""The kernel seam: choices, refusals, and each kernel against its plain reference."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from upcycle.errors import UserError
from upcycle.model.kernels import Kernels, choose_kernels, cross_entropy, plain, rms_norm, sdpa, token_cross_entropy
from upcycle.spec import ModelSpec

GROUPABLE = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
UNGROUPABLE = ModelSpec(n_layer=1, d_model=12, n_head=1, vocab_size=8, context=8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auto_takes_grouped_mm_where_the_shape_allows_and_logs_it(caplog) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_kernels(GROUPABLE)
    assert chosen == Kernels()
    assert chosen.describe() == {
        "attention": "sdpa",
        "experts": "grouped_mm",
        "rms_norm": "torch",
        "cross_entropy": "plain",
        "router": "torch",
        "torch": torch.__version__,
    }
    assert f"experts=grouped_mm torch {torch.__version__}: the first choice on this device" in caplog.text


def test_auto_takes_the_loop_elsewhere_and_logs_the_reason(caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_kernels(UNGROUPABLE).describe()["experts"] == "loop"
    assert "d_model 12 not a multiple of 8" in caplog.text


def test_a_named_kernel_that_cannot_run_is_refused_with_its_reason() -> None:
    with pytest.raises(UserError, match="grouped_mm cannot be used: d_model 12 not a multiple of 8"):
        choose_kernels(UNGROUPABLE, {"experts": "grouped_mm"})


@pytest.mark.parametrize(
    ("op", "name", "nearest"), [("attention", "spda", "sdpa"), ("experts", "grouped", "grouped_mm")]
)
def test_an_unknown_kernel_is_refused_with_the_nearest_name(op: str, name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"unknown {op} kernel `{name}`; did you mean `{nearest}`"):
        choose_kernels(GROUPABLE, {op: name})


@pytest.mark.parametrize("head_dim", [8, 60, 70])
def test_fused_attention_equals_the_plain_one_forward_and_backward(head_dim: int) -> None:
    inputs = [random(2, 3, 17, head_dim, seed=seed).requires_grad_() for seed in range(3)]
    outgoing = random(2, 3, 17, head_dim, seed=3)
    found, reference = sdpa(*inputs), plain(*inputs)
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
