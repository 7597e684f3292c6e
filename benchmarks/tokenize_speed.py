"""Tokenising a corpus in many parts: throughput of a core, memory, a kill and a resumption.

Makes a corpus of `--megabytes` in a scratch folder from phrases of the built-in English text, as jsonl.zst
files. Then, with one process and one thread a step:

- `tokenizers`' own `encode_batch` and `encode_batch_fast` on documents of that corpus in memory, and between two such
  measurements every step of ours: reading, cleaning, sorting, decontaminating, encoding, writing. Ratios are of CPU
  time, which a busy machine disturbs least; the largest memory of each kind of step is that of its process.
- the same in as many processes as there are CPUs, killed with SIGKILL again and again, and resumed; then the
  fingerprint and all counts are compared with those of the undisturbed run.

    python benchmarks/tokenize_speed.py [--megabytes 300] [--tokenizer FILE --vocab-size N] [--kills 3] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import zstandard
from tokenizers import Tokenizer

from upcycle.data.datasets import find_dataset
from upcycle.data.making import Making
from upcycle.data.parts import making_steps
from upcycle.data.rows import Rows
from upcycle.data.sources import DEFAULT_CACHE
from upcycle.data.tokens import TokenSet, tokenize_corpus

FILES = 12
SAMPLE = 16_000_000
"""Bytes that the library's own functions encode."""


def write_corpus(folder: Path, size: int) -> list[Path]:
    """`size` bytes of text in FILES jsonl.zst files, and a held-out file of a thousandth; the same every time."""
    english = find_dataset("english").sources
    texts = [text for source in english for text in source.documents(DEFAULT_CACHE, None, Rows())]
    lines = [line.split() for text in texts for line in text.splitlines() if len(line) > 40]
    draw = random.Random(0)
    paths = [folder / f"part-{number:02d}.jsonl.zst" for number in range(FILES)] + [folder / "heldout.jsonl.zst"]
    for path in paths:
        left = size // 1000 if path.name.startswith("heldout") else size // FILES
        with zstandard.open(path, "wt", encoding="utf-8", cctx=zstandard.ZstdCompressor(level=3)) as file:
            while left > 0:
                text = "\n".join(_mixed(draw, lines) for _ in range(draw.randint(3, 30)))
                left -= len(text.encode())
                file.write(json.dumps({"text": text, "meta": {"set": "Crawl"}}) + "\n")
    return paths


def _mixed(draw: random.Random, lines: list[list[str]]) -> str:
    """A paragraph of real phrases of up to 9 words: no window of 13 words is in two documents but by chance."""
    words: list[str] = []
    for line in draw.choices(lines, k=draw.randint(3, 12)):
        start = draw.randrange(len(line))
        words += line[start : start + draw.randint(3, 9)]
    return " ".join(words)


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


def undisturbed(options: dict[str, Any], files: list[Path]) -> dict[str, Any]:
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
    return manifest


def killed(options: dict[str, Any], kills: int, seconds: Iterator[float]) -> None:
    """Tokenise in a process with workers that is killed `kills` times; the last call finishes."""
    arguments = json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    for number in range(kills + 1):
        child = subprocess.Popen([sys.executable, __file__, "--child", arguments])
        try:
            child.wait(None if number == kills else next(seconds))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            records = sorted(path.stem for path in Path(options["out_dir"], "work").glob("*.json"))
            print(f"  killed; {len(records)} steps are done: {', '.join(records)}", flush=True)
    assert child.returncode == 0


def main() -> None:
    """Parse options and print all results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--between", type=float, default=20, help="seconds from a start to its kill")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        options = json.loads(args.child)
        tokenize_corpus("corpus", Path(options.pop("out_dir")), **options)
        return
    os.environ["RAYON_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(dir=args.scratch))
    try:
        *files, heldout = write_corpus(folder, args.megabytes * 1_000_000)
        stored = sum(file.stat().st_size for file in files)
        options: dict[str, Any] = {"vocab_size": args.vocab_size, "tokenizer": args.tokenizer}
        options |= {"files": [str(file) for file in files], "heldout_files": [str(heldout)]}
        options |= {"where": {"meta.set": ["Crawl"]}, "part_bytes": stored // 4}
        print(f"{args.megabytes} MB in {stored / 1e6:,.0f} MB of jsonl.zst; steps: ", end="")
        print(", ".join(str(len(stage)) for stage in making_steps([heldout, *files], stored // 4)), flush=True)
        manifest = undisturbed(options | {"out_dir": folder / "whole"}, files)
        if args.kills:
            killed(options | {"out_dir": folder / "killed"}, args.kills, iter([args.between] * args.kills))
            TokenSet(folder / "killed").verify()
            again = TokenSet(folder / "killed").manifest
            same = all(manifest[key] == again[key] for key in ("fingerprint", "parts", "removed", "rows", "sources"))
            print(f"after the kills the fingerprint and all counts are {'equal' if same else 'DIFFERENT'}")
            if not same:
                sys.exit(1)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
