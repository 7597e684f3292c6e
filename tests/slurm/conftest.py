"""A real SLURM for the tests of this folder: one for each process of pytest."""

from collections.abc import Iterator

import pytest
from slurm_lab import SlurmLab, why_no_lab


@pytest.fixture(scope="session")
def slurm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """Two nodes of 8 fake GPUs, 64 CPUs and 512 GB, whatever the machine has; about 10 seconds."""
    reason = why_no_lab()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    with SlurmLab(tmp_path_factory.mktemp("slurm"), nodes=2).running() as lab:
        yield lab
