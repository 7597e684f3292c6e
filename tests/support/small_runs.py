"""Small runs for the training tests: a synthetic token set, tiny specifications, and what a folder holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.data.provenance import SourceFile, manifest_bytes, text_fingerprint
from upcycle.data.shards import ShardWriter, token_dtype
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.loop import train_run

VOCABULARY = 64
EXECUTION = Execution(device="cpu", log_steps=1)
MOE = {"n_expert": 4, "top_k": 2, "balance_group": 2}


def write_tokens(
    folder: Path,
    seed: int = 0,
    n_train: int = 60_000,
    n_heldout: int = 2_000,
    *,
    pieces: bytes = b"sixty-four pieces",
    given: Path | None = None,
) -> Path:
    """A token set as `data.tokens` writes it, of a noisy walk over 64 pieces that a tiny model learns in 20 steps.

    `given`: the tokenizer.json that a user gave, which it is noted to be of.
    """
    rng = np.random.default_rng(seed)
    ids = np.cumsum(rng.choice([1, 2, 3, 7], n_train + n_heldout, p=[0.6, 0.2, 0.1, 0.1])) % VOCABULARY
    dtype = token_dtype(VOCABULARY)
    parts = {}
    for name, part in {"train": ids[:n_train], "heldout": ids[n_train:]}.items():
        with ShardWriter(folder, name, dtype) as writer:
            writer.add(part)
        parts[name] = writer.record()
    tokenizer = hashlib.sha256(pieces).hexdigest()
    manifest = {
        "fingerprint": text_fingerprint(tokenizer, parts),
        "vocab_size": VOCABULARY,
        "tokenizer": {"sha256": tokenizer, "files": [SourceFile(given).record()] if given else []},
        "parts": parts,
        "text_key": "text",
        "sources": [],
    }
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return folder


def small_run(**changes: Any) -> RunSpec:
    """A dense trunk of 12 steps of 4 x 32 tokens, or what `changes` make of it."""
    fields: dict[str, Any] = {
        "model": {"n_layer": 2, "d_model": 16, "n_head": 2, "vocab_size": VOCABULARY, "context": 32},
        "data": {"dataset": "walk", "vocab_size": VOCABULARY},
        "optim": {"lr": 2e-2, "batch": 4},
        "schedule": {"warmup_steps": 4},
        "end_step": 12,
    }
    return RunSpec.model_validate(fields | changes)


def upcycled_run(parent: RunSpec, /, **changes: Any) -> RunSpec:
    """A copy-upcycled run of `parent`, or what `changes` make of it."""
    start = {"moe": MOE, "origin": "upcycle:copy", "dense_parent": parent.id, "parent": parent.id}
    return small_run(**start | {"dense_tokens": parent.tokens} | changes)


def train_in(root: Path, tokens_dir: Path, run: RunSpec, execution: Execution = EXECUTION, **options: Any) -> Path:
    """Train `run` in its folder under `root`, its parent beside it; returns the folder."""
    parent_dir = root / run.parent if run.parent else None
    train_run(run, run_dir=root / run.id, tokens_dir=tokens_dir, parent_dir=parent_dir, execution=execution, **options)
    return root / run.id


TIMES = {"tokens_per_second", "step_seconds", "data_seconds", "mfu"}
"""Fields of a row that are measurements of time: no two runs agree in them."""


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of the curve without their measurements of time."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def tensors_sha256(run_dir: Path) -> dict[str, str]:
    """SHA-256 of each tensor file of a finished run; equal hashes are equal bits."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run_dir.glob("*.safetensors")}
