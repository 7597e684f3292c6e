"""What `upcycle status` shows: the state of every run of a study while jobs run, their speed, and what is left.

It only reads. It never takes a lease, because a starting job might then find it taken. Whether a run's lease is held
is read from the kernel's table of locks (/proc/locks: the owner's pid on the lease file), which knows the processes of
this machine only. Of an owner on another machine, the signature in the lease and the time of its last write are known:
a job that ends by itself wipes its signature; a job that was killed leaves it, and is `silent` after some time without
writes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.manifest import read_manifest, removed_files
from upcycle.study.rates import mean_overhead, measured_run, shape_key, speeds_by_shape
from upcycle.study.recorded import is_finished, saved_step
from upcycle.study.spec import RunSpec, short_count
from upcycle.study.study import ImportedStudy
from upcycle.study.values import duration
from upcycle.views.plan_view import ALL, describe_run, of_losses
from upcycle.views.text import text_table
from upcycle.workflow.dag import Workflow
from upcycle.workflow.failures import OWN, words_of_log
from upcycle.workflow.paths import RESULTS
from upcycle.workflow.slurm_jobs import SlurmJob, orphaned_jobs, slurm_jobs, study_jobs

TAIL_BYTES = 1 << 18
"""Read from the end of a curve: some tens of rows of the widest mixture."""
SILENT_SECONDS = 900
SILENT_ROWS = 10
"""A run is silent after SILENT_SECONDS without a sign, and no sooner than SILENT_ROWS rows would have taken."""
STATES = ("running", "silent", "damaged", "failed", "stopped", "queued", "not started", "finished")
"""In the order of display: what needs a look comes first."""
PACE = ("tokens_per_second", "step_seconds", "data_seconds", "mfu")

Locks = set[tuple[int, int]]


def describe_status(workflow: Workflow, jobs: Sequence[SlurmJob] = ()) -> dict[str, Any]:
    """The state of every run as data, totals by sweep and in all. Times in seconds.

    `jobs`: the study's jobs in SLURM's queue. A run is `failed` if its log ends with why, and `queued` if SLURM has a
    job for it that has not begun.

    `seconds_left` of a run: its steps left at its present pace, else at the pace of runs of its shape, else as planned.
    Of the study: the sum over unfinished runs divided by the number running now (at least 1), and no less than the
    longest chain of parents takes.
    """
    locks = held_locks()
    found = {run_id: read_state(RESULTS / "runs" / run_id, run, locks) for run_id, run in workflow.plan.runs.items()}
    for run_id, state in found.items():
        _explain(state, [job for job in jobs if job.wildcards == run_id])
    measured = list(filter(None, (state.pop("_measured", None) for state in found.values())))
    speeds = _pace_now(workflow, found) | speeds_by_shape(measured)
    overhead = mean_overhead(measured)
    for run_id, state in found.items():
        planned = describe_run(workflow, run_id, speeds)
        state["sweeps"] = planned["sweeps"]
        state["seconds_left"] = _seconds_left(state, planned["seconds"]) + overhead * (state["state"] != "finished")
    runs, plan = list(found.values()), workflow.plan
    sweeps = {name: status_totals([found[run_id] for run_id in plan.members(name)]) for name in plan.sweeps}
    total = status_totals(runs)
    chain = _longest_chain(workflow, found)
    side_by_side = max(total["running"], 1)
    total |= {
        "side_by_side": side_by_side,
        "longest_chain_seconds": chain,
        "seconds_left": max(total["job_seconds_left"] / side_by_side, chain),
    }
    return {"study": workflow.plan.study, "runs": runs, "sweeps": sweeps, "total": total}


# One run


def read_state(run_dir: Path, run: RunSpec, locks: Locks | None) -> dict[str, Any]:
    """State, place, pace and owner of one run, from its folder as it is at this moment."""
    state: dict[str, Any] = {
        "id": run.id,
        "state": "not started",
        "note": "",
        "step": run.start_step,
        "start_step": run.start_step,
        "end_step": run.end_step,
        **dict.fromkeys(("saved_step", "loss", "heldout", *PACE, "row_age", "owner")),
    }
    if is_finished(run_dir):
        return state | _finished(run_dir, run)
    if not (run_dir / "spec.json").exists():
        return state
    rows = last_rows(run_dir / "metrics.jsonl")
    updates = [row for row in rows if "loss" in row]
    heldout = [row["heldout"] for row in rows if "heldout" in row]
    if updates:
        state |= {key: updates[-1].get(key) for key in ("step", "loss", *PACE)}
    state["heldout"] = heldout[-1] if heldout else None
    state["row_age"] = age(run_dir / "metrics.jsonl")
    state["saved_step"] = saved = saved_step(run_dir)
    owner = read_owner(run_dir / "lease")
    held = owner is not None and holds(owner, run_dir / "lease", locks)
    if owner is None or held is False:
        note = "nothing saved: starts from its first step" if saved is None else f"continues from step {saved}"
        if (run_dir / "manifest.json").exists():
            note = "finished, but metrics.json is missing: training it again restores the file"
        return state | {"state": "stopped", "note": note}
    state |= {"state": "running", "owner": owner}
    # Long evaluations write no rows, and states are saved between rows: any of these is a sign of life.
    signs = [age(run_dir / name) for name in ("metrics.jsonl", "resume", "lease")]
    quiet = min((seconds for seconds in signs if seconds is not None), default=0.0)
    if quiet > max(SILENT_SECONDS, SILENT_ROWS * _seconds_a_row(updates)):
        doubt = "it runs, but may hang" if held else f"check whether it still runs on {owner['host']}"
        state |= {"state": "silent", "note": f"nothing written for {duration(quiet)}: {doubt}"}
    return state


def _explain(state: dict[str, Any], jobs: list[SlurmJob]) -> None:
    """Add to a state what SLURM knows of the run, and, where its log has it, why its last attempt ended."""
    if state["state"] in ("not started", "stopped"):
        log = RESULTS / "logs" / "train" / f"{state['id']}.log"
        words = [line for line in words_of_log(str(log)) if OWN.match(line)] if log.exists() else []
        if words:
            goes_on = words[-1].endswith("the same command continues")
            state |= {
                "state": "stopped" if goes_on else "failed",
                "note": words[-1].partition(": ")[2].removeprefix(f"{state['id']}: "),
            }
    for job in jobs:
        waits = not job.nodes
        if waits and state["state"] in ("not started", "stopped", "failed"):
            state |= {"state": "queued"}
        where = f"waits: {job.reason}" if waits else f"on {job.nodes}, {job.left} of its time left"
        state["note"] = "; ".join(filter(None, (f"SLURM job {job.id} {where}", state["note"])))


def _finished(run_dir: Path, run: RunSpec) -> dict[str, Any]:
    """State of a run whose metrics.json is there: its files by presence and size (hashes are checked on loading)."""
    try:
        metrics = json.loads((run_dir / "metrics.json").read_bytes())
        fields = {key: metrics.get(key) for key in PACE}
        fields |= {"loss": metrics["train_loss_last"], "heldout": metrics["loss"]}
        fields["_measured"] = measured_run(run, RESULTS)
        manifest = read_manifest(run_dir)
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        there = sizes.keys() - removed_files(manifest).keys()
        wrong = [name for name in there if (run_dir / name).stat().st_size != sizes[name]]
        if wrong:
            raise UserError(f"{wrong[0]} does not have the size that it was written with")
    except UserError as error:
        return {"state": "damaged", "note": str(error)}
    except OSError as error:
        return {"state": "damaged", "note": f"{Path(str(error.filename)).name}: {error.strerror}"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"state": "damaged", "note": "metrics.json lacks what training writes"}
    return fields | {"state": "finished", "step": run.end_step}


def last_rows(curve: Path) -> list[dict[str, Any]]:
    """Whole rows at the end of a curve; its last line may be half written, the first one read half cut off."""
    try:
        with curve.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:  # none yet, or none that can be read: the next attempt at the run reports that
        return []
    rows = []
    for line in lines[:-1] if end <= TAIL_BYTES else lines[1:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a kill tore this line; resuming the run cuts it off
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _seconds_a_row(updates: list[dict[str, Any]]) -> float:
    """Seconds between the last two rows of updates, by their steps; 0 while there are not two."""
    if len(updates) < 2:
        return 0.0
    return float((updates[-1]["step"] - updates[-2]["step"]) * (updates[-1].get("step_seconds") or 0.0))


def age(path: Path) -> float | None:
    """Seconds since a file or folder changed; None where there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


# Whose lease is it


def held_locks() -> Locks | None:
    """(pid, inode) of every flock held on this machine; None where the kernel has no such table."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except FileNotFoundError:
        return None
    # `7: FLOCK  ADVISORY  WRITE 4711 fe:00:2171094 0 EOF`; a waiting one has `->` in its second field.
    fields = [line.split() for line in lines]
    return {(int(field[4]), int(field[5].rpartition(":")[2])) for field in fields if field[1] == "FLOCK"}


def read_owner(lease: Path) -> dict[str, Any] | None:
    """Who signed a lease last: host, pid, since. None for a lease that was returned, or is just being signed."""
    try:
        owner = json.loads(lease.read_bytes())
        return {"host": str(owner["host"]), "pid": int(owner["pid"]), "since": str(owner["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holds(owner: dict[str, Any], lease: Path, locks: Locks | None) -> bool | None:
    """Whether the owner still holds its lease; None for an owner on another machine, which cannot be told here."""
    if owner["host"] != socket.gethostname():
        return None
    if locks is not None:
        return (owner["pid"], lease.stat().st_ino) in locks
    try:  # no table of locks (not Linux): the process exists, unless its pid has been reused
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# What is left


def _pace_now(workflow: Workflow, found: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Speeds by the last rows of curves, on the devices that the study gives: for shapes without a finished run."""
    pace = {}
    for run_id, state in found.items():
        run = workflow.plan.runs[run_id]
        execution = workflow.study.execution_of(run)
        if state["tokens_per_second"]:
            pace[shape_key(run, execution.device)] = {execution.devices: state["tokens_per_second"]}
    return pace


def _seconds_left(state: dict[str, Any], planned_seconds: float) -> float:
    """Of training: from the last saved step for a run that is not running."""
    if state["state"] == "finished":
        return 0.0
    at = state["step"] if state["state"] == "running" else state["saved_step"] or state["start_step"]
    steps = state["end_step"] - at
    if state["step_seconds"]:
        return float(steps * state["step_seconds"])
    return planned_seconds * steps / max(state["end_step"] - state["start_step"], 1)  # an imported run has no step


def _longest_chain(workflow: Workflow, found: dict[str, dict[str, Any]]) -> float:
    """Seconds of the longest chain of parents and children: more machines cannot be faster."""
    until: dict[str, float] = {}
    for run_id in workflow.plan.runs:  # parents first
        before = max((until.get(parent, 0.0) for parent in workflow.plan.needs(run_id)), default=0.0)
        until[run_id] = before + found[run_id]["seconds_left"]
    return max(until.values(), default=0.0)


def status_totals(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many runs are in each state, how many steps are done, and the seconds left of one job after another."""
    total: dict[str, Any] = {"runs": len(runs)}
    total |= {state: sum(run["state"] == state for run in runs) for state in STATES}
    total["job_seconds_left"] = sum(run["seconds_left"] for run in runs)
    return total


# For a person


def show_status(workflow: Workflow, *, as_json: bool, every_run: bool) -> str:
    """The state of a study as tables, or as JSON."""
    if not as_json and isinstance(workflow.study, ImportedStudy):
        return of_losses(workflow.study)
    jobs, silent = queued_jobs(workflow, Path.cwd())
    status = describe_status(workflow, jobs)
    if as_json:
        return json.dumps(status, indent=1)
    text = status_text(status, every_run=every_run, orphans=orphaned_jobs(jobs, Path.cwd()))
    return "\n".join(filter(None, (text, silent)))


def queued_jobs(workflow: Workflow, folder: Path) -> tuple[list[SlurmJob], str]:
    """The study's jobs in SLURM's queue, and a line if SLURM is installed here and does not answer."""
    try:
        return study_jobs(workflow, slurm_jobs(folder)), ""
    except UserError as error:
        return [], f"SLURM does not answer, so its jobs are not shown ({str(error).splitlines()[0]})."


def status_text(status: dict[str, Any], *, every_run: bool, orphans: Sequence[SlurmJob]) -> str:
    """A status for a person: runs that need a look, sweeps, time left, SLURM jobs that nobody looks after."""
    total = status["total"]
    counts = ", ".join(f"{total[state]} {state}" for state in ("finished", *STATES[:-1]) if total[state])
    lines = [f"study {status['study']}: {total['runs']} runs: {counts}", ""]
    shown = [run for run in status["runs"] if every_run or run["state"] not in ("finished", "not started")]
    if shown:
        lines += [*_table_of_runs(sorted(shown, key=lambda run: STATES.index(run["state"]))), ""]
    lines += _table_of_sweeps(status["sweeps"] | {ALL: total})
    lines.append("")
    if total["job_seconds_left"]:
        lines.append(
            f"About {duration(total['seconds_left'])} left with {total['side_by_side']} at a time (the longest chain "
            f"of runs alone: {duration(total['longest_chain_seconds'])}), without fits and figures."
        )
    if orphans:
        lines.append("SLURM jobs that no Snakemake looks after; the next one here takes them over:")
        lines += [f"  {job}" for job in orphans]
    if total["damaged"]:
        lines.append(
            "Damaged runs: `upcycle train RUN` restores metrics.json or names the damaged file; "
            "--fresh trains it again."
        )
    if total["stopped"]:
        lines.append(f"Why a run stopped: {RESULTS}/logs/train/RUN.log. Snakemake or `upcycle train RUN` continues it.")
    if not every_run:
        lines.append("Every run: --all. As data: --json.")
    return "\n".join(lines)


def _table_of_runs(runs: list[dict[str, Any]]) -> list[str]:
    rows = []
    for run in runs:
        owner = run["owner"]
        where = f"pid {owner['pid']} on {owner['host']}" if owner else ""
        left = "" if run["state"] == "finished" else duration(run["seconds_left"])
        row = {"run": run["id"], "state": run["state"], "steps": f"{run['step']}/{run['end_step']}"}
        row |= {"loss": _cell(run["loss"], "{:.3f}".format), "held-out": _cell(run["heldout"], "{:.3f}".format)}
        row |= {
            "tokens/s": _cell(run["tokens_per_second"], short_count),
            "step time": _cell(run["step_seconds"], _time),
        }
        row |= {"data time": _cell(run["data_seconds"], _time), "MFU": _cell(run["mfu"], "{:.0%}".format)}
        row |= {"last row": _cell(run["row_age"], _time), "left": left}
        rows.append(row | {"": "; ".join(filter(None, (where, run["note"])))})
    return text_table(rows, left=["run", "state", ""])


def _table_of_sweeps(sweeps: dict[str, dict[str, Any]]) -> list[str]:
    shown = [state for state in ("finished", *STATES[:-1]) if any(total[state] for total in sweeps.values())]
    rows = []
    for name, total in sweeps.items():
        row = {"sweep": name, "runs": str(total["runs"]), **{state: str(total[state] or "") for state in shown}}
        rows.append(row | {"job time left": duration(total["job_seconds_left"])})
    return text_table(rows, left=["sweep"])


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
