"""Tokens that Megatron-LM's preprocess_data.py wrote, `.bin` with `.idx` beside it, as a token set without a copy.

The set's shards are links to the `.bin` files, and its manifest has hashes of their blocks, as of any shard.
Documents stay in their order (batches shuffle sequences), and nothing is cleaned or removed. The format is that of
megatron/core/datasets/indexed_dataset.py: magic, version 1, code of the tokens' type, numbers of sequences and of
document boundaries; then sizes (int32), byte offsets (int64), and the number of the sequence that begins each document
(int64).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version as library_version
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upcycle.bars import count_work
from upcycle.data.provenance import MANIFEST, PARTS, SourceFile, manifest_bytes, text_fingerprint
from upcycle.data.shards import BLOCK_TOKENS, token_dtype
from upcycle.data.sources import sha256_file
from upcycle.data.tokenizer import TOKENIZER, end_of_text, load_tokenizer
from upcycle.errors import UserError
from upcycle.files import write_atomic

_HEAD = Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_ITEM_BYTES = {4: 4, 8: 2}
"""Size of a token by the code of its type: int32, uint16."""


def index_tokens(
    name: str,
    out_dir: Path,
    files: dict[str, Sequence[Path]],
    *,
    vocab_size: int,
    tokenizer: Path,
    version: str,
) -> dict[str, Any]:
    """Write the manifest of a token set whose tokens are `files` of each part; returns it.

    Reads every token once. `tokenizer` is the tokenizer.json that made them. Raises UserError for files that are
    damaged, of another vocabulary, or whose documents have no end.
    """
    library = load_tokenizer(tokenizer, vocab_size)
    end, dtype = end_of_text(library), token_dtype(vocab_size)
    given = SourceFile(tokenizer)
    for old in (out_dir / MANIFEST, *out_dir.glob("*.bin")):
        old.unlink(missing_ok=True)
    write_atomic(out_dir / TOKENIZER, library.to_str())
    parts, sources = {}, []
    for part in PARTS:
        described = [_shard(path, dtype, end, vocab_size) for path in files[part]]
        shards = [
            {"file": _link(path, out_dir / f"{part}-{number:05d}.bin"), **shard}
            for number, (path, (shard, _, _)) in enumerate(zip(files[part], described, strict=True))
        ]
        parts[part] = _part(out_dir, shards, sum(count for _, count, _ in described), dtype)
        kind = "files" if part == "train" else "heldout_files"
        records = [record for _, _, record in described]
        origin = {"description": "Tokens of Megatron-LM", "licence": "not stated: local files"}
        sources.append({"name": kind, **origin, "files": records})
    sha256 = sha256_file(out_dir / TOKENIZER)
    manifest = {
        "dataset": name,
        "version": version,
        "description": "Tokens of Megatron-LM, where they are",
        "fingerprint": text_fingerprint(sha256, parts),
        "vocab_size": vocab_size,
        "dtype": dtype.name,
        "end_of_text": end,
        "tokenizer": {
            "origin": str(tokenizer),
            "files": [given.record()],
            "sha256": sha256,
            "library": f"tokenizers {library_version('tokenizers')}",
        },
        "train_tokens": parts["train"]["tokens"],
        "heldout_tokens": parts["heldout"]["tokens"],
        "parts": parts,
        "removed": {},
        "sources": sources,
        "text_key": "text",
        "where": {},
        "decontaminated": False,
    }
    write_atomic(out_dir / MANIFEST, manifest_bytes(manifest))
    return manifest


def _link(path: Path, link: Path) -> str:
    """Name of a link in the set to a file."""
    link.symlink_to(path.absolute())
    return link.name


def _part(folder: Path, shards: list[dict[str, Any]], documents: int, dtype: np.dtype) -> dict[str, Any]:
    """The record of a part, as that of one whose tokens were written here; bytes of text are not known."""
    digest = hashlib.sha256()
    for shard in shards:
        tokens = np.memmap(folder / shard["file"], dtype, "r")
        for start in range(0, len(tokens), BLOCK_TOKENS):
            digest.update(tokens[start : start + BLOCK_TOKENS].data)
    total = sum(shard["tokens"] for shard in shards)
    return {
        "documents": documents,
        "bytes": None,
        "bytes_per_token": None,
        "tokens": total,
        "sha256": digest.hexdigest(),
        "block_tokens": BLOCK_TOKENS,
        "shards": shards,
        "by_source": {},
    }


def _shard(path: Path, dtype: np.dtype, end: int, vocab_size: int) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """A file's record as a shard, its number of documents, and its record as a source."""
    file = SourceFile(path)
    ends = _document_ends(path, vocab_size)
    tokens = np.memmap(path, dtype, "r")
    blocks = []
    count_work(expected=-(-len(tokens) // BLOCK_TOKENS))
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[start : start + BLOCK_TOKENS]
        if block.max() >= vocab_size:
            raise UserError(f"{path}: token {block.max()} is none of the tokenizer's {vocab_size} pieces; name its own")
        here = ends[np.searchsorted(ends, start) : np.searchsorted(ends, start + len(block))]
        if len(endless := here[block[here - start] != end]):
            raise UserError(
                f"{path}: a document ends with token {tokens[endless[0]]} (token {endless[0]:,} of the file), not with "
                f"the end of text, {end}; preprocess it with --append-eod"
            )
        blocks.append(hashlib.sha256(block.data).hexdigest())
        count_work(done=1)
    return {"tokens": len(tokens), "blocks": blocks}, len(ends), file.record()


def _document_ends(path: Path, vocab_size: int) -> NDArray[np.int64]:
    """Places of the documents' last tokens, from the index; UserError if it is not that of the file."""
    index, dtype = path.with_suffix(".idx"), token_dtype(vocab_size)
    data = index.read_bytes()
    head = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (b"", 0, 0, 0, 0)
    magic, version, code, n_sequence, n_boundary = head
    if magic != _MAGIC or version != 1 or len(data) < _HEAD.size + 12 * n_sequence + 8 * n_boundary:
        raise UserError(f"{index}: damaged, or no index of Megatron-LM (version 1)")
    if _ITEM_BYTES.get(code) != dtype.itemsize:
        raise UserError(
            f"{path}: holds tokens of type {code} of Megatron-LM's (4: int32, 8: uint16), and a vocabulary of "
            f"{vocab_size:,} is read as {dtype}"
        )
    sizes = np.frombuffer(data, "<i4", n_sequence, _HEAD.size).astype(np.int64)
    boundaries = np.frombuffer(data, "<i8", n_boundary, _HEAD.size + 12 * n_sequence)
    if path.stat().st_size != sizes.sum() * dtype.itemsize or not path.stat().st_size:
        raise UserError(f"{path}: has {path.stat().st_size:,} bytes, and its index lists {sizes.sum():,} tokens")
    return np.unique(np.cumsum(sizes)[boundaries[boundaries > 0] - 1] - 1)
