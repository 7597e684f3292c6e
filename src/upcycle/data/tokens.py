"""Token sets: a data set turned into token files with a manifest, and their reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from upcycle.bars import count_work
from upcycle.data.corpus import Document, prepare_corpus
from upcycle.data.datasets import Dataset, find_dataset, local_dataset
from upcycle.data.provenance import MANIFEST, PARTS, SourceFile, manifest_bytes, read_token_manifest, text_fingerprint
from upcycle.data.shards import Shard, ShardedTokens, ShardWriter, token_dtype
from upcycle.data.sources import DEFAULT_CACHE, sha256_file
from upcycle.data.tokenizer import encode_documents, end_of_text, load_tokenizer, train_bpe
from upcycle.data.verified import VERIFIED, read_notes, write_notes
from upcycle.data.vocabulary import check_vocab_size
from upcycle.errors import UserError
from upcycle.files import write_atomic

TOKENIZER = "tokenizer.json"
ATTEMPTS = 5
"""Of noting verified blocks while other jobs note theirs."""


def tokenize_corpus(
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
    decontaminate: bool = True,
    version: str = "1",
) -> dict[str, Any]:
    """Fetch, clean, split and tokenise a data set into `out_dir`; returns its manifest, which is written last.

    `tokenizer` is `bpe` (trained here, on the training part only) or the path of a tokenizer.json;
    `tokenizer_from`, another token set whose tokenizer is used whatever `tokenizer` says. `files` (and
    `heldout_files`, if they have a validation set of their own) are a user's, with text in column `text_key`.
    `version` is that of a user's files. `heldout_fraction` None takes the data set's own; `decontaminate` removes from
    the training part what it shares with the held-out part. UserError for bad input.
    """
    if files is None:
        dataset = find_dataset(name)
    else:
        dataset = local_dataset(name, files, text_key, heldout_files=heldout_files, version=version)
    path = Path(tokenizer).expanduser()
    given_files = [SourceFile(path)] if tokenizer_from is None and path.is_file() else []
    chosen = _given_tokenizer(dataset, vocab_size, path, tokenizer_from)
    corpus = prepare_corpus(dataset, cache_dir, heldout_fraction, decontaminate=decontaminate)
    bpe = chosen or train_bpe((document.text for document in corpus.train), vocab_size)
    _clear(out_dir)
    write_atomic(out_dir / TOKENIZER, bpe.to_str())
    parts = {part: _write_part(out_dir, part, getattr(corpus, part), bpe) for part in PARTS}
    tokenizer_sha256 = sha256_file(out_dir / TOKENIZER)
    given = f"of token set {tokenizer_from.name}" if tokenizer_from else tokenizer
    manifest = {
        "dataset": dataset.name,
        "version": dataset.version,
        "description": dataset.description,
        "fingerprint": text_fingerprint(tokenizer_sha256, parts),
        "vocab_size": bpe.get_vocab_size(),
        "dtype": token_dtype(bpe.get_vocab_size()).name,
        "end_of_text": end_of_text(bpe),
        "tokenizer": {
            "origin": given if chosen else "trained on the training part",
            "files": [file.record() for file in given_files],
            "sha256": tokenizer_sha256,
            "library": f"tokenizers {library_version('tokenizers')}",
        },
        "train_tokens": parts["train"]["tokens"],
        "heldout_tokens": parts["heldout"]["tokens"],
        "parts": parts,
        "removed": {reason: asdict(removed) for reason, removed in corpus.removed.items()},
        "sources": [source.record() for source in dataset.sources],
        "text_key": text_key,
        "decontaminated": decontaminate,
    }
    write_atomic(out_dir / MANIFEST, manifest_bytes(manifest))
    return manifest


def _clear(folder: Path) -> None:
    """Make the folder, without what an earlier call left in it; the manifest goes first: it makes a token set."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, folder / VERIFIED, *folder.glob("*.bin"), *folder.glob("*.bin.partial")]:
        old.unlink(missing_ok=True)


def _given_tokenizer(
    dataset: Dataset, vocab_size: int, tokenizer: Path, tokenizer_from: Path | None
) -> Tokenizer | None:
    """The tokenizer that was asked for by path; None if one is to be trained, which must be possible."""
    if tokenizer_from is not None:
        lender = TokenSet(tokenizer_from)
        return load_tokenizer(tokenizer_from / TOKENIZER, vocab_size, sha256=lender.manifest["tokenizer"]["sha256"])
    if str(tokenizer) != "bpe":
        return load_tokenizer(tokenizer, vocab_size)
    if dataset.heldout_fraction == 1:
        raise UserError(
            f"dataset {dataset.name!r} is for evaluation only, without text to learn a tokenizer from: "
            "give tokenizer_from"
        )
    check_vocab_size(vocab_size)
    return None


def _write_part(folder: Path, part: str, documents: Sequence[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write one part's shards; returns its record, with counts in all and by source."""
    dtype = token_dtype(tokenizer.get_vocab_size())
    tokens: Counter[str] = Counter()
    size: Counter[str] = Counter()
    count = Counter(document.source for document in documents)
    with ShardWriter(folder, part, dtype) as writer:
        texts = [document.text for document in documents]
        for document, ids in zip(documents, encode_documents(tokenizer, texts, dtype), strict=True):
            writer.add(ids)
            count_work(done=1)
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


class TokenSet:
    """A folder that `tokenize_corpus` wrote, whose tokens are verified as they are read, by blocks (`shards`).

    Opening reads the manifest and looks at the files' sizes. The held-out tokens are hashed by every process that reads
    them; training tokens only if no note of an earlier process vouches for them (`remember`).
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the set is unfinished, damaged, or of another version of this code."""
        self.folder = Path(folder)
        self.manifest = read_token_manifest(self.folder)
        self.fingerprint: str = self.manifest["fingerprint"]
        self.vocab_size: int = self.manifest["vocab_size"]
        self.train = self._open("train")
        self.heldout = self._open("heldout")
        self._remembers = True
        notes = read_notes(self.folder)
        for shard in self.train.shards:
            shard.verified |= shard.recall(notes)

    def _open(self, part: str) -> ShardedTokens:
        record, dtype = self.manifest["parts"][part], token_dtype(self.vocab_size)
        blocks = record["block_tokens"]
        shards = [Shard(self.folder / shard["file"], shard, dtype, blocks) for shard in record["shards"]]
        return ShardedTokens(shards, dtype)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made these tokens. UserError if its file was damaged."""
        sha256 = self.manifest["tokenizer"]["sha256"]
        return load_tokenizer(self.folder / TOKENIZER, self.vocab_size, sha256=sha256)

    def remember(self) -> None:
        """Note the training blocks that were verified, beside the set, for the jobs that come after.

        Other processes write the same file: a note that another one overwrote is written again, a few times. A lost
        note only costs hashing.
        """
        for _ in range(ATTEMPTS if self._remembers else 0):
            notes = read_notes(self.folder)
            noted = False
            for shard in self.train.shards:
                known = shard.recall(notes)
                if (shard.verified & ~known).any():
                    shard.note(notes, shard.verified | known)
                    noted = True
            if not noted:
                return
            if not write_notes(self.folder, notes):
                self._remembers = False
                return

    def verify(self) -> None:
        """Read everything; UserError naming the first file, and block, that is not what was written."""
        self.tokenizer()
        for part in (self.train, self.heldout):
            for shard in part.shards:
                shard[:]
