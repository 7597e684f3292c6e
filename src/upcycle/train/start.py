"""Where a run stands before its next update: checked, built, and given the weights it starts or goes on from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from upcycle.data.batches import batch, check_budget
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.execution import Execution
from upcycle.model import upcycling
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.spec import RunSpec
from upcycle.train import checkpoint, rolling
from upcycle.train.device import use_device
from upcycle.train.evaluate import heldout
from upcycle.train.optim import build_optimizer, empty_moments, restore_optimizer
from upcycle.train.record import Clock, MetricsLog
from upcycle.train.saving import Saver

log = logging.getLogger(__name__)


@dataclass
class Trainee:
    """A run in training: everything that it needs to go on."""

    run: RunSpec
    run_dir: Path
    execution: Execution
    tokens: TokenSet
    model: Transformer
    optimizer: torch.optim.AdamW
    clock: Clock
    step: int = 0
    """Updates done since scratch or upcycling."""
    saver: Saver = field(default_factory=Saver)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device


def prepare(
    run: RunSpec, *, run_dir: Path, tokens_dir: Path, parent_dir: Path | None, execution: Execution, clock: Clock
) -> Trainee:
    """Check everything that can be wrong before work starts, then build the model where the run stands.

    Raises UserError naming the setting, file or value that does not fit.
    """
    _check_micro_batch(run, execution)
    device = use_device(execution)
    tokens = TokenSet(tokens_dir)
    recipe = run.data
    check_budget(
        len(tokens.train),
        wanted=run.tokens,
        context=run.model.context,
        start=recipe.start,
        stop=recipe.stop,
        repeat=recipe.repeat,
    )
    heldout(tokens, run)
    kernels = choose_kernels(run.model, execution.kernels, device=execution.device, dtype=run.dtype)
    model = Transformer(run.model, run.moe, kernels).to(device)
    trainee = Trainee(run, run_dir, execution, tokens, model, build_optimizer(model, run.optim), clock)
    checkpoint.write_spec(run_dir, run)
    if not _resume(trainee):
        _start(trainee, parent_dir)
    MetricsLog(run_dir / "metrics.jsonl").cut_back(trainee.step)
    return trainee


def _check_micro_batch(run: RunSpec, execution: Execution) -> None:
    group = run.moe.balance_group if run.moe else 1
    if execution.micro_batch is not None and execution.micro_batch % group:
        raise UserError(
            f"execution.micro_batch {execution.micro_batch} is not a whole number of moe.balance_group {group}: "
            "the balance loss of a group needs all its sequences at once"
        )


def _check_fingerprint(tokens: TokenSet, expected: str, whose: str) -> None:
    if tokens.fingerprint != expected:
        raise UserError(
            f"tokens changed: {whose} was trained on fingerprint {expected}, now it is {tokens.fingerprint}; "
            "restore that set, or give the changed data a new data.version"
        )


def _resume(trainee: Trainee) -> bool:
    """Take up the newest valid rolling state, if there is one."""
    state = rolling.load_rolling(trainee.run_dir / checkpoint.RESUME, trainee.run.id)
    if state is None:
        return False
    _check_fingerprint(trainee.tokens, state.notes["tokens_fingerprint"], trainee.run.id)
    weights = {f"model.{name}": value for name, value in trainee.model.state_dict().items()}
    moments = empty_moments(trainee.model)
    state.fill(weights | moments)
    restore_optimizer(trainee.model, trainee.optimizer, moments, state.step)
    trainee.step = trainee.saver.step = state.step
    trainee.clock.go_on_from(Clock(**state.notes["clock"]))
    log.info("%s: resumed at step %d", trainee.run.id, state.step)
    return True


def _start(trainee: Trainee, parent_dir: Path | None) -> None:
    """Begin as `run.init` says: from scratch, where the parent stopped, or from an upcycled dense parent."""
    run = trainee.run
    if run.init == "scratch":
        init_weights(trainee.model, run.seed)
        return
    if parent_dir is None:
        raise UserError(f"{run.id} starts from {run.parent}: name that run's folder as the parent")
    manifest = checkpoint.read_manifest(parent_dir)
    if manifest["id"] != run.parent:
        raise UserError(f"{parent_dir} holds run {manifest['id']}, but {run.id} starts from {run.parent}")
    if run.init == "continue":
        _check_fingerprint(trainee.tokens, manifest["tokens_fingerprint"], manifest["id"])
        _continue(trainee, parent_dir, manifest["step"])
    else:
        _upcycle(trainee, parent_dir, manifest["tokens_fingerprint"])


def _continue(trainee: Trainee, parent_dir: Path, step: int) -> None:
    """Stand exactly where the parent stood after `step` updates: weights, moments and count."""
    if step != trainee.run.start_step:
        raise UserError(f"{parent_dir} ended at step {step}, but {trainee.run.id} starts at {trainee.run.start_step}")
    trainee.model.load_state_dict(checkpoint.read_tensors(parent_dir, checkpoint.WEIGHTS))
    moments = checkpoint.read_tensors(parent_dir, checkpoint.STATE)
    restore_optimizer(trainee.model, trainee.optimizer, moments, step)
    trainee.step = step


def _upcycle(trainee: Trainee, parent_dir: Path, parent_fingerprint: str) -> None:
    """Make the dense parent's weights those of this MoE: fresh optimizer, step 0; `receipt.json` says what it did."""
    run = trainee.run
    assert run.moe is not None
    parent = checkpoint.read_spec(parent_dir)
    if parent.data.tokens_id == run.data.tokens_id:
        _check_fingerprint(trainee.tokens, parent_fingerprint, parent.id)
    method = run.origin.partition(":")[2]
    dense = Transformer(run.model, kernels=trainee.model.kernels).to(trainee.device)
    dense.load_state_dict(checkpoint.read_tensors(parent_dir, checkpoint.WEIGHTS))
    trainee.model.load_state_dict(upcycling.upcycle(method, dense.state_dict(), run.model, run.moe, run.seed))
    ids = torch.from_numpy(run_batch(run, trainee.tokens, step=0)).to(trainee.device)
    receipt = upcycling.receipt(
        dense,
        trainee.model,
        ids[:, :-1],
        ids[:, 1:],
        method=method,
        lr=run.optim.lr,
        betas=(run.optim.beta1, run.optim.beta2),
        weight_decay=run.optim.weight_decay,
    )
    checkpoint.write_json(trainee.run_dir / checkpoint.RECEIPT, receipt)


def run_batch(run: RunSpec, tokens: TokenSet, step: int) -> np.ndarray:
    """Token ids (batch, context + 1) of the update with index `step`: a pure function of the run's recipe."""
    recipe = run.data
    return batch(
        tokens.train,
        context=run.model.context,
        batch=run.optim.batch,
        step=step,
        seed=recipe.seed,
        start=recipe.start,
        stop=recipe.stop,
        repeat=recipe.repeat,
    )
