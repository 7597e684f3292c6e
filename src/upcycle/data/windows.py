"""13-word windows: whether two sets of documents share text, and which passages to drop so that they share none.

Words are runs of letters and digits, whatever their case. A window is held as a 64-bit hash of its words; a false
match among 10^9 windows against 10^6 has a chance of 10^-4. Scripts that write no spaces need other units.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from upcycle.data.mixing import mix64

WINDOW_WORDS = 13
PIECE = 2**20
"""Bytes of a document that are hashed at once: arrays are some 50 times as large."""

_WORD = re.compile(r"\w+")
_NO_WORD = re.compile(r"[^\w\x00-\x7f]+")
_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_IN_WORD = np.array([byte >= 128 or bool(_WORD.match(chr(byte))) for byte in range(256)])

Hashes = NDArray[np.uint64]


class Windows:
    """Hashes of the word windows of documents, the same in every process: words are numbered by their bytes alone."""

    def __init__(self, size: int = WINDOW_WORDS) -> None:
        self.size = size

    def _numbered(self, text: str) -> Hashes:
        """A number of 64 bits for each word: the mixed polynomial of its bytes."""
        text = text.lower()
        if not text.isascii():  # now bytes above 127 are parts of words
            text = _NO_WORD.sub(" ", text)
        return np.concatenate([np.empty(0, np.uint64), *map(_word_numbers, _pieces_of(text.encode()))])

    def _hash(self, numbers: Hashes) -> Hashes:
        """Polynomials in each `size` consecutive numbers, modulo 2^64."""
        count = len(numbers) - self.size + 1
        if count < 1:
            return np.empty(0, np.uint64)
        starts = np.arange(count)
        return _polynomials(numbers, starts, starts + self.size)

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
            hits = np.flatnonzero(contains(forbidden, self._hash(np.concatenate(numbered))))
            if not len(hits):
                break
            passage_of_word = np.repeat(np.arange(len(passages)), [len(numbers) for numbers in numbered])
            touched = np.zeros(len(passages), bool)
            for k in range(self.size):
                touched[passage_of_word[hits + k]] = True
            passages = [passage for passage, drop in zip(passages, touched, strict=True) if not drop]
        return separator.join(passages).strip("\n"), total - len(passages)


def _pieces_of(data: bytes) -> Iterator[bytes]:
    """The bytes in pieces of about PIECE, cut at blanks."""
    start = 0
    while len(data) - start > PIECE and (end := data.find(b" ", start + PIECE)) >= 0:
        yield data[start:end]
        start = end
    yield data[start:]


def _word_numbers(data: bytes) -> Hashes:
    values = np.frombuffer(data, np.uint8)
    edges = np.flatnonzero(np.diff(_IN_WORD[values], prepend=False, append=False))  # starts and ends take turns
    return mix64(_polynomials(values, edges[::2], edges[1::2]))


def _polynomials(values: NDArray, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> Hashes:
    """Of each span of the values: their sum times powers of the multiplier, modulo 2^64, which begin with its first.

    Differences of running sums are such polynomials times multiplier^start; the inverse power removes that factor, so
    that a span has the same hash at every place.
    """
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(_MULTIPLIER, len(values)), out=sums[1:])
    return (sums[ends] - sums[starts]) * _powers(_INVERSE, len(values))[starts]


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64."""
    return _table_of_powers(base, max(count, 1).bit_length())[:count]


@cache
def _table_of_powers(base: int, bits: int) -> Hashes:
    factors = np.full(2**bits, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def contains(collected: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Which of `hashes` are among the sorted `collected`."""
    if not len(collected):
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(collected, hashes), len(collected) - 1)
    return collected[place] == hashes
