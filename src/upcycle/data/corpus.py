"""From a data set's raw documents to a training and a held-out part that share no document and, by default, no text.

Everything is decided by the SHA-256 of a document's cleaned text: whether it is a repetition, on which side it
falls, and its place in the order. So neither the order of files nor a random state matters, and documents
of all sources are mixed. The documents are held in memory: some three times the size of the text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from upcycle.bars import count_work
from upcycle.data.cleaning import RepeatedPassages, clean, separator
from upcycle.data.datasets import Dataset
from upcycle.data.windows import Windows
from upcycle.errors import UserError


class Document(NamedTuple):
    """A cleaned text, the name of its source, and the SHA-256 of the text when it was cleaned."""

    text: str
    source: str
    digest: bytes


@dataclass
class Removed:
    """What one step of preparation removed."""

    documents: int = 0
    passages: int = 0
    bytes: int = 0

    def document(self, text: str) -> None:
        """Count a whole document that was removed."""
        self.documents += 1
        self.bytes += len(text.encode())


@dataclass
class Corpus:
    """Documents of both parts, in the order in which they are written, and what was removed for which reason."""

    train: list[Document]
    heldout: list[Document]
    removed: dict[str, Removed] = field(default_factory=dict)


def prepare_corpus(
    dataset: Dataset, cache_dir: Path, heldout_fraction: float | None = None, *, decontaminate: bool = True
) -> Corpus:
    """Fetch, clean, deduplicate and split a data set; `heldout_fraction` overrides the data set's own.

    `decontaminate`: training passages that share a 13-word window with a held-out document are removed. Raises
    UserError if a part comes out empty that should not be.
    """
    fraction = dataset.heldout_fraction if heldout_fraction is None else heldout_fraction
    if not 0 <= fraction <= 1:
        raise UserError(f"heldout_fraction {fraction} is not a share between 0 and 1")
    given = {source.name for source in dataset.sources if source.heldout}
    if given and heldout_fraction is not None:
        raise UserError(f"dataset {dataset.name!r} has held-out files of its own: leave heldout_fraction out")
    removed: dict[str, Removed] = {}
    documents = _distinct_documents(dataset, cache_dir, removed)
    documents.sort(key=lambda document: document.digest[8:])
    heldout = [document for document in documents if document.source in given or is_heldout(document.digest, fraction)]
    chosen = {document.digest for document in heldout}
    train = [document for document in documents if document.digest not in chosen]
    if (not heldout and fraction > 0) or (not train and fraction < 1):
        raise UserError(
            f"dataset {dataset.name!r}: {len(train)} documents for training and {len(heldout)} held out "
            f"with heldout_fraction {fraction}: give more documents or another fraction"
        )
    if decontaminate:
        train = _without_shared_text(train, heldout, separator(dataset.layout), removed)
    if not train and fraction < 1:
        raise UserError(f"dataset {dataset.name!r}: every training document repeats held-out text")
    return Corpus(train, heldout, removed)


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether the document with this digest falls on the held-out side: its first 64 bits, as a fraction, decide."""
    return int.from_bytes(digest[:8]) < fraction * 2**64


def _distinct_documents(dataset: Dataset, cache_dir: Path, removed: dict[str, Removed]) -> list[Document]:
    """Cleaned documents without repeated ones and, in prose, without repeated long lines."""
    empty = removed["empty document"] = Removed()
    repeated = removed["repeated document"] = Removed()
    passages = RepeatedPassages(dataset.layout)
    documents: list[Document] = []
    digests: set[bytes] = set()
    for source in dataset.sources:
        before = len(documents)
        for raw in source.documents(cache_dir):
            count_work(expected=2, done=1)  # now it is cleaned, later it is cut into tokens, if it stays
            text = clean(raw, dataset.layout)
            digest = hashlib.sha256(text.encode()).digest()
            if text and digest in digests:
                repeated.document(text)
                continue
            digests.add(digest)
            if dataset.layout == "prose":
                text = passages.drop(text).strip("\n")
            if not text:
                empty.document(text)
                continue
            documents.append(Document(text, source.name, digest))
        if len(documents) == before:
            raise UserError(f"dataset {dataset.name!r}: source {source.name!r} gave no new text")
    removed["repeated passage"] = Removed(0, passages.passages, passages.bytes)
    return documents


def _without_shared_text(
    train: list[Document], heldout: list[Document], separator: str, removed: dict[str, Removed]
) -> list[Document]:
    """Training documents without the passages that share a 13-word window with a held-out document.

    Passages are removed from the training side only: held-out text, which losses are measured on, stays as it is.
    """
    near = removed["training passage that shares a 13-word window with held-out text"] = Removed()
    windows = Windows()
    forbidden = windows.collect(document.text for document in heldout)
    kept = []
    for document in train:
        text, dropped = windows.without(document.text, forbidden, separator)
        if dropped:
            near.passages += dropped
            near.documents += not text
            near.bytes += len(document.text.encode()) - len(text.encode())
        if text:
            kept.append(document._replace(text=text))
    return kept
