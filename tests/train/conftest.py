"""Small runs for the training tests: a synthetic token set, tiny specifications, folders."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
