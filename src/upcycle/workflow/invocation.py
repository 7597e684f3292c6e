"""An invocation of Snakemake or of a verb: which study it means, its frozen plan, and the dates of key files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.study.check import DEFAULT, OF_BENCHMARKS, check_names, find_study, override_execution
from upcycle.study.frozen import FrozenPlan, freeze, thaw
from upcycle.study.plan import build_plan
from upcycle.study.spec import canonical_json
from upcycle.train.processes.allocation import SRUN_VARIABLE
from upcycle.train.processes.forkserver import FORK_VARIABLE
from upcycle.workflow.alive import take_share
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import Node, split_config
from upcycle.workflow.paths import REHEARSAL, RESULTS, output_folder
from upcycle.workflow.texts import check_texts

FROM_CURVES = {"figure3"}
"""Figures of curves along the training, which no law gives."""
PLAN_VARIABLE = "UPCYCLE_PLAN"
CORES_VARIABLE = "UPCYCLE_CORES"
STARTED_VARIABLE = "UPCYCLE_STARTED"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc's allocator, for jobs: keep freed memory instead of returning it to the kernel at every step. Worth
some 7 to 12 % of a small model's rate (`benchmarks/allocator.py`)."""
JOB_ENVIRONMENT = {**ALLOCATOR, "OPENBLAS_NUM_THREADS": "1"}
"""For every job, unless the user has set it. Fits solve many tiny systems: threads get in each other's way."""
OLD = 1.0
"""Modification time, seconds since the epoch, of the key file of a product that is up to date."""


def read_workflow(name: str | None, root: Path, node: Node | None = None, **settings: Any) -> Workflow:
    """The workflow of a study, without touching anything.

    `name` of a study (None: `default`), whose file is looked for under `root`; `settings` of execution, such as
    `device`, replace the study's. Trunks are cut into jobs that fit the wall time of a cluster's `node`. Jobs of a
    running invocation find its frozen plan in the environment and take study, plan, settings and folder from there.
    Raises `UserError`, also for a name other than the frozen plan's.
    """
    frozen = os.environ.get(PLAN_VARIABLE)
    if frozen:
        thawed = thaw(Path(frozen))
        study = thawed.study
        if name not in (None, study.study):
            raise UserError(
                f"study `{name}` asked for within an invocation of study `{study.study}` ({PLAN_VARIABLE}={frozen}); "
                f"unset {PLAN_VARIABLE} to leave that invocation"
            )
        return Workflow(study, thawed.plan, output_folder(study.study), node, thawed.keys)
    study = find_study(DEFAULT if name is None else name, root)
    check_names(study)
    execution = override_execution(study.execution, settings)
    if node is not None:
        longest = min(execution.max_segment_hours or node.segment_hours, node.segment_hours)
        execution = execution.model_copy(update={"max_segment_hours": longest})
    study = study.model_copy(update={"execution": execution})
    if REHEARSAL:  # without what a law says nothing about, and without weights that could go
        figures = {name: options for name, options in study.figures.items() if name not in FROM_CURVES}
        tables = {name: options for name, options in study.tables.items() if name not in OF_BENCHMARKS}
        left_out = {"figures": figures, "tables": tables, "keep": type(study.keep)()}
        study = study.model_copy(update=left_out | {"evaluations": {}, "benchmarks": {}})
    workflow = Workflow(study, build_plan(study, RESULTS), output_folder(study.study), node)
    _ = workflow.forecasts  # one that has nothing to predict is refused before anything starts
    return workflow


def open_workflow(config: dict[str, Any], root: Path, cores: int, *, dry: bool) -> Workflow:
    """`read_workflow` for the Snakefile: the invocation that the user started freezes its plan and dates key files.

    It also removes what a killed one has locked. A dry run does none of this: it starts no job and writes nothing.
    """
    # Rules call `upcycle`: this interpreter's own, whether or not its environment is activated.
    tools = str(Path(sys.executable).parent)
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    outermost = PLAN_VARIABLE not in os.environ
    name, node, settings = split_config(config)
    workflow = read_workflow(name, root, node, **settings)
    if outermost:
        check_texts(workflow)
        check_unaltered(workflow)
    if outermost and REHEARSAL:
        from upcycle.workflow.rehearsal import write_draws

        study = find_study(workflow.study.study, root)
        for name in FROM_CURVES & {*study.figures}:
            print(f"{name} is left out: curves along the training are not simulated", file=sys.stderr)
        for name in sorted({*OF_BENCHMARKS} & {*study.tables}):
            print(f"{name} is left out: no law gives scores on benchmarks", file=sys.stderr)
        if not dry:
            write_draws(workflow, REHEARSAL)
    if outermost and not dry:
        keys = {name: product.key for name, product in workflow.products.items()}
        frozen = FrozenPlan(workflow.study, workflow.plan, keys)
        os.environ[PLAN_VARIABLE] = str(freeze(frozen, RESULTS).resolve())
        if workflow.study.execution.fork_server and not REHEARSAL:
            os.environ[FORK_VARIABLE] = "1"
        for variable, value in JOB_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        if workflow.node is not None:
            os.environ[SRUN_VARIABLE] = "1"
        os.environ[STARTED_VARIABLE] = repr(time.time())
        os.environ[CORES_VARIABLE] = str(cores)
        if take_share(root):
            print("The last invocation here was killed; its lock is removed.", file=sys.stderr)
        settle(workflow)
    return workflow


def check_unaltered(workflow: Workflow) -> None:
    """Raise UserError naming a losses.csv, evaluations.csv, benchmarks.csv or fit that was altered by hand."""
    for product in workflow.products.values():
        if product.name.partition("/")[0] in ("losses", "evaluations", "benchmarks", "fits"):
            workflow.check_unaltered(product)


def settle(workflow: Workflow) -> None:
    """Set the date of each product's key file: old while the product is fresh, else now."""
    for product in workflow.products.values():
        path = Path(workflow.keys(product.name))
        # Its text changes too: Snakemake takes a newer date for nothing where a small file's checksum is the same.
        text = canonical_json({"key": product.key, "read": workflow.content_read(product)})
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
        os.utime(path, None if product.name in workflow.stale else (OLD, OLD))
    for evaluation in map(Path, workflow.stale_evaluations | workflow.stale_benchmarks):
        if evaluation.exists():
            os.utime(evaluation, (OLD, OLD))  # older than the weights and tokens that are there now
    workflow.digests.save()
