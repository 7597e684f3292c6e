"""Saving a run while it trains, and finishing it: whole held-out loss, weights, manifest, metrics.json last."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.data.tokens import TokenSet
from upcycle.manifest import STATE, WEIGHTS, read_manifest
from upcycle.study.counting import flops_6nd, flops_per_token
from upcycle.study.execution import Execution
from upcycle.train.evaluate import (
    SUBSET_TOKENS,
    batches_of,
    check_fingerprint,
    evaluate_run,
    heldout,
    mean_and_error,
    sequence_losses,
    spread_sequences,
)
from upcycle.train.optim import optimizer_tensors
from upcycle.train.processes.preemption import HOPELESS, StopRequest, TrainingError
from upcycle.train.record import MetricsLog, hardware, now, software
from upcycle.train.rows import heldout_row
from upcycle.train.states import checkpoint
from upcycle.train.states.lease import lease
from upcycle.train.trainee import Trainee
from upcycle.train.utilisation import utilisation


def save(trainee: Trainee, metrics: MetricsLog) -> None:
    """Hand a rolling state over to be published in the background; the rows before it are durable first.

    Raises the TrainingError of the save before. Does nothing if this step's state was handed over already.
    """
    if trainee.saver.step == trainee.step:
        return
    with trainee.clock.phase("save"):
        trainee.tokens.remember()
        weights = {f"model.{name}": value for name, value in trainee.model.state_dict().items()}
        moments = optimizer_tensors(trainee.model, trainee.optimizer)
        notes = {
            "id": trainee.run.id,
            "tokens_fingerprint": trainee.tokens.fingerprint,
            "clock": trainee.clock.notes(),
            **trainee.spikes.notes(),
        }
        trainee.saver.save(
            trainee.run_dir / checkpoint.RESUME,
            trainee.step,
            weights | moments,
            notes,
            before=metrics.sync,
            after=trainee.clock.add_background,
        )


def finish(trainee: Trainee, metrics: MetricsLog, stop: StopRequest, *, whole: bool) -> None:
    """A last rolling state, held-out loss, weights, a trunk's optimizer state for its children, manifest.

    metrics.json comes last. Without `whole` only the curve's subset is evaluated, and the loss is null. Raises
    TrainingError where the loss is not finite.
    """
    run = trainee.run
    if run.role != "imported":  # which is read again sooner than a state of it is
        save(trainee, metrics)
        with trainee.clock.phase("save"):
            trainee.saver.wait()  # published: from here a stop or kill costs the evaluation only
    sequences = heldout(trainee.tokens, run)
    subset = spread_sequences(len(sequences), SUBSET_TOKENS // run.model.context)
    if not whole:
        sequences, subset = sequences[subset], np.arange(len(subset))
    with trainee.clock.phase("evaluate"):
        batches = stop.watch(batches_of(sequences, trainee.eval_batch), trainee.group.any)
        losses = sequence_losses(trainee.model, run, batches, trainee.group)
    with trainee.group.together():
        if not np.isfinite(losses).all():
            raise TrainingError(
                f"{run.id}: the held-out loss is not finite: the model overflows, so it is not finished. "
                + ("Take another checkpoint" if run.role == "imported" else "A lower optim.lr may help"),
                HOPELESS,
            )
        # It is there already if an attempt was killed right here.
        if not any("heldout" in row and row["step"] == trainee.step for row in metrics.rows()):
            metrics.append(heldout_row(trainee, losses[subset]))
        metrics.sync()
    tensors = {WEIGHTS: trainee.whole(trainee.model.state_dict())}
    if run.role == "trunk":
        tensors[STATE] = trainee.whole(optimizer_tensors(trainee.model, trainee.optimizer))
    if not trainee.group.is_first:
        return
    about = {
        "id": run.id,
        "step": trainee.step,
        "tokens_fingerprint": trainee.tokens.fingerprint,
        "tokenizer_sha256": trainee.tokens.manifest["tokenizer"]["sha256"],
        **trainee.spikes.notes(),
    }
    found = _final_metrics(trainee, losses if whole else None, metrics.rows())
    checkpoint.save_finished(trainee.run_dir, about, tensors, found)


def evaluate_later(run_dir: Path, tokens_dir: Path, execution: Execution) -> dict[str, Any]:
    """The metrics of a finished run, with its own held-out loss: evaluated and added if it was not before.

    Raises UserError for other tokens than it was trained on, DamagedError for files that do not verify.
    """
    with lease(run_dir):
        metrics: dict[str, Any] = read_manifest(run_dir)["metrics"]
        if metrics["loss"] is None:
            begun = time.perf_counter()
            check_fingerprint(TokenSet(tokens_dir), metrics["tokens_fingerprint"], metrics["id"])
            found = evaluate_run(run_dir, tokens_dir, execution)
            metrics |= {key: found[key] for key in ("loss", "loss_se", "heldout_tokens")}
            for key in ("eval_seconds", "wall_seconds"):
                metrics[key] = round(metrics[key] + time.perf_counter() - begun, 3)
            checkpoint.replace_metrics(run_dir, metrics)
        return metrics


def _final_metrics(trainee: Trainee, losses: np.ndarray | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`metrics.json`: what the laws, figures and the report read of a run. Losses in nats, times in seconds."""
    run, clock = trainee.run, trainee.clock
    loss, loss_se = (None, None) if losses is None else mean_and_error(losses)
    return {
        "id": run.id,
        "kind": run.kind,
        "lineage": run.lineage,
        "role": run.role,
        "loss": loss,
        "loss_se": loss_se,
        "heldout_tokens": None if losses is None else len(losses) * run.model.context,
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
        "data_seconds": round(clock.data, 3),
        "eval_seconds": round(clock.evaluate, 3),
        "save_seconds": round(clock.save, 3),
        "save_background_seconds": round(clock.save_background, 3),
        **_of_updates(trainee, rows),
        "skipped_updates": trainee.spikes.skipped,
        "tokens_fingerprint": trainee.tokens.fingerprint,
        "hardware": hardware(trainee.execution.device),
        "software": software(),
        "execution": trainee.execution.model_dump(mode="json") | {"kernels": trainee.model.kernels.describe()},
        "started": clock.started,
        "finished": now(),
        "curve_heldout": [[row["tokens"], row["heldout"]] for row in rows if "heldout" in row],
        "resumed": clock.resumed,
    }


OF_UPDATES = (
    *("tokens_per_second", "step_seconds", "gemm_flops_per_second", "mfu"),
    *("train_loss_last", "balance_last", "grad_norm_last"),
)


def _of_updates(trainee: Trainee, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json has of the updates; null of an imported run, which makes none."""
    run, clock = trainee.run, trainee.clock
    if run.role == "imported":
        return dict.fromkeys(OF_UPDATES)
    last = [row for row in rows if "loss" in row][-1]
    speed, rate = run.segment_tokens / clock.train, clock.gemm_flops / clock.train
    found = (
        *(round(speed, 1), round(clock.train / (run.end_step - run.start_step), 6), round(rate)),
        round(utilisation(run, speed, rate), 5),
        *(last["loss"], last.get("balance", 0.0), last["grad_norm"]),
    )
    return dict(zip(OF_UPDATES, found, strict=True))
