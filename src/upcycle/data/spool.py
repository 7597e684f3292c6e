"""Cleaned documents on disk between reading and encoding, ordered by their digests with bounded memory.

A document's place in the order is the tail of its digest (`place_of`). Readers put documents into buckets, equal ranges
of places, and write all buckets to a run file whenever RUN_BYTES of text are held. Whoever reads a bucket takes its
piece of every run and sorts it. The held-out documents are a bucket of their own, the last one. Pieces are compressed
and carry a checksum, so damage is found where it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import numpy as np

from upcycle.errors import UserError
from upcycle.files import write_atomic

RUN_BYTES = 2**28
"""Text that a reader holds before it writes a run."""
SORT_BYTES = 2**28
"""Text that is held while a bucket is sorted: a larger bucket is read several times, a range of places each time."""
_HEAD = Struct("<32sII")
"""Digest, number of the source and length of the text that follows."""
_LEVEL = 1
"""Of Zstandard: a third of the text's size at some 400 MB/s."""


class Document(NamedTuple):
    """A cleaned text in UTF-8, the number of its source, and the SHA-256 of the text when it was cleaned."""

    digest: bytes
    source: int
    text: bytes


def place_of(digest: bytes) -> bytes:
    """What documents are ordered by. (The first eight bytes decide whether a document is held out.)"""
    return digest[8:]


def _range_of(digest: bytes, count: int) -> int:
    """In which of `count` equal ranges a document's place lies."""
    return int.from_bytes(place_of(digest)[:8]) * count >> 64


class SpoolWriter:
    """Writes runs `<stem>-00000.run`, ...; each is a piece for each bucket, and at its end where pieces begin."""

    def __init__(self, folder: Path, stem: str, buckets: int) -> None:
        self._folder, self._stem, self._buckets = folder, stem, buckets
        self.runs: list[str] = []
        self._empty()

    def _empty(self) -> None:
        self._held = [bytearray() for _ in range(self._buckets + 1)]
        self._size = 0

    def add(self, document: Document, *, heldout: bool) -> None:
        """Put a document into its bucket."""
        bucket = self._buckets if heldout else _range_of(document.digest, self._buckets)
        self._held[bucket] += _HEAD.pack(document.digest, document.source, len(document.text)) + document.text
        self._size += _HEAD.size + len(document.text)
        if self._size > RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held, as one run."""
        import zstandard

        if not self._size:
            return
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        pieces = []
        index = np.zeros((self._buckets + 2, 2), "<u8")  # where each piece begins: in the file, and of all text
        for bucket, held in enumerate(self._held):
            pieces.append(compressor.compress(bytes(held)) if held else b"")
            index[bucket + 1] = index[bucket] + np.array([len(pieces[-1]), len(held)], "<u8")
            held.clear()
        name = f"{self._stem}-{len(self.runs):05d}.run"
        write_atomic(self._folder / name, *pieces, index.tobytes())
        self.runs.append(name)
        self._empty()


class Spool:
    """All runs of a token set, read bucket by bucket."""

    def __init__(self, runs: Sequence[Path], buckets: int) -> None:
        self.buckets = buckets
        self._runs = runs

    def documents(self, bucket: int) -> Iterator[Document]:
        """The documents of a bucket by their places; equal ones by their sources. Bucket `buckets` is the held-out one.

        Holds about SORT_BYTES of text. Raises UserError for a damaged run.
        """
        spans = [self._span(run, bucket) for run in self._runs]
        ranges = -(-sum(size for _, _, size in spans) // SORT_BYTES)
        of_all = ranges * (1 if bucket == self.buckets else self.buckets)
        for number in range(ranges):
            held = []
            for run, (start, stop, _) in zip(self._runs, spans, strict=True):
                for document in self._piece(run, start, stop):
                    if ranges == 1 or _range_of(document.digest, of_all) % ranges == number:
                        held.append(document)
            held.sort(key=lambda document: (place_of(document.digest), document.source))
            yield from held

    def _span(self, run: Path, bucket: int) -> tuple[int, int, int]:
        """First and last byte of a bucket's piece, and the size of its text."""
        try:
            with run.open("rb") as file:
                file.seek(-(self.buckets + 2 - bucket) * 16, os.SEEK_END)
                (start, before), (stop, after) = np.frombuffer(file.read(32), "<u8").reshape(2, 2).tolist()
        except (OSError, ValueError) as error:
            raise _damaged(run, str(error)) from None
        return start, stop, after - before

    def _piece(self, run: Path, start: int, stop: int) -> Iterator[Document]:
        import zstandard

        if start == stop:
            return
        try:
            with run.open("rb") as file:
                file.seek(start)
                piece = zstandard.ZstdDecompressor().decompress(file.read(stop - start))
        except (OSError, zstandard.ZstdError) as error:
            raise _damaged(run, str(error)) from None
        place = 0
        while place < len(piece):
            digest, source, size = _HEAD.unpack_from(piece, place)
            place += _HEAD.size
            yield Document(digest, source, piece[place : place + size])
            place += size


def _damaged(run: Path, reason: str) -> UserError:
    return UserError(f"{run}: damaged ({reason}); remove the folder {run.parent}, and tokenise again")
