"""What an update of each model asks of its GPUs, against what an H100 can give. **By construction, not measured.**

    python benchmarks/roofline.py [--study paper] [--set devices=8 ...] [MODEL ...]

Traces the engine's own update under fake tensors, without memory or a GPU, as one of `devices` processes sees it: one
pass of `micro_batch` sequences and a second one, then clipping and AdamW. All further passes are like the second. It
prints, a process and update: products (FLOPs), bytes, kernels, collectives, the time that each takes at an H100's
limits, and the rate that follows if all four overlap: an upper bound. What it leaves out: products below the peak rate,
odd widths (heads of 60, 70, 94), caches, what a sort costs beyond its bytes, latency of collectives, load imbalance.
Operations in a compiled region are taken as fused between products, as torch.compile may do it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from upcycle.errors import UserError
from upcycle.model import torch_kernels
from upcycle.model.kernels import Kernels, choose_kernels
from upcycle.model.parallel import parallelize
from upcycle.model.transformer import Transformer
from upcycle.study.check import override_execution
from upcycle.study.counting import flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.memory import peak_memory
from upcycle.study.plan import build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, load_study
from upcycle.train.optim import build_optimizer, gradient_norms, local_square_sums, scale_gradients
from upcycle.train.processes.distributed import Group
from upcycle.train.record import Clock
from upcycle.train.step import accumulate
from upcycle.train.tracing import Operation, Trace
from upcycle.train.trainee import Trainee

ROOT = Path(__file__).parents[1]
BF16, FP32 = 989e12, 67e12
"""FLOP/s of an H100 SXM, data sheet: dense bfloat16 by tensor cores; float32 without them (torch's default)."""
HBM, NVLINK, INFINIBAND = 3.35e12, 450e9, 50e9
"""Bytes/s: memory; to the GPUs of a node, each way; to other nodes, a GPU."""
LAUNCH = 5e-6
"""Seconds of the host for a kernel."""
ALONE = ("attention", "mm", "sort", "topk", "index_select", "gather", "scatter", "cumsum", "copy_in", "chunk_cat")
"""Words in names of operations that a compiler does not fuse with their neighbours."""


# --- tracing


class _Norm(torch.autograd.Function):
    """RMSNorm as a GPU has it: one kernel forward, one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, trace: Trace) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.trace = trace
        y = torch.empty_like(x)
        trace.kernel("rms_norm", [x, weight], [y])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        ctx.trace.kernel("rms_norm_backward", [grad, x, weight], [d_x, d_weight])
        return d_x, d_weight, None


def kernels_for(run: RunSpec, execution: Execution, trace: Trace) -> Kernels:
    """The kernels of a GPU job, as far as a CPU has them; the loss marks its region."""
    names = execution.kernels | {"layers": "composed", "attention": "sdpa", "rms_norm": "torch"}
    found = choose_kernels(run.model, names, device="cpu", dtype=run.dtype)

    def cross_entropy(*arguments: Tensor) -> Tensor:
        before, trace.region = trace.region, "loss"
        loss = found.cross_entropy(*arguments)
        trace.region = before
        return loss

    return Kernels(
        attention=found.attention,
        experts=found.experts,
        rms_norm=lambda x, weight, _: _Norm.apply(x, weight, trace),
        cross_entropy=cross_entropy,
    )


def mark_blocks(model: nn.Module, trace: Trace) -> None:
    """Let the trace know which operations are a block's, forward and backward."""
    before: list[str] = []

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before.append(trace.region)
        trace.region = "block"

    def leave(_: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> None:
        trace.region = before.pop()
        if output[0].requires_grad:
            output[0].register_hook(lambda _: mark("block"))

    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad and inputs[0].grad_fn is not None:  # a recomputed block's input is a copy without
            inputs[0].register_hook(lambda _: mark(""))

    def mark(region: str) -> None:
        trace.region = region

    blocks = list(model.blocks)  # type: ignore[arg-type]
    blocks[0].register_forward_pre_hook(begin)
    for block in blocks:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)


def trace_update(run: RunSpec, execution: Execution, passes: int) -> tuple[list[Operation], list[Operation]]:
    """Operations of `passes` passes over micro-batches by one of the processes, and of clipping and AdamW."""
    size, tensor_size = execution.devices, execution.tensor_parallel
    execution = execution.model_copy(update={"device": "cpu"})
    sequences = (execution.micro_batch or run.optim.batch * tensor_size // size) * size // tensor_size * passes
    trace, group = Trace(), Group()
    if size > 1:
        dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
        mesh = init_device_mesh("cpu", (size // tensor_size, tensor_size), mesh_dim_names=("data", "tensor"))
        group = Group(0, size, tensor_size, mesh)
    try:
        chunk = torch_kernels.CUDA_CHUNK * run.model.vocab_size
        with torch.device("meta"):
            model = Transformer(run.model, run.moe, kernels_for(run, execution, trace))
        if group.mesh is not None:
            parallelize(model, group.mesh, mixed=run.dtype == "bfloat16", whole=execution.exchange == "update")
        with FakeTensorMode(allow_non_fake_inputs=True), patch.object(torch_kernels, "CHUNK_ELEMENTS", chunk):
            model.to_empty(device="cpu")
            model.recompute = execution.activation_checkpointing == "block"
            mark_blocks(model, trace)
            optimizer = build_optimizer(model, run.optim)
            trainee = Trainee(run, Path(), execution, None, model, optimizer, Clock(), group=group)  # type: ignore[arg-type]
            ids = np.zeros((sequences, run.model.context + 1), dtype=np.int64)
            with trace:
                accumulate(trainee, ids)
                passed, trace.operations = trace.operations, []
                parameters = list(model.parameters())
                if size > 1:
                    group.sum(local_square_sums(parameters, first=True))
                else:
                    gradient_norms(parameters)
                scale_gradients(parameters, 2.0, 1.0)
                optimizer.step()
            return passed, trace.operations
    finally:
        if size > 1:
            dist.destroy_process_group()


def fused_runs(operations: list[Operation], regions: Iterable[str]) -> Iterator[Operation]:
    """Operations as a compiler would fuse them in these regions: what lies between products becomes one, which reads
    what others wrote, and writes what others read or nobody has read yet."""
    last_reader: dict[int, int] = {}
    for place, operation in enumerate(operations):
        last_reader.update(dict.fromkeys(operation.reads, place))
    run: list[Operation] = []
    for place, operation in enumerate(operations):
        words = ("mm",) if operation.region == "loss" else ALONE
        alone = operation.collective or any(word in operation.name for word in words)
        fusable = operation.region in regions and not alone
        if run and not (fusable and operation.region == run[0].region):
            yield _fused(run, place, last_reader)
            run = []
        if fusable:
            run.append(operation)
        else:
            yield operation
    if run:
        yield _fused(run, len(operations), last_reader)


def _fused(run: list[Operation], end: int, last_reader: dict[int, int]) -> Operation:
    reads: dict[int, float] = {}
    writes: dict[int, float] = {}
    for operation in run:
        reads |= {key: size for key, size in operation.reads.items() if key not in writes}
        writes |= operation.writes
    kept = {key: size for key, size in writes.items() if last_reader.get(key, end) >= end or key in reads}
    return Operation("fused", reads, kept, region=run[0].region)


# --- limits


@dataclass(frozen=True)
class Cost:
    """Of one process in one update; seconds at an H100's limits."""

    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0
    collectives: float = 0.0
    exchanged: float = 0.0
    product_seconds: float = 0.0
    memory_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(a * times for a in vars(self).values()))


def cost_of(operations: Iterable[Operation]) -> Cost:
    """The sum over operations; a product takes the longer of its FLOPs and its bytes, anything else its bytes."""
    total = Cost()
    for each in operations:
        if each.collective:
            total += Cost(collectives=1, exchanged=each.bytes)
        else:
            seconds = each.bytes / HBM
            limit = max(seconds, each.flops / (BF16 if each.half else FP32))
            spent = {"product_seconds": limit} if each.flops else {"memory_seconds": seconds}
            total += Cost(flops=each.flops, bytes=each.bytes, kernels=1, **spent)
    return total


def exchange_seconds(cost: Cost, execution: Execution) -> float:
    """Of a ring over all processes: each receives what the others hold; from other nodes by all links of its node."""
    processes, nodes = execution.devices, execution.nodes
    within = cost.exchanged * (processes - 1) / processes / NVLINK
    between = cost.exchanged * (nodes - 1) / nodes / (INFINIBAND * processes / nodes)
    return max(within, between)


def update_cost(run: RunSpec, execution: Execution) -> tuple[Cost, int]:
    """Of a whole update, and its number of passes."""
    share = run.optim.batch * execution.tensor_parallel // execution.devices
    passes = -(-share // (execution.micro_batch or share))
    regions = ("block", "loss") if execution.compile else ()
    first, rest = trace_update(run, execution, 1)
    cost = cost_of(fused_runs(first, regions))
    if passes > 1:
        both, rest = trace_update(run, execution, 2)
        two = cost_of(fused_runs(both, regions))
        cost = two + (two + cost * -1) * (passes - 2)
    return cost + cost_of(rest), passes


def row_of(name: str, run: RunSpec, execution: Execution) -> dict[str, str]:
    """A line of the table."""
    cost, passes = update_cost(run, execution)
    launches, exchange = cost.kernels * LAUNCH, exchange_seconds(cost, execution)
    device = cost.product_seconds + cost.memory_seconds
    seconds = {"GPU": device, "launches": launches, "exchange": exchange}
    bound = max(seconds, key=lambda each: seconds[each])
    tokens = run.tokens_per_step / execution.devices / seconds[bound]
    rate = tokens * flops_per_token(run.model, run.moe)
    settings = [
        f"{execution.nodes} x {execution.devices // execution.nodes}",
        *([f"tp {execution.tensor_parallel}"] if execution.tensor_parallel > 1 else []),
        *(["compiled"] if execution.compile else []),
        *(["recomputed"] if execution.activation_checkpointing == "block" else []),
    ]
    return {
        "model": name,
        "GPUs": ", ".join(settings),
        "passes x sequences": f"{passes} x {execution.micro_batch or run.optim.batch // execution.devices}",
        "TFLOP": f"{cost.flops / 1e12:.1f}",
        "GB": f"{cost.bytes / 1e9:.0f}",
        "kernels": f"{cost.kernels:,.0f}",
        "collectives": f"{cost.collectives:.0f}, {cost.exchanged / 1e9:.1f} GB",
        "products": f"{1e3 * cost.product_seconds:.0f}",
        "memory": f"{1e3 * cost.memory_seconds:.0f}",
        "launches": f"{1e3 * launches:.0f}",
        "exchange": f"{1e3 * exchange:.0f}",
        "limit": bound,
        "TFLOP/s": f"{rate / 1e12:.0f}",
        "tokens/s a GPU": f"{tokens:,.0f}",
        "peak GB": f"{peak_memory(run, execution).peak / 1e9:.0f}",
    }


def runs_of(study: StudyConfig, mixture: str) -> dict[str, RunSpec]:
    """One run of each model, dense and with the mixture, by name."""
    plan = build_plan(study, Path("/nonexistent"))
    found: dict[str, RunSpec] = {}
    for model in study.models:
        for moe in ("", mixture):
            for run_id, names in plan.names.items():
                if names == (model, moe) and plan.runs[run_id].optim.batch == study.models[model].batch:
                    found[f"{model} {moe or 'dense'}"] = plan.runs[run_id]
                    break
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="of the study; all if none is named")
    parser.add_argument("--study", type=Path, default=ROOT / "config" / "paper.yaml")
    parser.add_argument("--moe", default="8x2", help="the mixture beside each dense model")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of execution")
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    changes = dict(setting.split("=", 1) for setting in options.set)
    rows = []
    print(f"torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}: an update by each GPU, ms at an H100's limits")
    for name, run in runs_of(study, options.moe).items():
        if options.models and name.split()[0] not in options.models and name not in options.models:
            continue
        execution = override_execution(study.execution_of(run), changes)
        execution.check(run)
        rows.append(row_of(name, run, execution))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        print("| " + " | ".join(rows[-1].values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"roofline: {error}", file=sys.stderr)
        sys.exit(2)
