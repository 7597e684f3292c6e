"""Speed, data time and model FLOPs utilisation of a run, and the rate that it is measured against."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from preempted import preempt_at
from small_runs import EXECUTION, MOE, small_run, train_in

from upcycle.study.counting import flops_per_token
from upcycle.train import trainee, utilisation
from upcycle.train.record import Clock
from upcycle.train.states.rolling import load_rolling


@pytest.mark.parametrize("moe", [None, MOE])
def test_every_update_row_and_the_metrics_say_how_fast_it_went(
    moe: dict | None, tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MFU is tokens/s x FLOPs a token over the recorded rate; the time to make a batch is part of the step's."""
    run, slow = small_run(moe=moe), 0.01
    make = trainee.batch

    def slowly(*arguments: object, **named: object) -> object:
        time.sleep(slow)
        return make(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(trainee, "batch", slowly)
    run_dir = train_in(tmp_path, tokens_dir, run)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if "loss" in row]
    assert len(updates) == run.end_step
    for row in [*updates, metrics]:
        assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(run.tokens_per_step, rel=1e-3)
        expected = row["tokens_per_second"] * flops_per_token(run.model, run.moe) / metrics["gemm_flops_per_second"]
        assert row["mfu"] == pytest.approx(expected, abs=1e-5)
        assert 0 < row["mfu"] < 1
    assert all(slow <= row["data_seconds"] < row["step_seconds"] for row in updates)
    assert slow * run.end_step <= metrics["data_seconds"] < metrics["train_seconds"] < metrics["wall_seconds"]


def test_data_time_is_a_part_of_training_time() -> None:
    """It is not counted a second time, and is carried over from the attempts before."""
    clock = Clock(train=5.0, data=2.0, save=1.0)
    assert clock.wall == 6.0
    clock.continue_from(Clock(train=3.0, data=0.5))
    assert (clock.train, clock.data, clock.wall) == (8.0, 2.5, 9.0)
    assert Clock(started="2026-01-01", train=1.0).data == 0.0, "states saved before it was measured are read"


def test_the_rate_is_measured_once_a_process_with_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most six, of the FLOPs that take milliseconds; then the rate is known. No random number is drawn."""
    run, state = small_run(), torch.get_rng_state()
    flops = []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> float:
        flops.append(2 * x.numel() * len(weight))
        return seconds_of_product(x, weight)

    seconds_of_product = utilisation._seconds_of_product
    utilisation._measure.cache_clear()
    monkeypatch.setattr(utilisation, "_seconds_of_product", counted)
    rate = utilisation.gemm_rate(run, EXECUTION)
    assert 2 <= len(flops) <= 1 + utilisation.REPETITIONS
    assert max(flops) <= utilisation.GEMM_FLOPS["cpu"]
    assert rate > 0
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(utilisation, "_seconds_of_product", None)
    assert utilisation.gemm_rate(run, EXECUTION) == rate


def test_processes_share_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's tokens/s are set against the rate of all its processes."""
    run = small_run()
    monkeypatch.setattr(utilisation, "gemm_rate", lambda *_: 1e9)
    one = utilisation.utilisation(run, 1000.0, utilisation.job_rate(run, EXECUTION))
    four = utilisation.job_rate(run, EXECUTION.model_copy(update={"devices": 4}))
    assert utilisation.utilisation(run, 1000.0, four) == pytest.approx(one / 4)


def test_a_run_that_moved_is_measured_against_the_machines_that_it_ran_on(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped on one machine and finished on one four times as fast: each second counts at its machine's rate."""
    run, slow, fast = small_run(), 1e9, 4e9
    with monkeypatch.context() as patch:
        patch.setattr(utilisation, "gemm_rate", lambda *_: slow)
        preempt_at(5, tmp_path, tokens_dir, run)
    state = load_rolling(tmp_path / run.id / "resume", run.id)
    assert state is not None
    before = state.notes["clock"]["train"]
    monkeypatch.setattr(utilisation, "gemm_rate", lambda *_: fast)
    metrics = json.loads((train_in(tmp_path, tokens_dir, run) / "metrics.json").read_text())
    seconds = run.segment_tokens / metrics["tokens_per_second"]
    possible = slow * before + fast * (seconds - before)
    assert metrics["gemm_flops_per_second"] == pytest.approx(possible / seconds, rel=1e-3)
    assert metrics["mfu"] == pytest.approx(metrics["flops"] / possible, rel=1e-3, abs=1e-5)


def test_the_rate_is_that_of_the_runs_own_dtype_and_shape() -> None:
    """One measurement for each shape and dtype, of no more rows than the run has tokens."""
    utilisation._measure.cache_clear()
    for run in (small_run(), small_run(dtype="bfloat16"), small_run(optim={"lr": 1e-2, "batch": 8})):
        utilisation.gemm_rate(run, EXECUTION)
    assert utilisation._measure.cache_info().currsize == 3
