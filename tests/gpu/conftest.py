"""Numerical tests of every kernel on the device that it is for. **The `gpu` ones were not run by us.**

Each body runs on the CPU with the CPU's kernels, so that it is known to work and to be able to fail, and is marked
`gpu` with the CUDA kernels: these skip without a CUDA device, and where a library is not installed. `make gpu-smoke`
runs them all on a GPU and writes what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: `make gpu-smoke` on a machine that has one"))


@pytest.fixture(autouse=True)
def as_in_a_run() -> Iterator[None]:
    """Deterministic algorithms, as `train.device.use_device` sets them on CUDA; here on both devices."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
