"""Rows of a run's curve, `metrics.jsonl`: what an update did, and held-out losses at log-spaced steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upcycle.model.transformer import RouterStats
from upcycle.model.upcycling import expert_distance
from upcycle.train.evaluate import SUBSET_TOKENS, batches_of, heldout, sequence_losses, spread_sequences
from upcycle.train.record import MetricsLog
from upcycle.train.trainee import Trainee
from upcycle.train.utilisation import job_rate, utilisation


@dataclass(frozen=True)
class Update:
    """One update: loss, router losses and routing over its global batch, and the gradient norm before clipping."""

    lr: float
    loss: float
    """Mean cross-entropy over all tokens of the batch, nats."""
    balance: float
    """Unscaled balance loss: 1 a layer at perfect balance, 0 if dense."""
    z: float
    """Unscaled router z-loss, summed over layers; 0 where `z_coef` is."""
    grad_norm: float
    stats: RouterStats | None
    skipped: bool = False
    """Whether weights and moments were left as they were (`spikes.py`)."""


class Pace:
    """How fast updates are made, from one row of the curve to the next."""

    def __init__(self, trainee: Trainee) -> None:
        self._mark(trainee)

    def _mark(self, trainee: Trainee) -> None:
        self._step, self._train, self._data = trainee.step, trainee.clock.train, trainee.clock.data

    def since_last_row(self, trainee: Trainee) -> dict[str, float]:
        """The row's fields of time, means over the updates since the last call; without evaluating and saving."""
        steps = trainee.step - self._step
        seconds, data_seconds = trainee.clock.train - self._train, trainee.clock.data - self._data
        self._mark(trainee)
        speed = steps * trainee.run.tokens_per_step / seconds
        return {
            "tokens_per_second": round(speed, 1),
            "step_seconds": round(seconds / steps, 6),
            "data_seconds": round(data_seconds / steps, 6),
            "mfu": round(utilisation(trainee.run, speed, job_rate(trainee.run, trainee.execution)), 5),
        }


def is_log_spaced(step: int) -> bool:
    """Whether a held-out loss is taken after `step` updates: at 2^(k/2), rounded, from 16 up: 16, 23, 32, 45, 64."""
    return step >= 16 and step == round(2 ** (round(2 * math.log2(step)) / 2))


def update_row(trainee: Trainee, update: Update, pace: Pace) -> dict[str, Any]:
    """A row of the curve; docs/architecture.md says what each key is. A number that is not finite is null."""
    run = trainee.run
    aux = run.moe.aux_coef * update.balance if run.moe else 0.0
    row: dict[str, Any] = {
        "step": trainee.step,
        "tokens": trainee.step * run.tokens_per_step,
        "lr": update.lr,
        **{key: _finite(x) for key, x in (("loss", update.loss), ("aux", aux), ("grad_norm", update.grad_norm))},
        **pace.since_last_row(trainee),
    }
    if update.skipped:
        row["skipped"] = True
    if update.stats is not None and math.isfinite(update.loss):
        load_LE = update.stats.load_LE
        row |= {
            "balance": update.balance,
            "load": [[round(share, 6) for share in layer] for layer in load_LE.tolist()],
            "dead": int((load_LE == 0).sum()),
            "entropy": [round(nats, 6) for nats in update.stats.entropy_L.tolist()],
        }
        if run.moe and run.moe.z_coef:
            row["z"] = update.z
    return row


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def append_heldout(trainee: Trainee, metrics: MetricsLog) -> None:
    """A row with the held-out loss on the fixed subset."""
    with trainee.clock.phase("evaluate"):
        sequences = heldout(trainee.tokens, trainee.run)
        subset = sequences[spread_sequences(len(sequences), SUBSET_TOKENS // trainee.run.model.context)]
        batches = batches_of(subset, trainee.eval_batch)
        losses = sequence_losses(trainee.model, trainee.run, batches, trainee.group)
    with trainee.group.together():
        metrics.append(heldout_row(trainee, losses))


def heldout_row(trainee: Trainee, subset_losses: np.ndarray) -> dict[str, Any]:
    """A row of the curve with the mean held-out loss of the subset's sequences, and how far apart the experts are.

    Several processes hold parts of the weights, so their rows have no distance: gathering them takes time and memory.
    """
    row: dict[str, Any] = {
        "step": trainee.step,
        "tokens": trainee.step * trainee.run.tokens_per_step,
        "heldout": float(subset_losses.mean()),
        "subset_tokens": len(subset_losses) * trainee.run.model.context,
    }
    if trainee.run.moe and trainee.group.size == 1:
        row["expert_distance"] = _expert_distances(trainee)
    return row


@torch.no_grad()
def _expert_distances(trainee: Trainee) -> list[float]:
    """The largest distance between two experts of each layer, as in the receipt."""
    with trainee.clock.phase("evaluate"):
        return [round(expert_distance(moe.w_in, moe.w_out), 6) for moe in trainee.model.mixtures]
