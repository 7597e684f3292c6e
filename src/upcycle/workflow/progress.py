"""One line a job that ends, in place of Snakemake's five: `37/102  upcycled D1=492k D2=983k  loss 3.590  2:10`.

As `failures`, a handler of Snakemake's log events in its own process, so it works for every executor. Snakemake's full
log stays in .snakemake/log. Counted are the finished runs of the study, also those of earlier invocations.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

from upcycle.files import read_record
from upcycle.study.recorded import is_finished
from upcycle.study.varying import run_labels
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, metrics_path

NOISE = re.compile(r"Select jobs to execute|Execute \d+ jobs|Job \d+ has been submitted with SLURM jobid")
WIDEST = 60
"""Characters of a name that lines are aligned for."""
SAID_HERE = ("job_finished", "progress")
"""Snakemake's events that our lines take the place of."""


class Progress(logging.Handler):
    """Prints a line when a job ends: of a run its name and held-out loss, of any other job its rule's message."""

    def __init__(self, workflow: Workflow) -> None:
        super().__init__()
        self.workflow = workflow
        self.started = time.monotonic()
        self.finished: set[str] = set()
        """Finished runs of the study; those of before are listed when the first job starts."""
        self._labels: dict[str, str] = {}
        self._runs = {metrics_path(run_id): run_id for run_id in workflow.plan.runs}
        self._jobs: dict[int, tuple[list[str], str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take up one event; as of any handler, a fault of it is printed and ends no job."""
        try:
            event, fields = getattr(record, "event", None), record.__dict__
            if event == "job_started" and not self._labels:
                self.finished = {run for run in self.workflow.plan.runs if is_finished(RESULTS / "runs" / run)}
                self._labels = run_labels(self.workflow.plan)
            elif event == "job_info":
                self._jobs[fields["jobid"]] = ([*fields["output"]], fields["rule_msg"] or "")
            elif event == "job_finished":
                outputs, message = self._jobs.pop(fields["job_id"], ([], ""))
                if line := self._line(outputs, message):
                    print(line, file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - logging's own way
            self.handleError(record)

    def _line(self, outputs: list[str], message: str) -> str:
        """What a finished job is told by; empty for the target of a figure or table."""
        total = str(len(self._runs))
        width = min(max(map(len, self._labels.values())), WIDEST)
        run_id = next((self._runs[output] for output in outputs if output in self._runs), None)
        if run_id is None:
            return f"{'':{2 * len(total) + 1}}  {message:{width + 12}}  {clock(self.seconds)}" if message else ""
        self.finished.add(run_id)
        count = f"{len(self.finished):{len(total)}}/{total}"
        metrics = read_record(Path(metrics_path(run_id)))
        loss = metrics["loss"]
        if metrics.get("simulated"):
            said = "simulated" if loss is None else f"simulated {loss:.3f}"
            return f"{count}  {self._labels[run_id]:{width}}  {said}  {clock(self.seconds)}"
        if loss is None:  # a trunk point: the loss on a subset of the text, with which its curve ends
            loss = metrics["curve_heldout"][-1][1]
        return f"{count}  {self._labels[run_id]:{width}}  loss {loss:.3f}  {clock(self.seconds)}"

    @property
    def seconds(self) -> float:
        """Since the Snakefile was read."""
        return time.monotonic() - self.started


def clock(seconds: float) -> str:
    """Time that has passed: 2:10, 1:02:10."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def is_news(record: logging.LogRecord) -> bool:
    """A filter of what Snakemake itself prints: not what `Progress` says, nor its notes between jobs."""
    return getattr(record, "event", None) not in SAID_HERE and not NOISE.match(record.getMessage())


def tell_progress(logger: logging.Logger, workflow: Workflow) -> None:
    """Let Snakemake's terminal show a line a job. Its log file is left as it is."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_news)
    logger.addHandler(Progress(workflow))
