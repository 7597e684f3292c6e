"""Table 7's tasks for a Hugging Face folder, by our model and by the harness's `hf` back end; docs/benchmarks.md.

    python benchmarks/table7.py .cache/own-model/SmolLM2-135M --limit 40 --hf-limit 5

Prints a Markdown table: scores of our model on `--limit` documents of each task, drawn by `--seed`, and how far `hf` is
from ours on `--hf-limit` of the same documents. Wants `pip install upcycle[benchmarks]`. One core, float32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.model.hub import read_checkpoint
from upcycle.model.transformer import Transformer
from upcycle.study.parent import identify, noted_hashes
from upcycle.study.shape import ModelSpec
from upcycle.study.spec import RunSpec
from upcycle.train.harness import NativeLM, exported_model, run_task, subsample, summary

CONTEXT = 2048
"""Tokens that a prompt may have; of these tasks none is longer."""
BATCH_TOKENS = 2048


def native(folder: Path) -> NativeLM:
    """Our model of the folder's weights."""
    found = identify(folder, noted_hashes())
    parent = found.parent
    shape = ModelSpec(**parent.shape.model_dump(), vocab_size=parent.rows, context=CONTEXT)
    data = {"dataset": "none", "vocab_size": shape.vocab_size}
    run = RunSpec.model_validate(
        {"model": shape.model_dump(), "data": data, "optim": {"lr": 1e-3, "batch": 1}, "schedule": {}, "end_step": 1}
    )
    model = Transformer(run.model)
    model.load_state_dict(read_checkpoint(folder, run.model, found.files))
    return NativeLM(model, run, Tokenizer.from_file(str(parent.tokenizer)), BATCH_TOKENS)


def percent(value: float | None, error: float | None) -> str:
    """`54.0 ± 5.0`, or a dash."""
    return "–" if value is None or error is None else f"{100 * value:.1f} ± {100 * error:.1f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--hf-limit", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = native(args.folder), exported_model(args.folder)
    print("| task | split | documents | accuracy, % | by bytes, % | bits per byte | s | largest difference from `hf` |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for task, about in BENCHMARK_TASKS.items():
        chosen, few = (subsample(about.documents, limit, args.seed) for limit in (args.limit, args.hf_limit))
        began = time.monotonic()
        samples = run_task(ours, task, chosen)
        seconds = time.monotonic() - began
        by_index = dict(zip(chosen, samples, strict=True))
        pairs = [
            (float(mine[0][0]), float(other[0][0]))
            for index, sample in zip(few, run_task(theirs, task, few), strict=True)
            for mine, other in zip(by_index[index]["resps"], sample["resps"], strict=True)
        ]
        largest = max(abs(mine - other) for mine, other in pairs)
        found = summary(samples)
        cells = (
            about.title,
            about.split,
            f"{found['documents']} of {about.documents:,}",
            percent(found["accuracy"], found["accuracy_se"]),
            percent(found["accuracy_bytes"], found["accuracy_bytes_se"]),
            f"{found['bits_per_byte']:.3f} ± {found['bits_per_byte_se']:.3f}",
            f"{seconds:.0f}",
            f"{largest:.1e} nats of {max(abs(mine) for mine, _ in pairs):.0f}, {len(pairs)} answers",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nContexts cut: {ours.truncated}.")


if __name__ == "__main__":
    main()
