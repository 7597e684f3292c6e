"""`upcycle simulate`: losses of a study drawn from laws, with its fits, figures and tables, all marked as simulated."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from upcycle import __version__
from upcycle.decisions.simulated import World, paper_world, simulate_losses
from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.laws.tables.losses import ordered, write_losses
from upcycle.paper.draw import draw, write_table
from upcycle.paper.inputs import Inputs
from upcycle.study.columns import COLUMNS, described
from upcycle.study.plan import Plan
from upcycle.workflow import make
from upcycle.workflow.dag import Workflow
from upcycle.workflow.invocation import JOB_ENVIRONMENT, read_workflow
from upcycle.workflow.paths import RESULTS

log = logging.getLogger(__name__)

FROM_RUN_FOLDERS = ("figure3",)
"""Figures of curves along the training, which only trained runs have."""
README = Path(__file__).with_name("simulated.md")
"""The text of a simulated study's README.md, with places for what was simulated."""


def run_simulate(args: argparse.Namespace) -> None:
    """`upcycle simulate --study NAME [--noise NATS] [--seed N] [--out FOLDER]`.

    Raises `UserError` for an unknown study, a noise that is not a number, or a model that no simulated law describes.
    """
    try:
        noise = float(args.noise)
    except ValueError:
        raise UserError(
            f"--noise {args.noise} is not a number: give a standard deviation in nats, such as 0.003"
        ) from None
    workflow = read_workflow(args.study, Path.cwd())
    out = args.out or RESULTS / "simulated" / workflow.study.study
    for variable, value in JOB_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    simulate_study(
        replace(workflow, out=out), paper_world(), noise=noise, seed=args.seed, processes=os.cpu_count() or 1
    )


def simulate_study(workflow: Workflow, world: World, *, noise: float, seed: int, processes: int = 1) -> None:
    """Write losses.csv, fits, figures, tables and README.md of a simulated study into the workflow's folder.

    `processes`: how many fits run at a time.
    """
    study, out = workflow.study, workflow.out
    losses = simulate_losses(planned_losses(workflow.plan), world, noise=noise, seed=seed)
    write_losses(losses, out / "losses.csv")
    log.info("%s: %d simulated losses", out / "losses.csv", len(losses))
    _make_fits(workflow, processes)
    inputs = simulated_inputs(workflow)
    skipped = []
    for name, options in study.figures.items():
        if name in FROM_RUN_FOLDERS:
            skipped.append(f"{name} is not drawn: it shows curves along the training, which only trained runs have.")
            log.info("%s", skipped[-1])
            continue
        log.info("%s", draw(name, inputs, out / "figures" / name, **options)[0])
    for name, options in study.tables.items():
        log.info("%s", write_table(name, inputs, out / "tables" / name, **options)[0])
    write_atomic(out / "README.md", _readme(study.study, losses, world, noise, seed, skipped))
    log.info("%s describes the simulation", out / "README.md")


def _make_fits(workflow: Workflow, processes: int) -> None:
    paths = {name: workflow.out / "fits" / f"{name}.json" for name in workflow.study.fits}
    if processes == 1:
        for name, path in paths.items():
            make.make_fit(workflow, name, path)
            log.info("%s", path)
        return
    # Spawned: a fork would inherit locks of NumPy's threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = {path: pool.submit(make.make_fit, workflow, name, path) for name, path in paths.items()}
        for path, job in jobs.items():
            job.result()
            log.info("%s", path)


def simulated_inputs(workflow: Workflow) -> Inputs:
    """What figures and tables read: never a run folder, even where the study has some."""
    return replace(make.paper_inputs(workflow), runs=workflow.out / "runs", specs=workflow.plan.runs)


def planned_losses(plan: Plan) -> pd.DataFrame:
    """Rows of losses.csv for every finished model that a plan will have; what is measured is missing."""
    membership = plan.membership()
    rows = []
    for run_id in plan.finished_models:
        model, moe = plan.names.get(run_id, ("", ""))
        sweeps = ";".join(sorted(membership[run_id]))
        unknown = {column.name: "" if column.kind == "text" else None for column in COLUMNS}
        known = {"id": run_id, "sweeps": sweeps, "model": model, "moe": moe, **described(plan.runs[run_id])}
        rows.append({**unknown, **known, "simulated": 1})
    return ordered(rows)


def _readme(study: str, losses: pd.DataFrame, world: World, noise: float, seed: int, skipped: Sequence[str]) -> str:
    """What was simulated, from which constants, by which command."""
    statements, missing = ("".join(f"- {line}\n" for line in lines) for lines in (world.statements(), skipped))
    command = f"upcycle simulate --study {study} --noise {noise:g} --seed {seed}"
    words = {"study": study, "count": len(losses), "version": __version__, "noise": noise, "seed": seed}
    text = README.read_text(encoding="utf-8")
    return text.format(command=command, statements=statements, missing=missing, **words)
