"""One line a job that ends, in place of Snakemake's five:

    37/102  upcycled D1=492k D2=983k  loss 3.590  2:10 of ~6 min

As `failures`, a handler of Snakemake's log events in its own process, so it works for every executor. Snakemake's full
log stays in .snakemake/log. Counted are the finished runs of the study, also those of earlier invocations. The time is
that of the runs; fits and figures come on top. Runs of a rehearsal are alike, so their time follows from their pace.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from upcycle.files import read_record
from upcycle.study.makespan import PRIORITIES, PlannedJob, list_schedule
from upcycle.study.rates import expected_seconds, mean_overhead, measured_runs, speeds_by_shape
from upcycle.study.recorded import is_finished
from upcycle.study.values import duration
from upcycle.study.varying import run_labels
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import REHEARSAL, RESULTS, metrics_path

NOISE = re.compile(r"Select jobs to execute|Execute \d+ jobs|Job \d+ has been submitted with SLURM jobid")
WIDEST = 60
"""Characters of a name that lines are aligned for."""
RENEW_SECONDS = 5.0
"""Between two estimates of the time that is left."""
SAID_HERE = ("job_finished", "progress")
"""Snakemake's events that our lines take the place of."""


class Progress(logging.Handler):
    """Prints a line when a job ends: of a run its name and held-out loss, of any other job its rule's message."""

    def __init__(self, workflow: Workflow, to_do: Callable[[], tuple[Collection[str], int]]) -> None:
        """`to_do()`: files that this invocation still makes, and how many jobs run side by side."""
        super().__init__()
        self.workflow = workflow
        self.to_do = to_do
        self.estimate: float | None = None
        """Seconds of all runs of this invocation, from its start."""
        self._estimated_at = 0.0
        self.started = time.monotonic()
        self.finished: set[str] = set()
        """Finished runs of the study; those of before are listed when the first job starts."""
        self._before: set[str] = set()
        self._labels: dict[str, str] = {}
        self._runs = {metrics_path(run_id): run_id for run_id in workflow.plan.runs}
        self._begun: dict[str, float] = {}
        self._jobs: dict[int, tuple[list[str], str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take up one event; as of any handler, a fault of it is printed and ends no job."""
        try:
            event, fields = getattr(record, "event", None), record.__dict__
            if event == "job_started" and not self._labels:
                self._before = {run for run in self.workflow.plan.runs if is_finished(RESULTS / "runs" / run)}
                self.finished = set(self._before)
                self._labels = run_labels(self.workflow.plan)
            elif event == "job_info":
                outputs = [*fields["output"]]
                self._jobs[fields["jobid"]] = (outputs, fields["rule_msg"] or "")
                self._begun |= {self._runs[path]: self.seconds for path in outputs if path in self._runs}
            elif event == "job_finished":
                outputs, message = self._jobs.pop(fields["job_id"], ([], ""))
                if line := self._line(outputs, message):
                    print(line, file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - logging's own way
            self.handleError(record)

    def _line(self, outputs: list[str], message: str) -> str:
        """What a finished job is told by; empty for the target of a figure or table."""
        total = str(len(self._runs))
        width = min(max(map(len, self._labels.values()), default=0), WIDEST)
        run_id = next((self._runs[output] for output in outputs if output in self._runs), None)
        if run_id is None:
            width += 2 + len("simulated 3.590" if REHEARSAL else "loss 3.590")
            return f"{'':{2 * len(total) + 1}}  {message:{width}}  {clock(self.seconds)}" if message else ""
        self.finished.add(run_id)
        count = f"{len(self.finished):{len(total)}}/{total}"
        metrics = read_record(Path(metrics_path(run_id)))
        loss = metrics["loss"]
        simulated = bool(metrics.get("simulated"))
        if loss is None and not simulated:  # a trunk point: the loss on a subset of the text, with which its curve ends
            loss = metrics["curve_heldout"][-1][1]
        said = f"loss {loss:.3f}" if not simulated else f"simulated {'' if loss is None else f'{loss:.3f}':5}"
        whole = f" of ~{duration(_rounded(total_seconds))}" if (total_seconds := self._total(simulated)) else ""
        return f"{count}  {self._labels[run_id]:{width}}  {said}  {clock(self.seconds)}{whole}"

    def _total(self, simulated: bool) -> float | None:
        """Seconds from the start until the last run is expected to end; renewed as runs end. None for the last one."""
        if self.estimate is None or self.seconds - self._estimated_at > RENEW_SECONDS:
            files, side_by_side = self.to_do()
            left = [self._runs[path] for path in files if path in self._runs]
            if simulated and self.seconds < RENEW_SECONDS:
                return None  # the first run's pace is that of the start
            seconds = self._at_pace(left) if simulated else self._makespan(left, max(side_by_side, 1))
            self.estimate, self._estimated_at = self.seconds + seconds if left else None, self.seconds
        return self.estimate

    def _at_pace(self, left: list[str]) -> float:
        """Seconds of these runs at the pace of those that this invocation has finished: simulated ones are alike."""
        return self.seconds * len(left) / len(self.finished - self._before)

    def _makespan(self, left: list[str], side_by_side: int) -> float:
        """Seconds of these runs as jobs of their own length."""
        plan, study = self.workflow.plan, self.workflow.study
        measured = measured_runs(plan.runs.values(), RESULTS)
        speeds, beside = speeds_by_shape(measured), mean_overhead(measured)
        jobs = {}
        for run_id in left:
            run = plan.runs[run_id]
            seconds = expected_seconds(run, study.execution_of(run), speeds) + beside
            done = self.seconds - self._begun.get(run_id, self.seconds)
            jobs[run_id] = PlannedJob(max(seconds - done, 0), 1, 1, tuple(plan.needs(run_id)), PRIORITIES[run.kind])
        return list_schedule(jobs, 1, side_by_side).makespan

    @property
    def seconds(self) -> float:
        """Since the Snakefile was read."""
        return time.monotonic() - self.started


def _rounded(seconds: float) -> float:
    """To what an estimate knows: 5 s below two minutes, minutes below two hours, then 10 minutes."""
    unit = 5 if seconds < 120 else 60 if seconds < 7200 else 600
    return max(round(seconds / unit) * unit, unit)


def clock(seconds: float) -> str:
    """Time that has passed: 2:10, 1:02:10."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def is_news(record: logging.LogRecord) -> bool:
    """A filter of what Snakemake itself prints: not what `Progress` says, nor its notes between jobs."""
    return getattr(record, "event", None) not in SAID_HERE and not NOISE.match(record.getMessage())


def tell_progress(logger: logging.Logger, workflow: Workflow, to_do: Callable[[], tuple[Collection[str], int]]) -> None:
    """Let Snakemake's terminal show a line a job (`to_do`: of `Progress`). Its log file is left as it is."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(is_news)
    logger.addHandler(Progress(workflow, to_do))
