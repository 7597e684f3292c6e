"""Token sets: a data set turned into token files with a manifest, and their reader."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from upcycle.bars import count_work
from upcycle.data.making import Making
from upcycle.data.parts import FEW_STEPS
from upcycle.data.provenance import read_token_manifest
from upcycle.data.shards import Shard, ShardedTokens, token_dtype
from upcycle.data.tokenizer import TOKENIZER, load_tokenizer
from upcycle.data.verified import read_notes, write_notes

ATTEMPTS = 5
"""Of noting verified blocks while other jobs note theirs."""


def tokenize_corpus(name: str, out_dir: Path, **options: Any) -> dict[str, Any]:
    """Fetch, clean, split and tokenise a data set into `out_dir`; returns its manifest, which is written last.

    Continues where a call that was killed ended. Where a stage has several steps (`making`), every CPU that this
    process may use takes one at a time.

    `vocab_size`: pieces of the tokenizer.
    `tokenizer`: `bpe` (trained here, on the training part only; the default) or the path of a tokenizer.json.
    `tokenizer_from`: another token set, whose tokenizer is used whatever `tokenizer` says.
    `files`, `heldout_files`: a user's own, the second if they have a validation set of their own. `text_key` is the
    text's column, `where` the values that other columns must have, `max_bad` the largest share of rows without usable
    text, `version` that of the text.
    `heldout_fraction`: another than the data set's own.
    `decontaminate`: remove from the training part what it shares with the held-out part (default).
    `cache_dir`: where packages are kept. `part_bytes`: what a step reads. `origin`: where the files are from.
    UserError for bad input.
    """
    making = Making(name, out_dir, **options)
    for stage in making.stages:
        steps = [step for step in stage if making.record(step) is None]
        if len(stage) <= FEW_STEPS or len(steps) <= 1:  # the tokenizer uses all CPUs
            for step in steps:
                making.run(step)
            continue
        processes = min(len(os.sched_getaffinity(0)), len(steps))
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _become_worker) as pool:
            count_work(expected=len(steps))
            for done in [pool.submit(run_step, name, out_dir, options, step) for step in steps]:
                done.result()
                count_work(done=1)
    return making.merge()


def run_step(name: str, out_dir: Path, options: dict[str, Any], step: str) -> None:
    """Do one step of the making of a token set in one thread, unless it is done. Arguments as of `tokenize_corpus`."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # read when the tokenizer is first used
    Making(name, out_dir, **options).run(step)


def _become_worker() -> None:
    """End with the process that started this one, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
