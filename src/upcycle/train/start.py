"""A run before its next update: checked, built, and given the weights that it starts or resumes from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upcycle.data.batches import check_budget
from upcycle.data.sources import sha256_file
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.manifest import STATE, WEIGHTS, read_manifest
from upcycle.model import upcycling
from upcycle.model.fill import give
from upcycle.model.hub import read_checkpoint
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import initial_weight
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import fitting
from upcycle.study.parent import TOKENIZER, read_parent
from upcycle.study.recorded import check_trained
from upcycle.study.spec import RunSpec
from upcycle.train.device import use_device
from upcycle.train.evaluate import check_fingerprint, heldout
from upcycle.train.optim import MOMENTS, build_optimizer, empty_moments, restore_optimizer, unbiased
from upcycle.train.processes.distributed import Group
from upcycle.train.receipt import measure_upcycling
from upcycle.train.record import Clock, MetricsLog
from upcycle.train.spikes import Spikes
from upcycle.train.states import checkpoint, rolling
from upcycle.train.trainee import Trainee, build_model, use_execution

log = logging.getLogger(__name__)


def prepare_trainee(
    run: RunSpec,
    *,
    run_dir: Path,
    tokens_dir: Path,
    parent_dir: Path | None,
    execution: Execution,
    clock: Clock,
    files: Mapping[str, str] | None = None,
    group: Group | None = None,
) -> Trainee:
    """Check everything that can be wrong before work starts, then build the model at the step that the run has reached.

    All processes of a `group` call it. Raises UserError naming the setting, file or value that does not fit.
    """
    group = group or Group()
    with group.together():
        device = use_device(execution)
        tokens = TokenSet(tokens_dir)
        recipe = run.data
        if run.role != "imported":
            check_budget(
                len(tokens.train),
                wanted=run.tokens,
                context=run.model.context,
                start=recipe.start,
                stop=recipe.stop,
                repeat=recipe.repeat,
            )
        heldout(tokens, run)
        fit = fitting(execution, run)
        kernels = choose_kernels(run.model, execution.kernels, **fit, compile=execution.compile)
        if group.is_first:
            checkpoint.write_spec(run_dir, run)
    mixed, whole = run.dtype == "bfloat16", execution.exchange == "update"
    model = build_model(run, run.moe, kernels, device, group, mixed=mixed, whole=whole)
    optimizer, spikes = build_optimizer(model, run.optim), Spikes(run.optim.skip_above)
    trainee = Trainee(run, run_dir, execution, tokens, model, optimizer, clock, spikes=spikes, group=group)
    if not _resume(trainee):
        _start(trainee, parent_dir, files)
    with group.together():
        MetricsLog(run_dir / "metrics.jsonl", writes=group.is_first).cut_back(trainee.step, run.start_step)
    use_execution(model, execution)
    return trainee


def _resume(trainee: Trainee) -> bool:
    """Take up the newest valid rolling state, if there is one."""
    run, group = trainee.run, trainee.group
    state = None
    with group.together():
        if group.is_first:
            state = rolling.load_rolling(trainee.run_dir / checkpoint.RESUME, run.id)
            if state is not None:
                check_fingerprint(trainee.tokens, state.notes["tokens_fingerprint"], trainee.run.id)
    state = group.from_first(state)
    if state is None:
        return False
    weights = {f"model.{name}": value for name, value in trainee.model.state_dict().items()}
    moments = empty_moments(trainee.model)
    with group.together():
        state.fill(weights | moments)
    trainee.step = trainee.saver.step = state.step
    trainee.spikes = _spikes(run, state.notes)
    _restore_moments(trainee, moments)
    trainee.clock.continue_from(Clock(**state.notes["clock"]))
    log.info("%s: resumed at step %d", run.id, state.step)
    return True


def _spikes(run: RunSpec, notes: dict[str, Any] | None) -> Spikes:
    """What the updates before are known to have been, from the notes of a state or the parent's manifest."""
    if run.optim.skip_above is None:
        return Spikes()
    assert notes is not None
    return Spikes(**notes["spikes"])


def _start(trainee: Trainee, parent_dir: Path | None, files: Mapping[str, str] | None) -> None:
    """Begin as `run.init` says: from scratch, where the parent stopped, or with a parent's or a checkpoint's
    weights."""
    run, model = trainee.run, trainee.model
    if run.init == "scratch":
        give(model.state_dict(), lambda name, shape: initial_weight(name, shape, run.model, run.moe, run.seed))
    elif run.init == "continue":
        _continue(trainee, parent_dir)
    elif run.init == "checkpoint":
        _import(trainee, parent_dir, files)
    elif run.init == "continued":
        _train_on(trainee, parent_dir)
    else:
        _upcycle(trainee, parent_dir)


def _parent(trainee: Trainee, parent_dir: Path | None) -> tuple[Path, dict[str, Any]]:
    """The parent's folder and manifest, if they are the ones that the run starts from."""
    run = trainee.run
    if parent_dir is None:
        raise UserError(f"{run.id} starts from {run.parent}: name that run's folder as the parent")
    check_trained(parent_dir)
    manifest = read_manifest(parent_dir)
    if manifest["id"] != run.parent:
        raise UserError(f"{parent_dir} holds run {manifest['id']}, but {run.id} starts from {run.parent}")
    return parent_dir, manifest


def _continue(trainee: Trainee, parent_dir: Path | None) -> None:
    """Take over weights, moments and update count of the parent, bit for bit. The first process reads for all."""
    run, group = trainee.run, trainee.group
    weights = state = manifest = None
    with group.together():
        if group.is_first:
            folder, manifest = _parent(trainee, parent_dir)
            check_fingerprint(trainee.tokens, manifest["tokens_fingerprint"], manifest["id"])
            if manifest["step"] != run.start_step:
                raise UserError(f"{folder} ended at step {manifest['step']}, but {run.id} starts at {run.start_step}")
            weights = checkpoint.read_tensors(folder, WEIGHTS)
            state = checkpoint.read_tensors(folder, STATE)
    give(trainee.model.state_dict(), group.whole_of_first(weights, trainee.device))
    moments = empty_moments(trainee.model)
    give(moments, group.whole_of_first(state, trainee.device))
    trainee.step = run.start_step
    trainee.spikes = _spikes(run, group.from_first(manifest))
    _restore_moments(trainee, moments)


def _restore_moments(trainee: Trainee, moments: dict[str, Tensor]) -> None:
    copied = trainee.run.copies_moments
    restore_optimizer(trainee.model, trainee.optimizer, moments, trainee.updates, copied=copied)


def _import(trainee: Trainee, folder: Path | None, files: Mapping[str, str] | None) -> None:
    """Take over a Hugging Face folder's weights: the run's fingerprint vouches for the hashes, they for the bytes."""
    run, group = trainee.run, trainee.group
    weights = None
    with group.together():
        if group.is_first:
            if folder is None or files is None:
                raise UserError(f"{run.id} is imported: name the folder of its checkpoint, and its files' hashes")
            if read_parent(folder).fingerprint(files.values()) != run.checkpoint:
                raise UserError(f"{folder} is not the checkpoint of {run.id}; restore it, or plan the study again")
            tokenizer, own = trainee.tokens.manifest["tokenizer"], sha256_file(folder / TOKENIZER)
            if own not in [file["sha256"] for file in tokenizer["files"]]:
                raise UserError(
                    f"{run.id}: {trainee.tokens.folder} is not of tokenizer {folder / TOKENIZER} ({own[:16]}...), so "
                    "the embedding would mean nothing; give that file as data.tokenizer, and another data.version"
                )
            weights = read_checkpoint(folder, run.model, files)
    give(trainee.model.state_dict(), group.whole_of_first(weights, trainee.device))


def _parent_weights(trainee: Trainee, parent_dir: Path | None) -> dict[str, Tensor]:
    """Weights of the finished parent, for the first process. UserError if its tokenizer is another."""
    run = trainee.run
    folder, manifest = _parent(trainee, parent_dir)
    parent = checkpoint.read_spec(folder)
    if parent.data.tokens_id == run.data.tokens_id:
        check_fingerprint(trainee.tokens, manifest["tokens_fingerprint"], parent.id)
    own, its = trainee.tokens.manifest["tokenizer"]["sha256"], manifest["tokenizer_sha256"]
    if own != its:
        raise UserError(
            f"{run.id}: its tokens are of tokenizer {own[:16]}..., those of its parent {parent.id} of "
            f"{its[:16]}...: the embedding would mean nothing; give both the path of one tokenizer.json as "
            "data.tokenizer"
        )
    return checkpoint.read_tensors(folder, WEIGHTS)


def _train_on(trainee: Trainee, parent_dir: Path | None) -> None:
    """Begin with the dense parent's weights as they are: fresh optimizer, step 0."""
    group, weights = trainee.group, None
    with group.together():
        if group.is_first:
            weights = _parent_weights(trainee, parent_dir)
    give(trainee.model.state_dict(), group.whole_of_first(weights, trainee.device))


def _upcycle(trainee: Trainee, parent_dir: Path | None) -> None:
    """Make the parent's weights those of this MoE: step 0, and an optimizer that is fresh or has the parent's
    moments; `receipt.json` records the effect."""
    run, group = trainee.run, trainee.group
    assert run.moe is not None
    parent = weights = None
    with group.together():
        if group.is_first:
            parent = _parent_weights(trainee, parent_dir)
            weights = upcycling.upcycle(run.method, parent, run.model, run.moe, run.seed, run.upcycling, run.parent_moe)
    give(trainee.model.state_dict(), group.whole_of_first(weights, trainee.device))
    if run.copies_moments:
        _copy_moments(trainee, parent_dir)
    receipt = measure_upcycling(trainee, parent, weights)
    with group.together():
        if group.is_first:
            checkpoint.write_json(trainee.run_dir / checkpoint.RECEIPT, receipt)


def _copy_moments(trainee: Trainee, parent_dir: Path | None) -> None:
    """Begin with AdamW's moments of the trunk point off which the parent's decay branched, moved as its weights
    are; the routers' are zero."""
    run, group = trainee.run, trainee.group
    assert run.moe is not None
    moments = None
    with group.together():
        if group.is_first:
            assert parent_dir is not None
            trunk_dir = parent_dir.with_name(str(checkpoint.read_spec(parent_dir).parent))
            trunk, manifest = checkpoint.read_spec(trunk_dir), read_manifest(trunk_dir)
            updates = manifest["step"] - manifest.get("spikes", {}).get("skipped", 0)
            averages = unbiased(checkpoint.read_tensors(trunk_dir, STATE), trunk.optim, updates)
            moments = {}
            for moment in MOMENTS:
                named = {
                    name.partition(".")[2]: each for name, each in averages.items() if name.startswith(f"{moment}.")
                }
                if run.parent_moe is not None and run.parent_moe.bias_rate:  # biases are not trained by AdamW
                    biases = [f"blocks.{layer}.moe.router.bias" for layer in range(run.model.n_layer)]
                    named |= dict.fromkeys(biases, torch.zeros(run.parent_moe.n_expert))
                moved = upcycling.upcycle(
                    run.method, named, run.model, run.moe, run.seed, run.upcycling, run.parent_moe
                )
                for name, each in moved.items():
                    moments[f"{moment}.{name}"] = torch.zeros_like(each) if name.endswith("router.weight") else each
    room = empty_moments(trainee.model)
    give(room, group.whole_of_first(moments, trainee.device))
    _restore_moments(trainee, room)
