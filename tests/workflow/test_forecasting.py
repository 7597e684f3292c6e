"""A forecast is written once, before the runs that it predicts, by simulated losses of a small study."""

import json
import re
import subprocess

import pytest
import simulated_study
import yaml
from checkouts import SNAKEMAKE, make_checkout

from upcycle.decisions.simulated import paper_world, simulate_losses
from upcycle.errors import UserError
from upcycle.laws.forecast import LAST_POINT, POWER_BY_D1, forecast_scores
from upcycle.laws.tables.losses import write_losses
from upcycle.paper.inputs import Inputs
from upcycle.paper.tables_forecasts import forecasts
from upcycle.study.forecast import read_forecast
from upcycle.workflow import forecasting, paths
from upcycle.workflow.dag import Workflow
from upcycle.workflow.rehearsal import planned_losses
from upcycle.workflow.rehearsed import Rehearsal

BUDGETS = simulated_study.BUDGETS
SWEEPS = {
    "dense": {"kind": "dense", "model": "15M", "tokens": BUDGETS},
    "upcycled": {"kind": "upcycled", "model": "15M", "moe": "8x2", "dense_tokens": BUDGETS, "tokens": BUDGETS},
}
FORECAST = {
    "sweep": "upcycled",
    "laws": ["multiplicative_no_interaction"],
    "up_to": {"D1": BUDGETS[2], "D2": BUDGETS[2]},
}


@pytest.fixture
def flow(tmp_path, monkeypatch) -> Workflow:
    """The study in a folder where the runs that the forecast reads are finished."""
    for module in (paths, forecasting):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("upcycle.workflow.dag.RESULTS", tmp_path)
    monkeypatch.setattr(forecasting, "REHEARSAL", Rehearsal("small", 0.0005, 0))
    flow = simulated_study.workflow(tmp_path, sweeps=SWEEPS, fits={}, forecasts={"larger": FORECAST})
    finish(flow, flow.forecasts["larger"].read)
    return flow


def finish(flow: Workflow, run_ids) -> None:
    losses = simulate_losses(planned_losses(flow.plan), paper_world(), noise=0.0005, seed=0)
    by_id = dict(zip(losses["id"], losses["loss"], strict=True))
    for run_id in run_ids:
        folder = flow.out / "runs" / run_id
        folder.mkdir(parents=True)
        spec = {"id": run_id, **flow.plan.runs[run_id].model_dump(mode="json")}
        (folder / "spec.json").write_text(json.dumps(spec))
        (folder / "metrics.json").write_text(json.dumps({"id": run_id, "simulated": True, "loss": by_id[run_id]}))
    write_losses(losses, flow.out / "losses.csv")


def test_a_forecast_is_written_once_scored_and_never_overwritten(flow):
    path = flow.out / "forecasts" / "larger.json"
    runs = flow.forecasts["larger"]
    target = runs.predicted[0]
    assert flow.forecasts_before(target) == [str(path)]
    assert flow.forecasts_before(runs.fitted[0]) == []
    assert flow.forecasts_not_written == "larger"
    assert "7 runs forecast from 9" in forecasting.write_forecast(flow, "larger")
    written, content = path.read_bytes(), read_forecast(path)
    assert set(content["predictions"]) == {"multiplicative_no_interaction", LAST_POINT, POWER_BY_D1}
    assert {each["id"] for each in content["predictions"][LAST_POINT]} == set(runs.predicted)

    fresh = simulated_study.workflow(flow.out, sweeps=SWEEPS, fits={}, forecasts={"larger": FORECAST})
    assert fresh.forecasts_not_written == "no-such-forecast"  # no rule makes it again
    finish(fresh, runs.predicted)
    assert fresh.forecasts_before(target) == [str(path)]  # as when it trained
    without = simulated_study.workflow(flow.out, sweeps=SWEEPS, fits={})
    assert without.forecasts_before(target) == [str(path)]
    assert "of the same laws, runs and losses" in forecasting.write_forecast(fresh, "larger")
    inputs = Inputs.read(flow.out / "losses.csv", flow.out / "fits", flow.out / "runs")
    table = forecasts(Inputs(inputs.losses, {}, inputs.runs, forecast_files={"larger": path}))
    assert table.loc["multiplicative no interaction", "RMS (nats)"] < 0.1 * table.loc[LAST_POINT, "RMS (nats)"]
    assert table["runs"].tolist() == [7, 7, 7]

    changed = FORECAST | {"laws": ["additive"]}
    other = simulated_study.workflow(flow.out, sweeps=SWEEPS, fits={}, forecasts={"larger": changed})
    with pytest.raises(UserError, match="a forecast is never overwritten; name a new one"):
        forecasting.write_forecast(other, "larger")
    assert path.read_bytes() == written
    path.chmod(0o644)
    path.write_bytes(written.replace(b"20", b"21", 1))
    with pytest.raises(UserError, match=r"larger\.json: altered since"):
        read_forecast(path)


@pytest.mark.parametrize("which", ["a run that is predicted", "a segment that only such runs need"])
def test_a_forecast_after_the_fact_is_refused(flow, which):
    runs = flow.forecasts["larger"]
    run = runs.predicted[0] if which.startswith("a run") else min(runs.waiting - set(runs.predicted))
    path = flow.out / "runs" / run / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=rf"forecasts\.larger: run {run}, which waits for the forecast, is finished"):
        forecasting.write_forecast(flow, "larger")
    assert not (flow.out / "forecasts").exists()


def test_scores_by_hand():
    predictions = [
        {"id": "a", "loss": 3.0, "low": 2.9, "high": 3.1},
        {"id": "b", "loss": 2.6, "low": 2.55, "high": 2.65},
        {"id": "c", "loss": None, "low": None, "high": None},
    ]
    found = forecast_scores(predictions, {"a": 3.03, "b": 2.5, "c": 2.0})
    assert found["runs"] == 2
    assert found["held by 95 %"] == 0.5
    assert found["mean (nats)"] == pytest.approx((-0.03 + 0.1) / 2)
    assert found["RMS (nats)"] == pytest.approx(((0.03**2 + 0.1**2) / 2) ** 0.5)


@pytest.mark.slow
@pytest.mark.workflow
def test_snakemake_forecasts_before_it_trains_and_an_edit_of_the_law_writes_nothing_again(tmp_path):
    """In a rehearsal: its forecast is refused once a run that it predicts is finished, so success shows the order."""
    checkout = make_checkout(tmp_path / "checkout")
    (checkout.root / "config").mkdir()
    upcycled = SWEEPS["upcycled"] | {"dense_tokens": BUDGETS[:3]}
    study = simulated_study.STUDY | {
        "study": "small",
        "sweeps": {"upcycled": upcycled},
        "fits": {},
        "forecasts": {"larger": FORECAST},
        "tables": {"forecasts": {}},
    }
    path = checkout.root / "config" / "small.yaml"
    path.write_text(yaml.safe_dump(study))
    results = "results/simulated/small"

    def rehearse(*words: str) -> str:
        command = [SNAKEMAKE.with_name("upcycle"), "rehearse", "--study", "small", f"{results}/tables/forecasts.md"]
        done = subprocess.run(
            [*command, *words],
            cwd=checkout.root,
            env=checkout.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return f"{done.returncode}\n{done.stdout}{done.stderr}"

    assert rehearse().startswith("0\n")
    forecast = checkout.root / results / "forecasts" / "larger.json"
    written = forecast.read_bytes()
    assert len(read_forecast(forecast)["waiting"]) == 6  # a segment of the trunk and a decay for each D1
    assert "Nothing to be done" in rehearse("-n")
    checkout.edit(
        "src/upcycle/laws/forecast.py",
        "np.quantile(with_noise_CN, [0.025, 0.975]",
        "np.quantile(with_noise_CN, [0.1, 0.9]",
    )
    again = rehearse()
    assert again.startswith("0\n")
    assert set(re.findall(r"^(upcycle|decay|forecast|table) +\d+$", again, re.MULTILINE)) <= {"table"}
    assert forecast.read_bytes() == written
    forecast.unlink()
    refused = rehearse()
    assert refused.startswith("2\n")
    assert "which waits for the forecast, is finished, so nothing could be forecast" in refused
