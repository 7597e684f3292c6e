"""Batches as a pure function of (tokens, slice, seed, step): any step costs microseconds, no state, no memory.

A slice of the training tokens is cut into sequences of `context` inputs; a sequence's targets are the inputs moved
by one, so it reads one token more, which is the first input of the next. Each epoch visits all sequences once, in an
order that is a keyed bijection of their numbers, computed where it is needed and never stored.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upcycle.data.mixing import mix64
from upcycle.errors import UserError

ROUNDS = 6
"""Feistel rounds: four are a pseudo-random permutation in theory (Luby and Rackoff, 1988), two are margin."""


class TokenArray(Protocol):
    """A 1-D array of tokens that can be sliced: `TokenSet.train`, `TokenSet.heldout` or a NumPy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Any: ...


def batch(
    tokens: TokenArray,
    *,
    context: int,
    batch: int,
    step: int,
    seed: int,
    start: float = 0.0,
    stop: float = 1.0,
    repeat: bool = False,
) -> NDArray[np.int64]:
    """Sequences of step `step` (from 0), int64 [batch, context + 1]: inputs are [:, :-1], targets [:, 1:].

    Takes them from the slice [start, stop) of `tokens`, given as fractions. Raises UserError when the step lies
    beyond one epoch and `repeat` is false.
    """
    first, n_sequence = sequences(len(tokens), context=context, start=start, stop=stop)
    if not repeat:
        check_budget(len(tokens), wanted=(step + 1) * batch * context, context=context, start=start, stop=stop)
    places = np.arange(step * batch, (step + 1) * batch, dtype=np.uint64)
    epochs, places = np.divmod(places, np.uint64(n_sequence))
    numbers = permute(places, n_sequence, seed=seed, epochs=epochs)
    offsets = first + context * numbers.astype(np.int64)
    return np.stack([np.asarray(tokens[offset : offset + context + 1], np.int64) for offset in offsets.tolist()])


def sequences(n_tokens: int, *, context: int, start: float = 0.0, stop: float = 1.0) -> tuple[int, int]:
    """First token and number of whole sequences of a slice (0 <= start < stop <= 1); UserError if it holds none."""
    first, end = math.floor(start * n_tokens), math.floor(stop * n_tokens)
    n_sequence = (end - first - 1) // context
    if n_sequence < 1:
        raise UserError(f"slice [{start}, {stop}) holds {end - first} tokens: fewer than one sequence of {context} + 1")
    return first, n_sequence


def check_budget(
    n_tokens: int, *, wanted: int, context: int, start: float = 0.0, stop: float = 1.0, repeat: bool = False
) -> None:
    """UserError naming both numbers when a run wants more tokens than the slice holds and may not repeat them."""
    available = sequences(n_tokens, context=context, start=start, stop=stop)[1] * context
    if wanted > available and not repeat:
        raise UserError(
            f"{wanted:,} tokens wanted, but the slice [{start}, {stop}) of the data holds {available:,} in whole "
            "sequences: lower the budget, widen the slice, take a larger data set, or set data.repeat: true"
        )


def permute(places: NDArray[np.uint64], n: int, *, seed: int, epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers in [0, n) at the given places of the order of each epoch: for one epoch, a bijection of [0, n).

    A Feistel network on pairs below side = ceil(sqrt(n)), with addition modulo side in place of exclusive or
    (Black and Rogaway, 2002); a value that falls outside [0, n) is sent through again until it is inside.
    """
    side = np.uint64(math.isqrt(n - 1) + 1)
    key = mix64(mix64(np.full(len(places), seed, np.uint64)) ^ epochs)
    keys = [mix64(key + np.uint64(number)) for number in range(ROUNDS)]
    values = _feistel(places, side, keys)
    # side^2 <= n + 2 sqrt(n), so few values fall outside; the network is a bijection, so each walk comes back inside.
    while (outside := np.flatnonzero(values >= np.uint64(n))).size:
        values[outside] = _feistel(values[outside], side, [key[outside] for key in keys])
    return values


def _feistel(values: NDArray[np.uint64], side: np.uint64, keys: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    left, right = np.divmod(values, side)
    for key in keys:
        left, right = right, (left + mix64(right ^ key) % side) % side
    return left * side + right


def heldout_batches(tokens: TokenArray, context: int) -> NDArray[np.int64]:
    """All sequences of the held-out tokens in their order, int64 [n_seq, context + 1], targets overlapping nowhere.

    The last tokens, fewer than `context` + 1, are left out.
    """
    _, n_sequence = sequences(len(tokens), context=context)
    values = np.asarray(tokens[0 : n_sequence * context + 1], np.int64)
    return np.lib.stride_tricks.sliding_window_view(values, context + 1)[::context].copy()
