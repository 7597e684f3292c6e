"""Tokenising a corpus in many parts: throughput of a core and memory (`large_corpus` kills it and counts).

Makes a corpus of `--megabytes` (`made_corpus`) in a scratch folder. Then, with one process and one thread a step:
`tokenizers`' own `encode_batch` and `encode_batch_fast` on documents of that corpus in memory, and between two such
measurements every step of ours: reading, cleaning, sorting, decontaminating, encoding, writing. Ratios are of CPU time,
which a busy machine disturbs least; the largest memory of each kind of step is that of its process.

    python benchmarks/tokenize_speed.py [--megabytes 300] [--tokenizer FILE --vocab-size N] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from made_corpus import MAX_BAD, WHERE, Corpus
from tokenizers import Tokenizer

from upcycle.data.making import Making
from upcycle.data.parts import making_steps
from upcycle.data.rows import Rows

FILES = 12
SAMPLE = 16_000_000
"""Bytes that the library's own functions encode."""


def peak_step(options: dict[str, Any], step: str) -> tuple[float, float]:
    """CPU seconds of a step and the largest memory of its process, bytes; to be called in a process of its own."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    making = Making("corpus", **options)
    start = time.process_time()
    making.run(step)
    return time.process_time() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def library_speed(tokenizer: Tokenizer, texts: list[str], size: int) -> dict[str, float]:
    """Bytes a CPU second of the library's functions, in batches of 256 documents."""
    speeds = {}
    for name in ("encode_batch", "encode_batch_fast"):
        start = time.process_time()
        for first in range(0, len(texts), 256):
            getattr(tokenizer, name)(texts[first : first + 256], add_special_tokens=False)
        speeds[name] = size / (time.process_time() - start)
    return speeds


def sample(paths: list[Path]) -> tuple[list[str], int]:
    """The first documents, SAMPLE bytes of them."""
    from upcycle.data.local import read_local

    texts, size = [], 0
    for text in (text for path in paths for text in read_local(path, Rows())):
        texts.append(text)
        size += len(text.encode())
        if size > SAMPLE:
            break
    return texts, size


def undisturbed(options: dict[str, Any], files: list[Path]) -> None:
    """Every step in a new process, the library's speed before and after; prints what was measured."""
    making = Making("corpus", **options)
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    library: list[dict[str, float]] = []
    texts, size = sample(files)
    for stage in making.stages:
        for step in stage:
            kind = step.partition("-")[0]
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                used, peak = pool.submit(peak_step, options, step).result()
            seconds[kind] = seconds.get(kind, 0) + used
            memory[kind] = max(memory.get(kind, 0), peak)
        if kind != "read":  # before and after the encoding
            library.append(library_speed(Tokenizer.from_file(str(making.out_dir / "tokenizer.json")), texts, size))
    start = time.process_time()
    manifest = making.merge()
    seconds["merge"] = time.process_time() - start
    total = sum(part["bytes"] for part in manifest["parts"].values())
    tokens = manifest["train_tokens"] + manifest["heldout_tokens"]
    print(f"{total / 1e6:,.0f} MB of text, {tokens:,} tokens, {total / tokens:.2f} bytes a token")
    for kind, used in seconds.items():
        peak = f", {memory[kind] / 1e9:.2f} GB at most" if kind in memory else ""
        print(f"  {kind}: {used:.1f} CPU s, {total / used / 1e6:.1f} MB/s{peak}")
    ours = total / (sum(seconds.values()) - seconds["prepare"])
    speeds = {name: sum(each[name] for each in library) / len(library) for name in library[0]}
    print(f"  all but prepare (once a corpus): {ours / 1e6:.2f} MB/s of a core")
    for name, speed in speeds.items():
        each = ", ".join(f"{measured[name] / 1e6:.2f}" for measured in library)
        print(f"  {name} alone: {speed / 1e6:.2f} MB/s ({each}); ours is {ours / speed:.2f} of it")


def main() -> None:
    """Parse options and print all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--scratch", type=Path, default=None)
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(dir=args.scratch))
    try:
        paths, _ = Corpus("english", taken=1).write(folder, args.megabytes * 1_000_000, processes=1)
        stored = sum(file.stat().st_size for file in paths["files"])
        options: dict[str, Any] = {"vocab_size": args.vocab_size, "tokenizer": args.tokenizer, **paths}
        options |= {"where": WHERE, "max_bad": MAX_BAD, "part_bytes": stored // 4, "out_dir": folder / "whole"}
        print(f"{args.megabytes} MB in {stored / 1e6:,.0f} MB of files; steps: ", end="")
        stages = making_steps([*paths["heldout_files"], *paths["files"]], stored // 4)
        print(", ".join(str(len(stage)) for stage in stages), flush=True)
        undisturbed(options, paths["files"])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
