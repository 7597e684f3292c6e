"""Where tensors live and in what precision they are multiplied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from upcycle.errors import UserError
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.processes.preemption import HOPELESS, TrainingError


def use_device(execution: Execution) -> torch.device:
    """The device asked for, with torch's threads set. UserError if it is not there: never another one instead.

    On CUDA torch is held to deterministic algorithms, so that a resumed run is the undisturbed one; not run by us.
    """
    if execution.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "execution.device: cuda, but torch finds no CUDA device here; run on one, or say device: cpu"
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
        # Nothing here reads what it did not write. (The setting is a property of the module: no stub knows it.)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(execution.threads)
    return torch.device(execution.device)


def precision(run: RunSpec, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16: autocast around float32 master weights; float32: nothing to do."""
    if run.dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def out_of_memory_is_named(run: RunSpec, execution: Execution) -> Iterator[None]:
    """Raise TrainingError with what to do where memory does not suffice; saved states are untouched."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On the CPU torch raises a plain RuntimeError; any other one is none of our business.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            sequences = execution.micro_batch or run.optim.batch
            raise TrainingError(
                f"{run.id}: out of memory on {execution.device} with {sequences} sequences a forward pass; the last "
                "saved state is kept. Lower execution.micro_batch (whole balance groups), or run fewer jobs at a time",
                HOPELESS if isinstance(error, torch.OutOfMemoryError) else 1,  # main memory may be there next time
            ) from error
        raise
