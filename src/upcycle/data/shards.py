"""Token shards: flat little-endian files of unsigned integers, written whole or not at all, read as memory maps."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError

SHARD_TOKENS = 2**30
"""Default largest shard: 2 GB of uint16."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 (little-endian) that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes one part (`train`, `heldout`) as shards `<part>-00000.bin`, ... of at most `shard_tokens` tokens.

    Files have temporary names until `close`; `record` then describes them for the manifest.
    """

    def __init__(self, folder: Path, part: str, dtype: np.dtype, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.part, self.dtype, self.shard_tokens = folder, part, dtype, shard_tokens
        self.tokens = 0
        self.shards: list[dict[str, Any]] = []
        self._all = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_shard()
        if kind is None:
            for shard in self.shards:
                path = self.folder / shard["file"]
                _partial(path).replace(path)

    def add(self, tokens: NDArray) -> None:
        """Append tokens [n], cutting at shard ends."""
        tokens = tokens.astype(self.dtype, copy=False)
        while len(tokens):
            if self._file is None:
                self._begin_shard()
            assert self._file is not None
            piece = tokens[: self.shard_tokens - self.shards[-1]["tokens"]].tobytes()
            self._file.write(piece)
            self._one.update(piece)
            self._all.update(piece)
            count = len(piece) // self.dtype.itemsize
            self.shards[-1]["tokens"] += count
            self.tokens += count
            tokens = tokens[count:]
            if self.shards[-1]["tokens"] == self.shard_tokens:
                self._end_shard()

    def _begin_shard(self) -> None:
        name = f"{self.part}-{len(self.shards):05d}.bin"
        self._file = _partial(self.folder / name).open("wb")
        self._one = hashlib.sha256()
        self.shards.append({"file": name, "tokens": 0})

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            self.shards[-1]["sha256"] = self._one.hexdigest()

    def record(self) -> dict[str, Any]:
        """tokens, sha256 over all token bytes (whatever the shard size) and the shards, for the manifest."""
        return {"tokens": self.tokens, "sha256": self._all.hexdigest(), "shards": self.shards}


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


class ShardedTokens:
    """Several memory-mapped shards as one 1-D array: `len`, slices and single indices; nothing is read in advance."""

    def __init__(self, shards: Sequence[NDArray], dtype: np.dtype) -> None:
        self.dtype = dtype
        self._shards = list(shards)
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def shape(self) -> tuple[int]:
        """(tokens,)."""
        return (len(self),)

    def __getitem__(self, index: int | slice) -> Any:
        """Token at an index, or a copy of the tokens of a slice with step 1."""
        if not isinstance(index, slice):
            index = range(len(self))[index]
            return self[index : index + 1][0]
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise IndexError(f"slice step {step}: only contiguous slices of tokens can be read")
        pieces = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[shard]
            piece = self._shards[shard][start - first : stop - first]
            pieces.append(piece)
            start += len(piece)
            shard += 1
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)


def open_shards(folder: Path, record: dict[str, Any], dtype: np.dtype) -> ShardedTokens:
    """Memory maps of the shards that a manifest's `record` lists; UserError for a missing or cut one."""
    maps: list[NDArray] = []
    for shard in record["shards"]:
        path = folder / shard["file"]
        expected = shard["tokens"] * dtype.itemsize
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            size = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{path} {size}, the manifest says {expected} bytes: tokenise again")
        maps.append(np.memmap(path, dtype, "r"))
    return ShardedTokens(maps, dtype)


def verify_shards(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Hash every shard again; UserError naming the first that differs and both hashes."""
    for record in records:
        for shard in record["shards"]:
            found = sha256_file(folder / shard["file"])
            if found != shard["sha256"]:
                raise UserError(
                    f"{folder / shard['file']} has sha256 {found}, the manifest says {shard['sha256']}: tokenise again"
                )
