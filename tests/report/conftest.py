"""The simulated sweep with figures and tables drawn, as the report finds it."""

import json
import shutil

import pytest
import simulated_sweep
from built_once import built_once

from upcycle.paper.draw import draw, write_table
from upcycle.report.background import Background

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
def study(sweep, tmp_path_factory):
    """(inputs, background) of a whole study; tests change copies of them, never the files."""

    def build(results):
        shutil.copytree(sweep[0], results, dirs_exist_ok=True)
        inputs = simulated_sweep.read_inputs(results, sweep[1])
        draw("figure3", inputs, results / "figures" / "figure3")
        for name in ("table1", "laws"):
            write_table(name, inputs, results / "tables" / name)
        (results / "timing.json").write_text(json.dumps({"invocations": [TIMING]}))
        rows = ["id,evaluation,loss,loss_se,heldout_tokens"]
        rows += [f"{row.id},web,{row.loss + 0.5!r},0.02,65536" for row in inputs.losses.itertuples()]
        (results / "evaluations.csv").write_text("\n".join(rows) + "\n")

    results = built_once(tmp_path_factory, "study", build)
    background = Background(
        study="default",
        out=results,
        tokens=results / "tokens",
        title="A test",
        figures={"figure3": {}},
        tables=("table1", "laws"),
    )
    return simulated_sweep.read_inputs(results, sweep[1]), background
