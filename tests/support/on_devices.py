"""What the tests here share: kernels by device, random tensors, relative errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model.kernels import Kernels, choose_kernels
from upcycle.study.kernel_fit import KERNELS, LIMITS
from upcycle.study.shape import ModelSpec

HEADS = (60, 70, 80, 94, 104)
"""Head dimensions of the paper's models."""
SKIPS = ("is not installed", "the device has compute capability")


def device(name: str) -> Any:
    """A parameter of this device; those of CUDA are marked `gpu`."""
    return pytest.param(name, marks=[pytest.mark.gpu] if name == "cuda" else [])


DEVICES = [device("cpu"), device("cuda")]


def kernels_by_device(op: str, *, without: tuple[str, ...] = ()) -> list[Any]:
    """(device, name) of every kernel of an op on every device that it may run on, the reference left out."""
    return [
        pytest.param(where, name, id=f"{where}-{name}", marks=[pytest.mark.gpu] if where == "cuda" else [])
        for where in ("cpu", "cuda")
        for name in KERNELS[op]
        if name not in without and not (where == "cpu" and (op, name) in LIMITS and LIMITS[op, name].cuda_only)
    ]


def kernels(model: ModelSpec, where: str, dtype: str = "bfloat16", **names: str) -> Kernels:
    """The kernels of these names; the test skips where their library is not installed or is for other devices."""
    try:
        return choose_kernels(model, {"layers": "composed"} | names, device=where, dtype=dtype)
    except UserError as error:
        if any(reason in str(error) for reason in SKIPS):
            pytest.skip(str(error))
        raise


def random(*shape: int, seed: int = 0, where: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(where, dtype)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """|found - reference| / |reference|, Euclidean, over all elements."""
    difference = found.detach().double() - reference.detach().double()
    return float(difference.norm() / reference.detach().double().norm())
