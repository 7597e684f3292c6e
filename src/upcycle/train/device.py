"""Where tensors live and in what precision they are multiplied."""

from __future__ import annotations

import contextlib

import torch

from upcycle.errors import UserError
from upcycle.execution import Execution
from upcycle.spec import RunSpec


def use_device(execution: Execution) -> torch.device:
    """The device asked for, with torch's threads set. UserError if it is not there: never another one instead."""
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: cuda, but torch finds no CUDA device here; run on one, or say device: cpu")
    torch.set_num_threads(execution.threads)
    return torch.device(execution.device)


def precision(run: RunSpec, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16: autocast around float32 master weights; float32: nothing to do."""
    if run.dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
