"""Small runs for the training tests: a synthetic token set, tiny specifications, folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import write_tokens


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token set of 64 pieces with structure to learn; read-only."""
    return write_tokens(tmp_path_factory.mktemp("tokens"))
