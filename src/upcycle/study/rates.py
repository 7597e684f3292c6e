"""How long a run takes: from the speed of finished runs of the same shape, else from the rate that its study gives.

Layer 0. Runs of one shape train at one speed, whatever their data and schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from upcycle.errors import UserError
from upcycle.files import read_record
from upcycle.study.counting import flops_per_token
from upcycle.study.execution import DEFAULT_RATES, Execution
from upcycle.study.spec import RunSpec

Speeds = Mapping[str, float]
"""Tokens per second by `shape_key`."""


def expected_seconds(run: RunSpec, execution: Execution, speeds: Speeds) -> float:
    """Seconds of training that a run's own segment takes, without start-up, saving and evaluation."""
    speed = speeds.get(shape_key(run))
    if speed:
        return run.segment_tokens / speed
    return flops_per_token(run.model, run.moe) * run.segment_tokens / execution.expected_rate


def source_of_seconds(run: RunSpec, execution: Execution, speeds: Speeds) -> str:
    """Where `expected_seconds` has its rate from, in words."""
    if shape_key(run) in speeds:
        return "measured speed"
    if execution.flops_per_second:
        return f"execution.flops_per_second ({execution.flops_per_second:.3g})"
    device = "GPU (an H100)" if execution.device == "cuda" else "CPU's thread"
    return f"the default for a {device} ({DEFAULT_RATES[execution.device]:.3g} FLOP/s; execution.flops_per_second)"


def shape_key(run: RunSpec) -> str:
    """Runs that train at one speed: same model, mixture, batch and precision."""
    return f"{run.model!r} {run.moe!r} {run.optim.batch} {run.dtype}"


def measured_speeds(runs: Iterable[RunSpec], results: Path) -> dict[str, float]:
    """Tokens per second of those runs that are finished, by shape.

    Raises UserError naming the metrics.json that does not state them.
    """
    return speeds_by_shape(trained for run in runs if (trained := trained_time(run, results)))


def trained_time(run: RunSpec, results: Path) -> tuple[RunSpec, float, float] | None:
    """A run, the tokens that its job trained and the seconds that it took; None if it is not finished.

    Raises UserError naming a metrics.json that does not state them.
    """
    found = _measured(run, results, "segment_tokens", "train_seconds")
    return (run, found[0], found[1]) if found else None


def _measured(run: RunSpec, results: Path, *names: str) -> list[float] | None:
    """Numbers of a finished run's metrics.json; None if it is not finished, or simulated.

    Raises UserError naming a file without them.
    """
    path = results / "runs" / run.id / "metrics.json"
    if not path.exists():
        return None
    metrics = read_record(path)
    if metrics.get("simulated"):
        return None
    for name in names:
        if not isinstance(metrics[name], int | float):
            raise UserError(f"{path} is damaged: {name} is not a number; `upcycle train {run.id}` restores it")
    return [metrics[name] for name in names]


def speeds_by_shape(trained: Iterable[tuple[RunSpec, float, float]]) -> dict[str, float]:
    """Tokens per second by shape, all tokens over all seconds, of (run, its tokens, its seconds of training)."""
    tokens: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for run, more, time in trained:
        tokens[shape_key(run)] += more
        seconds[shape_key(run)] += time
    return {key: tokens[key] / seconds[key] for key in tokens if seconds[key] > 0}


def measured_overhead(runs: Iterable[RunSpec], results: Path) -> float:
    """Seconds of a job beside training (start-up, evaluation, saving), on average of finished runs; 0 without any."""
    found = [times for run in runs if (times := _measured(run, results, "wall_seconds", "train_seconds"))]
    return sum(wall - train for wall, train in found) / len(found) if found else 0.0
