"""For all tests: one thread of linear algebra, and one of torch, as the jobs have; a small token set."""

import os
from pathlib import Path

import pytest

# Before anything imports numpy or torch.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token set of 64 pieces with structure to learn; read-only."""
    from small_runs import write_tokens

    return write_tokens(tmp_path_factory.mktemp("tokens"))
