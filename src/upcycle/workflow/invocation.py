"""An invocation of Snakemake or of a verb: which study it means, its frozen plan, and the dates of key files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from upcycle.files import write_atomic
from upcycle.study.check import check_names, override_execution, study_file
from upcycle.study.plan import build_plan, freeze, thaw
from upcycle.study.study import load_study
from upcycle.workflow.dag import Product, Workflow
from upcycle.workflow.paths import RESULTS, output_folder

PLAN_VARIABLE = "UPCYCLE_PLAN"
FORK_VARIABLE = "UPCYCLE_FORK_SERVER"
CORES_VARIABLE = "UPCYCLE_CORES"
STARTED_VARIABLE = "UPCYCLE_STARTED"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc's allocator, for jobs: keep freed memory instead of returning it to the kernel at every step. Worth
some 7 to 12 % of a small model's rate (`benchmarks/allocator.py`)."""
JOB_ENVIRONMENT = {**ALLOCATOR, "OPENBLAS_NUM_THREADS": "1"}
"""For every job, unless the user has set it. Fits solve many tiny systems: threads get in each other's way."""
OLD = 1.0
"""Modification time, seconds since the epoch, of the key file of a product that is up to date."""


def read_workflow(config: dict[str, Any], root: Path) -> Workflow:
    """The workflow of a study, without touching anything.

    `config` holds `study` and overrides of execution settings such as `device` (Snakemake's --config). Jobs of a
    running invocation find its frozen plan in the environment and take study, plan and settings from there.
    Raises `UserError`.
    """
    name = str(config.get("study", "default"))
    frozen = os.environ.get(PLAN_VARIABLE)
    if frozen:
        study, plan = thaw(Path(frozen))
    else:
        study = load_study(study_file(name, root))
        check_names(study)
        study = study.model_copy(update={"execution": override_execution(study.execution, config)})
        plan = build_plan(study, RESULTS)
    return Workflow(study, plan, output_folder(name))


def open_workflow(config: dict[str, Any], root: Path, cores: int) -> Workflow:
    """`read_workflow` for the Snakefile: the invocation that the user started freezes its plan and settles dates."""
    # Rules call `upcycle`: this interpreter's own, whether or not its environment is activated.
    tools = str(Path(sys.executable).parent)
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    outermost = PLAN_VARIABLE not in os.environ
    workflow = read_workflow(config, root)
    if outermost:
        os.environ[PLAN_VARIABLE] = str(freeze(workflow.study, workflow.plan, RESULTS).resolve())
        if workflow.study.execution.fork_server:
            os.environ[FORK_VARIABLE] = "1"
        for variable, value in JOB_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        os.environ[STARTED_VARIABLE] = repr(time.time())
        os.environ[CORES_VARIABLE] = str(cores)
        for product in workflow.products.values():
            settle(workflow, product)
    return workflow


def settle(workflow: Workflow, product: Product) -> None:
    """Set the date of a product's key file: old if the product was made with its key, else now."""
    path = Path(workflow.keys(product.name))
    if not path.exists() or path.read_text(encoding="utf-8") != product.key:
        write_atomic(path, product.key)
    os.utime(path, None if workflow.is_stale(product) else (OLD, OLD))
