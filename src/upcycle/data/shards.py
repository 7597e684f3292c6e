"""Token shards: flat little-endian files of unsigned integers, written whole or not at all, read as memory maps.

A shard is hashed in blocks, and a block is hashed again by each process that reads a token of it, before the first is
handed out. So training and evaluation compute with what `tokenize` wrote.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from upcycle.data.verified import note, recall
from upcycle.errors import UserError

SHARD_TOKENS = 2**30
"""Default largest shard: 2 GB of uint16."""
BLOCK_TOKENS = 2**20
"""Default block: 2 MB of uint16, a millisecond or two of hashing, and 64 bytes of manifest."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 (little-endian) that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes one part (`train`, `heldout`) as shards `<part>-00000.bin`, ... of at most `shard_tokens` tokens.

    Files have temporary names until `close`; `record` then describes them for the manifest.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        dtype: np.dtype,
        *,
        shard_tokens: int = SHARD_TOKENS,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        self.folder, self.part, self.dtype = folder, part, dtype
        self.shard_tokens, self.block_tokens = shard_tokens, block_tokens
        self.tokens = 0
        self.shards: list[dict[str, Any]] = []
        self._all = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end_shard()
        if kind is None:
            for shard in self.shards:
                path = self.folder / shard["file"]
                _partial(path).replace(path)

    def add(self, tokens: NDArray) -> None:
        """Append tokens [n], cutting at ends of blocks and shards."""
        tokens = tokens.astype(self.dtype, copy=False)
        while len(tokens):
            if self._file is None:
                self._begin_shard()
            assert self._file is not None
            shard = self.shards[-1]
            block_end = shard["tokens"] - shard["tokens"] % self.block_tokens + self.block_tokens
            piece = tokens[: min(block_end, self.shard_tokens) - shard["tokens"]].tobytes()
            self._file.write(piece)
            self._block.update(piece)
            self._all.update(piece)
            count = len(piece) // self.dtype.itemsize
            shard["tokens"] += count
            self.tokens += count
            tokens = tokens[count:]
            if shard["tokens"] == block_end:
                self._end_block()
            if shard["tokens"] == self.shard_tokens:
                self._end_shard()

    def _begin_shard(self) -> None:
        name = f"{self.part}-{len(self.shards):05d}.bin"
        self._file = _partial(self.folder / name).open("wb")
        self._block = hashlib.sha256()
        self.shards.append({"file": name, "tokens": 0, "blocks": []})

    def _end_block(self) -> None:
        self.shards[-1]["blocks"].append(self._block.hexdigest())
        self._block = hashlib.sha256()

    def _end_shard(self) -> None:
        if self._file is not None:
            if self.shards[-1]["tokens"] % self.block_tokens:
                self._end_block()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def record(self) -> dict[str, Any]:
        """For the manifest: tokens, sha256 over all token bytes (however they are cut), and shards with blocks."""
        return {
            "tokens": self.tokens,
            "sha256": self._all.hexdigest(),
            "block_tokens": self.block_tokens,
            "shards": self.shards,
        }


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


class Shard:
    """One shard as a memory map, whose blocks are hashed when they are first read."""

    def __init__(self, path: Path, record: dict[str, Any], dtype: np.dtype, block_tokens: int) -> None:
        """`record` is the manifest's. Raises UserError for a file that is missing or of another size."""
        self.path = path
        expected = record["tokens"] * dtype.itemsize
        try:
            with path.open("rb") as file:
                self.stat = os.fstat(file.fileno())
                if self.stat.st_size == expected:
                    self._tokens = np.memmap(file, dtype, "r")
        except FileNotFoundError:
            raise UserError(f"{path} is missing, the manifest lists {expected:,} bytes; {_remake(path)}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {_remake(path)}") from None
        if self.stat.st_size != expected:
            raise UserError(
                f"{path} has {self.stat.st_size:,} bytes, the manifest lists {expected:,} bytes; {_remake(path)}"
            )
        self._hashes: list[str] = record["blocks"]
        self._block_tokens = block_tokens
        self.verified: NDArray[np.bool_] = np.zeros(len(self._hashes), np.bool_)
        """Whether each block was hashed, by this process or by one whose note still counts."""

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: slice) -> NDArray:
        """A view of the tokens of a slice with step 1; UserError naming the block if they are not what was written."""
        start, stop, _ = index.indices(len(self))
        for block in range(start // self._block_tokens, -(-stop // self._block_tokens)):
            if not self.verified[block]:
                self._verify(block)
        return self._tokens[start:stop]

    def _verify(self, block: int) -> None:
        first = block * self._block_tokens
        tokens = self._tokens[first : first + self._block_tokens]
        if hashlib.sha256(tokens.data).hexdigest() != self._hashes[block]:
            raise UserError(
                f"{self.path}: damaged in block {block} of {len(self._hashes)} (tokens {first:,} to "
                f"{first + len(tokens) - 1:,}), not the tokens that were written; {_remake(self.path)}"
            )
        self.verified[block] = True

    def recall(self, notes: dict[str, Any]) -> NDArray[np.bool_]:
        """The blocks that were verified according to notes of this file, unchanged since."""
        found = recall(notes, self.path, self.stat)
        if found is None:
            return np.zeros_like(self.verified)
        return np.unpackbits(np.frombuffer(bytes.fromhex(found), np.uint8), count=len(self.verified)).astype(np.bool_)

    def note(self, notes: dict[str, Any], verified: NDArray[np.bool_]) -> None:
        """Note which blocks were verified."""
        note(notes, self.path, self.stat, np.packbits(verified).tobytes().hex())


def _remake(path: Path) -> str:
    if path.is_symlink():  # not written here
        return f"restore {path.readlink()}"
    return f"restore the file, or `upcycle tokenize {path.parent.name}` makes the same tokens of the same text"


class ShardedTokens:
    """Several shards as one 1-D array: `len` and slices; nothing is read in advance."""

    def __init__(self, shards: Sequence[Shard], dtype: np.dtype) -> None:
        self.dtype = dtype
        self.shards = list(shards)
        self._starts = [0]
        for shard in self.shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: slice) -> NDArray:
        """A copy of the tokens of a slice with step 1."""
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise IndexError(f"slice step {step}: only contiguous slices of tokens can be read")
        pieces = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[shard]
            piece = self.shards[shard][start - first : stop - first]
            pieces.append(piece)
            start += len(piece)
            shard += 1
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)
