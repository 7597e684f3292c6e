"""Verbs that make products out of finished runs: each writes its files, then records what it was made with and from."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from upcycle.bars import showing
from upcycle.errors import UserError, nearest
from upcycle.files import read_record, write_atomic
from upcycle.study.check import DEFAULT
from upcycle.study.study import ImportedStudy
from upcycle.study.varying import run_labels
from upcycle.workflow.dag import Workflow
from upcycle.workflow.invocation import CORES_VARIABLE, STARTED_VARIABLE
from upcycle.workflow.paths import REHEARSAL, RESULTS, forecasts_of
from upcycle.workflow.records import forget_made, record_made


def make(workflow: Workflow, args: argparse.Namespace) -> None:
    """Make the product that a verb names, and record it as made unless `--out` puts it elsewhere.

    Raises `UserError` for a product that the study does not name, and for a source that was altered by hand.
    """
    name = {"fit": "fits/", "figure": "figures/", "table": "tables/"}.get(args.verb)
    product = f"{name}{args.name}" if name else args.verb
    if product not in workflow.products:
        raise UserError(_no_product(workflow, args.verb, getattr(args, "name", None)))
    if args.out is not None and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: name a file, e.g. {args.out / Path(product).name}")
    entry = workflow.products[product]
    for source in entry.sources:
        workflow.check_unaltered(workflow.products[source])
    content = workflow.content_read(entry)  # before the work: what changes meanwhile is found by the next parse
    if args.out is None:
        forget_made(workflow.out, product)
    out = args.out or Path(entry.outputs[0])
    if args.verb == "losses":
        make_losses(workflow, out)
    elif args.verb == "evaluations":
        make_evaluations(workflow, out)
    elif args.verb == "benchmarks":
        make_benchmarks(workflow, out)
    elif args.verb == "fit":
        make_fit(workflow, args.name, out)
    elif args.verb == "figure":
        from upcycle.paper.draw import draw

        draw(args.name, paper_inputs(workflow), out.with_suffix(""), **workflow.study.figures[args.name])
    elif args.verb == "table":
        from upcycle.paper.draw import write_table
        from upcycle.study.catalogue import find_item

        inputs = paper_inputs(workflow) if find_item(args.name, "table").of_study else None
        write_table(args.name, inputs, out.with_suffix(""), **workflow.study.tables[args.name])
    elif args.verb == "report":
        make_report(workflow, out)
    if args.out is None:
        record_made(workflow.out, product, workflow.made_from(entry, content))


def _no_product(workflow: Workflow, verb: str, name: str | None) -> str:
    """Why a study has no such product, and what it has."""
    study = f"study `{workflow.study.study}`"
    if verb in ("evaluations", "benchmarks"):
        return f"{study} has no `{verb}`, so there is nothing to gather"
    if verb == "report":
        return f"{study} has no upcycled sweep, which a report is about; `upcycle table NAME` makes single tables"
    known = workflow.names(f"{verb}s")
    if name is None:
        return f"name one of the fits of {study} ({nearest('', known)}), or give --law and --csv for your own losses"
    return f"{study} has no {verb} `{name}` under `{verb}s`; {nearest(name, known)}"


def make_losses(workflow: Workflow, out: Path) -> None:
    """losses.csv: one row a finished model, or the rows of the files that the study takes its losses from."""
    if isinstance(workflow.study, ImportedStudy):
        from upcycle.laws.tables.importing import taken_losses
        from upcycle.laws.tables.losses import write_losses

        write_losses(taken_losses(map(Path, workflow.study.losses_from)), out)
        return
    from upcycle.laws.tables.losses import collect_losses, write_losses

    plan = workflow.plan
    runs = [RESULTS / "runs" / run_id for run_id in plan.finished_models]
    write_losses(collect_losses(runs, plan.membership(), plan.names, simulated=REHEARSAL is not None), out)


def make_evaluations(workflow: Workflow, out: Path) -> None:
    """evaluations.csv: one row a finished model and text."""
    lines = ["id,evaluation,loss,loss_se,heldout_tokens"]
    for name, pairs in workflow.evaluations.items():
        for run_id, path in pairs:
            if path in workflow.stale_evaluations:
                raise UserError(
                    f"{path}: missing, or of other weights or tokens; run `upcycle evaluate {run_id} {name}`"
                )
            row = read_record(Path(path))
            lines.append(f"{run_id},{name},{row['loss']!r},{row['loss_se']!r},{row['heldout_tokens']}")
    write_atomic(out, "\n".join(lines) + "\n")


BENCHMARK_COLUMNS = (
    "task", "split", "documents", "of_documents", "seed", "accuracy", "accuracy_se", "accuracy_bytes",
    "accuracy_bytes_se", "bits_per_byte", "bits_per_byte_se", "truncated",
)  # fmt: skip
"""Of benchmarks.csv, after run, label and benchmark; `train.questions.benchmark_run` states them."""


def make_benchmarks(workflow: Workflow, out: Path) -> None:
    """benchmarks.csv: one row a finished model and task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # which quotes names of files that need it
    writer.writerow(("id", "model", "benchmark", *BENCHMARK_COLUMNS))
    labels = run_labels(workflow.plan)
    for name, asked in workflow.benchmarks.items():
        for run_id, task, path in asked:
            if path in workflow.stale_benchmarks:
                raise UserError(
                    f"{path}: missing, or of other weights, documents or prompts; "
                    f"run `upcycle benchmark {run_id} {name} {task}`"
                )
            row = read_record(Path(path))
            writer.writerow((run_id, labels[run_id], name, *(row[column] for column in BENCHMARK_COLUMNS)))
    write_atomic(out, text.getvalue())


def make_fit(workflow: Workflow, name: str, out: Path) -> None:
    """One law fitted to its selection."""
    from upcycle.laws.fit import run_fit

    fit = workflow.study.fits[name]
    with showing("refits"):
        run_fit(
            workflow.out / "losses.csv",
            law=fit.law,
            select={"sweep": fit.sweep, "where": fit.where},
            fixed=dict(fit.fixed),
            floor_from=fit.floor_from,
            by=fit.by,
            shared=list(fit.shared),
            out=out,
        )


def paper_inputs(workflow: Workflow) -> Any:
    """What figures, tables and the report read."""
    from upcycle.paper.inputs import Inputs

    out = workflow.out
    sweeps: dict[str, list[str]] = workflow.plan.sweeps
    if isinstance(workflow.study, ImportedStudy):  # in the order in which its fits name them
        sweeps = {name: [] for fit in workflow.study.fits.values() for name in fit.sweep}
    inputs = Inputs.read(out / "losses.csv", out / "fits", RESULTS / "runs", sweeps=sweeps)
    # Only the fits that the study names: an old file of a removed fit is nobody's.
    if missing := [name for name in workflow.study.fits if name not in inputs.fits]:
        of_study = "" if workflow.study.study == DEFAULT else f" --study {workflow.study.study}"
        raise UserError(
            f"{out / 'fits' / missing[0]}.json: no such file; `upcycle fit {missing[0]}{of_study}` makes it"
        )
    fits = {name: inputs.fits[name] for name in workflow.study.fits}
    scores = out / "benchmarks.csv" if workflow.study.benchmarks else None
    registered = forecasts_of(workflow.study, out)
    return Inputs(inputs.losses, fits, inputs.runs, inputs.sweeps, workflow.plan.runs, scores, registered)


def make_report(workflow: Workflow, out: Path) -> None:
    """report.html and summary.txt, after this invocation's time is on the books (timing.json)."""
    from upcycle.report.page import Background, summary_text, write_report

    if REHEARSAL:
        command = REHEARSAL.command
    else:
        write_timing(workflow)
        command = "make sweep" if workflow.out == RESULTS else f"snakemake --config study={workflow.study.study}"
    inputs = paper_inputs(workflow)
    background = Background(
        study=workflow.study.study,
        out=workflow.out,
        tokens=RESULTS / "tokens",
        title=workflow.study.title,
        command=command,
        figures=workflow.study.figures,
        tables=tuple(workflow.study.tables),
        total_runs=len(workflow.plan.runs),
    )
    write_report(inputs, background, out)
    write_atomic(out.with_name("summary.txt"), summary_text(inputs, background))


def write_timing(workflow: Workflow) -> None:
    """Add this invocation to timing.json: its wall time until now and the seconds that its runs trained.

    Whatever is not training or evaluation of runs (start-up of processes, Snakemake, tokenising, fits, figures,
    a core without a job) is overhead: cores x wall - training.
    """
    started = os.environ.get(STARTED_VARIABLE)
    if started is None:
        return  # the verb was called by hand: no invocation to account for
    path = workflow.out / "timing.json"
    entries = read_record(path)["invocations"] if path.exists() else []
    entry: dict[str, Any] = {
        "started": float(started),
        "wall_seconds": time.time() - float(started),
        "cores": int(os.environ[CORES_VARIABLE]),
    }
    runs = [read_record(RESULTS / "runs" / run_id / "metrics.json") for run_id in workflow.plan.runs]
    mine = [run for run in runs if datetime.fromisoformat(run["finished"]).timestamp() >= float(started)]
    entry |= {"runs": len(mine)}
    for key in ("train_seconds", "eval_seconds", "startup_seconds", "wall_seconds"):
        entry[f"run_{key}"] = sum(run[key] for run in mine)
    entries = [old for old in entries if old["started"] != entry["started"]] + [entry]
    write_atomic(path, json.dumps({"invocations": entries}, indent=1) + "\n")
