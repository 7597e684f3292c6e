"""Tokens per second against transformers' Llama and Mixtral, side by side: forward, backward and AdamW, one thread.

    python benchmarks/peers.py [--compiled] [--shapes 2x64,4x128] [--vocab 1024,4096] [--seconds 20] [--json FILE]

Both train on the same batch of 8 x 256 tokens with the same shapes: sdpa attention, grouped experts, fused AdamW, the
balance loss of mixtures included. Variants take turns, a step each, so that a busy machine slows all of them alike;
of each the median and the fastest step are taken. `--compiled` adds torch.compile of theirs, from a cold cache (half a
minute to a minute each), then the first call of a new process that finds the cache warm, as the jobs of a sweep would,
and what a job of 60 seconds does with either. bfloat16 is reported apart.

Columns: `x eager`, `x compiled`: our rate over that of transformers by fastest steps, by medians in brackets;
`in 60 s`: tokens of a job that begins with a cold or a warm cache, or does not compile where that is better for them,
ours over theirs; `first call` of each in seconds; ktok/s by fastest steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--first-call" not in sys.argv:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")  # a cold cache: its cost is counted

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from upcycle.model.interop import hugging_face_config
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

SEQUENCES, CONTEXT, AUX = 8, 256, 1e-3
TOKENS = SEQUENCES * CONTEXT
MIXTURE = MoESpec(n_expert=8, top_k=2, balance_group=8)
SHAPES = ((2, 64), (3, 96), (4, 128), (6, 192))
JOB_SECONDS = 60.0
Step = Callable[[], None]


def stepper(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """One optimizer step on the loss."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def theirs(spec: ModelSpec, moe: MoESpec | None, ids: torch.Tensor, *, compiled: bool) -> Step:
    """A step of Llama or Mixtral at its best. Labels are the inputs: transformers shifts them by itself."""
    config = hugging_face_config(spec, moe) | {"attn_implementation": "sdpa"}
    if moe is None:
        module: Any = LlamaForCausalLM(LlamaConfig(**config))
    else:
        mixture = {"experts_implementation": "grouped_mm", "output_router_logits": True}
        module = MixtralForCausalLM(MixtralConfig(**config, **mixture))
    module.train()

    def loss() -> torch.Tensor:
        return module(input_ids=ids, labels=ids, use_cache=False).loss

    return stepper(module, torch.compile(loss) if compiled else loss)


def ours(
    spec: ModelSpec,
    moe: MoESpec | None,
    ids: torch.Tensor,
    *,
    layers: str,
    compiled: bool = False,
    dtype: str = "float32",
) -> Step:
    """A step of our model, by C kernels or composed."""
    kernels = choose_kernels(spec, {"layers": layers}, dtype=dtype, compile=compiled)
    module = Transformer(spec, moe, kernels)
    init_weights(module, seed=0)
    inputs, targets = ids, torch.cat([ids[:, 1:], ids[:, :1]], dim=1)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            output = module(inputs, targets)
        return output.loss if moe is None else output.loss + AUX * output.balance

    return stepper(module, torch.compile(loss) if compiled else loss)


def take_turns(steps: dict[str, Step], seconds: float) -> dict[str, dict[str, float]]:
    """First call, median and fastest step of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    first: dict[str, float] = {}
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        first[name] = time.perf_counter() - began
        for _ in range(2):
            step()
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(min(times.values(), key=len)) < 8:
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return {
        name: {"first": first[name], "median": statistics.median(taken), "fastest": min(taken)}
        for name, taken in times.items()
    }


def case(n_layer: int, d_model: int, vocab_size: int) -> tuple[ModelSpec, torch.Tensor]:
    """A shape and its batch."""
    spec = ModelSpec(n_layer=n_layer, d_model=d_model, n_head=d_model // 32, vocab_size=vocab_size, context=CONTEXT)
    return spec, torch.randint(0, vocab_size, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(0))


def first_call(spec: ModelSpec, moe: MoESpec | None, ids: torch.Tensor) -> float:
    """Seconds of a new process's first compiled step of theirs."""
    step = theirs(spec, moe, ids, compiled=True)
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def warm_first_call(*words: str) -> float:
    """The same in a process of its own, which finds the cache that this one has filled."""
    command = [sys.executable, __file__, "--first-call", *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(n_layer: int, d_model: int, vocab_size: int, moe: MoESpec | None, options: argparse.Namespace) -> dict:
    """All variants of one shape."""
    spec, ids = case(n_layer, d_model, vocab_size)
    steps = {"theirs": theirs(spec, moe, ids, compiled=False), "ours": ours(spec, moe, ids, layers="native")}
    if options.all:
        steps["composed"] = ours(spec, moe, ids, layers="composed")
        steps["bf16"] = ours(spec, moe, ids, layers="auto", dtype="bfloat16")
    if options.compiled:
        torch._dynamo.reset()
        steps["theirs compiled"] = theirs(spec, moe, ids, compiled=True)
        if options.all:
            steps["composed compiled"] = ours(spec, moe, ids, layers="composed", compiled=True)
            steps["bf16 compiled"] = ours(spec, moe, ids, layers="auto", dtype="bfloat16", compiled=True)
    return take_turns(steps, options.seconds)


def ratio(times: dict[str, dict[str, float]], other: str) -> tuple[float, float]:
    """How many times faster ours is: by fastest steps, and by medians."""
    return times[other]["fastest"] / times["ours"]["fastest"], times[other]["median"] / times["ours"]["median"]


def in_a_job(times: dict[str, float], first: float) -> float:
    """Tokens of a job of JOB_SECONDS whose first call takes so long."""
    return max(0.0, JOB_SECONDS - first) / times["fastest"] * TOKENS


def compiled_columns(times: dict[str, dict[str, float]], warm: float) -> str:
    """Ours against their compiled step: as it runs, and in a job that has to get there first."""
    compiled, cold = times["theirs compiled"], times["theirs compiled"]["first"]
    mine = in_a_job(times["ours"], times["ours"]["first"])
    eager = in_a_job(times["theirs"], times["theirs"]["first"])
    in_cold, in_warm = (mine / max(eager, in_a_job(compiled, first)) for first in (cold, warm))
    line = "  x compiled {:.2f} ({:.2f})".format(*ratio(times, "theirs compiled"))
    return f"{line}  in 60 s: cold {in_cold:.2f}, warm {in_warm:.2f}  first call {cold:.0f}, {warm:.0f} s"


def main() -> None:
    """One line a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(f"{layers}x{width}" for layers, width in SHAPES))
    parser.add_argument("--vocab", default="1024,4096")
    parser.add_argument("--kinds", default="dense,moe")
    parser.add_argument("--seconds", type=float, default=20.0, help="of taking turns, a shape")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too, from a cold cache")
    parser.add_argument("--all", action="store_true", help="our composed layers and bfloat16 too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--first-call", nargs=3, metavar=("SHAPE", "VOCAB", "KIND"), help="of theirs compiled, no more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.first_call:
        shape, vocab_size, kind = options.first_call
        spec, ids = case(*map(int, shape.split("x")), int(vocab_size))
        print(first_call(spec, MIXTURE if kind == "moe" else None, ids))
        return
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, {SEQUENCES} x {CONTEXT}")
    results = {}
    for shape in options.shapes.split(","):
        n_layer, d_model = map(int, shape.split("x"))
        for vocab_size in map(int, options.vocab.split(",")):
            for kind in options.kinds.split(","):
                times = compare(n_layer, d_model, vocab_size, MIXTURE if kind == "moe" else None, options)
                results[f"{shape} {vocab_size} {kind}"] = times
                rates = "  ".join(f"{name} {TOKENS / taken['fastest'] / 1e3:.1f}" for name, taken in times.items())
                eager = "x eager {:.2f} ({:.2f})".format(*ratio(times, "theirs"))
                line = f"({n_layer}, {d_model:3}) V {vocab_size} {kind:5}  {eager}"
                if "theirs compiled" in times:
                    line += compiled_columns(times, warm_first_call(shape, str(vocab_size), kind))
                print(f"{line}  ktok/s: {rates}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
