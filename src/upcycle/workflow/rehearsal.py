"""`upcycle rehearse`: the whole DAG of a study through Snakemake, with training replaced by draws from a law.

Everything is real but the training: the plan, the jobs and their order, the scheduler, losses.csv, fits, figures,
tables and the report. All that it writes is in results/simulated/<study>/ and marked as simulated.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from upcycle import __version__
from upcycle.decisions.simulated import World, choose_world, simulate_losses
from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.laws.result import FitResult, read_fit
from upcycle.laws.tables.losses import ordered, read_losses
from upcycle.study.columns import COLUMNS, described
from upcycle.study.plan import Plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.rehearsed import REHEARSAL_VARIABLE, Rehearsal

README = Path(__file__).with_name("simulated.md")
"""The text of a rehearsal's README.md, with places for what was simulated."""


def run_rehearsal(rehearsal: Rehearsal, others: list[str]) -> int:
    """Call Snakemake for a rehearsal, with `others` of its arguments; say whether fits found the law.

    Returns Snakemake's status. Raises UserError for a folder of the rehearsal's name that is none, and for a law that
    cannot be taken.
    """
    world, known = choose_world(rehearsal.laws), rehearsal.folder / "README.md"
    if rehearsal.folder.exists() and not rehearsal.draws.exists():
        raise UserError(f"{rehearsal.folder} is no rehearsal's folder ({rehearsal.draws.name} is missing): remove it")
    if inside := [law for law in rehearsal.laws if rehearsal.folder.resolve() in Path(law).resolve().parents]:
        raise UserError(f"--law {inside[0]}: the file is in the folder that the rehearsal writes; copy it elsewhere")
    if known.exists() and not _is_of(known.read_text(encoding="utf-8"), rehearsal, world):
        print(f"{rehearsal.folder}: removed, as it was of another law, noise or seed", file=sys.stderr)
        shutil.rmtree(rehearsal.folder)
    os.environ[REHEARSAL_VARIABLE] = rehearsal.state()
    snakemake = Path(sys.executable).with_name("snakemake")
    status = subprocess.run([snakemake, *others, "--config", f"study={rehearsal.study}"], check=False).returncode
    losses, fits = rehearsal.folder / "losses.csv", rehearsal.folder / "fits"
    if status == 0 and losses.exists() and fits.exists():
        found = {path.stem: read_fit(path) for path in sorted(fits.glob("*.json"))}
        text = recovery_text(recoveries(world, read_losses(losses), found))
        write_atomic(rehearsal.folder / "recovery.txt", text)
        print(text, end="")
    return status


def write_draws(workflow: Workflow, rehearsal: Rehearsal) -> None:
    """Draw the loss of every finished model of a plan, before any job starts.

    Raises UserError naming a run that no law of the simulated world describes, and for a negative noise.
    """
    world = choose_world(rehearsal.laws)
    losses = simulate_losses(planned_losses(workflow.plan), world, noise=rehearsal.noise, seed=rehearsal.seed)
    by_id = dict(zip(losses["id"], losses["loss"], strict=True))
    runs = {
        run_id: {"loss": by_id.get(run_id), "tokens": run.data.tokens_id, "spec": run.model_dump(mode="json")}
        for run_id, run in workflow.plan.runs.items()
    }
    write_atomic(rehearsal.draws, json.dumps({"runs": runs}))
    words = {"study": rehearsal.study, "count": len(losses), "noise": rehearsal.noise, "seed": rehearsal.seed}
    text = README.read_text(encoding="utf-8").format(
        command=rehearsal.command, statements=_statements(world), version=__version__, runs=len(runs), **words
    )
    write_atomic(rehearsal.folder / "README.md", text)


def _statements(world: World) -> str:
    return "".join(f"- {line}\n" for line in world.statements())


def _is_of(readme: str, rehearsal: Rehearsal, world: World) -> bool:
    """Whether a folder's README.md is of this command and of these laws: a fit's file may have changed."""
    return f"    {rehearsal.command}\n" in readme and _statements(world) in readme


def planned_losses(plan: Plan) -> pd.DataFrame:
    """Rows of losses.csv for every finished model that a plan will have; what is measured is missing."""
    membership = plan.membership()
    rows = []
    for run_id in plan.finished_models:
        model, moe = plan.names.get(run_id, ("", ""))
        sweeps = ";".join(sorted(membership.get(run_id, ())))
        unknown = {column.name: "" if column.kind == "text" else None for column in COLUMNS}
        known = {"id": run_id, "sweeps": sweeps, "model": model, "moe": moe, **described(plan.runs[run_id])}
        rows.append({**unknown, **known, "simulated": 1})
    return ordered(rows)


# Whether fits find the law


@dataclass(frozen=True)
class Recovery:
    """A fitted parameter beside the constant of the law that its losses were drawn from."""

    fit: str
    parameter: str
    constant: float
    interval: tuple[float, float]
    """95 %."""

    @property
    def holds(self) -> bool:
        """Whether the interval holds the constant."""
        return self.interval[0] <= self.constant <= self.interval[1]


def recoveries(world: World, losses: pd.DataFrame, fits: dict[str, FitResult]) -> list[Recovery]:
    """Every parameter with an interval of every fit of the form by which its losses were drawn."""
    rows = losses.set_index("id", drop=False)
    found = []
    for name, whole in fits.items():
        groups = {f"{name}, {value}": fit for value, fit in whole.group_fits.items()} or {name: whole}
        truths = {label: world.truth(rows.loc[fit.ids], fit.law) for label, fit in groups.items()}
        known = [truth for truth in truths.values() if truth is not None]
        if any(len({truth[parameter] for truth in known}) > 1 for parameter in whole.shared or ()):
            continue  # the fit has one value where the law has several
        for label, fit in groups.items():
            truth = truths[label] or {}
            for parameter, (low, high) in fit.intervals.items():
                if parameter in truth and parameter not in fit.fixed:
                    ends = (-math.inf if low is None else low, math.inf if high is None else high)
                    found.append(Recovery(label, parameter, truth[parameter], ends))
    return found


def recovery_text(found: list[Recovery]) -> str:
    """A line a parameter, and how many intervals hold their constant."""
    if not found:
        return "SIMULATED LOSSES. No fit of this study has the form of a law that losses were drawn from.\n"
    lines = ["SIMULATED LOSSES. Fits of the form that losses were drawn from, with 95 % intervals:"]
    width = max(len(each.fit) for each in found)
    for each in found:
        low, high = each.interval
        says = "holds" if each.holds else "MISSES"
        lines.append(
            f"  {each.fit:{width}}  {each.parameter:7} [{low:.6g}, {high:.6g}] {says} the law's {each.constant:.6g}"
        )
    lines.append(
        f"{sum(each.holds for each in found)} of {len(found)} intervals hold the law's constant. "
        "One in twenty misses by chance; parameters of one fit miss together."
    )
    return "\n".join(lines) + "\n"
