# Functions of the workflow; the other files hold rules only. No rule names a hyperparameter: a run's id stands for all of them.
import os
import sys
from pathlib import Path

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
    check_source,
    tokens_to_make,
)
from upcycle.workflow.paths import RESULTS, evaluation_path, metrics_path
from upcycle.workflow.progress import tell_progress
from upcycle.workflow.pruning import Retention
from upcycle.workflow.resources import job_resources

logger.addHandler(Failures())


def checked(function, *arguments, **named):
    """What the function returns; bad input ends Snakemake with one line. (An exception's last line is where it was raised.)"""
    try:
        return function(*arguments, **named)
    except UserError as error:
        print(f"snakemake: {error}", file=sys.stderr)
        sys.exit(2)


INNER = PLAN_VARIABLE in os.environ
W = checked(
    open_workflow,
    config,
    Path.cwd(),
    workflow.cores,
    dry=workflow.output_settings.dryrun,
)
if not {Quietness.PROGRESS, Quietness.ALL} & {*(workflow.output_settings.quiet or ())}:
    tell_progress(logger, W)
RETENTION = Retention(W, None if INNER else Path.cwd())

FRESH = W.will_be_made()
TO_TOKENIZE = tokens_to_make(W)
EVALUATIONS = {
    (run, Path(path).stem): name
    for name, pairs in W.evaluations().items()
    for run, path in pairs
}


wildcard_constraints:
    run=r"[a-z]+-[A-Za-z0-9_.-]+",
    tokens=r"[A-Za-z0-9_.-]+",


def source(path, output):
    """An input: plain while the output is to be made; once it is there only the input's existence matters.

    The content behind an id never changes, so dates do not matter. But were the inputs of what is to be made ancient too,
    Snakemake would stop looking behind a job that it runs again.
    """
    return path if output in FRESH else ancient(path)


def everything():
    """Every run and product of the study, and the removals that its `keep` asks for."""
    return [
        *map(metrics_path, W.plan.runs),
        *checked(lambda: RETENTION.due).values(),
        *(output for product in W.products.values() for output in product.outputs),
    ]


def prune_inputs(wildcards):
    """A run, and everything planned that reads its files."""
    return [metrics_path(wildcards.run), *RETENTION.readers.get(wildcards.run, ())]


def run_parent(wildcards):
    """The finished run that this one starts from; its checkpoint must be there if it is not still to be trained."""
    checked(check_parent, W, wildcards.run)
    return [
        source(path, metrics_path(wildcards.run)) for path in W.parent_of(wildcards.run)
    ]


def run_tokens(wildcards):
    """The tokens that a run reads; their fingerprint is checked by the job."""
    return source(W.tokens_of(wildcards.run), metrics_path(wildcards.run))


def tokenizer_source(wildcards):
    """The token set whose tokenizer this one borrows, if it does; text and tokenizer must be there."""
    if wildcards.tokens in TO_TOKENIZE:
        checked(check_source, W, W.token_sets()[wildcards.tokens])
    return [ancient(path) for path in W.tokenizer_source(wildcards.tokens)]


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
    return [source(metrics_path(wildcards.run), output), source(tokens, output)]


def product_inputs(name):
    """A product's sources, by existence unless they are about to be made, and its key file, compared by date."""
    return [
        W.keys(name),
        *(path if path in FRESH else ancient(path) for path in W.products[name].inputs),
    ]


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
