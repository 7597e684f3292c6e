"""Model FLOPs utilisation: the FLOPs that a model needs over those that its devices do in bare matrix products.

The yardstick is measured, in the same process, on the same device, in the run's dtype: a rate of the data sheet says
nothing about a shared CPU, a throttled GPU or an odd width.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor

from upcycle.study.counting import flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec

GEMM_FLOPS = {"cpu": 1e8, "cuda": 1e12}
"""FLOPs that one product aims at, so that it takes milliseconds: fewer rows than the run has tokens will do."""
LEAST_ROWS = 256
REPETITIONS = 5
SECONDS = 0.01
"""No further repetition begins after this long."""


def utilisation(run: RunSpec, tokens_per_second: float, rate: float) -> float:
    """Model FLOPs (`counting.flops_per_token`: every matrix product, forward and backward) a second over `rate`."""
    return tokens_per_second * flops_per_token(run.model, run.moe) / rate


def job_rate(run: RunSpec, execution: Execution) -> float:
    """FLOPs a second of bare matrix products by all processes, which share the tokens: as many times this one's."""
    return gemm_rate(run, execution) * execution.devices


def gemm_rate(run: RunSpec, execution: Execution) -> float:
    """FLOPs a second of one bare matrix product on this process's device, measured at the first call.

    The shape is the largest product of a block: (tokens, d_model) x (d_model, 2 d_mlp), the MLP's or the
    widest expert's first, with the tokens of one forward pass, but no more rows than make `GEMM_FLOPS` (at least
    `LEAST_ROWS`); operands in the run's dtype. Best of `REPETITIONS`, after a first one to warm up. 10 to
    20 ms on a CPU up to d_model 256. The CUDA branch has not been run by us.
    """
    data_ranks = execution.devices // execution.tensor_parallel
    tokens = (execution.micro_batch or max(run.optim.batch // data_ranks, 1)) * run.model.context
    moe, width = run.moe, run.model.d_model
    hidden = 2 * (max(moe.expert_width(run.model), moe.shared_width(run.model)) if moe else run.model.mlp_width)
    most = max(LEAST_ROWS, int(GEMM_FLOPS[execution.device] / (2 * width * hidden)))
    return _measure(min(tokens, most), width, hidden, run.dtype, execution.device)


@functools.cache
def _measure(rows: int, inner: int, columns: int, dtype: str, device: str) -> float:
    """FLOPs a second of (rows, inner) x (columns, inner)^T, `columns` being a weight's output features."""
    generator = torch.Generator().manual_seed(0)  # not zeros: a GPU multiplies those at a higher clock

    def operand(first: int) -> Tensor:
        return torch.rand(first, inner, generator=generator).to(device, getattr(torch, dtype))

    x, weight = operand(rows), operand(columns)
    begun, best = time.perf_counter(), float("inf")
    with torch.no_grad():
        for repetition in range(REPETITIONS + 1):
            seconds = _seconds_of_product(x, weight)
            if repetition:
                best = min(best, seconds)
                if time.perf_counter() - begun > SECONDS:
                    break
    return 2.0 * rows * inner * columns / best


def _seconds_of_product(x: Tensor, weight: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    begun = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun
