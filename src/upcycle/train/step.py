"""One update: forward and backward over the global batch, clip, AdamW; by one process or by several.

A process computes the gradients of its share of the batch in micro-batches. Every micro-batch holds whole balance
groups, and its loss and balance loss weigh by its share of the GLOBAL batch's tokens (all sequences are equally long),
so sums over micro-batches and over processes are the means of the recipe: how the work is divided changes rounding
only. What several processes must agree on travels in ONE message a step: loss, router losses, routing, gradient norms,
and whether anyone was asked to stop or to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from upcycle.model.transformer import RouterStats
from upcycle.train.device import precision
from upcycle.train.optim import global_norm, gradient_norms, local_square_sums, scale_gradients, set_learning_rate
from upcycle.train.processes.preemption import HOPELESS, TrainingError
from upcycle.train.rows import Update
from upcycle.train.schedule import learning_rate
from upcycle.train.spikes import MOST_IN_A_ROW
from upcycle.train.states import checkpoint
from upcycle.train.trainee import Trainee, run_batch


@dataclass(frozen=True)
class Wishes:
    """What a process, or after an update any process, wants done after it."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Sums:
    """What the forward passes of a batch add up to, over micro-batches and, in the end, processes."""

    loss: Tensor
    balance: Tensor
    z: Tensor
    stats: RouterStats | None


def update(trainee: Trainee, wishes: Wishes) -> tuple[Update, Wishes]:
    """One update, and what the processes agreed on: `wishes` of any of them.

    Raises TrainingError, in all processes and before anything is changed, if the loss or the gradient is not finite and
    the update is not skipped (`optim.skip_above`).
    """
    run = trainee.run
    with trainee.clock.phase("data"):
        ids = run_batch(run, trainee.tokens, trainee.step)
    lr = learning_rate(run, trainee.step)
    set_learning_rate(trainee.optimizer, lr)
    trainee.optimizer.zero_grad(set_to_none=True)  # the first micro-batch's are then kept, not added to zeros
    sums = accumulate(trainee, ids)
    parameters, stats = list(trainee.model.parameters()), sums.stats
    if trainee.group.size == 1:  # the host waits for the device here, and nowhere else in an update
        whole = torch.cat([torch.stack([sums.loss, sums.balance, sums.z]), gradient_norms(parameters)])
        loss, balance, z, *norms = whole.tolist()
        grad_norm = global_norm(norm * norm for norm in norms)
    else:
        (loss, balance, z), grad_norm, stats, wishes = _agree(trainee, sums, wishes)
    scale_gradients(parameters, grad_norm, run.optim.clip)
    skipped = trainee.spikes.skip(loss, grad_norm)
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if trainee.spikes.in_a_row > MOST_IN_A_ROW or not (finite or skipped):
        raise TrainingError(
            f"{run.id}: step {trainee.step + 1}: loss {loss}, gradient norm {grad_norm}. Stopped before the update"
            f"{f', after {MOST_IN_A_ROW} in a row that were skipped' if skipped else ''}; "
            f"the last saved state is kept in {trainee.run_dir / checkpoint.RESUME}. "
            "Usually a lower optim.lr or a longer schedule.warmup_steps helps",
            HOPELESS,
        )
    if not skipped:
        trainee.optimizer.step()
        if run.moe and run.moe.bias_rate:
            assert stats is not None
            for mixture, slots_E in zip(trainee.model.mixtures, stats.slots_LE, strict=True):
                mixture.router.move_bias(slots_E, run.moe.bias_rate)
    return Update(lr, loss, balance, z, grad_norm, stats, skipped), wishes


def accumulate(trainee: Trainee, ids: np.ndarray, *, router_losses: bool = True) -> Sums:
    """Gradients of this process's share of the global batch (batch, context + 1), summed over processes.

    Returns this process's part of loss, balance, z-loss and routing: whole ones for one process.
    Without `router_losses` the gradients are of the cross-entropy alone.
    """
    model, run, group = trainee.model, trainee.run, trainee.group
    if group.size > 1:
        from upcycle.model.parallel import exchange_after, sum_replicated
    aux_coef, z_coef = (run.moe.aux_coef, run.moe.z_coef) if run.moe and router_losses else (0.0, 0.0)
    loss, balance, z = torch.zeros(3, device=trainee.device)
    parts: list[tuple[float, RouterStats]] = []
    with trainee.clock.phase("data"):
        batch_BS = torch.from_numpy(ids[group.share(len(ids))]).to(trainee.device)
    passes = batch_BS.split(trainee.execution.micro_batch or len(batch_BS))
    for number, ids_BS in enumerate(passes, start=1):
        if trainee.execution.exchange == "update" and group.size > 1:
            exchange_after(model, last=number == len(passes))
        # Of the global batch: a plain sum over micro-batches and processes is then its mean. A tensor rank has only its
        # share of the positions of these sequences.
        share = len(ids_BS) / len(ids) / group.tensor_size
        with precision(run, trainee.device):
            output = model(group.positions(ids_BS[:, :-1]), group.positions(ids_BS[:, 1:]))
        torch.autograd.backward((output.loss + aux_coef * output.balance + z_coef * output.z) * share)
        loss += output.loss.detach() * share
        balance += output.balance.detach() * share
        z += output.z.detach() * share
        if output.stats is not None:
            parts.append((share, output.stats))
    if group.size > 1:
        sum_replicated(model, group.sum)
    return Sums(loss, balance, z, _weighted_sum(parts))


def _weighted_sum(parts: list[tuple[float, RouterStats]]) -> RouterStats | None:
    """Routing over a batch, from the routing of its micro-batches and their shares of it."""
    if not parts:
        return None
    slots_LE = torch.stack([stats.slots_LE for _, stats in parts]).sum(0)
    entropy_L = torch.stack([share * stats.entropy_L for share, stats in parts]).sum(0)
    return RouterStats(slots_LE, entropy_L)


def _agree(trainee: Trainee, sums: Sums, wishes: Wishes) -> tuple[list[float], float, RouterStats | None, Wishes]:
    """Loss, balance and z-loss, global gradient norm, routing and wishes of all processes, in one float64 message, read
    once. Slots are counts, so their sum is exact (times the tensor ranks, each of which counts the same)."""
    stats = sums.stats
    pieces = [
        torch.stack([sums.loss, sums.balance, sums.z]),
        torch.tensor([wishes.stop, wishes.save], device=trainee.device),
        local_square_sums(trainee.model.parameters(), first=trainee.group.is_first),
        *([] if stats is None else [stats.slots_LE.flatten(), stats.entropy_L]),
    ]
    message = trainee.group.sum(torch.cat([piece.double() for piece in pieces]))
    routing = message.split([len(piece) for piece in pieces])[3:]
    loss, balance, z, stop, save, *squares = message[: len(message) - sum(map(len, routing))].tolist()
    if stats is not None:
        stats = RouterStats(routing[0].view_as(stats.slots_LE).long(), routing[1].float())
    return [loss, balance, z], global_norm(squares), stats, Wishes(stop > 0, save > 0)
