"""Method `expand`: copies of a mixture's experts, and exactly when they compute what the mixture did."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model.kernels import Kernels
from upcycle.model.transformer import Transformer
from upcycle.model.upcycling import ZERO_GAP, preserves_function, preserves_mixture, upcycle
from upcycle.study.methods import UpcyclingSpec
from upcycle.study.shape import MoESpec

Build = Callable[..., Transformer]
GATES = ["topk_softmax", "softmax_topk", "softmax_topk_renormalised", "sigmoid_topk_renormalised"]
SIZES = [  # experts and top-k of the parent and of the child
    ((1, 1), (4, 1)),
    ((2, 1), (4, 2)),
    ((4, 2), (8, 2)),
    ((4, 2), (8, 3)),
    ((4, 2), (8, 4)),
    ((2, 2), (4, 4)),
    ((4, 2), (12, 6)),
]


def expanded(parent: Transformer, moe: MoESpec, noise: float = 0.0, kernels: Kernels | None = None) -> Transformer:
    child = Transformer(parent.model, moe, kernels)
    parameters = UpcyclingSpec(router_noise=noise)
    child.load_state_dict(upcycle("expand", parent.state_dict(), parent.model, moe, 3, parameters, parent.moe))
    return child


def gap(parent: Transformer, child: Transformer, ids_BS: Tensor) -> float:
    """Largest difference of a logit, over the bound of float32 rounding."""
    with torch.no_grad():
        own, theirs = child.eval().logits(ids_BS), parent.eval().logits(ids_BS)
    return float((own - theirs).abs().max() / (ZERO_GAP * theirs.abs().max().clamp(min=1)))


@pytest.mark.parametrize("native", [False, True], ids=["composed", "native"])
@pytest.mark.parametrize("sizes", SIZES)
def test_logits_are_the_parents_exactly_where_theory_says(build: Build, batch, sizes, native: bool) -> None:
    """For every pair of gates: all copies of the chosen experts, or any of the one chosen; nowhere else."""
    kernels = Kernels(native=native)
    (n_parent, k_parent), (n_child, k_child) = sizes
    ids_BS, _ = batch()
    for before, after in product(GATES, GATES):
        parent = build(moe=MoESpec(n_expert=n_parent, top_k=k_parent, gate=before), kernels=kernels)
        moe = MoESpec(n_expert=n_child, top_k=k_child, gate=after)
        kept = gap(parent, expanded(parent, moe, kernels=kernels), ids_BS) <= 1
        assert kept == preserves_mixture(parent.moe, moe), (before, after)


def test_theory_names_the_cases() -> None:
    """K' = m K always; K' = K only of one expert, by a gate whose weights sum to 1; never 4x2 to 8x2."""

    def kept(parent: tuple[int, int], child: tuple[int, int], gate: str = "topk_softmax") -> bool:
        specs = [MoESpec(n_expert=n, top_k=k, gate=gate) for n, k in (parent, child)]
        return preserves_mixture(*specs)

    assert all(kept((4, 2), (8, 4), gate) for gate in GATES)
    assert kept((2, 1), (4, 1))
    assert not kept((2, 1), (4, 1), "softmax_topk")
    assert not any(kept((4, 2), (8, 2), gate) for gate in GATES)
    dense = MoESpec(n_expert=1, top_k=1, gate="softmax_topk")  # a mixture of one expert: copying a dense model
    for gate, k in product(GATES, (1, 2, 8)):
        child = MoESpec(n_expert=8, top_k=k, gate=gate)
        assert preserves_mixture(dense, child) == preserves_function(child)


def test_experts_and_rows_of_the_router_are_copies_and_all_else_is_untouched(build: Build) -> None:
    parent = build(moe=MoESpec(n_expert=2, top_k=1, gate="softmax_topk"))
    before = {name: weight.clone() for name, weight in parent.state_dict().items()}
    state = expanded(parent, MoESpec(n_expert=6, top_k=2)).state_dict()
    assert state.keys() == before.keys()
    for name, weight in state.items():
        copies = 3 if ".moe." in name else 1
        assert torch.equal(weight, torch.cat([before[name]] * copies))
        weight.zero_()
        assert torch.equal(parent.state_dict()[name], before[name])


@pytest.mark.parametrize("gate", ["topk_softmax", "sigmoid_topk_renormalised"])
def test_shared_experts_stay_and_biases_choose_as_before(build: Build, batch, gate: str) -> None:
    """Biases of 0.1 change what is chosen; those of copies choose alike, whichever score they are added to."""
    own = {"gate": gate, "shared_expert": 1, "granularity": 2, "bias_rate": 1e-3, "aux_coef": 0}
    parent = build(moe=MoESpec(n_expert=4, top_k=2, **own))
    ids_BS, _ = batch()
    before = parent.eval().logits(ids_BS).detach()
    for mixture in parent.mixtures:
        mixture.router.bias.copy_(torch.tensor([0.1, -0.1, 0.05, -0.05]))
    assert (parent.logits(ids_BS) - before).abs().max() > 0.01
    moe = MoESpec(n_expert=12, top_k=6, **own)
    assert preserves_mixture(parent.moe, moe)
    child = expanded(parent, moe)
    assert gap(parent, child, ids_BS) <= 1
    name = "blocks.0.moe.shared.w_in"
    assert torch.equal(child.state_dict()[name], parent.state_dict()[name])
    begun = expanded(build(moe=parent.moe.model_copy(update={"bias_rate": 0.0})), moe)
    assert not begun.mixtures[1].router.bias.any()
    without = MoESpec(n_expert=12, top_k=6, **own | {"bias_rate": 0})
    assert not any("bias" in each for each in expanded(parent, without).state_dict())
    assert not preserves_mixture(parent.moe, without)
    assert gap(parent, expanded(parent, without), ids_BS) > 1


def test_noise_is_on_the_rows_of_the_copies_alone_and_relative_to_the_routers_weights(build: Build) -> None:
    parent = build(moe=MoESpec(n_expert=4, top_k=2))
    name, rows = "blocks.1.moe.router.weight", parent.state_dict()["blocks.1.moe.router.weight"]
    noisy = expanded(parent, MoESpec(n_expert=16, top_k=2), noise=0.5).state_dict()[name]
    assert torch.equal(noisy[:4], rows)
    added = (noisy[4:] - rows.repeat(3, 1)) / rows.std()
    assert added.std().item() == pytest.approx(0.5, rel=4 / (2 * added.numel()) ** 0.5)
    fewer = expanded(parent, MoESpec(n_expert=8, top_k=2), noise=0.5).state_dict()[name]
    assert torch.equal(fewer, noisy[:8])  # drawn for each expert, whatever others there are


def test_copies_that_are_always_chosen_together_need_the_noise_to_differ(build: Build, batch) -> None:
    """Their gradients are equal without it, and differ with it."""
    parent = build(moe=MoESpec(n_expert=2, top_k=1, gate="softmax_topk"))
    ids_BS, targets_BS = batch()
    for noise in (0.0, 0.1):
        child = expanded(parent, MoESpec(n_expert=4, top_k=2, gate="softmax_topk"), noise=noise)
        child(ids_BS, targets_BS).loss.backward()
        first, second = child.mixtures[1].w_in.grad.chunk(2)
        assert (((first - second).norm() / first.norm()).item() < 1e-5) == (noise == 0)


def test_weights_of_another_mixture_are_refused_by_name(build: Build) -> None:
    parent = build(moe=MoESpec(n_expert=4, top_k=2))
    two = MoESpec(n_expert=2, top_k=2)
    with pytest.raises(UserError, match=r"mixture's weights do not fit the model: blocks.0.moe.w_in is \(4, "):
        upcycle("expand", parent.state_dict(), parent.model, MoESpec(n_expert=8, top_k=2), 0, None, two)
