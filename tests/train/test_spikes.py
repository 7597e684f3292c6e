"""Updates that are skipped: which, what they leave alone, and that stops and segments change nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preempted import preempt_at
from safetensors.torch import load_file
from small_runs import MOE, rows_of, small_run, tensors_sha256, train_in

from upcycle.study.spec import RunSpec
from upcycle.train import step
from upcycle.train.processes.preemption import TrainingError
from upcycle.train.spikes import MOST_IN_A_ROW, Spikes
from upcycle.train.step import Sums
from upcycle.train.trainee import Trainee

OPTIM = {"lr": 2e-2, "batch": 4, "skip_above": 6.0}
BAD = {11: math.nan, 14: 1e4, 15: math.nan}
"""Updates whose loss and gradient are multiplied by this."""


@pytest.fixture
def window_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upcycle.train.spikes.WINDOW", 8)


@pytest.fixture
def bad_updates(monkeypatch: pytest.MonkeyPatch, window_of_eight: None) -> dict[int, float]:
    """The factors by update; a test may change them."""
    accumulate, factors = step.accumulate, dict(BAD)

    def wild(trainee: Trainee, ids: np.ndarray) -> Sums:
        sums = accumulate(trainee, ids)
        factor = factors.get(trainee.step + 1, 1.0)
        for parameter in trainee.model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        return replace(sums, loss=sums.loss * factor)

    monkeypatch.setattr(step, "accumulate", wild)
    return factors


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_what_lies_far_above_the_updates_before_is_skipped_and_does_not_count_among_them(window_of_eight: None) -> None:
    """By the loss or by the gradient's norm, once the window is full; a sudden fall is none."""
    spikes = Spikes(6.0)
    usual = [(3.0 + 0.1 * (k % 2), 1.0 + 0.1 * (k % 3)) for k in range(8)]
    assert not any(spikes.skip(*each) for each in [(3.0, 50.0), *usual]), "the window was not full"
    for loss, norm in ((9.0, 1.0), (3.0, 9.0), (math.nan, 1.0), (3.0, math.nan), (math.inf, 1.0), (3.4, 1.0)):
        assert spikes.skip(loss, norm), (loss, norm)
    assert (spikes.skipped, spikes.in_a_row) == (6, 6)
    assert spikes.taken == usual
    assert not spikes.skip(0.5, 0.1)
    assert (spikes.skipped, spikes.in_a_row) == (6, 0)
    assert spikes.taken == [*usual[1:], (0.5, 0.1)]
    assert Spikes(**json.loads(json.dumps(spikes.notes()["spikes"]))).skip(9.0, 1.0)


def test_nothing_is_skipped_without_the_setting_nor_at_the_first_update() -> None:
    off, on = Spikes(), Spikes(6.0)
    assert not off.skip(math.nan, 1.0)
    assert not on.skip(math.nan, 1.0)
    assert off.notes() == {}


def test_the_setting_is_in_the_identity_only_when_it_is_on() -> None:
    off, on = small_run(), small_run(optim=OPTIM)
    assert "skip_above" not in off.identity()["optim"]
    assert off.id == small_run(optim={"lr": 2e-2, "batch": 4, "skip_above": None}).id
    assert on.identity()["optim"]["skip_above"] == 6
    assert on.id != off.id


@pytest.mark.parametrize("moe", [None, MOE])
def test_skipped_updates_leave_weights_and_moments_alone_and_are_counted(
    moe: dict[str, int] | None, bad_updates: dict[int, float], tokens_dir: Path, tmp_path: Path
) -> None:
    """Each has a row. The weights after a skipped update are those before it, moments too."""
    run = small_run(optim=OPTIM, end_step=16, moe=moe)
    folder = train_in(tmp_path, tokens_dir, run)
    rows = [row for row in rows_of(folder) if "lr" in row]
    assert [row["step"] for row in rows if row.get("skipped")] == sorted(BAD)
    assert [row["loss"] is None for row in rows] == [math.isnan(BAD.get(row["step"], 1)) for row in rows]
    assert metrics_of(folder)["skipped_updates"] == 3
    before, after = (train_in(tmp_path, tokens_dir, run.model_copy(update={"end_step": end})) for end in (13, 15))
    assert metrics_of(before)["skipped_updates"] == 1
    for name in ("weights.safetensors", "state.safetensors"):
        left, right = load_file(before / name), load_file(after / name)
        assert all(left[key].equal(right[key]) for key in left)
    assert tensors_sha256(folder) != tensors_sha256(after), "the update after it is taken"


@pytest.mark.parametrize("stop_after", [10, 11, 14, 15])
def test_a_run_stopped_around_spikes_equals_the_undisturbed(
    stop_after: int, bad_updates: dict[int, float], tokens_dir: Path, tmp_path: Path
) -> None:
    """Bit for bit: what the next update is compared with is saved, and AdamW's count of steps."""
    run = small_run(optim=OPTIM, end_step=20)
    undisturbed = train_in(tmp_path / "undisturbed", tokens_dir, run)
    preempt_at(stop_after, tmp_path, tokens_dir, run)
    folder = train_in(tmp_path, tokens_dir, run)
    assert tensors_sha256(folder) == tensors_sha256(undisturbed)
    assert rows_of(folder) == rows_of(undisturbed)


def test_a_chain_of_segments_skips_what_one_run_skips(
    bad_updates: dict[int, float], tokens_dir: Path, tmp_path: Path
) -> None:
    whole = small_run(optim=OPTIM, end_step=20)
    undisturbed = train_in(tmp_path / "whole", tokens_dir, whole)
    parent: RunSpec | None = None
    for end in (11, 14, 20):
        start = {"start_step": parent.end_step, "parent": parent.id} if parent else {}
        parent = whole.model_copy(update={"end_step": end, **start})
        folder = train_in(tmp_path, tokens_dir, parent)
    assert tensors_sha256(folder) == tensors_sha256(undisturbed)
    assert metrics_of(folder)["skipped_updates"] == metrics_of(undisturbed)["skipped_updates"] == 3


def test_too_many_in_a_row_stop_the_run(bad_updates: dict[int, float], tokens_dir: Path, tmp_path: Path) -> None:
    """As a non-finite loss does without the setting."""
    bad_updates.update(dict.fromkeys(range(12, 40), math.nan))
    with pytest.raises(TrainingError, match=rf"step {11 + MOST_IN_A_ROW}: loss nan.*after {MOST_IN_A_ROW} in a row"):
        train_in(tmp_path, tokens_dir, small_run(optim=OPTIM, end_step=40))
