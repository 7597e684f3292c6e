"""13-word windows: whether two sets of documents share text, and the passages to drop so that they do not.

Words are runs of letters and digits, whatever their case. A window is held as a 64-bit hash of its words; a false
match among 10^9 windows against 10^6 has a chance of 10^-4. Scripts that write no spaces need other units.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from upcycle.data.mixing import mix64

WINDOW_WORDS = 13

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class Windows:
    """Hashes of the word windows of documents; one object numbers the words of all texts that are compared."""

    def __init__(self, size: int = WINDOW_WORDS) -> None:
        self.size = size
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        self._numbers = numbers
        self._powers = [np.uint64(pow(int(_MULTIPLIER), k, 2**64)) for k in range(size)]

    def _numbered(self, text: str) -> list[int]:
        return [self._numbers[word] for word in _WORD.findall(text.lower())]

    def _hash(self, numbers: list[int]) -> Hashes:
        count = len(numbers) - self.size + 1
        if count <= 0:
            return np.empty(0, np.uint64)
        values = mix64(np.array(numbers, np.uint64))
        hashes = np.zeros(count, np.uint64)
        for k, power in enumerate(self._powers):  # a polynomial in the words, modulo 2^64
            hashes += values[k : k + count] * power
        return hashes

    def of(self, text: str) -> Hashes:
        """Hash of each window of the text, in order; empty for a text of fewer words."""
        return self._hash(self._numbered(text))

    def collect(self, texts: Iterable[str]) -> Hashes:
        """Sorted distinct hashes of all windows of the texts."""
        return np.unique(np.concatenate([np.empty(0, np.uint64), *map(self.of, texts)]))

    def without(self, text: str, forbidden: Hashes, separator: str) -> tuple[str, int]:
        """The text without the passages that a forbidden window touches, and how many were dropped.

        Dropping makes neighbours of what was apart, so it goes on until no window is forbidden.
        """
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


def contains(collected: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Which of `hashes` are among the sorted `collected`."""
    if not len(collected):
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(collected, hashes), len(collected) - 1)
    return collected[place] == hashes


def shared_windows(texts: Iterable[str], others: Iterable[str], size: int = WINDOW_WORDS) -> Iterator[str]:
    """The windows, in words, of `texts` that also occur in `others`, in order."""
    windows = Windows(size)
    collected = windows.collect(others)
    for text in texts:
        words = _WORD.findall(text.lower())
        for start in np.flatnonzero(contains(collected, windows.of(text))):
            yield " ".join(words[start : start + size])
