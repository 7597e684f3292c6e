"""Training one run. `train_run` is the whole story; the functions below it are its chapters, in the order they happen.

The same command starts a run, resumes it, or finds it finished. Nothing here is random: initial weights come from the
run's seed, a batch and a learning rate are functions of the step. So a run that was stopped, killed or cut into a
chain of segments computes, bit for bit, what an undisturbed one computes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from upcycle.manifest import MANIFEST, METRICS, DamagedError
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.device import out_of_memory_is_named
from upcycle.train.finish import finish, save
from upcycle.train.processes.distributed import Group, start_group
from upcycle.train.processes.preemption import Preempted, StopRequest
from upcycle.train.record import Clock, MetricsLog, process_seconds
from upcycle.train.rows import Pace, append_heldout, is_log_spaced, update_row
from upcycle.train.start import prepare_trainee
from upcycle.train.states import checkpoint, rolling
from upcycle.train.states.folder import clear_temporaries
from upcycle.train.states.lease import lease
from upcycle.train.step import Wishes, update
from upcycle.train.trackers import Trackers
from upcycle.train.trainee import Trainee
from upcycle.train.utilisation import job_rate

log = logging.getLogger(__name__)


def train_run(
    run: RunSpec,
    *,
    run_dir: Path,
    tokens_dir: Path,
    parent_dir: Path | None,
    execution: Execution,
    files: Mapping[str, str] | None = None,
    fresh: bool = False,
    evaluate: bool = True,
) -> None:
    """Train a run into its folder, resume it, or verify that it is finished and return.

    `parent_dir`: the finished run that it starts from, or the Hugging Face folder of a checkpoint that is imported,
    whose `files` have these SHA-256 by name.
    Without `evaluate` its final held-out loss is left out, and null in metrics.json (`finish.evaluate_later` adds it).
    `fresh` discards a finished result, or a damaged one, and trains again from the start; an unfinished run with a
    valid state is resumed, so that a preempted job with `fresh` keeps its work. Raises UserError for what cannot be
    trained; Preempted (exit code 75) after SIGTERM or SIGUSR1, the state saved; TrainingError for a non-finite loss, a
    full disk or too little memory, the last state kept.
    """
    execution.check(run)
    execution.check_trackers()
    with start_group(execution) as group, StopRequest() as stop, ExitStack() as held:
        if group.from_first(_open(run, run_dir, held, group, fresh=fresh)):
            log.info("%s: finished before; its files are verified", run.id)
            return
        clock = Clock(startup=process_seconds())
        with out_of_memory_is_named(run, execution), clock.phase("startup"):
            trainee = prepare_trainee(
                run,
                run_dir=run_dir,
                tokens_dir=tokens_dir,
                parent_dir=parent_dir,
                files=files,
                execution=execution,
                clock=clock,
                group=group,
            )
            if run.role != "imported":
                job_rate(run, execution)  # measured here, in no update's time
        with group.together():
            trackers = Trackers.open(run, run_dir, execution) if group.is_first else None
        metrics_log = MetricsLog(run_dir / "metrics.jsonl", writes=group.is_first, trackers=trackers)
        with out_of_memory_is_named(run, execution), metrics_log as metrics, trainee.saver:
            if run.role != "imported":
                _run_steps(trainee, metrics, stop)
            finish(trainee, metrics, stop, whole=evaluate)


def _open(run: RunSpec, run_dir: Path, held: ExitStack, group: Group, *, fresh: bool) -> bool:
    """Take the run's folder until `held` ends; return whether the run is finished. The first process acts for all."""
    with group.together():
        if group.is_first:
            run_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(lease(run_dir))
            clear_temporaries(run_dir)
            if fresh and _can_resume(run_dir, run.id):
                log.info("%s: unfinished, resumes; to begin anew remove %s", run.id, run_dir / checkpoint.RESUME)
            elif fresh:
                checkpoint.remove_results(run_dir)
            return checkpoint.verify_finished(run_dir, run.id)
    return False


def _can_resume(run_dir: Path, run_id: str) -> bool:
    """Whether a run was never finished, by its files' presence, and has a valid state and a curve to resume from."""
    if any((run_dir / name).exists() for name in (MANIFEST, METRICS)):
        return False
    try:
        MetricsLog(run_dir / checkpoint.CURVE).rows()
        return rolling.load_rolling(run_dir / checkpoint.RESUME, run_id) is not None
    except DamagedError as damage:
        log.warning("%s; begun anew", damage)
        return False


def _run_steps(trainee: Trainee, metrics: MetricsLog, stop: StopRequest) -> None:
    """Updates up to `end_step`, with their rows, held-out losses and rolling states."""
    run, clock = trainee.run, trainee.clock
    if trainee.step == 0 and trainee.group.from_first(not metrics.rows()):
        append_heldout(trainee, metrics)
    saved_at = time.monotonic()  # also after a resume: the state just read is as good as a save
    pace, rate = Pace(trainee), job_rate(run, trainee.execution)
    while trainee.step < run.end_step:
        trained = clock.train
        with clock.phase("train"):
            done, wishes = update(trainee, _wishes(trainee, stop, saved_at))
            trainee.step += 1
        clock.gemm_flops += (clock.train - trained) * rate
        ends = (run.start_step + 1, run.end_step)
        if trainee.step in ends or trainee.step % trainee.execution.log_steps == 0 or done.skipped:
            row = update_row(trainee, done, pace)
            with trainee.group.together():
                metrics.append(row)
            log.info(
                "%s: step %d of %d, loss %.4f, %.0f tokens/s, %.0f %% MFU",
                *(run.id, trainee.step, run.end_step, done.loss, row["tokens_per_second"], 100 * row["mfu"]),
            )
        if is_log_spaced(trainee.step) and trainee.step < run.end_step:
            append_heldout(trainee, metrics)
        # A signal during the update stops a single process now. Several have agreed on what to do in the update's one
        # message: what was wished after it waits for the next, or the processes would part.
        if trainee.group.size == 1:
            wishes = _wishes(trainee, stop, saved_at)
        if wishes.stop or wishes.save:
            save(trainee, metrics)
            saved_at = time.monotonic()
        if wishes.stop:
            trainee.saver.wait()
            by = stop.requested or "a signal to another of its processes"
            raise Preempted(f"{run.id}: stopped by {by} after step {trainee.step}; the same command continues")


def _wishes(trainee: Trainee, stop: StopRequest, saved_at: float) -> Wishes:
    """What this process wants done after an update; the first one's clock says when to save."""
    due = trainee.group.is_first and time.monotonic() - saved_at >= trainee.execution.save_seconds
    return Wishes(stop=bool(stop.requested), save=due)
