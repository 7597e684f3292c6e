"""From a data set's raw documents to a training and a held-out part that share no document and, by default, no text.

Everything is decided by the SHA-256 of a document's cleaned text: whether it is a repetition, on which side it falls,
and its place in the order. So neither the order of files, nor how they are shared among jobs, nor a random state
matters, and documents of all sources are mixed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upcycle.bars import count_work
from upcycle.data.cleaning import RepeatedPassages, clean, separator
from upcycle.data.datasets import Dataset
from upcycle.data.rows import Rows
from upcycle.data.spool import Document, Spool, SpoolWriter
from upcycle.data.windows import Hashes, Windows

EMPTY, REPEATED, PASSAGE = "empty document", "repeated document", "repeated passage"
SHARED = "training passage that shares a 13-word window with held-out text"


@dataclass
class Removed:
    """What one step of preparation removed."""

    documents: int = 0
    passages: int = 0
    bytes: int = 0

    def add(self, documents: int, passages: int, size: int) -> None:
        """Count more, of `size` bytes."""
        self.documents += documents
        self.passages += passages
        self.bytes += size


Reasons = defaultdict[str, Removed]
Texts = Sequence[tuple[int, Path | None]]
"""What one job reads: numbers of sources, each with one of its files if it has files."""


def is_heldout(digest: bytes, fraction: float) -> bool:
    """Whether the document with this digest falls on the held-out side: its first 64 bits, as a fraction, decide."""
    return int.from_bytes(digest[:8]) < fraction * 2**64


def spool_text(
    dataset: Dataset, texts: Texts, cache_dir: Path, fraction: float, spool: SpoolWriter, rows: Rows, removed: Reasons
) -> dict[str, int]:
    """Read and clean documents, and put them into the spool; returns how many there are of each source.

    In prose, repeated documents and repeated long lines are dropped here, against all that was read before: a data set
    of prose is read by one job, which holds its lines.
    """
    passages = RepeatedPassages(dataset.layout) if dataset.layout == "prose" else None
    digests: set[bytes] = set()
    count = {source.name: 0 for source in dataset.sources}
    for number, file in texts:
        source = dataset.sources[number]
        for raw in source.documents(cache_dir, file, rows):
            count_work(expected=2, done=1)  # now it is cleaned, later it is cut into tokens, if it stays
            text = clean(raw, dataset.layout)
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            if passages is not None:
                if data and digest in digests:
                    removed[REPEATED].add(1, 0, len(data))
                    continue
                digests.add(digest)
                data = passages.drop(text).strip("\n").encode()
            if not data:
                removed[EMPTY].add(1, 0, 0)
                continue
            count[source.name] += 1
            spool.add(Document(digest, number, data), heldout=source.heldout or is_heldout(digest, fraction))
    spool.flush()
    if passages is not None:
        removed[PASSAGE].add(0, passages.passages, passages.bytes)
    return count


def distinct_documents(spool: Spool, bucket: int, removed: Reasons) -> Iterator[Document]:
    """The documents of a bucket in their order, the first of equal ones."""
    before = b""
    for document in spool.documents(bucket):
        if document.digest == before:
            removed[REPEATED].add(1, 0, len(document.text))
        else:
            yield document
        before = document.digest


class HeldoutText:
    """What the training part must not repeat: the digests of held-out documents and the hashes of their windows.

    Files of sorted values, mapped into memory: the jobs of a node hold them once.
    """

    def __init__(self, digests: bytes, windows: Hashes) -> None:
        """`digests`: sorted, one after the other. `windows`: sorted; empty where shared text is kept."""
        self._digests, self._windows = digests, windows
        self._hashing = Windows()

    @staticmethod
    def collected(documents: Iterable[Document], *, decontaminate: bool) -> tuple[bytes, Hashes]:
        """Both of a held-out part. Holds 16 bytes a word."""
        digests = []

        def texts() -> Iterator[str]:
            for document in documents:
                digests.append(document.digest)
                if decontaminate:
                    yield document.text.decode()

        windows = Windows().collect(texts())
        return b"".join(sorted(digests)), windows

    def __len__(self) -> int:
        return len(self._digests) // 32

    def _at(self, number: int) -> bytes:
        return self._digests[32 * number : 32 * number + 32]

    def __contains__(self, digest: bytes) -> bool:
        place = bisect_left(range(len(self)), digest, key=self._at)
        return place < len(self) and self._at(place) == digest

    def without(self, documents: Iterable[Document], separator: str, removed: Reasons) -> Iterator[Document]:
        """Training documents that are no held-out ones, without the passages that share a window with those.

        Passages are removed from the training side only: held-out text, which losses are measured on, stays as it is.
        """
        for document in documents:
            if document.digest in self:
                removed[REPEATED].add(1, 0, len(document.text))
                continue
            data = document.text
            if len(self._windows):
                text, dropped = self._hashing.without(data.decode(), self._windows, separator)
                if dropped:
                    data = text.encode()
                    removed[SHARED].add(not text, dropped, len(document.text) - len(data))
            if data:
                yield document._replace(text=data)


def training_documents(
    dataset: Dataset, spool: Spool, bucket: int, heldout: HeldoutText, removed: Reasons
) -> Iterator[Document]:
    """The training documents of a bucket in their order."""
    return heldout.without(distinct_documents(spool, bucket, removed), separator(dataset.layout), removed)
