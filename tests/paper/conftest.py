"""The simulated sweep as figures and tables read it, and a copy that a test may spoil."""

import dataclasses
import shutil
from pathlib import Path

import own_model_sweep
import pytest
import simulated_methods
import simulated_routing
import simulated_sweep
from built_once import built_once

from upcycle.manifest import json_bytes, sealed


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


@pytest.fixture(scope="session")
def forecast_inputs(inputs, tmp_path_factory):
    """The simulated sweep, with a forecast of its largest D2: a law that errs by 0.01 nats, and a naive rule."""
    targets = inputs.losses[inputs.losses["D2"] == inputs.losses["D2"].max()]
    made = {
        "multiplicative": [(loss + 0.01, loss - 0.02, loss + 0.04) for loss in targets["loss"]],
        "last_point": [(loss + 0.1, None, None) for loss in targets["loss"]],
    }
    predictions = {
        rule: [
            {"id": run_id, "loss": loss, "low": low, "high": high}
            for run_id, (loss, low, high) in zip(targets["id"], each, strict=True)
        ]
        for rule, each in made.items()
    }
    made_of = {"fitted": {}, "repeated": {}, "predicted": targets["id"].tolist()}
    path = tmp_path_factory.mktemp("forecasts") / "larger.json"
    path.write_bytes(json_bytes(sealed({"made_of": made_of, "predictions": predictions})))
    return dataclasses.replace(inputs, forecast_files={"larger": path})


@pytest.fixture
def copied(sweep, tmp_path) -> Path:
    """A copy of the results that a test may spoil."""
    shutil.copytree(sweep[0], tmp_path / "results")
    return tmp_path / "results"
