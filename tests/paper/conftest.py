"""The simulated sweep as figures and tables read it, and a copy that a test may spoil."""

import shutil
from pathlib import Path

import own_model_sweep
import pytest
import simulated_methods
import simulated_routing
import simulated_sweep
from built_once import built_once


@pytest.fixture(scope="session")
def inputs(sweep):
    return simulated_sweep.read_inputs(*sweep)


@pytest.fixture(scope="session")
def own_model(tmp_path_factory):
    """A study of an imported dense model, upcycled and trained on."""
    results = tmp_path_factory.mktemp("own-model")
    return own_model_sweep.read_inputs(results, own_model_sweep.write_results(results))


@pytest.fixture(scope="session")
def methods_inputs(tmp_path_factory):
    """A study of upcycling methods whose losses differ by known amounts."""
    return simulated_methods.read_inputs(built_once(tmp_path_factory, "methods", simulated_methods.write_results))


@pytest.fixture(scope="session")
def routed(tmp_path_factory):
    """A study of gates, biases, z-loss and sigmoid, all of whose arms have the same losses but for noise."""
    return simulated_routing.read_inputs(built_once(tmp_path_factory, "routing", simulated_routing.write_results))


@pytest.fixture
def copied(sweep, tmp_path) -> Path:
    """A copy of the results that a test may spoil."""
    shutil.copytree(sweep[0], tmp_path / "results")
    return tmp_path / "results"
