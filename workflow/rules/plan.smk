# Functions of the workflow; the other files hold rules only. No rule names a hyperparameter: a run's id stands for all of them.
import os
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from upcycle.errors import UserError
from upcycle.study.catalogue import find_item
from upcycle.study.makespan import PRIORITIES
from upcycle.workflow.failures import Failures
from upcycle.workflow.invocation import PLAN_VARIABLE, open_workflow
from upcycle.workflow.needs import (
    check_evaluated,
    check_parent,
    check_scored,
    check_source,
    check_trackers,
)
from upcycle.workflow.paths import (
    RESULTS,
    benchmark_path,
    evaluation_path,
    metrics_path,
    step_path,
    tokens_path,
)
from upcycle.workflow.progress import tell_progress
from upcycle.workflow.pruning import Retention
from upcycle.workflow.resources import job_resources, machine_memory_mb
from upcycle.workflow.submission import check_submission
from upcycle.workflow.texts import stages_of, tokens_to_make

logger.addHandler(Failures())


def checked(function, *arguments, **named):
    """What the function returns; bad input ends Snakemake with one line. (An exception's last line is where it was raised.)"""
    try:
        return function(*arguments, **named)
    except UserError as error:
        print(f"snakemake: {error}", file=sys.stderr)
        sys.exit(2)


def to_do():
    """Files that Snakemake is still to make, and how many jobs may run side by side."""
    files = {str(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    return files, workflow.cores if workflow.local_exec else workflow.nodes


INNER = PLAN_VARIABLE in os.environ
DRY = workflow.output_settings.dryrun
W = checked(open_workflow, config, Path.cwd(), workflow.cores, dry=DRY)
if workflow.is_main_process and not {Quietness.PROGRESS, Quietness.ALL} & {
    *(workflow.output_settings.quiet or ())
}:
    tell_progress(logger, W, to_do)
RETENTION = Retention(W, None if INNER else Path.cwd())

if workflow.is_main_process and not DRY:
    from upcycle.workflow.slurm_executor import install

    install(W, Path.cwd())

EVALUATIONS = {
    (run, Path(path).stem): name
    for name, pairs in W.evaluations.items()
    for run, path in pairs
}
BENCHMARKS = {
    (run, Path(path).stem): (name, task)
    for name, asked in W.benchmarks.items()
    for run, task, path in asked
}
# A new file: in a dry run, which dates no file, it is an input of what is there and stale.
NEW = NamedTemporaryFile(prefix="upcycle-") if DRY else None


wildcard_constraints:
    run=r"[a-z]+-[A-Za-z0-9_.-]+",
    tokens=r"[A-Za-z0-9_.-]+",


def source(path, output):
    """An input: plain while the output is to be made; once it is there only the input's existence matters.

    The content behind an id never changes, so dates do not matter. But were the inputs of what is to be made ancient too,
    Snakemake would stop looking behind a job that it runs again.
    """
    return path if W.may_be_made(output) else ancient(path)


def everything(wildcards):
    """Every run and product of the study, and the removals that its `keep` asks for."""
    return [
        *map(metrics_path, W.plan.runs),
        *checked(lambda: RETENTION.due).values(),
        *(output for product in W.products.values() for output in product.outputs),
    ]


def prune_inputs(wildcards):
    """A run, and everything planned that reads its files."""
    return [metrics_path(wildcards.run), *RETENTION.readers.get(wildcards.run, ())]


def run_inputs(wildcards):
    """The tokens that a run reads, whose fingerprint the job checks, the finished run that it starts from, and forecasts
    that must be written before.

    The checkpoint of that run must be there if it is not still to be trained.
    """
    run = wildcards.run
    checked(W.check_planned, run)
    checked(check_parent, W, run)
    checked(check_trackers, W, run)
    return [
        source(path, metrics_path(run))
        for path in (W.tokens_of(run), *W.parent_of(run), *W.forecasts_before(run))
    ]


def forecast_inputs(wildcards):
    """The finished models that laws are fitted to; no run that waits for the forecast may be finished."""
    checked(W.check_unforeseen, wildcards.forecast)
    return list(map(metrics_path, W.forecasts[wildcards.forecast].read))


def training_threads(wildcards):
    """Cores of this machine that a training uses; a cluster's are asked for as `cpus_per_task`."""
    execution = W.study.execution_of(W.plan.runs[wildcards.run])
    local = W.node is None and execution.device == "cpu"
    return execution.devices * execution.threads if local else 1


def sweep_runs(name):
    """Input function of a sweep: every run that it needs."""
    return lambda wildcards: [metrics_path(run) for run in W.plan.members(name)]


def tokenizer_source(wildcards):
    """The token set whose tokenizer this one borrows, if it does; text and tokenizer must be there."""
    if wildcards.tokens in tokens_to_make(W):
        checked(check_source, W, W.token_sets[wildcards.tokens])
    return [ancient(path) for path in W.tokenizer_source(wildcards.tokens)]


def steps_done(tokens, stage, output):
    """Records of the steps of a stage, which an output needs."""
    return [
        source(step_path(tokens, step), output)
        for step in checked(stages_of, W, tokens)[stage]
    ]


def tokenize_inputs(wildcards):
    """The last steps of a large corpus; a small one has none."""
    tokens = wildcards.tokens
    if not checked(stages_of, W, tokens):
        return []
    return steps_done(tokens, -1, tokens_path(tokens))


def step_inputs(wildcards):
    """The steps of the stage before."""
    tokens, step = wildcards.tokens, wildcards.step
    stage = ["read", "prepare", "encode"].index(step.partition("-")[0])
    return steps_done(tokens, stage - 1, step_path(tokens, step)) if stage else []


def evaluation_name(wildcards):
    """The study's name of an evaluation, from its result file."""
    return EVALUATIONS[(wildcards.run, wildcards.evaluation)]


def evaluation_inputs(wildcards):
    """The finished run, and the other text in its own tokens."""
    name = evaluation_name(wildcards)
    output = evaluation_path(wildcards.run, W.study.evaluations[name])
    if output in W.stale_evaluations:
        checked(check_evaluated, W, wildcards.run, name)
    tokens = W.evaluation_tokens(wildcards.run, name)
    new = [NEW.name] if DRY and output in W.stale_evaluations else []
    return [source(metrics_path(wildcards.run), output), source(tokens, output), *new]


def benchmark_words(wildcards):
    """The study's name of a benchmark and its task, from their result file."""
    return list(BENCHMARKS[(wildcards.run, wildcards.benchmark)])


def benchmark_inputs(wildcards):
    """The finished run, and its tokenizer's token set."""
    name, task = benchmark_words(wildcards)
    output = benchmark_path(wildcards.run, W.study.benchmarks[name], task)
    if output in W.stale_benchmarks:
        checked(check_scored, W, wildcards.run, name, task)
    new = [NEW.name] if DRY and output in W.stale_benchmarks else []
    return [
        source(metrics_path(wildcards.run), output),
        source(W.tokens_of(wildcards.run), output),
        *new,
    ]


def product_inputs(name):
    """A product's sources, by existence unless they are about to be made, and its key file, compared by date."""
    return [
        *key_file(name),
        *(
            path if W.may_be_made(path) else ancient(path)
            for path in W.products[name].inputs
        ),
    ]


def key_file(name):
    """A product's key file as `settle` dates it; in a dry run as it would."""
    path = W.keys(name)
    if not DRY:
        return [path]
    if name in W.stale:
        return [NEW.name]
    return [ancient(path)] if Path(path).exists() else []


def gathered(name):
    """Input function of a product that has a rule of its own."""
    return lambda wildcards: product_inputs(name)


def caption(name):
    """Title and caption of a figure or table (its function's docstring), for Snakemake's own report."""
    item = find_item(name)
    return (
        f"{item.label}. {item.title} {item.caption}"
        if item.label
        else f"{item.title} {item.caption}"
    )


def fit_inputs(wildcards):
    return product_inputs(f"fits/{wildcards.fit}")


def figure_inputs(wildcards):
    return product_inputs(f"figures/{wildcards.figure}")


def figure_caption(wildcards):
    return caption(wildcards.figure)


def table_inputs(wildcards):
    return product_inputs(f"tables/{wildcards.table}")


def table_caption(wildcards):
    return caption(wildcards.table)


# What jobs ask a cluster for, by their kind; nothing where this machine runs them.
RESOURCES = job_resources(W)
if W.node is None and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", machine_memory_mb())
if W.node is not None and workflow.is_main_process and not DRY:
    defaults = workflow.resource_settings.default_resources or {}
    checked(check_submission, W, {name: defaults[name].raw for name in defaults})
