"""Byte-level BPE: trained on a training part, or taken from a file; and the encoding of documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from upcycle.data.sources import sha256_file
from upcycle.data.spool import Document
from upcycle.data.vocabulary import END_OF_TEXT, KNOWN_ENDS, check_tokenizer, check_vocab_size
from upcycle.errors import UserError

TOKENIZER = "tokenizer.json"
"""The tokenizer's file in a token set."""
CHARACTERS_PER_PIECE = 4_000
"""A tokenizer of V pieces is trained on the first 4,000 V characters of the shuffled documents."""
_BATCH = 2**20
"""Bytes of text that are encoded at once: encodings take about 100 times as much."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with `vocab_size` pieces: the end of text, 256 bytes, and merges. Deterministic.

    Raises UserError if `vocab_size` leaves no room for the bytes, or if the text holds too few merges.
    """
    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(texts, CHARACTERS_PER_PIECE * vocab_size), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"vocab_size {vocab_size}: the text gives only {tokenizer.get_vocab_size()} pieces; ask for no more"
        )
    return _plain(tokenizer)


def load_tokenizer(path: Path, vocab_size: int, *, sha256: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises UserError if it is missing, damaged, not of the stated SHA-256, or its ids are not `vocab_size`.
    """
    if sha256 is not None and not (path.is_file() and sha256_file(path) == sha256):
        raise UserError(
            f"{path}: damaged, not the tokenizer that was written; restore it, or "
            f"`upcycle tokenize {path.parent.name}` makes the same again"
        )
    check_tokenizer(path, vocab_size)
    with _failure_is_named(f"{path}: not a tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(path))
    last = max(tokenizer.get_vocab().values())
    if last >= vocab_size:  # an id beyond the embedding: the library numbers added pieces anew
        raise UserError(
            f"{path} has piece number {last}, but with {vocab_size} pieces the last must be {vocab_size - 1}"
        )
    return _plain(tokenizer)


def end_of_text(tokenizer: Tokenizer) -> int:
    """Id of the piece that ends a document, the first of `KNOWN_ENDS` that the tokenizer has (`check_tokenizer`)."""
    return next(token for piece in KNOWN_ENDS if (token := tokenizer.token_to_id(piece)) is not None)


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[Document], dtype: np.dtype
) -> Iterator[tuple[Document, NDArray]]:
    """Each document with its token ids and its end-of-text. UserError for a tokenizer that fails at a text."""
    end = end_of_text(tokenizer)
    for batch in _batches(documents):
        texts = [document.text.decode() for document in batch]
        with _failure_is_named("the tokenizer cannot cut this text; give another tokenizer.json"):
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            yield document, np.array([*encoding.ids, end], dtype)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = list[Document](), 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _failure_is_named(what: str) -> Iterator[None]:
    """Turn what the library raises into a UserError: bare Exception, and a BaseException of its own where it panics."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{what} ({' '.join(str(error).split())})") from None
        raise


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # Text that spells a special piece is text: it must not end a document.
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text
