"""A made-up corpus for benchmarks: real lines, drawn and joined anew, in files of several kinds, and what is in them.

No two documents are equal, but for repetitions in known numbers; known too are rows of another source, unusable rows
and documents that repeat held-out text. Tokens are computed beside: a byte-level tokenizer cuts the lines of a document
one by one, so they are a sum over lines.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import zstandard
from tokenizers import Tokenizer

from upcycle.data.cleaning import clean
from upcycle.data.datasets import find_dataset
from upcycle.data.rows import Rows
from upcycle.data.sources import DEFAULT_CACHE

FILES = 45
"""Of training text: of each five three are jsonl.zst, one is jsonl.gz and one jsonl."""
WINDOW = 5
"""Words in a row that no line of the training text shares with the held-out text; decontamination compares 13."""
ODD = 400
"""One row in so many is unusable; of those taken as many repeat held-out text, and as many are repetitions."""
MAX_BAD = 0.005
"""Twice the share of unusable rows."""
VOCABULARY = 4096
WHERE = {"meta.set": ["Crawl"]}
UNUSABLE = {
    "not JSON": b'{"text": "cut off',
    "not UTF-8": b'{"text": "\xff\xfe", "meta": {"set": "Crawl"}}',
    "no text": b'{"title": "no text", "meta": {"set": "Crawl"}}',
    "empty": b'{"text": " ", "meta": {"set": "Crawl"}}',
}


def draw_lines(dataset: str) -> tuple[list[str], list[str]]:
    """Distinct lines of 13 words and more: those of the training text, and those of the held-out text."""
    lines: dict[str, None] = {}
    for source in find_dataset(dataset).sources:
        for text in source.documents(DEFAULT_CACHE, None, Rows()):
            for line in clean(text, "prose").split("\n"):
                if 13 <= line.count(" ") < 400 and len(words(line)) >= 13:
                    lines[line] = None
    heldout = list(lines)[:: max(50, len(lines) // 500)]
    of_heldout = {window for line in heldout for window in windows(line)}
    return [line for line in lines if of_heldout.isdisjoint(windows(line))], heldout


def words(line: str) -> list[str]:
    """Runs of letters and digits in lower case."""
    return re.findall(r"\w+", line.lower())


def windows(line: str) -> set[tuple[str, ...]]:
    """All WINDOW words in a row."""
    found = words(line)
    return {tuple(found[start : start + WINDOW]) for start in range(len(found) - WINDOW + 1)}


class Written:
    """What was written, hence what a token set of it must hold."""

    def __init__(self, lines: dict[str, list[str]]) -> None:
        self.count: Counter[str] = Counter()
        """Rows read, rows left out, documents and bytes of each part, repeated documents, shared passages."""
        self.bad: Counter[str] = Counter()
        self.used = {part: np.zeros(len(each), np.int64) for part, each in lines.items()}
        """How often each line was used, by part."""

    def add(self, other: Written) -> None:
        """Add what another process wrote."""
        self.count += other.count
        self.bad += other.bad
        for part, used in other.used.items():
            self.used[part] += used

    def tokens(self, part: str, lines: list[str], tokenizer: Tokenizer) -> int:
        """Tokens of a part: those of its lines, of the line ends between them, and an end of text a document."""
        size = np.array([len(tokenizer.encode(line, add_special_tokens=False)) for line in lines])
        used = self.used[part]
        return int(size @ used + used.sum())  # a document of n lines has n - 1 line ends, and its end of text


class Corpus:
    """Lines to draw documents from."""

    def __init__(self, dataset: str, taken: float) -> None:
        self.lines = dict(zip(("train", "heldout"), draw_lines(dataset), strict=True))
        self.taken = taken
        of_heldout = {word for line in self.lines["heldout"] for word in words(line)}
        # A window over the end of such a line and held-out text after it is in no held-out document.
        self.safe = [number for number, line in enumerate(self.lines["train"]) if words(line)[-1] not in of_heldout]

    def write(self, folder: Path, size: int, processes: int) -> tuple[dict[str, list[Path]], Written]:
        """All files, together `size` bytes of text and more, and what is in them."""
        kinds = [".jsonl.zst", ".jsonl.zst", ".jsonl.zst", ".jsonl.gz", ".jsonl"]
        paths = [folder / f"part-{number:02d}{kinds[number % len(kinds)]}" for number in range(FILES)]
        made = Written(self.lines)
        # Forked: the lines are not sent.
        with ProcessPoolExecutor(processes, get_context("fork"), _share, (self,)) as pool:
            for each in pool.map(_write_file, paths, range(FILES), [size // FILES] * FILES):
                made.add(each)
        heldout = folder / "heldout.jsonl"
        with heldout.open("wb") as file:
            writer = FileWriter(self, file, FILES)
            for _ in range(max(20, size // 10**7)):
                writer.row(writer.document("heldout"))
        made.add(writer.finish())
        return {"files": paths, "heldout_files": [heldout]}, made


class FileWriter:
    """Draws and writes the documents of one file, the same every time."""

    def __init__(self, corpus: Corpus, file: BinaryIO, seed: int) -> None:
        self.corpus, self.file = corpus, file
        self.draw = random.Random(seed)
        self.made = Written(corpus.lines)
        self.drawn: dict[str, list[int]] = {part: [] for part in corpus.lines}
        self.size = 0
        """Bytes of text in all rows."""

    def document(self, part: str, last: int | None = None) -> str:
        """A document that is counted."""
        lines = self.corpus.lines[part]
        drawn = self.draw.choices(range(len(lines)), k=self.draw.randint(3, 30))
        drawn += [] if last is None else [last]
        self.drawn[part] += drawn
        text = "\n".join([lines[number] for number in drawn])
        self.made.count.update({f"{part} documents": 1, f"{part} bytes": len(text.encode())})
        return text

    def fill(self, size: int) -> None:
        """Rows with `size` bytes of text."""
        count, lines, draw = self.made.count, self.corpus.lines, self.draw
        before = ""
        while self.size < size:
            if draw.randrange(ODD) == 0:
                reason = draw.choice(list(UNUSABLE))
                self.file.write(UNUSABLE[reason] + b"\n")
                count["rows"] += 1
                self.made.bad[reason] += 1
            if draw.random() >= self.corpus.taken:
                self.row("\n".join(draw.choices(lines["train"], k=draw.randint(3, 30))), source="Books")
                count["left out"] += 1
                continue
            if draw.randrange(ODD) == 0:
                passage = draw.choice(lines["heldout"])
                self.row(f"{self.document('train', draw.choice(self.corpus.safe))}\n\n{passage}")
                count.update({"shared passages": 1, "shared bytes": len(passage.encode()) + 2})
            if before and draw.randrange(ODD) == 0:
                self.row(before)
                count.update({"repeated documents": 1, "repeated bytes": len(before.encode())})
            before = self.document("train")
            self.row(before)

    def row(self, text: str, source: str = "Crawl") -> None:
        """Write a row."""
        row = {"text": text, "meta": {"set": source}}
        data = json.dumps(row, ensure_ascii=False).encode()
        self.file.write(data + b"\n")
        self.size += len(data)
        self.made.count["rows"] += 1

    def finish(self) -> Written:
        """What was written."""
        for part, used in self.made.used.items():
            used += np.bincount(self.drawn[part], minlength=len(used)).astype(np.int64)
        return self.made


def _share(corpus: Corpus) -> None:
    global _shared
    _shared = corpus


def _write_file(path: Path, seed: int, size: int) -> Written:
    with _opened(path) as file:
        writer = FileWriter(_shared, file, seed)
        writer.fill(size)
    return writer.finish()


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".zst":
        return cast(BinaryIO, zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=1)))
    return cast(BinaryIO, gzip.open(path, "wb", compresslevel=1)) if path.suffix == ".gz" else path.open("wb")
