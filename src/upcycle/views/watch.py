"""`upcycle status --watch`: the status of a study, renewed in place until all runs are finished, or Ctrl-C."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from upcycle.errors import UserError
from upcycle.study.spec import short_count
from upcycle.study.values import duration
from upcycle.study.varying import run_labels
from upcycle.views.status import STATES, describe_status, queued_jobs
from upcycle.workflow.dag import Workflow
from upcycle.workflow.slurm_jobs import SlurmJob, orphaned_jobs

SECONDS = 2.0
"""Between two looks at the folders of runs; more where a look takes long."""
SLURM_SECONDS = 30.0
"""Between two questions to SLURM's controller, which others ask too."""
COLOURS = {"running": "green", "finished": "dim", "failed": "bold red", "damaged": "bold red", "silent": "yellow"}
BAR = 40
"""Characters of the bar."""
QUIET = ("finished", "not started")
"""States of runs that are only counted."""


class Watch:
    """What the screen shows of a study: one line a run that runs, waits in a queue, or needs a look."""

    def __init__(self, workflow: Workflow, folder: Path) -> None:
        self.workflow = workflow
        self.folder = folder
        self.labels = run_labels(workflow.plan)
        self._jobs: list[SlurmJob] = []
        self._asked: float | None = None
        self._silent = ""

    def look(self, height: int) -> tuple[Group, bool]:
        """The screen of so many lines as of now, and whether all runs are finished."""
        jobs = self._slurm()
        status = describe_status(self.workflow, jobs)
        total = status["total"]
        head = Text.assemble((f"study {status['study']}", "bold"), f"   {time.strftime('%H:%M:%S')}")
        counts = Text("  ").join(
            Text(f"{total[state]} {state}", COLOURS.get(state, ""))
            for state in ("finished", *STATES[:-1])
            if total[state]
        )
        filled = BAR * total["finished"] // max(total["runs"], 1)
        share = f"  {total['finished']}/{total['runs']} runs"
        bar = Text.assemble(("━" * filled, "green"), ("━" * (BAR - filled), "dim"), share)
        lines: list[Any] = [head, Text(), bar, counts, self._pace(status), Text()]
        tail = self._tail(orphaned_jobs(jobs, self.folder))
        shown = [run for run in status["runs"] if run["state"] not in QUIET]
        shown.sort(key=lambda run: STATES.index(run["state"]))
        room = max(height - len(lines) - len(tail) - 2, 1)
        if shown:
            lines.append(self._table(shown[:room]))
        if len(shown) > room:
            lines.append(Text(f"and {len(shown) - room} more: `upcycle status`", "dim"))
        return Group(*lines, *tail), total["finished"] == total["runs"]

    def _pace(self, status: dict[str, Any]) -> Text:
        total = status["total"]
        pace = sum(run["tokens_per_second"] or 0 for run in status["runs"] if run["state"] == "running")
        left = f"about {duration(total['seconds_left'])} left" if total["job_seconds_left"] else "nothing left to train"
        return Text(f"{short_count(pace)} tokens/s   {left}, {total['running']} at a time" if pace else left)

    def _table(self, runs: list[dict[str, Any]]) -> Table:
        # Notes share what the other columns leave.
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name in ("run", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("step", "loss", "tokens/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
        for run in runs:
            pace, loss = run["tokens_per_second"], run["loss"]
            active = run["state"] == "running"
            table.add_row(
                self.labels[run["id"]],
                Text(run["state"], COLOURS.get(run["state"], "")),
                f"{run['step']}/{run['end_step']}",
                "" if loss is None else f"{loss:.3f}",
                short_count(pace) if pace and active else "",
                duration(run["seconds_left"]) if active else "",
                Text(run["note"]),
            )
        return table

    def _tail(self, orphans: Any) -> list[Text]:
        lines = [Text(self._silent, "yellow")] if self._silent else []
        if orphans:
            lines.append(Text("SLURM jobs that no Snakemake looks after; the next one here takes them over:", "yellow"))
            lines += [Text(f"  {job}", no_wrap=True, overflow="ellipsis") for job in orphans]
        return [*lines, Text("Ctrl-C ends the watch, not the jobs.", "dim")]

    def _slurm(self) -> list[SlurmJob]:
        """The study's jobs as SLURM listed them last."""
        if self._asked is None or time.monotonic() - self._asked > SLURM_SECONDS:
            self._asked = time.monotonic()
            self._jobs, self._silent = queued_jobs(self.workflow, self.folder)
        return self._jobs


def watch(workflow: Workflow, folder: Path) -> None:
    """Show the status until every run is finished or Ctrl-C. Raises UserError without a terminal."""
    console = Console()
    if not console.is_terminal:
        raise UserError("--watch needs a terminal; without it `upcycle status` prints the status once")
    shown = Watch(workflow, folder)
    screen, done = shown.look(console.height)
    try:
        with Live(screen, console=console, screen=True, auto_refresh=False) as live:
            while not done:
                begun = time.monotonic()
                screen, done = shown.look(console.height)
                live.update(screen, refresh=True)
                time.sleep(max(SECONDS, 5 * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        pass
    console.print(screen)
    sys.stdout.flush()
