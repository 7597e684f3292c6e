"""The memory formula against live tensors, policy by policy, and against the peak of trainings in fresh processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live_tensors import Live
from small_runs import VOCABULARY, write_tokens

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.execution import Execution
from upcycle.study.memory import peak_memory
from upcycle.study.spec import RunSpec
from upcycle.train.device import precision
from upcycle.train.optim import build_optimizer, global_norm, gradient_norms, scale_gradients
from upcycle.workflow.invocation import ALLOCATOR

MOE = {"n_expert": 4, "top_k": 2, "balance_group": 1}
FINE = {"n_expert": 8, "top_k": 2, "granularity": 2, "shared_expert": 3, "balance_group": 1}
"""Narrow experts, and shared ones that are together wider than those of a token."""


def run_of(shape: dict[str, Any], *, sequences: int, context: int, moe: dict | None, dtype: str = "float32") -> RunSpec:
    return RunSpec.model_validate(
        {
            "model": {**shape, "context": context},
            "data": {"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True},
            "optim": {"lr": 1e-3, "batch": sequences},
            "schedule": {},
            "end_step": 2,
            "moe": moe,
            "dtype": dtype,
        }
    )


# --- live tensors


def live_peak(run: RunSpec, execution: Execution) -> int:
    """Most bytes in tensors during the second of two updates, when AdamW has its moments."""
    torch.manual_seed(0)
    kernels = choose_kernels(run.model, execution.kernels, device="cpu", dtype=run.dtype)
    model = Transformer(run.model, run.moe, kernels)
    model.recompute = execution.activation_checkpointing == "block"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.03, 0.03)
    optimizer = build_optimizer(model, run.optim)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        ids = torch.randint(0, run.model.vocab_size, (run.optim.batch, run.model.context + 1))
        with Live(model.parameters(), 3 * weights) as live:
            for part in ids.split(execution.micro_batch or len(ids)):
                with precision(run, torch.device("cpu")):
                    output = model(part[:, :-1], part[:, 1:])
                torch.autograd.backward(output.loss + 1e-3 * output.balance)
                del output
        norms = gradient_norms(model.parameters()).tolist()
        scale_gradients(model.parameters(), global_norm(norm * norm for norm in norms), 1.0)
        optimizer.step()
    return live.peak


ACTIVATIONS = {"n_layer": 3, "d_model": 64, "n_head": 2, "vocab_size": 256}
LOGITS = {"n_layer": 2, "d_model": 32, "n_head": 2, "vocab_size": 8192}
WEIGHTS = {"n_layer": 3, "d_model": 128, "n_head": 2, "vocab_size": 256}
GROUPED = {"n_layer": 3, "d_model": 96, "n_head": 6, "n_kv_head": 2, "d_mlp": 256, "vocab_size": 256, "qkv_bias": True}
NORMED = GROUPED | {"qk_norm": True, "tied": True}
TIED = {"n_layer": 2, "d_model": 96, "n_head": 6, "n_kv_head": 2, "vocab_size": 16384, "tied": True}
"""Two gradients of the vocabulary's matrix meet, and nothing else is as large."""


@pytest.mark.slow
@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize(
    ("shape", "dtype", "execution"),
    [
        (ACTIVATIONS, "float32", {}),
        (LOGITS, "float32", {}),
        (WEIGHTS, "float32", {}),
        (ACTIVATIONS, "float32", {"activation_checkpointing": "block"}),
        (ACTIVATIONS, "float32", {"micro_batch": 2}),
        (WEIGHTS, "float32", {"micro_batch": 1}),
        (LOGITS, "float32", {"cross_entropy": "chunked"}),
        (ACTIVATIONS, "float32", {"attention": "plain"}),
        (ACTIVATIONS, "float32", {"experts": "loop"}),
        (ACTIVATIONS, "bfloat16", {}),
        (LOGITS, "bfloat16", {}),
        (ACTIVATIONS, "bfloat16", {"activation_checkpointing": "block"}),
        (GROUPED, "float32", {}),
        (GROUPED, "bfloat16", {}),
        (GROUPED, "float32", {"attention": "plain"}),
        (NORMED, "float32", {}),
        (NORMED, "bfloat16", {}),
        (NORMED, "float32", {"attention": "plain"}),
        (TIED, "float32", {}),
        (TIED, "float32", {"micro_batch": 1}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_live_tensors_at_the_peak_are_those_of_the_formula(
    shape: dict[str, Any], dtype: str, execution: dict[str, Any], moe: dict | None
) -> None:
    """Within 6 %, and for the plain policy 2 %, of every tensor alive at the worst moment of an update."""
    sequences, context = (2, 32) if shape in (WEIGHTS, TIED) else (16 if "cross_entropy" in execution else 8, 128)
    run = run_of(shape, sequences=sequences, context=context, moe=moe, dtype=dtype)
    settings = Execution(device="cpu", layers="composed", eval_batch=1).model_copy(update=execution)
    ratio = live_peak(run, settings) / peak_memory(run, settings).tensors
    assert ratio == pytest.approx(1, abs=0.06 if execution or dtype != "float32" else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype", "execution"),
    [
        (ACTIVATIONS, "float32", {}),
        (ACTIVATIONS, "float32", {"experts": "loop"}),
        (ACTIVATIONS, "bfloat16", {}),
        (WEIGHTS, "float32", {"micro_batch": 1}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_live_tensors_of_narrow_and_shared_experts_are_those_of_the_formula(
    shape: dict[str, Any], dtype: str, execution: dict[str, Any]
) -> None:
    test_live_tensors_at_the_peak_are_those_of_the_formula(shape, dtype, execution, FINE)


# --- fresh processes

JOBS: dict[str, tuple[dict[str, int], int, dict | None, dict[str, str]]] = {
    "weights-dense": ({"n_layer": 2, "d_model": 512, "n_head": 8, "vocab_size": 10240}, 2, None, {}),
    "weights-moe": ({"n_layer": 2, "d_model": 384, "n_head": 8, "vocab_size": 8192}, 2, MOE, {}),
    "activations-dense": ({"n_layer": 6, "d_model": 64, "n_head": 2, "vocab_size": 256}, 160, None, {}),
    "activations-moe": ({"n_layer": 6, "d_model": 64, "n_head": 2, "vocab_size": 256}, 96, MOE, {}),
    "logits-dense": ({"n_layer": 2, "d_model": 64, "n_head": 2, "vocab_size": 8192}, 64, None, {}),
    "logits-moe": ({"n_layer": 2, "d_model": 64, "n_head": 2, "vocab_size": 8192}, 64, MOE, {}),
    "native-moe": ({"n_layer": 6, "d_model": 64, "n_head": 2, "vocab_size": 256}, 192, MOE, {"layers": "native"}),
    "recomputed-dense": (
        {"n_layer": 3, "d_model": 64, "n_head": 2, "vocab_size": 256},
        256,
        None,
        {"activation_checkpointing": "block"},
    ),
}
"""Shape, sequences of 64 tokens, mixture, execution."""


def job(name: str) -> tuple[RunSpec, Execution]:
    shape, sequences, moe, settings = JOBS[name]
    execution = {"layers": "composed", "eval_batch": 1, "save_seconds": 3600} | settings
    return run_of(shape, sequences=sequences, context=64, moe=moe), Execution.model_validate(
        {"device": "cpu"} | execution
    )


MEASURED = dict.fromkeys(JOBS, 1) | {"activations-dense": 3, "activations-moe": 3}
"""Fresh processes a job. What glibc's heap loses to holes depends on where small blocks happen to lie between large
ones. That differs from process to process, also without address randomisation: 16 processes of activations-dense took
1.05 to 1.12 of the formula. So a single process may miss a bound that the job keeps, and the median of three is taken.
The other jobs lose next to nothing: their blocks are above glibc's threshold, or few."""


def measure(name: str, root: Path) -> int:
    """Peak bytes of the job's training above its size after imports, in a process of its own."""
    run, execution = job(name)
    folder = Path(tempfile.mkdtemp(dir=root)) / name
    folder.mkdir()
    (folder / "run.json").write_text(run.model_dump_json())
    (folder / "execution.json").write_text(execution.model_dump_json())
    (folder / "tokens").symlink_to(root / "tokens")
    allocator = ALLOCATOR if name != "recomputed-dense" else {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "memory_job.py"), str(folder)],
        env=os.environ | allocator | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["peak"])


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Future[int]]]]:
    """Measured peaks by name, two processes at a time."""
    root = tmp_path_factory.mktemp("memory")
    (root / "tokens").mkdir()
    write_tokens(root / "tokens", n_heldout=1200)
    with ThreadPoolExecutor(2) as pool:
        yield {name: [pool.submit(measure, name, root) for _ in range(MEASURED[name])] for name in JOBS}


def median_of(measurements: list[Future[int]]) -> float:
    return statistics.median(measurement.result() for measurement in measurements)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in JOBS if name != "recomputed-dense"])
def test_the_formula_is_the_peak_of_a_fresh_process(name: str, peaks: dict[str, list[Future[int]]]) -> None:
    """Weights, activations or logits dominate, dense and MoE, each over 0.5 GB: a whole training's peak above its size
    after imports, within 15 %. Under the allocator settings of the workflow's jobs."""
    memory = peak_memory(*job(name))
    assert memory.peak > 0.5e9 or name == "native-moe"
    ratio = median_of(peaks[name]) / memory.peak
    print(f"{name}: measured {median_of(peaks[name]) / 1e6:.0f} MB, {ratio:.3f} of the formula")
    assert ratio == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_recomputation_saves_in_a_process_what_it_saves_in_tensors(peaks: dict[str, list[Future[int]]]) -> None:
    """`activation_checkpointing: block` within 15 %, with an allocator that gives freed blocks back: how much of its
    heap glibc loses to small blocks varies too much with them (memory.HEAP_LOSS_RECOMPUTED)."""
    run, execution = job("recomputed-dense")
    memory = peak_memory(run, execution)
    measured = median_of(peaks["recomputed-dense"])
    print(f"measured {measured / 1e6:.0f} MB")
    assert measured == pytest.approx(memory.tensors + memory.snapshot, rel=0.15)
    keeping = peak_memory(run, execution.model_copy(update={"activation_checkpointing": "none"}))
    assert measured < 0.7 * keeping.tensors
