"""What is written down about a run: its curve row by row, its times, the machine and the software."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import numpy
import torch

import upcycle
from upcycle.manifest import FIX, DamagedError, read_file
from upcycle.train.states.checkpoint import disk_full_is_named, write_bytes
from upcycle.train.trackers import Trackers


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line, in the order of steps. Survives kills: see `cut_back`."""

    def __init__(self, path: Path, *, writes: bool = True, trackers: Trackers | None = None) -> None:
        """`writes`: of several processes one; the others' rows go nowhere, and they read none.

        `trackers` get every row, those that are there first.
        """
        self._trackers = trackers or Trackers()
        self._path = path if writes else Path(os.devnull)
        self._writes = writes

    def __enter__(self) -> MetricsLog:
        self._file: FileIO = self._path.open("ab", buffering=0)  # nothing is left to fail when it is closed
        self._trackers.replay(self.rows())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        self._trackers.close(failed=kind is not None)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; it reaches the operating system at once, the disk at the next `sync`.

        Raises TrainingError if the disk is full. It fails on the process that writes alone: call within
        `Group.together`.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with disk_full_is_named(self._path):
            while line:  # a disk that fills up takes a part
                line = line[self._file.write(line) :]
        self._trackers.log(row)

    def sync(self) -> None:
        """Make the rows durable: before the state that follows them is published."""
        if self._writes:
            with disk_full_is_named(self._path):
                os.fsync(self._file.fileno())

    def cut_back(self, step: int, start: int = 0) -> None:
        """Drop rows after `step`, and a torn last line, so that a resumed run writes none twice. Call before `with`.

        Rows up to `start`, where the run's segment begins, go too (but for the one before the first update of all): of
        a beginning that left no state the planned segment may have been longer. Raises DamagedError if none is left
        though updates were done: their rows were durable before the state was.
        """
        if not self._writes:
            return
        rows = [row for row in self.rows() if start < row["step"] <= step or row["step"] == start == 0]
        if step > start and not any("loss" in row for row in rows):
            raise DamagedError(f"{self._path}: has no row of the updates up to the saved step {step}; {FIX}")
        write_bytes(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows so far. Raises DamagedError naming the line that is none."""
        lines = (read_file(self._path) or b"").split(b"\n")
        rows = []
        for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a torn row
            try:
                row = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise DamagedError(f"{self._path}: line {number} is damaged; {FIX}")
            rows.append(row)
        return rows


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is never written")


@dataclass
class Clock:
    """Seconds spent on a run by phase, summed over all attempts that contributed to it; saved with its state."""

    started: str = field(default_factory=lambda: now())
    """When the first attempt began, ISO 8601 UTC."""
    resumed: int = 0
    """How often training went on from a rolling state."""
    startup: float = 0.0
    """From the start of the process to the first step: imports, loading, building."""
    train: float = 0.0
    """Updates: making the batch, forward, backward, optimizer."""
    data: float = 0.0
    """Of `train`: making batches and copying them to the device."""
    gemm_flops: float = 0.0
    """What bare matrix products would have done in the seconds of `train`, on the machines that trained."""
    evaluate: float = 0.0
    save: float = 0.0
    """Lost by the training thread: snapshots, and waiting for a save that was still under way."""
    save_background: float = 0.0
    """Writing states beside the training, in no sum."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within to `startup`, `train`, `data` (itself within `train`), `evaluate` or `save`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - begun)

    def add_background(self, seconds: float) -> None:
        """Add to `save_background`, which only the saving thread writes."""
        self.save_background += seconds

    @property
    def wall(self) -> float:
        """Seconds of all phases (`train` includes `data`)."""
        return self.startup + self.train + self.evaluate + self.save

    def continue_from(self, earlier: Clock) -> None:
        """Add the sums of the attempts before this one."""
        self.started = earlier.started
        self.resumed = earlier.resumed + 1
        for sum_ in ("startup", "train", "data", "gemm_flops", "evaluate", "save", "save_background"):
            setattr(self, sum_, getattr(self, sum_) + getattr(earlier, sum_))

    def notes(self) -> dict[str, Any]:
        """JSON-able; `Clock(**notes)` is this clock again."""
        return asdict(self)


def now() -> str:
    """This moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_trained_before = False


def process_seconds() -> float:
    """Seconds that this process took before its first training (imports); 0 for a later one and where unknown."""
    global _trained_before
    if _trained_before or not Path("/proc/self/stat").exists():
        return 0.0
    _trained_before = True
    # Field 22 of stat is the start in clock ticks since boot; fields are counted after the command's last bracket.
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


def hardware(device: str) -> dict[str, Any]:
    """The machine, as far as numerics and speed depend on it."""
    described: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "gpus": torch.cuda.device_count()}
    return described


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def software() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {
        "upcycle": upcycle.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
    }
