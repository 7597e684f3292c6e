"""The making of a token set, in steps that many jobs share, any of which may be killed.

    read-0, read-1, ...   files -> cleaned documents, hashed, spooled to disk by their place in the order
    prepare               counts and refusals; windows of the held-out part; the tokenizer
    encode-0, ...         a range of the order -> shards of the training part; the last one -> the held-out part
    merge                 every shard is read and verified; the manifest is written last

A step leaves a record beside its files in `work/`, written when they are durable. It counts only with the key that it
was made with: a hash of the recipe and of sizes and times of the user's files. So a call continues where another one
ended, and begins again where the text has changed. The tokens depend neither on the steps nor on who does them: each
document's digest decides where it goes (`corpus`). A small data set has one step of a kind, in one process.

Memory of a step, all of it bounded: RUN_BYTES or SORT_BYTES of text and as much again for its copies; about 100 bytes
for each token of a batch or of one larger document; the held-out windows, 8 bytes a word, mapped and shared (16 while
`prepare` collects them); the interpreter and the tokenizer, some 150 MB.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version as library_version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from upcycle.bars import count_work
from upcycle.data.corpus import (
    EMPTY,
    PASSAGE,
    REPEATED,
    SHARED,
    HeldoutText,
    Removed,
    distinct_documents,
    spool_text,
    training_documents,
)
from upcycle.data.datasets import find_dataset, local_dataset
from upcycle.data.parts import PART_BYTES, PREPARE, WORK, file_groups, making_steps
from upcycle.data.provenance import MANIFEST, PARTS, SourceFile, manifest_bytes, read_token_manifest, text_fingerprint
from upcycle.data.rows import MAX_BAD, Rows, Where
from upcycle.data.shards import Shard, ShardWriter, token_dtype
from upcycle.data.sources import DEFAULT_CACHE, sha256_file
from upcycle.data.spool import Document, Spool, SpoolWriter
from upcycle.data.tokenizer import TOKENIZER, encode_documents, end_of_text, load_tokenizer, train_bpe
from upcycle.data.verified import VERIFIED
from upcycle.data.vocabulary import check_vocab_size
from upcycle.errors import UserError, nearest
from upcycle.files import write_atomic
from upcycle.manifest import json_bytes, sealed, unsealed

WORK_FORMAT = 1
BUCKETS = 16
"""Buckets of an encoding step: what it sorts at once is a sixteenth of its text."""
WINDOWS, DIGESTS = "windows", "digests"


class Making:
    """One token set in the making. Its arguments are those of `tokenize_corpus`."""

    def __init__(
        self,
        name: str,
        out_dir: Path,
        *,
        vocab_size: int,
        tokenizer: str = "bpe",
        tokenizer_from: Path | None = None,
        files: Sequence[Path | str] | None = None,
        text_key: str = "text",
        heldout_files: Sequence[Path | str] = (),
        where: Where | None = None,
        max_bad: float = MAX_BAD,
        cache_dir: Path = DEFAULT_CACHE,
        heldout_fraction: float | None = None,
        decontaminate: bool = True,
        version: str = "1",
        part_bytes: int = PART_BYTES,
        origin: str = "Local files",
    ) -> None:
        if files is None:
            self.dataset = find_dataset(name)
        else:
            self.dataset = local_dataset(name, files, heldout_files=heldout_files, version=version, origin=origin)
        self.out_dir, self.work, self.cache_dir = out_dir, out_dir / WORK, cache_dir
        self.vocab_size, self.text_key, self.max_bad = vocab_size, text_key, max_bad
        self.where = dict(where or {})
        self.decontaminate = decontaminate
        self.fraction = self._fraction(heldout_fraction)
        self.tokenizer, self.tokenizer_from = Path(tokenizer).expanduser(), tokenizer_from
        self.given = self._given_tokenizer()
        self.texts = [
            (number, file)
            for number, source in enumerate(self.dataset.sources)
            for file in (source.files if source.files else (None,))
        ]
        paths = [file.path for _, file in self.texts if file is not None]
        self.groups = file_groups(paths, part_bytes) or [list(range(len(self.texts)))]
        self.stages = making_steps(paths, part_bytes)
        self.n_train = len(self.stages[-1]) - 1
        self.key = self._key()

    def _fraction(self, given: float | None) -> float:
        fraction = self.dataset.heldout_fraction if given is None else given
        if not 0 <= fraction <= 1:
            raise UserError(f"heldout_fraction {fraction} is not a share between 0 and 1")
        if given is not None and any(source.heldout for source in self.dataset.sources):
            raise UserError(f"dataset {self.dataset.name!r} has held-out files of its own: leave heldout_fraction out")
        return fraction

    def _given_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was asked for by path; None if one is to be trained, which must be possible."""
        if self.tokenizer_from is not None:
            sha256 = read_token_manifest(self.tokenizer_from)["tokenizer"]["sha256"]
            return load_tokenizer(self.tokenizer_from / TOKENIZER, self.vocab_size, sha256=sha256)
        if str(self.tokenizer) != "bpe":
            return load_tokenizer(self.tokenizer, self.vocab_size)
        if self.dataset.heldout_fraction == 1:
            raise UserError(
                f"dataset {self.dataset.name!r} is for evaluation only, without text to learn a tokenizer from: "
                "give tokenizer_from"
            )
        check_vocab_size(self.vocab_size)
        return None

    def _key(self) -> str:
        """Hash of all that steps have in common and that changes what they make."""
        tokenizer = self.given and hashlib.sha256(self.given.to_str().encode()).hexdigest()
        recipe = [WORK_FORMAT, self.dataset.name, self.dataset.version, self.text_key, self.where, self.vocab_size]
        recipe += [tokenizer, self.fraction, self.decontaminate, self.stages]
        recipe += [source.record([]) for source in self.dataset.sources]
        recipe += [[number, file and file.stamp()] for number, file in self.texts]
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    # Steps

    def record(self, step: str) -> dict[str, Any] | None:
        """What a step did; None if it is to be done."""
        try:
            content = unsealed((self.work / f"{step}.json").read_bytes())
        except FileNotFoundError:
            return None
        return content if content is not None and content["key"] == self.key else None

    def run(self, step: str) -> None:
        """Do a step, unless it is done. UserError for an unknown one, or if one that it needs is not done."""
        if not any(step in stage for stage in self.stages):
            raise UserError(f"{self.out_dir.name} has no step {step!r}; {nearest(step, chain(*self.stages))}")
        if self.record(step) is not None:
            return
        for old in (self.out_dir / MANIFEST, self.out_dir / VERIFIED):  # the manifest makes a token set
            old.unlink(missing_ok=True)
        kind, _, number = step.partition("-")
        done = {"read": self._read, PREPARE: self._prepare, "encode": self._encode}[kind](int(number or 0))
        write_atomic(self.work / f"{step}.json", json_bytes(sealed({"key": self.key, **done})))

    def _done(self, stage: int) -> list[dict[str, Any]]:
        """Records of the steps of a stage."""
        records = {step: self.record(step) for step in self.stages[stage]}
        if missing := [step for step, record in records.items() if record is None]:
            raise UserError(f"{self.out_dir.name}: step {missing[0]} is not done, or its text has changed since")
        return [record for record in records.values() if record is not None]

    def _rows(self) -> Rows:
        return Rows(self.text_key, self.where, self.max_bad)

    def _read(self, number: int) -> dict[str, Any]:
        group = [self.texts[place] for place in self.groups[number]]
        spool = SpoolWriter(self.work, f"read-{number:05d}", BUCKETS * self.n_train)
        rows, removed = self._rows(), _none()
        texts = [(source, file.path if file else None) for source, file in group]
        documents = spool_text(self.dataset, texts, self.cache_dir, self.fraction, spool, rows, removed)
        files = [[source, file.record()] for source, file in group if file is not None]
        record = {"documents": documents, "rows": rows.record(), "files": files, "runs": spool.runs}
        return {**record, "removed": _plain_removed(removed)}

    def _spool(self) -> Spool:
        runs = [self.work / run for record in self._done(0) for run in record["runs"]]
        return Spool(runs, BUCKETS * self.n_train)

    def _prepare(self, _: int) -> dict[str, Any]:
        rows, documents = self._rows(), Counter[str]()
        for record in self._done(0):
            rows.add(record["rows"])
            documents.update(record["documents"])
        rows.check()
        for source, count in documents.items():
            if not count:
                left_out = f": `where` leaves out {rows.left_out:,} of {rows.read:,} rows" if rows.left_out else ""
                raise UserError(f"dataset {self.dataset.name!r}: source {source!r} gave no new text{left_out}")
        spool = self._spool()
        heldout_documents = distinct_documents(spool, spool.buckets, _none())
        digests, windows = HeldoutText.collected(heldout_documents, decontaminate=self.decontaminate)
        heldout, train = len(digests) // 32, documents.total() - len(digests) // 32
        if (not heldout and self.fraction > 0) or (not train and self.fraction < 1):
            raise UserError(
                f"dataset {self.dataset.name!r}: {train} documents for training and {heldout} held out "
                f"with heldout_fraction {self.fraction}: give more documents or another fraction"
            )
        write_atomic(self.work / DIGESTS, digests)
        write_atomic(self.work / WINDOWS, windows.view(np.uint8).data)
        bpe = self.given or train_bpe(self._training_texts(spool, HeldoutText(digests, windows)), self.vocab_size)
        write_atomic(self.out_dir / TOKENIZER, bpe.to_str())
        files = {name: sha256_file(self.work / name) for name in (DIGESTS, WINDOWS)}
        return {"rows": rows.record(), "tokenizer": sha256_file(self.out_dir / TOKENIZER), "files": files}

    def _heldout(self, prepared: dict[str, Any]) -> HeldoutText:
        """The held-out text as `prepare` wrote it, mapped. UserError if it is damaged."""
        for name, sha256 in prepared["files"].items():
            if sha256_file(self.work / name) != sha256:
                raise UserError(f"{self.work / name}: damaged; remove the folder {self.work}, and tokenise again")
        path = self.work / WINDOWS
        windows = np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)
        return HeldoutText((self.work / DIGESTS).read_bytes(), windows)

    def _training_texts(self, spool: Spool, heldout: HeldoutText) -> Iterable[str]:
        for bucket in range(spool.buckets):
            for document in training_documents(self.dataset, spool, bucket, heldout, _none()):
                yield document.text.decode()

    def _encode(self, number: int) -> dict[str, Any]:
        (prepared,) = self._done(1)
        bpe = load_tokenizer(self.out_dir / TOKENIZER, self.vocab_size, sha256=prepared["tokenizer"])
        spool, removed = self._spool(), _none()
        if number == self.n_train:
            return self._write("heldout", distinct_documents(spool, spool.buckets, removed), bpe, removed)
        heldout, buckets = self._heldout(prepared), range(BUCKETS * number, BUCKETS * (number + 1))
        documents = (
            document
            for bucket in buckets
            for document in training_documents(self.dataset, spool, bucket, heldout, removed)
        )
        name = "train" if self.n_train == 1 else f"train-{number:05d}"
        return self._write(name, documents, bpe, removed)

    def _write(self, name: str, documents: Iterable[Document], bpe: Tokenizer, removed: Any) -> dict[str, Any]:
        """Write shards; returns their record, with counts in all and by source."""
        dtype = token_dtype(self.vocab_size)
        count: dict[int, Counter[str]] = defaultdict(Counter)
        with ShardWriter(self.out_dir, name, dtype) as writer:
            for document, ids in encode_documents(bpe, documents, dtype):
                writer.add(ids)
                count_work(done=1)
                count[document.source].update(documents=1, bytes=len(document.text), tokens=len(ids))
        by_source = {self.dataset.sources[number].name: dict(counts) for number, counts in count.items()}
        return {"written": writer.record(), "by_source": by_source, "removed": _plain_removed(removed)}

    # The end

    def merge(self) -> dict[str, Any]:
        """Verify all shards and write the manifest; returns it. UserError for a step that is not done, or damage."""
        (prepared,), encoded = self._done(1), self._done(2)
        parts = dict(zip(PARTS, map(self._part, (encoded[:-1], encoded[-1:])), strict=True))
        if not parts["train"]["documents"] and self.fraction < 1:
            raise UserError(f"dataset {self.dataset.name!r}: every training document repeats held-out text")
        removed = _none() | ({SHARED: Removed()} if self.decontaminate else {})
        files = defaultdict[int, list[dict[str, Any]]](list)
        for record in self._done(0):
            for source, file in record["files"]:
                files[source].append(file)
        for record in self._done(0) + encoded:
            for reason, amounts in record["removed"].items():
                removed[reason].add(*amounts.values())
        bpe = load_tokenizer(self.out_dir / TOKENIZER, self.vocab_size, sha256=prepared["tokenizer"])
        manifest = {
            "dataset": self.dataset.name,
            "version": self.dataset.version,
            "description": self.dataset.description,
            "fingerprint": text_fingerprint(prepared["tokenizer"], parts),
            "vocab_size": self.vocab_size,
            "dtype": token_dtype(self.vocab_size).name,
            "end_of_text": end_of_text(bpe),
            "tokenizer": self._tokenizer_record(prepared["tokenizer"]),
            "train_tokens": parts["train"]["tokens"],
            "heldout_tokens": parts["heldout"]["tokens"],
            "parts": parts,
            "rows": prepared["rows"],
            "removed": {reason: asdict(amount) for reason, amount in removed.items()},
            "sources": [source.record(files[number]) for number, source in enumerate(self.dataset.sources)],
            "text_key": self.text_key,
            "where": self.where,
            "decontaminated": self.decontaminate,
        }
        self._clear(parts)
        write_atomic(self.out_dir / MANIFEST, manifest_bytes(manifest))
        shutil.rmtree(self.work)
        return manifest

    def _tokenizer_record(self, sha256: str) -> dict[str, Any]:
        by_path = self.tokenizer_from is None and self.given is not None
        origin = f"of token set {self.tokenizer_from.name}" if self.tokenizer_from else str(self.tokenizer)
        return {
            "origin": origin if self.given else "trained on the training part",
            "files": [SourceFile(self.tokenizer).record()] if by_path else [],
            "sha256": sha256,
            "library": f"tokenizers {library_version('tokenizers')}",
        }

    def _part(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The record of a part from those of its steps. Reads all shards: each block is verified."""
        digest, dtype = hashlib.sha256(), token_dtype(self.vocab_size)
        shards, by_source = [], dict[str, Counter[str]]()
        for record in records:
            written = record["written"]
            for each in written["shards"]:
                shard = Shard(self.out_dir / each["file"], each, dtype, written["block_tokens"])
                for start in range(0, len(shard), written["block_tokens"]):
                    digest.update(shard[start : start + written["block_tokens"]].data)
                shards.append(each)
            for source, counts in record["by_source"].items():
                by_source.setdefault(source, Counter()).update(counts)
        total = sum(by_source.values(), Counter[str]())
        return {
            "documents": total["documents"],
            "bytes": total["bytes"],
            "bytes_per_token": total["bytes"] / total["tokens"] if total["tokens"] else None,
            "tokens": total["tokens"],
            "sha256": digest.hexdigest(),
            "block_tokens": records[0]["written"]["block_tokens"],
            "shards": shards,
            "by_source": {name: dict(by_source[name]) for name in sorted(by_source)},
        }

    def _clear(self, parts: Mapping[str, Any]) -> None:
        """Remove shards that an earlier call left and that are none of this set's."""
        kept = {shard["file"] for part in parts.values() for shard in part["shards"]}
        for old in [*self.out_dir.glob("*.bin"), *self.out_dir.glob("*.bin.partial")]:
            if old.name not in kept:
                old.unlink()


def _none() -> defaultdict[str, Removed]:
    return defaultdict(Removed, {reason: Removed() for reason in (EMPTY, REPEATED, PASSAGE)})


def _plain_removed(removed: Mapping[str, Removed]) -> dict[str, Any]:
    return {reason: asdict(amount) for reason, amount in removed.items()}
