"""Log-likelihoods of continuations: what a benchmark asks of a model.

A score does not depend, up to rounding, on what it is computed beside. Rows of a batch are padded on the right, where
attention is causal and no position sees the padding; and every token of a mixture is routed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from upcycle.bars import count_work
from upcycle.model.transformer import Transformer
from upcycle.study.spec import RunSpec
from upcycle.train.device import precision


class Continuation(NamedTuple):
    """Token ids: some context, at least one, and what is scored after it, at least one."""

    context: Sequence[int]
    scored: Sequence[int]


class Score(NamedTuple):
    """Of a continuation."""

    loglikelihood: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the most likely one."""
    truncated: bool
    """Whether the context was cut on the left to fit the model's."""


@torch.no_grad()
def score(model: Transformer, run: RunSpec, asked: Sequence[Continuation], batch_tokens: int) -> list[Score]:
    """The score of each continuation, in the order of `asked`. Batches hold about `batch_tokens` tokens.

    A context that is too long for `run.model.context` loses its beginning, as in the LM Evaluation Harness.
    """
    device = model.embed.weight.device
    model.eval()
    room = run.model.context + 1  # the last token is only a target
    rows = [[*each.context, *each.scored][-room:] for each in asked]
    found: dict[int, Score] = {}
    batches = list(_batches([len(row) for row in rows], batch_tokens))
    count_work(expected=len(batches))
    for batch in batches:
        width = max(len(rows[index]) for index in batch)
        ids_BS = torch.zeros(len(batch), width, dtype=torch.int64)
        scored_BS = torch.zeros(len(batch), width, dtype=torch.bool)
        for place, index in enumerate(batch):
            row = rows[index]
            first = len(row) - min(len(asked[index].scored), len(row) - 1)
            ids_BS[place, : len(row)] = torch.tensor(row)
            scored_BS[place, first : len(row)] = True
        ids_BS, scored_BS = ids_BS.to(device), scored_BS.to(device)
        targets_N = ids_BS[scored_BS]
        with precision(run, device):
            logits_NV = model.logits_at(ids_BS[:, :-1], scored_BS[:, 1:])
        logs_NV = logits_NV.float().log_softmax(-1)
        logs_N = logs_NV.gather(-1, targets_N[:, None])[:, 0].double().cpu()
        best_N = (logs_NV.argmax(-1) == targets_N).cpu()
        lengths = scored_BS.sum(1).tolist()
        for index, logs, best in zip(batch, logs_N.split(lengths), best_N.split(lengths), strict=True):
            cut = len(asked[index].context) + len(asked[index].scored) > room
            found[index] = Score(logs.sum().item(), bool(best.all()), cut)
        count_work(done=1)
    return [found[index] for index in range(len(asked))]


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, the longest first, each padded to at most `batch_tokens` or of one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
