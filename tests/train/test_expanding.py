"""Mixtures made of mixtures through the training of a run: chains, kill and resume, the receipt, D1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preempted import preempt_at
from safetensors.torch import load_file
from small_runs import rows_of, small_run, tensors_sha256, train_in

from upcycle.errors import UserError
from upcycle.study.spec import RunSpec

MIXTURES = {k: {"n_expert": k, "top_k": k // 2, "balance_group": 2} for k in (4, 8)}
MIXTURES[2] = {"n_expert": 2, "top_k": 1, "gate": "softmax_topk_renormalised", "balance_group": 2}


def expanded_run(parent: RunSpec, moe: dict[str, Any], **changes: Any) -> RunSpec:
    """A run that begins with copies of the experts of `parent`."""
    start = {"moe": moe, "origin": "upcycle:expand", "dense_parent": parent.id, "parent": parent.id}
    known = {"dense_tokens": parent.all_tokens, "parent_moe": parent.moe}
    return small_run(**start | known | changes)


@pytest.fixture(scope="module")
def family(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunSpec]]:
    """2x1 from scratch, expanded to 4x2 without noise, and that to 8x4 with noise; each trained."""
    root = tmp_path_factory.mktemp("expanded")
    first = small_run(moe=MIXTURES[2])
    second = expanded_run(first, MIXTURES[4], upcycling={"router_noise": 0})
    third = expanded_run(second, MIXTURES[8], upcycling={"router_noise": 0.3})
    for run in (first, second, third):
        train_in(root, tokens_dir, run)
    return root, [first, second, third]


def test_a_chain_of_expansions_is_trained_and_d1_is_all_tokens_before(family: tuple[Path, list[RunSpec]]) -> None:
    root, (first, second, third) = family
    assert (second.dense_tokens, third.dense_tokens) == (first.tokens, first.tokens + second.tokens)
    found = json.loads((root / third.id / "metrics.json").read_text())
    assert (found["kind"], found["dense_parent"], found["dense_tokens"]) == ("up", second.id, third.dense_tokens)
    assert load_file(root / third.id / "weights.safetensors")["blocks.0.moe.w_in"].shape[0] == 8


def test_the_receipt_is_measured_against_the_parent_mixture(family: tuple[Path, list[RunSpec]]) -> None:
    """All copies of the chosen expert without noise: no logit moves. With noise some do, and theory says so."""
    root, (_, second, third) = family
    exact, noisy = (json.loads((root / run.id / "receipt.json").read_text()) for run in (second, third))
    assert exact["logit_gap_zero_in_theory"]
    assert exact["logit_gap"] <= exact["logit_gap_bound"]
    assert "The parent's function is preserved" in exact["statement"]
    assert "a token's 2 experts are copies of its best 1" in exact["statement"]
    assert not noisy["logit_gap_zero_in_theory"]
    assert noisy["logit_gap"] > 100 * noisy["logit_gap_bound"]
    assert noisy["parameters"] == {"router_noise": 0.3}
    assert not noisy["router_gradient"]["step_0"]["zero"]


@pytest.mark.parametrize("stop_after", [1, 7])
def test_stopped_and_resumed_equals_undisturbed(
    stop_after: int, family: tuple[Path, list[RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """Bits of weights and moments, and every row."""
    undisturbed, (_, second, third) = family
    (tmp_path / second.id).symlink_to(undisturbed / second.id)
    preempt_at(stop_after, tmp_path, tokens_dir, third)
    assert not (tmp_path / third.id / "metrics.json").exists()
    train_in(tmp_path, tokens_dir, third)
    assert tensors_sha256(tmp_path / third.id) == tensors_sha256(undisturbed / third.id)
    assert rows_of(tmp_path / third.id) == rows_of(undisturbed / third.id)


def test_a_parent_that_is_another_mixture_than_stated_is_refused(
    family: tuple[Path, list[RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """By the first weight that does not fit, before a step is trained."""
    root, (first, second, _) = family
    (tmp_path / first.id).symlink_to(root / first.id)
    run = second.model_copy(update={"parent_moe": first.moe.model_copy(update={"n_expert": 1})})
    with pytest.raises(UserError, match=r"mixture's weights do not fit the model: blocks.0.moe.w_in is \(2, "):
        train_in(tmp_path, tokens_dir, run)
