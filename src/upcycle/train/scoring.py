"""Log-likelihoods of continuations: what a benchmark asks of a model.

What the requests of a question have in common at their beginning, such as the prompt of a multiple-choice question, is
computed once. A row of a batch is one question: the common beginning, then the rest of each request, which sees the
beginning and itself (a tree; SpecInfer, arXiv:2305.09781, verifies drafts so).

A score does not depend, up to rounding, on what it is computed beside. Rows are padded on the right, where no token
sees the padding; and every token of a mixture is routed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from upcycle.bars import count_work
from upcycle.model.attention import Tree
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


class _Packed(NamedTuple):
    """The requests of a question in one row of tokens."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    """0: the common beginning; i: what only request i - 1 has."""
    asked: list[list[tuple[int, int]]]
    """By request: each scored token with the place in the row that predicts it."""


@torch.no_grad()
def score(
    model: Transformer, run: RunSpec, questions: Sequence[Sequence[Continuation]], batch_tokens: int
) -> list[list[Score]]:
    """The scores of each question's requests, in their order. Batches hold about `batch_tokens` tokens.

    A context that is too long for `run.model.context` loses its beginning, as in the LM Evaluation Harness.
    """
    model.eval()
    room = run.model.context + 1  # the last token is only a target
    packed = [_pack(question, room) for question in questions]
    found: dict[int, list[Score]] = {}
    batches = list(_batches([len(each.ids) for each in packed], batch_tokens))
    count_work(expected=len(batches))
    for batch in batches:
        results = iter(_scored(model, run, [packed[index] for index in batch]))
        for index in batch:
            lengths = [len(each.context) + len(each.scored) for each in questions[index]]
            found[index] = [Score(*next(results), length > room) for length in lengths]
        count_work(done=1)
    return [found[index] for index in range(len(questions))]


def _pack(question: Sequence[Continuation], room: int) -> _Packed:
    """One row for all requests, each of its last `room` tokens."""
    rows = [[*each.context, *each.scored][-room:] for each in question]
    inputs = [row[:-1] for row in rows]
    shared = 0
    while all(len(row) > shared and row[shared] == inputs[0][shared] for row in inputs):
        shared += 1
    ids, positions, branches = list(inputs[0][:shared]), list(range(shared)), [0] * shared
    asked = []
    for branch, (each, row) in enumerate(zip(question, rows, strict=True), 1):
        own = len(ids) - shared  # how far the place of a token of this branch is from its position
        first = len(row) - min(len(each.scored), len(row) - 1)
        places = (place if place < shared else place + own for place in range(first - 1, len(row) - 1))
        asked.append(list(zip(row[first:], places, strict=True)))
        ids += row[shared:-1]
        positions += range(shared, len(row) - 1)
        branches += [branch] * (len(row) - 1 - shared)
    return _Packed(ids, positions, branches, asked)


def _scored(model: Transformer, run: RunSpec, batch: Sequence[_Packed]) -> Iterator[tuple[float, bool]]:
    """Log-likelihood and whether it is greedy, of each request of each row."""
    device = model.embed.weight.device
    width = max(len(each.ids) for each in batch)
    ids_BS, position_BS, branch_BS = (torch.zeros(len(batch), width, dtype=torch.int64) for _ in range(3))
    chosen_BS = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, each in enumerate(batch):
        for filled_BS, values in ((ids_BS, each.ids), (position_BS, each.positions), (branch_BS, each.branches)):
            filled_BS[row, : len(values)] = torch.tensor(values)
        chosen_BS[row, [place for tokens in each.asked for _, place in tokens]] = True
    # A place is asked once for all requests that share it: `number` is where its logits are.
    number_BS = (chosen_BS.flatten().cumsum(0) - 1).view_as(chosen_BS)
    tokens = [(row, token, place) for row, each in enumerate(batch) for asked in each.asked for token, place in asked]
    rows_N, targets_N, places_N = torch.tensor(tokens).unbind(1)
    numbers_N, targets_N = number_BS[rows_N, places_N].to(device), targets_N.to(device)
    with precision(run, device):
        logits_MV = model.logits_at(ids_BS.to(device), chosen_BS.to(device), _tree(position_BS, branch_BS, device))
    logits_MV = logits_MV.float()
    logits_MV -= logits_MV.amax(-1, keepdim=True)  # so that what is subtracted below is small, as its rounding is
    logs_N = (logits_MV[numbers_N, targets_N] - logits_MV.logsumexp(-1)[numbers_N]).double().cpu()
    best_N = (logits_MV.argmax(-1)[numbers_N] == targets_N).cpu()
    lengths = [len(asked) for each in batch for asked in each.asked]
    for logs, best in zip(logs_N.split(lengths), best_N.split(lengths), strict=True):
        yield logs.sum().item(), bool(best.all())


def _tree(position_BS: torch.Tensor, branch_BS: torch.Tensor, device: torch.device) -> Tree | None:
    """Who sees whom; None where no row has a branch, and each token sees all before it."""
    if not branch_BS.any():
        return None
    position_BS, branch_BS = position_BS.to(device), branch_BS.to(device)
    width = branch_BS.shape[1]
    earlier_SS = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mine_BSS = (branch_BS[:, None, :] == branch_BS[:, :, None]) | (branch_BS[:, None, :] == 0)
    return Tree(position_BS, mine_BSS & earlier_SS)


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
