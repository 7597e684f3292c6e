"""13-word windows: whether two sets of documents share text, and which passages to drop so that they share none.

Words are runs of letters and digits, whatever their case. A window is held as a 64-bit hash of its words; a false
match among 10^9 windows against 10^6 has a chance of 10^-4. Scripts that write no spaces need other units.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

WINDOW_WORDS = 13

_WORD = re.compile(r"\w+")
_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 2**64)

Hashes = NDArray[np.uint64]


class Windows:
    """Hashes of the word windows of documents; one object keeps the words' numbers for all texts that are compared."""

    def __init__(self, size: int = WINDOW_WORDS) -> None:
        self.size = size
        # A fixed seed, so that no run differs from another; equal words get equal numbers of 64 random bits.
        self._numbers: defaultdict[str, int] = defaultdict(partial(random.Random(0).getrandbits, 64))

    def _numbered(self, text: str) -> list[int]:
        return list(map(self._numbers.__getitem__, _WORD.findall(text.lower())))

    def _hash(self, numbers: list[int]) -> Hashes:
        """Polynomials in each `size` consecutive numbers, modulo 2^64: differences of running sums, scaled back."""
        if len(numbers) < self.size:
            return np.empty(0, np.uint64)
        # sums[i + size] - sums[i] is the window's polynomial times multiplier^i; the inverse power removes that factor,
        # so that a window has the same hash at every place.
        sums = np.cumsum(np.array([0, *numbers], np.uint64) * _powers(_MULTIPLIER, len(numbers) + 1))
        return (sums[self.size :] - sums[: -self.size]) * _powers(_INVERSE, len(sums) - self.size)

    def of(self, text: str) -> Hashes:
        """Hash of each window of the text, in order; empty for a text of fewer words."""
        return self._hash(self._numbered(text))

    def collect(self, texts: Iterable[str]) -> Hashes:
        """Sorted distinct hashes of all windows of the texts."""
        return np.unique(np.concatenate([np.empty(0, np.uint64), *map(self.of, texts)]))

    def without(self, text: str, forbidden: Hashes, separator: str) -> tuple[str, int]:
        """The text without the passages that a forbidden window touches, and how many were dropped.

        Dropping a passage joins the passages around it, so this repeats until no window is forbidden.
        """
        if not contains(forbidden, self.of(text)).any():
            return text, 0
        passages = text.split(separator)
        total = len(passages)
        while passages:
            numbered = [self._numbered(passage) for passage in passages]
            hits = np.flatnonzero(contains(forbidden, self._hash([n for numbers in numbered for n in numbers])))
            if not len(hits):
                break
            passage_of_word = np.repeat(np.arange(len(passages)), [len(numbers) for numbers in numbered])
            touched = np.zeros(len(passages), bool)
            for k in range(self.size):
                touched[passage_of_word[hits + k]] = True
            passages = [passage for passage, drop in zip(passages, touched, strict=True) if not drop]
        return separator.join(passages).strip("\n"), total - len(passages)


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def contains(collected: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Which of `hashes` are among the sorted `collected`."""
    if not len(collected):
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(collected, hashes), len(collected) - 1)
    return collected[place] == hashes
