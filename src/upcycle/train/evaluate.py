"""Held-out loss with its standard error, for the loop that trains a model and for other validation sets.

Every sequence is one observation: its mean cross-entropy over `context` tokens, in nats, by a float32 log-sum-exp.
The loss is the mean over sequences; its standard error, std / sqrt(n), is the noise of the validation set, not of
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upcycle.bars import count_work
from upcycle.data.batches import heldout_batches
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.manifest import WEIGHTS, read_manifest
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.device import precision, use_device
from upcycle.train.processes.distributed import Group
from upcycle.train.states.checkpoint import read_spec, read_tensors

SUBSET_TOKENS = 8192
"""Tokens of the fixed subset that the training curve's held-out losses are taken over."""


def evaluate_run(
    weights_dir: Path, tokens_dir: Path, execution: Execution, *, max_tokens: int | None = None
) -> dict[str, Any]:
    """Loss of a finished run on the held-out part of any token set with the run's tokenizer.

    `max_tokens` bounds the work: that many tokens, in sequences evenly spread over the set.
    Returns id, tokens (name of the set), tokens_fingerprint, weights_sha256, loss, loss_se, heldout_tokens.
    Raises DamagedError (a UserError) for weights that do not verify, UserError for a set of another tokenizer.
    """
    run = read_spec(weights_dir)
    tokens = TokenSet(tokens_dir)
    manifest = read_manifest(weights_dir)
    expected = manifest["tokenizer_sha256"]
    found = tokens.manifest["tokenizer"]["sha256"]
    if found != expected:
        raise UserError(
            f"{tokens_dir} was tokenised with tokenizer {found}, {run.id} was trained with {expected}; "
            "tokenise that set with the tokenizer of the run's own tokens"
        )
    device = use_device(execution)
    kernels = choose_kernels(run.model, execution.kernels, moe=run.moe, device=execution.device, dtype=run.dtype)
    model = Transformer(run.model, run.moe, kernels)
    model.load_state_dict(read_tensors(weights_dir, WEIGHTS))
    sequences = heldout(tokens, run)
    if max_tokens is not None:
        sequences = sequences[spread_sequences(len(sequences), max_tokens // run.model.context)]
    count_work(expected=-(-len(sequences) // execution.eval_batch))
    losses = sequence_losses(model.to(device), run, batches_of(sequences, execution.eval_batch))
    loss, loss_se = mean_and_error(losses)
    return {
        "id": run.id,
        "tokens": tokens_dir.name,
        "tokens_fingerprint": tokens.fingerprint,
        "weights_sha256": manifest["files"][WEIGHTS]["sha256"],
        "loss": loss,
        "loss_se": loss_se,
        "heldout_tokens": len(losses) * run.model.context,
    }


def check_fingerprint(tokens: TokenSet, expected: str, whose: str) -> None:
    """UserError unless these are the tokens that `whose` training read."""
    if tokens.fingerprint != expected:
        raise UserError(
            f"tokens changed: {whose} was trained on fingerprint {expected}, now it is {tokens.fingerprint}; "
            "restore that set, or give the changed data a new data.version"
        )


def heldout(tokens: TokenSet, run: RunSpec) -> np.ndarray:
    """Held-out sequences (n, context + 1) in a fixed order. UserError if vocabulary or context do not fit the run."""
    if tokens.vocab_size > run.model.vocab_size:
        raise UserError(
            f"tokens of vocabulary {tokens.vocab_size} do not fit model.vocab_size {run.model.vocab_size} of {run.id}"
        )
    sequences = heldout_batches(tokens.heldout, run.model.context)
    if len(sequences) < 2:
        raise UserError(
            f"the held-out part holds {len(sequences)} sequences of {run.model.context} tokens; "
            "a loss with a standard error needs 2: use more text, or a shorter model.context"
        )
    return sequences


def spread_sequences(n_sequences: int, size: int) -> np.ndarray:
    """Indices of `size` sequences (at least 2; all, if there are fewer), evenly spread over the set."""
    size = min(n_sequences, max(2, size))
    return np.arange(size) * n_sequences // size


def batches_of(sequences: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut sequences into batches of `size`; the last may be smaller."""
    for first in range(0, len(sequences), size):
        yield sequences[first : first + size]


@torch.no_grad()
def sequence_losses(
    model: Transformer, run: RunSpec, batches: Iterable[np.ndarray], group: Group | None = None
) -> np.ndarray:
    """Mean cross-entropy of every sequence in nats, float64 (n,). Each batch is (size, context + 1) token ids.

    The data ranks of a `group` share each batch's sequences; all get all losses, in the order of the batches.
    """
    group = group or Group()
    device = model.embed.weight.device
    was_training = model.training
    model.eval()
    sizes, means = [], []
    for batch in batches:
        # Every forward pass is a meeting of all processes: one without a sequence left takes the first again.
        part = batch[group.share(len(batch))]
        ids = torch.from_numpy(part if len(part) else batch[:1]).to(device, torch.int64)
        with precision(run, device):
            losses_BS = model(group.positions(ids[:, :-1]), group.positions(ids[:, 1:]), per_token=True).loss
        sizes.append(len(batch))
        means.append(losses_BS.double().mean(1)[: len(part)].cpu())
        count_work(done=1)
    model.train(was_training)
    if group.size > 1:
        from upcycle.model.parallel import reshard

        reshard(model)
        return _gathered(means, sizes, group)
    return torch.cat(means).numpy()


def _gathered(means: list[torch.Tensor], sizes: list[int], group: Group) -> np.ndarray:
    """The losses of all sequences in order, from each process's of its parts of each batch."""
    room = -(-max(sizes) // group.data_size)
    mine = torch.zeros(len(means), room, dtype=torch.float64)
    for row, part in zip(mine, means, strict=True):
        row[: len(part)] = part
    by_data_rank = group.gather(mine).unflatten(0, (group.data_size, group.tensor_size)).mean(1)  # equal positions
    ordered = []
    for number, size in enumerate(sizes):
        for rank, losses in enumerate(by_data_rank[:, number]):
            share = replace(group, rank=rank * group.tensor_size).share(size)
            ordered.append(losses[: share.stop - share.start])
    return torch.cat(ordered).numpy()


def mean_and_error(losses: np.ndarray) -> tuple[float, float]:
    """Mean over sequences and its standard error std / sqrt(n) (sample standard deviation)."""
    return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))
