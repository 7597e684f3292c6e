"""The simulated sweep of tests/paper with figures and tables drawn, as the report finds them."""

import json
import os

import pytest

# Fits solve many tiny systems: threads of the linear algebra only get in each other's way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import simulated_sweep

from upcycle.paper.draw import draw, write_table
from upcycle.report.page import Background

TIMING = {
    "started": 1.0,
    "wall_seconds": 780.0,
    "cores": 2,
    "runs": 94,
    "run_train_seconds": 1100.0,
    "run_eval_seconds": 100.0,
    "run_startup_seconds": 40.0,
    "run_wall_seconds": 1280.0,
}


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """(inputs, background) of a whole study; tests change copies of them, never the files."""
    results = tmp_path_factory.mktemp("study")
    inputs = simulated_sweep.read_inputs(results, simulated_sweep.write_results(results))
    draw("figure3", inputs, results / "figures" / "figure3")
    for name in ("table1", "laws"):
        write_table(name, inputs, results / "tables" / name)
    (results / "timing.json").write_text(json.dumps({"invocations": [TIMING]}))
    rows = ["id,evaluation,loss,loss_se,heldout_tokens"]
    rows += [f"{row.id},web,{row.loss + 0.5!r},0.02,65536" for row in inputs.losses.itertuples()]
    (results / "evaluations.csv").write_text("\n".join(rows) + "\n")
    background = Background(
        study="default",
        out=results,
        tokens=results / "tokens",
        title="A test",
        figures=("figure3",),
        tables=("table1", "laws"),
    )
    return inputs, background
