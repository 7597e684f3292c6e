"""Token sets: a data set turned into token files with a manifest, and their reader."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from upcycle.data.corpus import Corpus, Document, prepare
from upcycle.data.datasets import Dataset, find_dataset, local_dataset
from upcycle.data.shards import SHARD_TOKENS, ShardedTokens, ShardWriter, open_shards, token_dtype, verify_shards
from upcycle.data.sources import DEFAULT_CACHE, sha256_file
from upcycle.data.tokenizer import check_vocab_size, encode_documents, end_of_text, load_tokenizer, threads, train_bpe
from upcycle.errors import UserError
from upcycle.files import write_atomic

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1
PARTS = ("train", "heldout")


def tokenize(
    name: str,
    out_dir: Path,
    *,
    vocab_size: int,
    tokenizer: str = "bpe",
    tokenizer_from: Path | None = None,
    files: Sequence[Path | str] | None = None,
    text_key: str = "text",
    heldout_files: Sequence[Path | str] = (),
    cache_dir: Path = DEFAULT_CACHE,
    heldout_fraction: float | None = None,
    shard_tokens: int = SHARD_TOKENS,
    n_threads: int | None = None,
) -> dict[str, Any]:
    """Fetch, clean, split and tokenise a data set into `out_dir`; returns its manifest, which is written last.

    `tokenizer` is `bpe` (trained here, on the training part only) or the path of a tokenizer.json;
    `tokenizer_from`, another token set whose tokenizer is used whatever `tokenizer` says. `files` (and
    `heldout_files`, if they have a validation set of their own) are a user's, with text in column `text_key`.
    `heldout_fraction` None takes the data set's own; `n_threads` None, all cores. UserError for bad input.
    """
    dataset = find_dataset(name) if files is None else local_dataset(name, files, text_key, heldout_files=heldout_files)
    chosen = _given_tokenizer(dataset, vocab_size, tokenizer, tokenizer_from)
    if shard_tokens < 1:
        raise UserError(f"shard_tokens {shard_tokens} is not at least 1")
    began = time.monotonic()
    corpus = prepare(dataset, cache_dir, heldout_fraction)
    prepared = time.monotonic()
    with threads(n_threads):
        bpe = chosen or train_bpe((document.text for document in corpus.train), vocab_size)
        trained = time.monotonic()
        _clear(out_dir)
        write_atomic(out_dir / TOKENIZER, bpe.to_str())
        parts = {part: _write_part(out_dir, part, getattr(corpus, part), bpe, shard_tokens) for part in PARTS}
    seconds = {"prepare": prepared - began, "tokenizer": trained - prepared, "encode": time.monotonic() - trained}
    given = f"of token set {tokenizer_from.name}" if tokenizer_from else tokenizer
    origin = "trained on the training part" if chosen is None else given
    manifest = _manifest(out_dir, dataset, corpus, bpe, parts, origin)
    manifest["seconds"] = {key: round(value, 2) for key, value in seconds.items()}
    write_atomic(out_dir / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def _clear(folder: Path) -> None:
    """Make the folder, without what an earlier call left in it; the manifest goes first: it makes a token set."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, *folder.glob("*.bin"), *folder.glob("*.bin.partial")]:
        old.unlink(missing_ok=True)


def _given_tokenizer(
    dataset: Dataset, vocab_size: int, tokenizer: str, tokenizer_from: Path | None
) -> Tokenizer | None:
    """The tokenizer that was asked for by path; None if one is to be trained, which must be possible."""
    if tokenizer_from is not None:
        TokenSet(tokenizer_from)  # whole, or refused
        return load_tokenizer(tokenizer_from / TOKENIZER, vocab_size)
    if tokenizer != "bpe":
        return load_tokenizer(Path(tokenizer), vocab_size)
    if dataset.heldout_fraction == 1:
        raise UserError(
            f"dataset {dataset.name!r} is for evaluation only, without text to learn a tokenizer from: "
            "give tokenizer_from"
        )
    check_vocab_size(vocab_size)
    return None


def _write_part(
    folder: Path, part: str, documents: Sequence[Document], tokenizer: Tokenizer, shard_tokens: int
) -> dict[str, Any]:
    """Write one part's shards; returns its record, with counts in all and by source."""
    dtype = token_dtype(tokenizer.get_vocab_size())
    tokens: Counter[str] = Counter()
    size: Counter[str] = Counter()
    count = Counter(document.source for document in documents)
    with ShardWriter(folder, part, dtype, shard_tokens) as writer:
        texts = [document.text for document in documents]
        for document, ids in zip(documents, encode_documents(tokenizer, texts, dtype), strict=True):
            writer.add(ids)
            tokens[document.source] += len(ids)
            size[document.source] += len(document.text.encode())
    by_source = {
        name: {"documents": count[name], "bytes": size[name], "tokens": tokens[name]} for name in sorted(count)
    }
    bytes_per_token = size.total() / writer.tokens if writer.tokens else None
    return {
        "documents": len(documents),
        "bytes": size.total(),
        "bytes_per_token": bytes_per_token,
        **writer.record(),
        "by_source": by_source,
    }


def _manifest(
    folder: Path, dataset: Dataset, corpus: Corpus, tokenizer: Tokenizer, parts: dict[str, Any], origin: str
) -> dict[str, Any]:
    tokenizer_sha256 = sha256_file(folder / TOKENIZER)
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "version": dataset.version,
        "description": dataset.description,
        "fingerprint": fingerprint(tokenizer_sha256, parts),
        "vocab_size": tokenizer.get_vocab_size(),
        "dtype": token_dtype(tokenizer.get_vocab_size()).name,
        "end_of_text": end_of_text(tokenizer),
        "tokenizer": {"origin": origin, "sha256": tokenizer_sha256, "library": f"tokenizers {version('tokenizers')}"},
        "train_tokens": parts["train"]["tokens"],
        "heldout_tokens": parts["heldout"]["tokens"],
        "parts": parts,
        "removed": {reason: asdict(removed) for reason, removed in corpus.removed.items()},
        "sources": [source.record() for source in dataset.sources],
    }


def fingerprint(tokenizer_sha256: str, parts: dict[str, Any]) -> str:
    """SHA-256 over the hashes of the tokenizer and of both parts' token bytes: equal tokens, equal fingerprint."""
    lines = [tokenizer_sha256, *(parts[part]["sha256"] for part in PARTS)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class TokenSet:
    """A folder that `tokenize` wrote. Opening checks that every file is there with its size; it reads no tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{self.folder} is no token set: it has no {MANIFEST} (unfinished?); run `upcycle tokenize`"
            )
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {self.manifest.get('format')!r}, this code reads {FORMAT}: tokenise again"
            )
        self.fingerprint: str = self.manifest["fingerprint"]
        self.vocab_size: int = self.manifest["vocab_size"]
        parts, dtype = self.manifest["parts"], token_dtype(self.vocab_size)
        self.train: ShardedTokens = open_shards(self.folder, parts["train"], dtype)
        self.heldout: ShardedTokens = open_shards(self.folder, parts["heldout"], dtype)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made these tokens."""
        return load_tokenizer(self.folder / TOKENIZER, self.vocab_size)

    def verify(self) -> None:
        """Read and hash everything again; UserError naming the first file that is not what the manifest says."""
        parts, expected = self.manifest["parts"], self.manifest["tokenizer"]["sha256"]
        found = sha256_file(self.folder / TOKENIZER)
        if found != expected:
            raise UserError(
                f"{self.folder / TOKENIZER} has sha256 {found}, the manifest says {expected}: tokenise again"
            )
        verify_shards(self.folder, parts.values())
        if fingerprint(found, parts) != self.fingerprint:
            raise UserError(
                f"{self.folder / MANIFEST}: fingerprint {self.fingerprint} does not follow from "
                "its parts: tokenise again"
            )
