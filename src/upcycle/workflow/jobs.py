"""The jobs of the workflow: a name becomes folders and settings, and one function of data/ or train/ does the work."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upcycle.bars import showing
from upcycle.data.local import hold_tokens
from upcycle.errors import UserError, nearest
from upcycle.files import read_record, write_atomic
from upcycle.study.recorded import SPEC, RunFolders, has_begun, is_finished, recorded_spec
from upcycle.study.spec import DataConfig, RunSpec
from upcycle.study.study import describe_error
from upcycle.workflow.dag import Workflow
from upcycle.workflow.needs import check_scored, check_source, check_version
from upcycle.workflow.paths import RESULTS, benchmark_path, evaluation_path
from upcycle.workflow.pruning import Retention, check_start, restarted
from upcycle.workflow.texts import files_of

log = logging.getLogger(__name__)


def tokenize_job(workflow: Workflow, name: str, step: str | None) -> None:
    """Make a token set of the study: all of it that is not done, or one step of it.

    Raises `UserError` for an unknown one, and for files or columns that are not there.
    """
    from upcycle.data.tokens import run_step, tokenize_corpus

    sets = workflow.token_sets
    if name not in sets:
        raise UserError(f"the study reads no token set `{name}`; {nearest(name, sets)}")
    data, lender = sets[name].data, sets[name].borrowed_from
    local = workflow.study.datasets.get(data.dataset)
    options: dict[str, Any] = {}
    if local is None:
        check_version(data)
    else:
        options = {"text_key": local.text, "where": local.where, "max_bad": local.max_bad, "version": data.version}
        options["part_bytes"] = local.part_bytes
        for kind in ("files", "heldout_files"):
            options[kind] = files_of(local, data.dataset, kind)
        if local.hub is not None:
            options["origin"] = f"{local.hub.id} of the Hugging Face hub, commit {local.hub.revision}"
    options |= {"vocab_size": data.vocab_size, "tokenizer": data.tokenizer, "decontaminate": data.decontaminate}
    options["tokenizer_from"] = RESULTS / "tokens" / lender if lender else None
    if step is not None:
        run_step(data.dataset, RESULTS / "tokens" / name, options, step)
        return
    if local is not None and hold_tokens(options["files"] + options["heldout_files"]):
        check_source(workflow, sets[name])
        manifest = _index(data, RESULTS / "tokens" / name, options["files"], options["heldout_files"])
    else:
        with showing("documents, to clean and to cut"):
            manifest = tokenize_corpus(data.dataset, RESULTS / "tokens" / name, **options)
    print(f"{name}: {manifest['train_tokens']:,} training and {manifest['heldout_tokens']:,} held-out tokens")


def _index(data: DataConfig, out_dir: Path, train: list[Path], heldout: list[Path]) -> dict[str, Any]:
    """A token set of tokens that are there."""
    from upcycle.data.megatron import index_tokens

    with showing("blocks of tokens, to hash"):
        return index_tokens(
            data.dataset,
            out_dir,
            {"train": train, "heldout": heldout},
            vocab_size=data.vocab_size,
            tokenizer=Path(data.tokenizer).expanduser(),
            version=data.version,
        )


def _planned(workflow: Workflow, run_id: str) -> RunSpec:
    workflow.check_planned(run_id)
    return workflow.plan.runs[run_id]


def _described(path: Path) -> RunSpec:
    """The run that a spec.json describes."""
    data = read_record(path)
    try:
        return RunSpec.model_validate({key: value for key, value in data.items() if key != "id"})
    except ValidationError as error:
        raise UserError(f"{path}: {describe_error(error)}") from None


def train_job(workflow: Workflow, name: str, *, fresh: bool = False) -> None:
    """Train, resume or verify a run of the plan, or of a spec.json with the study's execution settings; prints a line.

    As one process, as one of several (a worker, which RANK tells), or as several that are started here, by srun on the
    nodes of a SLURM job.
    """
    from upcycle.train.processes import allocation, launch, words

    run = _described(Path(name)) if name.endswith(".json") else _planned(workflow, name)
    execution = workflow.study.execution_of(run)
    command = ["train", name, "--study", workflow.study.study, *(["--fresh"] if fresh else [])]
    if words.is_worker():
        launch.become_worker()
    elif allocation.is_due(execution):
        allocation.launch_on_nodes(command, execution.nodes, RESULTS / ".nodes")
        return
    elif execution.devices > 1:
        launch.launch(command, execution.devices // execution.nodes, allocation.node_place(execution))
        words.leave_word(words.End(0, ""))
        return
    from upcycle.train.loop import train_run

    run_dir = RESULTS / "runs" / run.id
    recorded = recorded_spec(run_dir)
    if recorded is not None and has_begun(run_dir):
        run = recorded  # the parent it started from, should the plan have changed since
    if fresh:  # before anything is discarded
        run = restarted(run)
        check_start(workflow.plan, run)
    train_run(
        run,
        run_dir=run_dir,
        tokens_dir=RESULTS / "tokens" / run.data.tokens_id,
        parent_dir=_parent_folder(workflow, run),
        files=workflow.plan.checkpoints.get(run.id),
        execution=execution,
        fresh=fresh,
        evaluate=run.role != "trunk" or run.id in workflow.plan.finished_models or name.endswith(".json"),
    )
    if words.leave_word(words.End(0, "")) and words.is_worker() and not words.is_first():
        return
    metrics = read_record(run_dir / "metrics.json")
    print(
        f"{run.id}: {_loss_words(metrics)} at {run.tokens:,} tokens, "
        + ("" if run.role == "imported" else f"{metrics['tokens_per_second']:,.0f} tokens/s, ")
        + f"{metrics['wall_seconds']:.1f} s"
    )


def _parent_folder(workflow: Workflow, run: RunSpec) -> Path | None:
    """Where a run's first weights are: its parent's folder, or of an imported run the checkpoint of its model."""
    if run.role != "imported":
        return RESULTS / "runs" / run.parent if run.parent else None
    if run.id not in workflow.plan.checkpoints:
        raise UserError(f"{run.id}: no sweep of study `{workflow.study.study}` begins with this checkpoint")
    return workflow.checkpoint_of(run.id)


def _loss_words(metrics: dict[str, Any]) -> str:
    """The held-out loss of a finished run; a trunk point has none, as no product reads it."""
    if metrics["loss"] is None:
        return f"not evaluated (`upcycle evaluate {metrics['id']}` does it)"
    return f"held-out loss {metrics['loss']:.4f} ± {metrics['loss_se']:.4f} nats"


def evaluate_job(workflow: Workflow, run_id: str, name: str | None) -> None:
    """Held-out loss of a finished run on one of the study's other texts; without a name on its own, into its metrics.

    A trunk point is not evaluated when it is trained, because no product reads its loss.
    """
    from upcycle.train.evaluate import evaluate_run

    if name is None:
        from upcycle.train.finish import evaluate_later

        run = _planned(workflow, run_id)
        tokens_dir = RESULTS / "tokens" / run.data.tokens_id
        with showing("batches"):
            metrics = evaluate_later(RESULTS / "runs" / run_id, tokens_dir, workflow.study.execution)
        print(f"{run_id}: {_loss_words(metrics)}")
        return
    evaluations = workflow.study.evaluations
    if name not in evaluations:
        raise UserError(f"the study has no evaluation `{name}`; {nearest(name, evaluations)}")
    _planned(workflow, run_id)
    tokens_dir = Path(workflow.evaluation_tokens(run_id, name)).parent
    with showing("batches"):
        result = evaluate_run(
            RESULTS / "runs" / run_id, tokens_dir, workflow.study.execution, max_tokens=evaluations[name].max_tokens
        )
    write_atomic(Path(evaluation_path(run_id, evaluations[name])), json.dumps(result, indent=1) + "\n")
    print(f"{run_id}: {name} loss {result['loss']:.4f} ± {result['loss_se']:.4f} nats")


def benchmark_job(workflow: Workflow, run_id: str, name: str, task: str) -> None:
    """Scores of a finished run on a task of one of the study's benchmarks."""
    benchmarks = workflow.study.benchmarks
    if name not in benchmarks:
        raise UserError(f"the study has no benchmark `{name}`; {nearest(name, benchmarks)}")
    if task not in benchmarks[name].tasks:
        raise UserError(f"benchmarks.{name}.tasks does not name `{task}`; {nearest(task, benchmarks[name].tasks)}")
    run = _planned(workflow, run_id)
    check_scored(workflow, run_id, name, task)
    from upcycle.train.questions import benchmark_run

    benchmark = benchmarks[name]
    with showing("batches"):
        result = benchmark_run(
            RESULTS / "runs" / run_id,
            RESULTS / "tokens" / run.data.tokens_id,
            workflow.study.execution,
            task=task,
            asked=benchmark,
        )
    write_atomic(Path(benchmark_path(run_id, benchmark, task)), json.dumps(result, indent=1) + "\n")
    print(f"{run_id}: {task} accuracy {result['accuracy']:.3f}, {result['bits_per_byte']:.3f} bits per byte")


def export_job(name: str, folder: Path) -> None:
    """Write a finished run, by its id in results/runs or by its folder, as a Hugging Face folder; prints a line."""
    from upcycle.train.export import export_run

    given, runs = Path(name), RunFolders(RESULTS / "runs")
    if not (given / SPEC).is_file() and name not in runs.names:
        raise UserError(f"no run `{name}` in {runs.root}, nor a run's folder; {nearest(name, runs.names)}")
    run_dir = given.resolve() if (given / SPEC).is_file() else runs.root / name
    run = recorded_spec(run_dir)
    if run is None:
        raise UserError(f"{run_dir}: no {SPEC}, so it is not a run's folder; name a run that was trained")
    compared = export_run(run_dir, run_dir.parents[1] / "tokens" / run.data.tokens_id, folder)
    print(f"{run.id} is in {folder}: {compared}")


def prune_job(workflow: Workflow, name: str | None, root: Path | None) -> None:
    """Remove what the study's `keep` does not keep: of one run, or of every run that nothing planned reads any more.

    `root`: as of `Retention`.
    """
    retention = Retention(workflow, root)
    if name is not None:
        _planned(workflow, name)
        retention.prune(name)
        return
    for run_id in retention.due:
        if is_finished(RESULTS / "runs" / run_id) and retention.unfinished.isdisjoint(
            retention.readers.get(run_id, ())
        ):
            retention.prune(run_id)
