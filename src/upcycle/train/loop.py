"""Training one run. `train` is the whole story; the functions below it are its chapters, in the order they happen.

The same command starts a run, resumes it, or finds it finished. Nothing here is random: initial weights come from the
run's seed, a batch and a learning rate are functions of the step. So a run that was stopped, killed or cut into a
chain of segments computes, bit for bit, what an undisturbed one computes.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upcycle.counting import flops_6nd, flops_per_token
from upcycle.execution import Execution
from upcycle.model.transformer import RouterStats
from upcycle.spec import RunSpec
from upcycle.train import checkpoint
from upcycle.train.device import out_of_memory_is_named, precision
from upcycle.train.evaluate import SUBSET_TOKENS, batches_of, heldout, mean_and_error, sequence_losses, spread
from upcycle.train.lease import lease
from upcycle.train.optim import clip_gradients, optimizer_tensors, set_learning_rate
from upcycle.train.preemption import Preempted, StopRequest, TrainingError
from upcycle.train.record import Clock, MetricsLog, hardware, now, process_seconds, software
from upcycle.train.schedule import learning_rate
from upcycle.train.start import Trainee, prepare, run_batch

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
        checkpoint.clear_temporaries(run_dir)
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
        with out_of_memory_is_named(run, execution), MetricsLog(run_dir / "metrics.jsonl") as metrics:
            _run_steps(trainee, metrics, stop)
            _finish(trainee, metrics, stop)


def _run_steps(trainee: Trainee, metrics: MetricsLog, stop: StopRequest) -> None:
    """Updates up to `end_step`, with their rows, held-out losses and rolling states."""
    run, clock = trainee.run, trainee.clock
    if trainee.step == 0 and not metrics.rows():
        _append_heldout(trainee, metrics)
    saved_at = time.monotonic()
    row_step, row_seconds = trainee.step, clock.train
    while trainee.step < run.end_step:
        with clock.phase("train"):
            update = _update(trainee)
            trainee.step += 1
        if trainee.step in (run.start_step + 1, run.end_step) or trainee.step % trainee.execution.log_steps == 0:
            speed = (trainee.step - row_step) * run.tokens_per_step / (clock.train - row_seconds)
            metrics.append(_row(trainee, update, speed))
            log.info(
                "%s: step %d of %d, loss %.4f, %.0f tokens/s", run.id, trainee.step, run.end_step, update.loss, speed
            )
            row_step, row_seconds = trainee.step, clock.train
        if is_log_spaced(trainee.step) and trainee.step < run.end_step:
            _append_heldout(trainee, metrics)
        if stop.requested or time.monotonic() - saved_at >= trainee.execution.save_seconds:
            _save(trainee, metrics)
            saved_at = time.monotonic()
        if stop.requested:
            raise Preempted(
                f"{run.id}: stopped by {stop.requested} after step {trainee.step}; the same command goes on"
            )


# One update


@dataclass(frozen=True)
class Update:
    """One update: loss, balance and routing over its global batch, and the gradient norm before clipping."""

    lr: float
    loss: float
    """Mean cross-entropy over all tokens of the batch, nats."""
    balance: float
    """Unscaled balance loss: 1 a layer at perfect balance, 0 if dense."""
    grad_norm: float
    stats: RouterStats | None


def _update(trainee: Trainee) -> Update:
    """Forward and backward over the global batch in micro-batches, clip, AdamW.

    Micro-batches weigh by their share of the batch's tokens (all sequences are equally long), and hold whole balance
    groups, whose losses are averaged: so accumulation changes rounding only. Raises TrainingError, before anything is
    changed, if the loss or the gradient is not finite.
    """
    run = trainee.run
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
    for micro in batches_of(ids, trainee.execution.micro_batch or len(ids)):
        share = len(micro) / len(ids)
        ids_BS = torch.from_numpy(micro).to(trainee.device)
        with precision(run, trainee.device):
            output = model(ids_BS[:, :-1])
        cross_entropy = model.kernels.cross_entropy(output.logits_BSV, ids_BS[:, 1:])
        torch.autograd.backward((cross_entropy + aux_coef * output.balance) * share)
        loss += cross_entropy.detach() * share
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


# What is recorded


def is_log_spaced(step: int) -> bool:
    """Whether a held-out loss is taken after `step` updates: at 2^(k/2), rounded, from 16 up: 16, 23, 32, 45, 64."""
    return step >= 16 and step == round(2 ** (round(2 * math.log2(step)) / 2))


def _row(trainee: Trainee, update: Update, tokens_per_second: float) -> dict[str, Any]:
    """A row of the curve. `aux` is what the balance loss adds to the loss; load is by layer and expert."""
    run = trainee.run
    row: dict[str, Any] = {
        "step": trainee.step,
        "tokens": trainee.step * run.tokens_per_step,
        "lr": update.lr,
        "loss": update.loss,
        "aux": run.moe.aux_coef * update.balance if run.moe else 0.0,
        "grad_norm": update.grad_norm,
        "tokens_per_second": round(tokens_per_second, 1),
    }
    if update.stats is not None:
        load_LE = update.stats.load_LE
        row |= {
            "balance": update.balance,
            "load": [[round(share, 6) for share in layer] for layer in load_LE.tolist()],
            "dead": int((load_LE == 0).sum()),
            "entropy": [round(nats, 6) for nats in update.stats.entropy_L.tolist()],
        }
    return row


def _append_heldout(trainee: Trainee, metrics: MetricsLog) -> None:
    """A row with the held-out loss on the fixed subset."""
    with trainee.clock.phase("evaluate"):
        sequences = heldout(trainee.tokens, trainee.run)
        subset = sequences[spread(len(sequences), SUBSET_TOKENS // trainee.run.model.context)]
        losses = sequence_losses(trainee.model, trainee.run, batches_of(subset, trainee.execution.eval_batch))
    metrics.append(_heldout_row(trainee, losses))


def _heldout_row(trainee: Trainee, subset_losses: np.ndarray) -> dict[str, Any]:
    return {
        "step": trainee.step,
        "tokens": trainee.step * trainee.run.tokens_per_step,
        "heldout": float(subset_losses.mean()),
        "subset_tokens": len(subset_losses) * trainee.run.model.context,
    }


def _save(trainee: Trainee, metrics: MetricsLog) -> None:
    """Publish a rolling state; the rows before it are durable first."""
    with trainee.clock.phase("save"):
        metrics.sync()
        weights = {f"model.{name}": value for name, value in trainee.model.state_dict().items()}
        moments = optimizer_tensors(trainee.model, trainee.optimizer)
        notes = {
            "id": trainee.run.id,
            "tokens_fingerprint": trainee.tokens.fingerprint,
            "clock": trainee.clock.notes(),
        }
        state = checkpoint.RollingState(trainee.step, weights | moments, notes)
        checkpoint.save_rolling(trainee.run_dir / checkpoint.RESUME, state)


# The end


def _finish(trainee: Trainee, metrics: MetricsLog, stop: StopRequest) -> None:
    """Whole held-out loss, weights, a trunk's optimizer state for its children, manifest; metrics.json last."""
    _save(trainee, metrics)  # a stop or kill during the evaluation costs the evaluation only
    run = trainee.run
    sequences = heldout(trainee.tokens, run)
    with trainee.clock.phase("evaluate"):
        batches = stop.watch(batches_of(sequences, trainee.execution.eval_batch))
        losses = sequence_losses(trainee.model, run, batches)
    if not any(
        "heldout" in row and row["step"] == trainee.step for row in metrics.rows()
    ):  # an attempt killed right here
        metrics.append(_heldout_row(trainee, losses[spread(len(losses), SUBSET_TOKENS // run.model.context)]))
    tensors = {checkpoint.WEIGHTS: trainee.model.state_dict()}
    if run.role == "trunk":
        tensors[checkpoint.STATE] = optimizer_tensors(trainee.model, trainee.optimizer)
    checkpoint.save_finished(
        trainee.run_dir,
        run_id=run.id,
        step=trainee.step,
        tokens_fingerprint=trainee.tokens.fingerprint,
        tokenizer_sha256=trainee.tokens.manifest["tokenizer"]["sha256"],
        tensors=tensors,
        metrics=_final_metrics(trainee, losses, metrics.rows()),
    )


def _final_metrics(trainee: Trainee, losses: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`metrics.json`: what the laws, figures and the report read of a run. Losses in nats, times in seconds."""
    run, clock = trainee.run, trainee.clock
    loss, loss_se = mean_and_error(losses)
    last = [row for row in rows if "loss" in row][-1]
    return {
        "id": run.id,
        "kind": run.kind,
        "lineage": run.lineage,
        "role": run.role,
        "loss": loss,
        "loss_se": loss_se,
        "heldout_tokens": len(losses) * run.model.context,
        "tokens": run.tokens,
        "segment_tokens": run.segment_tokens,
        "steps": run.end_step,
        "dense_parent": run.dense_parent,
        "dense_tokens": run.dense_tokens,
        "flops_6nd": flops_6nd(run),
        "flops": flops_per_token(run.model, run.moe) * run.segment_tokens,
        "wall_seconds": round(clock.wall, 3),
        "startup_seconds": round(clock.startup, 3),
        "train_seconds": round(clock.train, 3),
        "eval_seconds": round(clock.evaluate, 3),
        "save_seconds": round(clock.save, 3),
        "tokens_per_second": round(run.segment_tokens / clock.train, 1),
        "train_loss_last": last["loss"],
        "balance_last": last.get("balance", 0.0),
        "grad_norm_last": last["grad_norm"],
        "tokens_fingerprint": trainee.tokens.fingerprint,
        "hardware": hardware(trainee.execution.device),
        "software": software(),
        "execution": trainee.execution.model_dump(mode="json") | {"kernels": trainee.model.kernels.describe()},
        "started": clock.started,
        "finished": now(),
        "curve_heldout": [[row["tokens"], row["heldout"]] for row in rows if "heldout" in row],
        "resumed": clock.resumed,
    }
