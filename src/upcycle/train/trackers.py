"""A run's curve in TensorBoard and Weights & Biases (`execution.trackers`), as copies of metrics.jsonl.

metrics.jsonl is the record. When a run starts or is resumed, its rows so far are handed to each tracker, which takes
those that it has not: so nothing is missing after a kill, and no step is there twice.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from upcycle.errors import UserError
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec

log = logging.getLogger(__name__)

PROJECT = "upcycle"
"""Project of Weights & Biases where WANDB_PROJECT names no other."""


class Tracker(Protocol):
    """Takes the rows of one attempt at a run: first those of metrics.jsonl so far, then each new one."""

    def log(self, index: int, row: Mapping[str, Any]) -> None:
        """The row of this number in metrics.jsonl."""

    def close(self, *, failed: bool) -> None:
        """Hand over what is left. `failed`: the run is not finished."""


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder, written anew by every attempt."""

    def __init__(self, run: RunSpec, run_dir: Path) -> None:
        folder = run_dir / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        # A TensorBoard that has read the files before forgets what it read from step 0 on.
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder), purge_step=0)
        self._writer.add_text("run", run.id, 0)

    def log(self, index: int, row: Mapping[str, Any]) -> None:
        """Its scalars at the row's step."""
        for name, value in scalars(row).items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases that has the run's id; `step` is the axis of its charts.

    Its own count is the row's number in metrics.jsonl, so a resumed run skips the rows that are there. Offline (mode
    of WANDB_MODE, or of `wandb offline`) nobody knows what was handed over: every attempt writes a folder with all
    rows, in place of the one before.
    """

    def __init__(self, run: RunSpec, run_dir: Path) -> None:
        self._library = wandb = importlib.import_module("wandb")
        before = list((run_dir / "wandb").glob("offline-run-*"))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run.id,
                name=run.id,
                dir=str(run_dir),
                config=run.model_dump(mode="json"),
                resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"execution.trackers: wandb: {error}; `wandb login`, set WANDB_MODE=offline, or leave wandb out"
            ) from None
        if self._run.offline:
            for folder in before:
                shutil.rmtree(folder)
        self._run.define_metric("*", step_metric="step")
        self._next = self._run.step

    def log(self, index: int, row: Mapping[str, Any]) -> None:
        """Its scalars, unless the row is there."""
        if index >= self._next:
            self._run.log(scalars(row), step=index)

    def close(self, *, failed: bool) -> None:
        """Wait until all rows are sent, or written."""
        self._run.finish(exit_code=int(failed))
        self._library.teardown()  # waits for the process that writes and sends, which would end with this one


KINDS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row: of each layer the router's entropy (`entropy/0`) and the largest load (`load_max/0`)."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name == "load":
            found |= {f"load_max/{layer}": max(shares) for layer, shares in enumerate(value)}
        elif isinstance(value, list):
            found |= {f"{name}/{layer}": number for layer, number in enumerate(value)}
        elif value is not None:  # else a number that is not finite
            found[name] = float(value)
    return found


class Trackers:
    """The trackers of one attempt. One that fails is left out, with a warning: no run ends for a copy of its curve."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        self._trackers = dict(trackers or {})
        self._rows = 0

    @classmethod
    def open(cls, run: RunSpec, run_dir: Path, execution: Execution) -> Trackers:
        """Those that `execution` names. Raises `UserError` for one that refuses."""
        return cls({name: KINDS[name](run, run_dir) for name in execution.trackers})

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand over the rows so far."""
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand over the next row."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(self._rows, row)
            except Exception as error:  # noqa: BLE001 - a library's, of its network, disk or server
                del self._trackers[name]
                log.warning("%s: %s; it is left out until the run is started again", name, error)
        self._rows += 1

    def close(self, *, failed: bool) -> None:
        """Let each hand over what is left."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:  # noqa: BLE001 - as in `log`
                log.warning("%s: %s; its last rows may be missing", name, error)
