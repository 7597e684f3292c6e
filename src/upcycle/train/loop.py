"""Training one run. `train` is the whole story; the functions below it are its chapters, in the order they happen.

The same command starts a run, resumes it, or finds it finished. Nothing here is random: initial weights come from the
run's seed, a batch and a learning rate are functions of the step. So a run that was stopped, killed or cut into a
chain of segments computes, bit for bit, what an undisturbed one computes.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch

from upcycle.execution import Execution
from upcycle.model.transformer import RouterStats
from upcycle.spec import RunSpec
from upcycle.train import checkpoint, rolling
from upcycle.train.device import out_of_memory_is_named, precision
from upcycle.train.finish import finish, save
from upcycle.train.lease import lease
from upcycle.train.optim import clip_gradients, set_learning_rate
from upcycle.train.preemption import Preempted, StopRequest, TrainingError
from upcycle.train.record import Clock, MetricsLog, process_seconds
from upcycle.train.rows import Pace, Update, append_heldout, is_log_spaced, update_row
from upcycle.train.schedule import learning_rate
from upcycle.train.start import Trainee, prepare, run_batch
from upcycle.train.utilisation import gemm_rate

log = logging.getLogger(__name__)


def train(
    run: RunSpec,
    *,
    run_dir: Path,
    tokens_dir: Path,
    parent_dir: Path | None,
    execution: Execution,
    fresh: bool = False,
) -> None:
    """Train a run into its folder, go on with it, or verify that it is finished and return.

    `fresh` removes an earlier result first. Raises UserError for what cannot be trained; Preempted (exit code 75) after
    SIGTERM or SIGUSR1, the state saved; TrainingError for a non-finite loss, a full disk or too little memory, the last
    state kept.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with lease(run_dir), StopRequest() as stop:
        rolling.clear_temporaries(run_dir)
        if fresh:
            checkpoint.remove_results(run_dir)
        if checkpoint.verify_finished(run_dir, run.id):
            log.info("%s: finished before; its files are verified", run.id)
            return
        clock = Clock(startup=process_seconds())
        with clock.phase("startup"):
            trainee = prepare(
                run, run_dir=run_dir, tokens_dir=tokens_dir, parent_dir=parent_dir, execution=execution, clock=clock
            )
            gemm_rate(run, execution)
        with out_of_memory_is_named(run, execution), MetricsLog(run_dir / "metrics.jsonl") as metrics, trainee.saver:
            _run_steps(trainee, metrics, stop)
            finish(trainee, metrics, stop)


def _run_steps(trainee: Trainee, metrics: MetricsLog, stop: StopRequest) -> None:
    """Updates up to `end_step`, with their rows, held-out losses and rolling states."""
    run, clock = trainee.run, trainee.clock
    if trainee.step == 0 and not metrics.rows():
        append_heldout(trainee, metrics)
    saved_at = time.monotonic()
    pace = Pace(trainee)
    while trainee.step < run.end_step:
        with clock.phase("train"):
            update = _update(trainee)
            trainee.step += 1
        if trainee.step in (run.start_step + 1, run.end_step) or trainee.step % trainee.execution.log_steps == 0:
            row = update_row(trainee, update, pace)
            metrics.append(row)
            log.info(
                "%s: step %d of %d, loss %.4f, %.0f tokens/s, %.0f %% MFU",
                *(run.id, trainee.step, run.end_step, update.loss, row["tokens_per_second"], 100 * row["mfu"]),
            )
        if is_log_spaced(trainee.step) and trainee.step < run.end_step:
            append_heldout(trainee, metrics)
        if stop.requested or time.monotonic() - saved_at >= trainee.execution.save_seconds:
            save(trainee, metrics)
            saved_at = time.monotonic()
        if stop.requested:
            trainee.saver.wait()
            raise Preempted(
                f"{run.id}: stopped by {stop.requested} after step {trainee.step}; the same command goes on"
            )


# One update


def _update(trainee: Trainee) -> Update:
    """Forward and backward over the global batch in micro-batches, clip, AdamW.

    Micro-batches weigh by their share of the batch's tokens (all sequences are equally long), and hold whole balance
    groups, whose losses are averaged: so accumulation changes rounding only. Raises TrainingError, before anything is
    changed, if the loss or the gradient is not finite.
    """
    run = trainee.run
    with trainee.clock.phase("data"):
        ids = run_batch(run, trainee.tokens, trainee.step)
    lr = learning_rate(run, trainee.step)
    set_learning_rate(trainee.optimizer, lr)
    trainee.optimizer.zero_grad(set_to_none=True)
    loss, balance, stats = _accumulate(trainee, ids)
    grad_norm = clip_gradients(trainee.model.parameters(), run.optim.clip)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"{run.id}: step {trainee.step + 1}: loss {loss}, gradient norm {grad_norm}. Stopped before the update; "
            f"the last saved state is kept in {trainee.run_dir / checkpoint.RESUME}. "
            "The usual mend is a lower optim.lr or a longer schedule.warmup_steps"
        )
    trainee.optimizer.step()
    return Update(lr, loss, balance, grad_norm, stats)


def _accumulate(trainee: Trainee, ids: np.ndarray) -> tuple[float, float, RouterStats | None]:
    """Gradients of the global batch (batch, context + 1); its loss, balance and routing."""
    model, run = trainee.model, trainee.run
    aux_coef = run.moe.aux_coef if run.moe else 0.0
    loss = torch.zeros((), device=trainee.device)
    balance = torch.zeros((), device=trainee.device)
    parts: list[tuple[float, RouterStats]] = []
    with trainee.clock.phase("data"):
        batch_BS = torch.from_numpy(ids).to(trainee.device)
    for ids_BS in batch_BS.split(trainee.execution.micro_batch or len(ids)):
        share = len(ids_BS) / len(ids)
        with precision(run, trainee.device):
            output = model(ids_BS[:, :-1], ids_BS[:, 1:])
        torch.autograd.backward((output.loss + aux_coef * output.balance) * share)
        loss += output.loss.detach() * share
        balance += output.balance.detach() * share
        if output.stats is not None:
            parts.append((share, output.stats))
    return loss.item(), balance.item(), _weighted_mean(parts)


def _weighted_mean(parts: list[tuple[float, RouterStats]]) -> RouterStats | None:
    """Routing over the global batch from that of its micro-batches and their shares."""
    if not parts:
        return None
    load_LE = torch.stack([share * stats.load_LE for share, stats in parts]).sum(0)
    entropy_L = torch.stack([share * stats.entropy_L for share, stats in parts]).sum(0)
    return RouterStats(load_LE, entropy_L)
