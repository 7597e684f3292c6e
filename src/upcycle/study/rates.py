"""How long a run takes: from the speed of finished runs of the same shape, else from the rate that its study gives.

Layer 0. Runs of one shape train at one speed on so many devices of one kind, whatever their data and schedule. A speed
that was measured with another number of devices is taken as proportional to their number, which communication and
smaller shares of the batch make optimistic for more devices, pessimistic for fewer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from upcycle.errors import UserError
from upcycle.files import read_record
from upcycle.study.counting import flops_per_token
from upcycle.study.execution import DEFAULT_RATES, Execution
from upcycle.study.spec import RunSpec

Speeds = Mapping[str, Mapping[int, float]]
"""Tokens per second of a job, by `shape_key` and by the number of devices that it was measured with."""


@dataclass(frozen=True)
class MeasuredRun:
    """What a finished run says of the speed of its shape."""

    run: RunSpec
    device: str
    devices: int
    tokens: float
    """That its job trained."""
    train_seconds: float
    wall_seconds: float
    """With start-up, evaluation and saving."""


def expected_seconds(run: RunSpec, execution: Execution, speeds: Speeds) -> float:
    """Seconds of training that a run's own segment takes, without start-up, saving and evaluation."""
    measured = speeds.get(shape_key(run, execution.device))
    if measured:
        devices = _nearest(measured, execution.devices)
        return run.segment_tokens / (measured[devices] * execution.devices / devices)
    return flops_per_token(run.model, run.moe) * run.segment_tokens / execution.expected_rate


def source_of_seconds(run: RunSpec, execution: Execution, speeds: Speeds) -> str:
    """Where `expected_seconds` has its rate from, in words."""
    if measured := speeds.get(shape_key(run, execution.device)):
        devices = _nearest(measured, execution.devices)
        if devices == execution.devices:
            return "measured speed"
        count = "1 device" if devices == 1 else f"{devices} devices"
        return f"the speed measured with {count}, taken as proportional to the number of devices"
    if execution.flops_per_second:
        return f"execution.flops_per_second ({execution.flops_per_second:.3g})"
    device = "GPU (an H100)" if execution.device == "cuda" else "CPU's thread"
    return f"the default for a {device} ({DEFAULT_RATES[execution.device]:.3g} FLOP/s; execution.flops_per_second)"


def _nearest(measured: Mapping[int, float], devices: int) -> int:
    """The number of devices, of those that were measured, whose ratio to another is nearest to 1."""
    return min(measured, key=lambda each: (abs(math.log(each / devices)), each))


def shape_key(run: RunSpec, device: str) -> str:
    """Runs that train at one speed: same model, mixture, batch and precision, on the same kind of device."""
    return f"{run.model!r} {run.moe!r} {run.optim.batch} {run.dtype} {device}"


def measured_runs(runs: Iterable[RunSpec], results: Path) -> list[MeasuredRun]:
    """Those of these runs that are finished, and not simulated.

    Raises UserError naming a metrics.json that does not state its speed.
    """
    return [found for run in runs if (found := measured_run(run, results))]


def measured_run(run: RunSpec, results: Path) -> MeasuredRun | None:
    """A run's speed; None if it is not finished, or simulated.

    Raises UserError naming a metrics.json that does not state it.
    """
    path = results / "runs" / run.id / "metrics.json"
    if not path.exists():
        return None
    metrics = read_record(path)
    if metrics.get("simulated"):
        return None
    execution = metrics["execution"] if isinstance(metrics["execution"], dict) else {}
    names = ("segment_tokens", "train_seconds", "wall_seconds")
    numbers = {**{name: metrics[name] for name in names}, "execution.devices": execution.get("devices")}
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise UserError(f"{path} is damaged: {name} is not a number; `upcycle train {run.id}` restores it")
    tokens, train, wall, devices = numbers.values()
    return MeasuredRun(run, str(execution.get("device")), int(devices), tokens, train, wall)


def speeds_by_shape(measured: Iterable[MeasuredRun]) -> dict[str, dict[int, float]]:
    """Tokens per second by shape and number of devices: all tokens over all seconds of training."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for each in measured:
        total = sums[shape_key(each.run, each.device), each.devices]
        total[0] += each.tokens
        total[1] += each.train_seconds
    speeds: dict[str, dict[int, float]] = defaultdict(dict)
    for (key, devices), (tokens, seconds) in sums.items():
        if seconds > 0:
            speeds[key][devices] = tokens / seconds
    return dict(speeds)


def mean_overhead(measured: Iterable[MeasuredRun]) -> float:
    """Seconds of a job beside training (start-up, evaluation, saving), on average of finished runs; 0 without any."""
    beside = [each.wall_seconds - each.train_seconds for each in measured]
    return sum(beside) / len(beside) if beside else 0.0
