"""Tokens a second of the training loop at the default sweep's shapes, and where its time goes. One thread, float32.

`python benchmarks/train_speed.py [steps]` trains each shape for a few steps on random tokens in a temporary folder.
Column `loop` is what the loop itself costs, all that is not forward, backward or AdamW: batches, clipping, rows.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from upcycle.data.provenance import manifest_bytes, text_fingerprint
from upcycle.data.shards import ShardWriter, token_dtype
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train import loop, step

VOCABULARY, CONTEXT = 1024, 256


def write_random_tokens(folder: Path, n_train: int, n_heldout: int) -> None:
    """A token set of random ids: speed does not depend on what is learnt."""
    rng, parts = np.random.default_rng(0), {}
    for name, count in {"train": n_train, "heldout": n_heldout}.items():
        with ShardWriter(folder, name, token_dtype(VOCABULARY)) as writer:
            writer.add(rng.integers(0, VOCABULARY, count))
        parts[name] = writer.record()
    tokenizer = hashlib.sha256(b"random").hexdigest()
    manifest = {"fingerprint": text_fingerprint(tokenizer, parts), "vocab_size": VOCABULARY}
    manifest |= {"tokenizer": {"sha256": tokenizer}, "parts": parts}
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, its durations appended to `seconds`."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        result = function(*arguments, **named)
        seconds.append(time.perf_counter() - begun)
        return result

    return wrapped


def sweep_run(moe: dict[str, int] | None, batch: int, steps: int) -> RunSpec:
    """The default sweep's smaller model."""
    model = {"n_layer": 2, "d_model": 64, "n_head": 2, "vocab_size": VOCABULARY, "context": CONTEXT}
    fields = {
        "model": model,
        "moe": moe,
        "data": {"dataset": "random", "vocab_size": VOCABULARY},
        "optim": {"lr": 4e-3, "batch": batch},
        "schedule": {"warmup_steps": 10},
        "end_step": steps,
    }
    return RunSpec.model_validate(fields)


def measure(run: RunSpec, folder: Path) -> str:
    """Train the run; its line. The first step, which warms caches up, is left out."""
    gradients: list[float] = []
    updates: list[float] = []
    with (
        patch.object(step, "accumulate", timed(step.accumulate, gradients)),
        patch.object(torch.optim.AdamW, "step", timed(torch.optim.AdamW.step, updates)),
    ):
        execution = Execution(device="cpu")
        loop.train_run(run, run_dir=folder / run.id, tokens_dir=folder, parent_dir=None, execution=execution)
    metrics = json.loads((folder / run.id / "metrics.json").read_text())
    total = metrics["train_seconds"] - gradients.pop(0) - updates.pop(0)
    steps = run.end_step - 1
    inside, optimizer = sum(gradients) / total, sum(updates) / total
    name = f"(2, 64) {'8 experts top-2' if run.moe else 'dense'}, {run.optim.batch} x {CONTEXT}"
    return (
        f"{name:34}{steps * run.tokens_per_step / total:10,.0f}{total / steps * 1e3:11.1f}{inside:11.1%}"
        f"{optimizer:8.1%}{1 - inside - optimizer:8.1%}{metrics['save_seconds'] * 1e3:9.0f}"
    )


def main() -> None:
    """Print one line a shape."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(f"{'shape':34}{'tokens/s':>10}{'ms a step':>11}{'fwd + bwd':>11}{'AdamW':>8}{'loop':>8}{'save ms':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_tokens(folder, n_train=(steps + 1) * 8 * CONTEXT + 1, n_heldout=4 * CONTEXT)
        for moe in (None, {"n_expert": 8, "top_k": 2, "balance_group": 4}):
            for batch in (4, 8):
                print(measure(sweep_run(moe, batch, steps), folder))


if __name__ == "__main__":
    main()
