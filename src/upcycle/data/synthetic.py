"""A made-up language whose entropy is known exactly, so that a fitted floor E can be compared with the true one.

A document is a walk over SYMBOLS letters. The next letter depends on the two before it: each of these contexts has a
ranking of all letters, and the letter of rank r follows with probability proportional to r^-EXPONENT. So all contexts
have one entropy, that of the Zipf distribution, in closed form. Rankings agree about which letters are common: contexts
then occur with frequencies over several orders of magnitude, and a learner meets the rare ones late. After each letter
the document ends with probability END, whatever came before. A byte-level tokenizer of 257 pieces has no merges, so a
letter is a token, and so is the end of a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEF"
"""Letters only: no blank, which cleaning could change, and no word boundary."""
SYMBOLS = len(ALPHABET)
EXPONENT, SPREAD, END = 1.5, 1.0, 1 / 500
DOCUMENTS = 41_000
"""20.5 million letters."""
_TOGETHER = 4_096
"""Documents that are drawn side by side."""


def _chances() -> NDArray[np.float64]:
    """Probability of the letter of each rank [rank]."""
    weight_R = np.arange(1, SYMBOLS + 1) ** -EXPONENT
    return weight_R / weight_R.sum()


def _rankings() -> NDArray[np.uint8]:
    """Letters by rank [context, rank]; context (SYMBOLS + 1) a + b is that of letters a, b before, SYMBOLS for none."""
    noise = np.random.default_rng(1).standard_normal(((SYMBOLS + 1) ** 2, SYMBOLS))
    return np.argsort(np.log(np.arange(1, SYMBOLS + 1)) + SPREAD * noise, axis=1).astype(np.uint8)


def zipf_markov(documents: int = DOCUMENTS, seed: int = 0) -> Iterator[str]:
    """Documents of the language, always the same for a seed."""
    letters = np.frombuffer(ALPHABET.encode(), np.uint8)
    bounds_R, ranking_CR = np.cumsum(_chances())[:-1], _rankings()
    random = np.random.default_rng(seed)
    for first in range(0, documents, _TOGETHER):
        count = min(_TOGETHER, documents - first)
        alive, context = np.arange(count), np.full(count, (SYMBOLS + 1) * SYMBOLS + SYMBOLS)
        drawn: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = []
        while len(alive):
            rank = np.searchsorted(bounds_R, random.random(len(alive)), side="right")
            symbol = ranking_CR[context, rank]
            drawn.append((alive, letters[symbol]))
            context = (SYMBOLS + 1) * (context % (SYMBOLS + 1)) + symbol
            goes_on = random.random(len(alive)) >= END
            alive, context = alive[goes_on], context[goes_on]
        owners = np.concatenate([owner for owner, _ in drawn])
        text = np.concatenate([letter for _, letter in drawn])[np.argsort(owners, kind="stable")]
        ends = np.cumsum(np.bincount(owners, minlength=count))
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield text[start:end].tobytes().decode()


def zipf_markov_entropy() -> float:
    """Nats per token, exactly, ends of documents included; in closed form.

    A document of n letters is n + 1 tokens: a first letter, and n times either the end or another letter. n is 1 / END
    on average. (Repeated documents are removed when text is prepared: these are of few letters, less than 1e-4 of all.)
    """
    chance_R = _chances()
    letter = -float(np.sum(chance_R * np.log(chance_R)))
    after = -END * math.log(END) - (1 - END) * math.log1p(-END) + (1 - END) * letter
    return (letter + after / END) / (1 + 1 / END)


def true_nats(texts: list[str]) -> float:
    """Mean negative log likelihood of documents by the language itself, nats per token, ends included."""
    place_CS = np.argsort(_rankings(), axis=1)  # rank of each letter
    log_R, total, tokens = np.log(_chances()), 0.0, 0
    for text in texts:
        symbols = np.array([ALPHABET.index(letter) for letter in text])
        padded = np.concatenate([[SYMBOLS, SYMBOLS], symbols])
        context = (SYMBOLS + 1) * padded[:-2] + padded[1:-1]
        total -= float(log_R[place_CS[context, symbols]].sum()) + (len(text) - 1) * math.log1p(-END) + math.log(END)
        tokens += len(text) + 1
    return total / tokens
