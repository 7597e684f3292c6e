"""Table 7's tasks for a Hugging Face folder, by our model and by the harness's `hf` back end; docs/benchmarks.md.

    python benchmarks/table7.py .cache/own-model/SmolLM2-135M --limit 100 --alone --hf

Prints a Markdown table of our model's scores on `--limit` documents of each task, drawn by `--seed`. `--alone`: what
the same takes when each request computes its whole context, and how far its log-likelihoods are. `--hf`: the same
documents by the LM Evaluation Harness, which wants `pip install upcycle[benchmarks]`. One core, float32; seconds are
of that core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from upcycle.data.benchmarks import BENCHMARK_TASKS, benchmark_documents
from upcycle.model.hub import read_checkpoint
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.parent import identify, noted_hashes
from upcycle.study.shape import ModelSpec
from upcycle.study.spec import RunSpec
from upcycle.train.questions import Answer, answers, encode_request, question, subsample, summary
from upcycle.train.scoring import score

CONTEXT = 2048
"""Tokens that a prompt may have; of these tasks none is longer."""
BATCH_TOKENS = 2048
HEAD = {
    "ours": "| task | split | documents | accuracy, % | by bytes, % | bits per byte | s |",
    "alone": " s, each request alone | ratio | largest difference, nats |",
    "hf": " `hf`: accuracy, % | by bytes, % | answers | largest difference, nats | mean | other choice | s |",
}


def ours(folder: Path) -> tuple[Transformer, RunSpec, Tokenizer]:
    """Our model of the folder's weights."""
    found = identify(folder, noted_hashes())
    parent = found.parent
    shape = ModelSpec(**parent.shape.model_dump(), vocab_size=parent.rows, context=CONTEXT)
    data = {"dataset": "none", "vocab_size": shape.vocab_size}
    run = RunSpec.model_validate(
        {"model": shape.model_dump(), "data": data, "optim": {"lr": 1e-3, "batch": 1}, "schedule": {}, "end_step": 1}
    )
    model = Transformer(run.model, kernels=choose_kernels(run.model))
    model.load_state_dict(read_checkpoint(folder, run.model, found.files))
    return model, run, Tokenizer.from_file(str(parent.tokenizer))


def percent(value: float | None, error: float | None = None) -> str:
    """`54.0 ± 5.0`, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def logs(found: Sequence[Answer]) -> list[float]:
    """Log-likelihoods of all answers."""
    return [score.loglikelihood for answer in found for score in answer.scores]


def against_alone(scorer: Any, asked: Any, found: Sequence[Answer], seconds: float) -> list[str]:
    """Cells: seconds when each request is a question of its own, their ratio, the largest difference."""
    model, run, tokenizer = scorer
    singles = [[encode_request(tokenizer, *request)] for each in asked for request in each.requests]
    began = time.process_time()
    alone = [single.loglikelihood for (single,) in score(model, run, singles, BATCH_TOKENS)]
    took = time.process_time() - began
    largest = max(abs(one - other) for one, other in zip(alone, logs(found), strict=True))
    return [f"{took:.0f}", f"{took / seconds:.1f}", f"{largest:.1e}"]


def against_harness(lm: Any, task: str, documents: Any, found: Sequence[Answer]) -> list[str]:
    """Cells: the harness's accuracies, how far its log-likelihoods are from ours, documents with another choice."""
    from upcycle.train.harness import harness_samples

    began = time.process_time()
    samples = harness_samples(lm, task, documents)
    took = time.process_time() - began
    theirs = [float(response[0][0]) for sample in samples for response in sample["resps"]]
    apart = [abs(one - other) for one, other in zip(logs(found), theirs, strict=True)]
    by_bytes = [sample["acc_bytes"] for sample in samples if "acc_bytes" in sample]
    other = sum(
        (answer.accuracy, answer.accuracy_bytes) != (sample["acc"], sample.get("acc_bytes"))
        for answer, sample in zip(found, samples, strict=True)
    )
    accuracy = sum(sample["acc"] for sample in samples) / len(samples)
    return [
        percent(accuracy),
        percent(sum(by_bytes) / len(by_bytes) if by_bytes else None),
        str(len(apart)),
        f"{max(apart):.1e} of {max(map(abs, theirs)):.0f}",
        f"{sum(apart) / len(apart):.1e}",
        str(other),
        f"{took:.0f}",
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=list(BENCHMARK_TASKS), choices=list(BENCHMARK_TASKS))
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--hf", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scorer = model, run, tokenizer = ours(args.folder)
    lm = None
    if args.hf:
        from upcycle.train.harness import exported_model

        lm = exported_model(args.folder)
    head = HEAD["ours"] + (HEAD["alone"] if args.alone else "") + (HEAD["hf"] if args.hf else "")
    print(head, "|---" * (head.count("|") - 1) + "|", sep="\n", flush=True)
    truncated = 0
    for task, about in ((task, BENCHMARK_TASKS[task]) for task in args.tasks):
        every = benchmark_documents(task)
        documents = [every[index] for index in subsample(len(every), args.limit, args.seed)]
        asked = [question(task, document) for document in documents]
        began = time.process_time()
        found = answers(model, run, tokenizer, asked, BATCH_TOKENS)
        seconds = time.process_time() - began
        means = summary(found)
        truncated += means["truncated"]
        cells = [
            about.title,
            about.split,
            f"{means['documents']} of {len(every):,}",
            percent(means["accuracy"], means["accuracy_se"]),
            percent(means["accuracy_bytes"], means["accuracy_bytes_se"]),
            f"{means['bits_per_byte']:.3f} ± {means['bits_per_byte_se']:.3f}",
            f"{seconds:.0f}",
        ]
        cells += against_alone(scorer, asked, found, seconds) if args.alone else []
        cells += against_harness(lm, task, documents, found) if args.hf else []
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nRequests whose context was cut: {truncated}.")


if __name__ == "__main__":
    main()
