"""Upcycling by copy: what is kept, what is new, and what the receipt states about it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from upcycle.errors import UserError
from upcycle.model import upcycling_methods
from upcycle.model.transformer import Transformer, init_weights
from upcycle.model.upcycling import ZERO_GAP, ZERO_SHARE, upcycle
from upcycle.study.execution import Execution
from upcycle.study.methods import UpcyclingSpec
from upcycle.study.registry import method_parameters
from upcycle.study.shape import Gate, ModelSpec, MoESpec
from upcycle.study.spec import EXPAND, RunSpec
from upcycle.train.receipt import measure_upcycling
from upcycle.train.record import Clock
from upcycle.train.trainee import Trainee

GATES = ["topk_softmax", "softmax_topk", "softmax_topk_renormalised"]
SIZES = [(4, 1), (4, 2), (8, 1), (8, 2), (8, 8)]
every_method = pytest.mark.parametrize("method", sorted(upcycling_methods.METHODS.keys() - {EXPAND}))
every_gate = pytest.mark.parametrize("gate", GATES)
every_size = pytest.mark.parametrize(("n_expert", "top_k"), SIZES)


def receipt(dense: Transformer, upcycled: Transformer, *, micro_batch: int | None = None, method: str = "copy") -> dict:
    """The receipt of these two models' states, on 8 sequences of random tokens."""
    run = RunSpec.model_validate(
        {
            "model": dense.model.model_dump(),
            "moe": upcycled.moe.model_dump(),
            "data": {"dataset": "random", "vocab_size": dense.model.vocab_size},
            "optim": {"lr": 2e-3, "batch": 8},
            "schedule": {},
            "end_step": 1,
            "origin": f"upcycle:{method}",
            "dense_parent": "dense-x",
            "parent": "dense-x",
            "dense_tokens": 1,
        }
    )
    tokens = SimpleNamespace(train=np.random.default_rng(2).integers(0, dense.model.vocab_size, 8 * 32 + 1))
    execution = Execution(device="cpu", micro_batch=micro_batch, layers="composed")
    trainee = Trainee(run, Path(), execution, tokens, upcycled, None, Clock())
    return measure_upcycling(trainee, dense.state_dict(), upcycled.state_dict())


ISSUED: dict[tuple[int, int, Gate], tuple[dict, Transformer, Transformer]] = {}


@pytest.fixture
def issue(small: ModelSpec, build):
    """The receipt of a copy and the two models it compares, made once for each configuration; not to be changed."""

    def issue(n_expert: int, top_k: int, gate: Gate) -> tuple[dict, Transformer, Transformer]:
        key = (n_expert, top_k, gate)
        if key not in ISSUED:
            moe = MoESpec(n_expert=n_expert, top_k=top_k, gate=gate)
            dense, upcycled = build(), Transformer(small, moe)
            upcycled.load_state_dict(upcycle("copy", dense.state_dict(), small, moe, seed=3))
            ISSUED[key] = receipt(dense, upcycled), dense, upcycled
        return ISSUED[key]

    return issue


@every_gate
@every_size
def test_logits_are_the_dense_ones_exactly_where_theory_says(issue, n_expert: int, top_k: int, gate: Gate) -> None:
    """Gate weights that sum to 1 (all but softmax_topk with K < E) keep the function to 1e-5; the other does not."""
    found, *_ = issue(n_expert, top_k, gate)
    preserved = gate != "softmax_topk" or top_k == n_expert
    assert found["logit_gap_zero_in_theory"] == preserved
    if preserved:
        assert found["logit_gap"] <= ZERO_GAP == 1e-5
        assert "function is preserved" in found["statement"]
    else:
        assert found["logit_gap"] > 0.05
        assert "function is not preserved" in found["statement"]
        assert "sum to less than 1" in found["statement"]


@every_gate
@every_size
def test_router_gets_no_cross_entropy_gradient_from_identical_experts(issue, n_expert, top_k, gate) -> None:
    """Zero at step 0 in every layer, unless the gate's weights do not sum to 1 (then the router scales the output)."""
    start = issue(n_expert, top_k, gate)[0]["router_gradient"]["step_0"]
    healthy = gate != "softmax_topk" or top_k == n_expert
    assert start["zero"] == healthy
    assert (start["share"] <= ZERO_SHARE) == healthy
    assert len(start["by_layer"]) == 2
    if not healthy:
        assert min(start["by_layer"]) > 1e-3


@every_gate
@every_size
def test_router_learns_after_one_step_unless_its_gate_starves_it(issue, n_expert, top_k, gate) -> None:
    """Zero again only for K = 1 whose one weight is always 1: top-1 under Eq. 15, or renormalised; said in words."""
    found, *_ = issue(n_expert, top_k, gate)
    after = found["router_gradient"]["step_1"]
    starved = top_k == 1 and gate != "softmax_topk"
    assert after["zero"] == starved
    assert (after["share"] > 1e-3) == (not starved)
    assert ("starves the router" in found["statement"]) == starved


def test_top_1_under_equation_15_has_a_router_gradient_of_exactly_zero(issue) -> None:
    gradient = issue(8, 1, "topk_softmax")[0]["router_gradient"]
    assert gradient["step_0"]["norm"] == gradient["step_1"]["norm"] == 0


@pytest.mark.parametrize(("n_expert", "top_k"), SIZES)
def test_experts_are_copies_and_all_else_is_untouched_bit_for_bit(issue, n_expert: int, top_k: int) -> None:
    """Also after the receipt, whose optimizer step is taken on models of its own."""
    found, dense, upcycled = issue(n_expert, top_k, "topk_softmax")
    assert found["expert_distance"] == 0
    assert found["expert_distance_by_layer"] == [0, 0]
    parent, state = dense.state_dict(), upcycled.state_dict()
    for name, weight in state.items():
        if name.endswith(("moe.w_in", "moe.w_out")):
            expected = parent.pop(name.replace(".moe.", ".mlp."))
            assert weight.shape[0] == n_expert
            assert all(torch.equal(expert, expected) for expert in weight)
        elif not name.endswith("moe.router.weight"):
            assert torch.equal(weight, parent.pop(name))
    assert not parent


def test_the_router_is_that_of_a_moe_from_scratch_of_the_same_seed(small: ModelSpec, build) -> None:
    moe = MoESpec(n_expert=8, top_k=2)
    scratch = Transformer(small, moe)
    init_weights(scratch, seed=3)
    states = [upcycle("copy", build().state_dict(), small, moe, seed=seed) for seed in (3, 3, 4)]
    for layer in range(small.n_layer):
        name = f"blocks.{layer}.moe.router.weight"
        assert torch.equal(states[0][name], scratch.state_dict()[name])
        assert torch.equal(states[0][name], states[1][name])
        assert not torch.equal(states[0][name], states[2][name])


def test_upcycled_weights_do_not_share_memory_with_the_dense_ones(small: ModelSpec, build) -> None:
    dense = build().state_dict()
    before = {name: weight.clone() for name, weight in dense.items()}
    for weight in upcycle("copy", dense, small, MoESpec(n_expert=4, top_k=2), seed=0).values():
        weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in dense.items())


def test_expert_distance_is_the_largest_between_two_experts(issue) -> None:
    """One expert scaled by 1.5 lies half its norm from the others."""
    _, dense, upcycled = deepcopy(issue(4, 2, "topk_softmax"))
    with torch.no_grad():
        upcycled.mixtures[1].w_in[2] *= 1.5
        upcycled.mixtures[1].w_out[2] *= 1.5
    found = receipt(dense, upcycled)
    assert found["expert_distance_by_layer"] == [0, pytest.approx(0.5, rel=1e-6)]
    assert found["expert_distance"] == pytest.approx(0.5, rel=1e-6)


def test_the_receipts_step_takes_cross_entropy_and_balance_loss_and_its_gradients_cross_entropy_alone(
    small: ModelSpec, build
) -> None:
    """Another coefficient of the balance loss changes the gradient after the step, not the one before it."""
    gradients = []
    for aux_coef in (0.0, 10.0):
        moe = MoESpec(n_expert=4, top_k=2, gate="softmax_topk", aux_coef=aux_coef)
        upcycled = Transformer(small, moe)
        upcycled.load_state_dict(upcycle("copy", build().state_dict(), small, moe, seed=3))
        gradients.append(receipt(build(), upcycled)["router_gradient"])
    assert gradients[0]["step_0"] == gradients[1]["step_0"]
    assert gradients[0]["step_1"]["norm"] != pytest.approx(gradients[1]["step_1"]["norm"], rel=1e-3)


def test_a_receipt_in_micro_batches_differs_in_rounding_only(small: ModelSpec, build) -> None:
    """As training: a batch that does not fit memory whole is measured in the parts that do."""
    moe = MoESpec(n_expert=4, top_k=2, balance_group=2)
    upcycled = Transformer(small, moe)
    upcycled.load_state_dict(upcycle("copy", build().state_dict(), small, moe, seed=3))
    whole, parts = (receipt(build(), upcycled, micro_batch=size) for size in (None, 2))
    assert parts["logit_gap"] <= ZERO_GAP
    for step in ("step_0", "step_1"):
        found, wanted = (each["router_gradient"][step] for each in (parts, whole))
        assert found["zero"] == wanted["zero"]
        assert found["share"] == pytest.approx(wanted["share"], rel=1e-3, abs=ZERO_SHARE)


def test_the_receipt_is_json_and_names_gate_method_and_bounds(issue) -> None:
    found = json.loads(json.dumps(issue(8, 2, "softmax_topk_renormalised")[0], allow_nan=False))
    assert (found["method"], found["gate"]) == ("copy", "softmax_topk_renormalised")
    assert (found["n_expert"], found["top_k"]) == (8, 2)
    bound = ZERO_GAP * max(found["largest_logit"], 1)
    assert found["largest_logit"] > 0
    assert (found["logit_gap_bound"], found["router_gradient"]["zero_share"]) == (bound, ZERO_SHARE)


def test_a_new_method_is_one_decorated_function(small: ModelSpec, build, monkeypatch) -> None:
    monkeypatch.setattr(upcycling_methods, "METHODS", dict(upcycling_methods.METHODS))

    @upcycling_methods.method(exact=False)
    def halved(mlp: upcycling_methods.DenseMLP) -> dict[str, torch.Tensor]:
        return mlp.experts(lambda gate, up, down, _: (gate / 2, up / 2, down))

    dense = build().state_dict()
    state = upcycle("halved", dense, small, MoESpec(n_expert=4, top_k=2), seed=0)
    assert torch.equal(state["blocks.1.moe.w_in"][3], dense["blocks.1.mlp.w_in"] / 2)


def test_an_unknown_method_is_refused_with_the_nearest_name(small: ModelSpec, build) -> None:
    with pytest.raises(UserError, match="unknown upcycling method `cpoy`; did you mean `copy`"):
        upcycle("cpoy", build().state_dict(), small, MoESpec(n_expert=4, top_k=2), seed=0)


@pytest.mark.parametrize("damage", ["missing", "shape", "extra"])
def test_weights_of_another_model_are_refused_by_name(small: ModelSpec, build, damage: str) -> None:
    state = build().state_dict()
    name = "blocks.1.mlp.w_in"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:-1]
    else:
        name = "blocks.2.mlp.w_in"
        state[name] = state["blocks.1.mlp.w_in"]
    with pytest.raises(UserError, match=f"dense weights do not fit the model: {name}"):
        upcycle("copy", state, small, MoESpec(n_expert=4, top_k=2), seed=0)


# --- the methods: what each promises


SHAPES_OF_EXPERTS = {"fine_grained": {"granularity": 2}, "shared_expert": {"shared_expert": 1}}
"""Of methods that make others than copies of the dense MLP's."""


def made(build, method: str, n_expert: int = 4, seed: int = 3, **parameters) -> tuple[dict, dict]:
    """The dense state and that of the mixture (n_expert, 2) that the method makes of it."""
    dense = build()
    moe = MoESpec(n_expert=n_expert, top_k=2, **SHAPES_OF_EXPERTS.get(method, {}))
    return dense.state_dict(), upcycle(method, dense.state_dict(), dense.model, moe, seed, UpcyclingSpec(**parameters))


@every_method
def test_an_expert_depends_on_seed_layer_and_number_alone(build, method: str) -> None:
    """Not on how many others there are; another seed, layer or expert draws otherwise, if the method draws at all."""
    few, more, other = (made(build, method, *args)[1] for args in ((4, 3), (8, 3), (4, 4)))
    for matrix in ("w_in", "w_out"):
        name = f"blocks.1.moe.{matrix}"
        assert torch.equal(few[name], more[name][:4])
        assert torch.equal(few[name], other[name]) == (method in ("copy", "fine_grained", "shared_expert"))


@every_method
def test_the_receipt_states_in_theory_and_measures_whether_the_function_is_preserved(build, method: str) -> None:
    _, state = made(build, method)
    shape = SHAPES_OF_EXPERTS.get(method, {})
    upcycled = Transformer(build().model, MoESpec(n_expert=4, top_k=2, **shape))
    upcycled.load_state_dict(state)
    found = receipt(build(), upcycled, method=method)
    exact = upcycling_methods.METHODS[method].exact
    assert found["method"] == method
    assert found["parameters"] == method_parameters()[method]
    assert found["logit_gap_zero_in_theory"] == exact
    assert (found["logit_gap"] <= found["logit_gap_bound"]) == exact
    assert found["router_gradient"]["step_0"]["zero"] == (exact and method != "fine_grained")
    assert not found["router_gradient"]["step_1"]["zero"]
    assert (found["expert_distance"] == 0) == (method in ("copy", "shared_expert"))
    assert ("learns at once" in found["statement"]) != found["router_gradient"]["step_0"]["zero"]


def matrices_of(state: dict, expert: int) -> list[torch.Tensor]:
    """Gate and up (M, D) and down transposed (M, D) of an expert of the second layer: a hidden unit is a row."""
    return [*state["blocks.1.moe.w_in"][expert].chunk(2), state["blocks.1.moe.w_out"][expert].T]


def dense_matrices(state: dict) -> list[torch.Tensor]:
    return [*state["blocks.1.mlp.w_in"].chunk(2), state["blocks.1.mlp.w_out"].T]


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_noise_is_relative_to_each_matrix(build, std: float) -> None:
    """Gate, up and down each by their own standard deviation, within four standard errors."""
    dense, state = made(build, "noise", std=std)
    for matrix, other in zip(dense_matrices(dense), matrices_of(state, 2), strict=True):
        assert ((other - matrix).std() / matrix.std()).item() == pytest.approx(std, rel=4 / (2 * 4096) ** 0.5)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_reinit_redraws_a_share_of_the_weights_as_from_scratch(build, small: ModelSpec, share: float) -> None:
    """The others are the dense ones bit for bit; bounds are four standard errors of 4,096 draws."""
    dense, state = made(build, "reinit", share=share)
    stds = (small.weight_std, small.weight_std, small.output_std)
    for matrix, other, std in zip(dense_matrices(dense), matrices_of(state, 2), stds, strict=True):
        redrawn = other != matrix
        assert redrawn.float().mean().item() == pytest.approx(share, abs=4 * (share / 4096) ** 0.5)
        assert other[redrawn].std().item() == pytest.approx(std, rel=4 / (2 * share * 4096) ** 0.5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_drop_redraws_whole_hidden_units_by_the_statistics_of_what_was_dropped(build, share, shared) -> None:
    """The same units of gate, up and down, or those that each matrix draws; the others are the dense ones."""
    dense, state = made(build, "drop", share=share, shared_indices=shared)
    matrices = dense_matrices(dense)
    for matrix in matrices:
        matrix += 0.5  # a mean that a draw around zero would miss (a view: the state has it too)
    state = upcycle(
        "drop", dense, build().model, MoESpec(n_expert=4, top_k=2), 3, UpcyclingSpec(share=share, shared_indices=shared)
    )
    found = set()
    for matrix, other in zip(matrices, matrices_of(state, 2), strict=True):
        dropped = (other != matrix).all(dim=1)
        assert torch.equal(dropped, (other != matrix).any(dim=1))
        assert dropped.sum().item() == int(share * len(matrix))
        old, new = matrix[dropped], other[dropped]
        error = old.std().item() / new.numel() ** 0.5
        assert new.mean().item() == pytest.approx(old.mean().item(), abs=4 * error)
        assert new.std().item() == pytest.approx(old.std().item(), abs=4 * error)
        found.add(tuple(dropped.tolist()))
    assert len(found) == (1 if shared else 3)


def test_low_rank_replaces_matrices_by_their_nearest_of_that_rank(build) -> None:
    """About half of 3 x 16, each whole; the error is that of the singular values left out."""
    dense, state = made(build, "low_rank", n_expert=16, rank=0.25)
    replaced = 0
    for expert in range(16):
        for matrix, other in zip(dense_matrices(dense), matrices_of(state, expert), strict=True):
            if torch.equal(matrix, other):
                continue
            replaced += 1
            assert torch.linalg.matrix_rank(other.double(), rtol=1e-5).item() == 8
            left_out = torch.linalg.svdvals(matrix)[8:].norm().item()
            assert (matrix - other).norm().item() == pytest.approx(left_out, rel=1e-4)
    assert 10 <= replaced <= 38


def test_permuted_experts_are_the_dense_hidden_units_in_another_order(build) -> None:
    dense, state = made(build, "permuted")
    units = torch.cat(dense_matrices(dense), dim=1)
    for expert in range(4):
        other = torch.cat(matrices_of(state, expert), dim=1)
        assert not torch.equal(units, other)
        assert sorted(map(tuple, units.tolist())) == sorted(map(tuple, other.tolist()))
