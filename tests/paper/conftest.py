"""The simulated sweep as figures and tables read it, and a copy that a test may spoil."""

import shutil
from pathlib import Path

import pytest
import simulated_sweep


@pytest.fixture(scope="session")
def inputs(sweep):
    return simulated_sweep.read_inputs(*sweep)


@pytest.fixture
def copied(sweep, tmp_path) -> Path:
    """A copy of the results that a test may spoil."""
    shutil.copytree(sweep[0], tmp_path / "results")
    return tmp_path / "results"
