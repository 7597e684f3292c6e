"""What `upcycle plan` reports before launch: hours, cost, makespans, disk under `keep`, what an extension repeats."""

import json
from pathlib import Path

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.plan import build_plan
from upcycle.study.retention import files_let_go
from upcycle.views.before_launch import file_bytes
from upcycle.views.plan_view import describe_plan, show_plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import Node
from upcycle.workflow.paths import RESULTS

SWEEPS = {
    "dense": {"kind": "dense", "model": "tiny", "steps": [40, 80]},
    "upcycled": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": [40, 80], "steps": [40, 80]},
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def workflow(node: Node | None = None, **changes) -> Workflow:
    study = small_study(SWEEPS, **changes)
    return Workflow(study, build_plan(study, RESULTS), RESULTS, node)


def finish(workflow: Workflow, run_id: str) -> None:
    """A run's folder as far as a plan looks at it: twice as long as its training."""
    run, folder = workflow.plan.runs[run_id], RESULTS / "runs" / run_id
    folder.mkdir(parents=True)
    times = {"segment_tokens": run.segment_tokens, "train_seconds": 3.0, "wall_seconds": 6.0}
    (folder / "metrics.json").write_text(json.dumps(times | {"execution": {"device": "cpu", "devices": 1}}))
    for name, size in file_bytes(run).items():
        with (folder / name).open("wb") as file:
            file.truncate(size)


def test_only_what_is_not_done_costs(tmp_path):
    """Hours are those of devices, a price is for one of them, and the measured time beside training counts."""
    planned = workflow(Node(cpus=2, memory_gb=8, max_hours=24))
    launch = describe_plan(planned, nodes=1, price=36.0)["launch"]
    runs = describe_plan(planned)["runs"]
    assert launch["hours"] == pytest.approx(sum(run["seconds"] for run in runs) / 3600)
    assert launch["cost"] == pytest.approx(36 * launch["hours"])
    first = next(iter(planned.plan.runs))
    finish(planned, first)
    left = describe_plan(planned, nodes=1)["launch"]
    todo = [run for run in describe_plan(planned)["runs"] if not run["finished"]]
    assert len(todo) == len(runs) - 1
    assert left["overhead_seconds"] == 3.0
    assert left["hours"] == pytest.approx(sum(run["seconds"] + 3.0 for run in todo) / 3600)


def test_makespans_fall_with_nodes_to_the_longest_chain():
    planned = workflow(Node(cpus=1, memory_gb=8, max_hours=24))
    launch = describe_plan(planned)["launch"]
    makespans = launch["makespan_seconds"]
    assert list(makespans)[:2] == [1, 2]
    assert makespans[1] == pytest.approx(3600 * launch["hours"])
    assert list(makespans.values()) == sorted(makespans.values(), reverse=True)
    assert list(makespans.values())[-1] == pytest.approx(launch["longest_chain_seconds"], rel=0.01)
    assert set(describe_plan(planned, nodes=3)["launch"]["makespan_seconds"]) == {3}
    assert "on 3 nodes of 1 core;" in show_plan(planned, as_json=False, every_run=False, nodes=3, price=2.0)


def test_runs_wait_for_a_forecast_until_it_is_written():
    """The longest chain is that of a smaller run, then that of a larger one behind the forecast."""
    asked = {"sweep": "upcycled", "laws": ["additive"], "up_to": {"D2": 100_000}}
    node = Node(cpus=1, memory_gb=8, max_hours=24)
    waiting, free = workflow(node, forecasts={"larger": asked}), workflow(node)
    [runs] = waiting.forecasts.values()
    seconds = {run["id"]: run["seconds"] for run in describe_plan(waiting)["runs"]}
    chains = [[sum(seconds[run] for run in waiting.plan.with_ancestors([each])) for each in runs.read]]
    chains += [
        [sum(seconds[run] for run in waiting.plan.with_ancestors([each]) & runs.waiting) for each in runs.predicted]
    ]
    launch = describe_plan(waiting, nodes=9)["launch"]
    assert launch["longest_chain_seconds"] == pytest.approx(sum(map(max, chains)))
    assert launch["makespan_seconds"][9] == pytest.approx(sum(map(max, chains)))
    chain = describe_plan(free)["launch"]["longest_chain_seconds"]
    assert launch["longest_chain_seconds"] > chain
    text = show_plan(waiting, as_json=False, every_run=False)
    assert f"Forecast larger: 2 runs predicted from 2 smaller ones; {len(runs.waiting)} runs wait until" in text
    (RESULTS / "forecasts").mkdir(parents=True)
    (RESULTS / "forecasts" / "larger.json").write_text(json.dumps({"waiting": sorted(runs.waiting)}))
    written = describe_plan(workflow(node, forecasts={"larger": asked}))["launch"]
    assert written["forecasts"]["larger"]["written"]
    assert written["longest_chain_seconds"] == chain


def test_gpu_hours_are_those_of_each_models_own_devices():
    model = {"n_layer": 2, "d_model": 64, "n_head": 2, "batch": 64, "warmup_steps": 4, "lr": 8e-3, "lr_moe": 4e-3}
    models = {"tiny": model | {"execution": {"devices": 2}, "execution_moe": {"devices": 8, "nodes": 2}}}
    planned = workflow(Node(gpus=4, cpus=64, memory_gb=900, max_hours=24), models=models, execution={"device": "cuda"})
    plan = describe_plan(planned, nodes=2)
    devices = {"dense": 2, "up": 8}
    hours = sum(devices[run["lineage"]] * run["seconds"] for run in plan["runs"]) / 3600
    assert plan["launch"]["hours"] == pytest.approx(hours)
    with pytest.raises(UserError, match="would never start"):
        describe_plan(planned, nodes=1)


@pytest.mark.parametrize("keep", [{}, {"state": "last", "weights": "finished"}, {"state": "none", "weights": "none"}])
def test_disk_in_the_end_is_what_keep_leaves(keep):
    """And at no time more than everything with two states to resume from; nothing is removed before it is there."""
    planned = workflow(Node(cpus=1, memory_gb=8, max_hours=24), keep=keep)
    launch = describe_plan(planned, nodes=1)["launch"]
    let_go = files_let_go(planned.study.keep, planned.plan)
    sizes = {run_id: file_bytes(run) for run_id, run in planned.plan.runs.items()}
    left = sum(
        size for run_id, files in sizes.items() for name, size in files.items() if name not in let_go.get(run_id, {})
    )
    assert launch["disk"]["now"] == 0
    assert launch["disk"]["end"] == left
    everything = sum(sum(files.values()) for files in sizes.values())
    rolling = max(6 * files[WEIGHTS] for files in sizes.values())
    assert left <= launch["disk"]["most"] <= everything + rolling
    if keep.get("weights") == "none":
        assert launch["disk"]["most"] < 0.8 * everything
    assert sum(row["bytes"] for row in launch["removed"]) == everything - left


def test_what_an_extension_repeats_is_said_before_it_starts():
    planned = workflow(keep={"state": "none", "weights": "none"})
    launch = describe_plan(planned)["launch"]
    runs = planned.plan.runs.values()
    longer, dense = launch["extension"]
    assert longer["tokens"] == 3 * 72 * 8 * 256  # three trunks to step 72
    assert dense["tokens"] == sum(run.tokens for run in runs if run.lineage == "dense" and run.role == "decay")
    text = show_plan(planned, as_json=False, every_run=False)
    assert "longer budgets: trunks, from their start to where they end now (3; 442k tokens" in text
    assert "state and weights of a trunk" in text
    assert describe_plan(workflow())["launch"]["extension"] == []


def test_a_trunk_without_states_is_planned_from_its_start_and_the_repeated_tokens_are_counted():
    """Finished points whose state was removed, and a budget beyond them."""
    from upcycle.manifest import json_bytes, sealed

    planned = workflow()
    dense = [run for run in planned.plan.runs.values() if run.lineage == "dense"]
    for run in dense:
        finish(planned, run.id)
        folder = RESULTS / "runs" / run.id
        (folder / "spec.json").write_text(json.dumps({"id": run.id, **run.model_dump(mode="json")}))
        note = {"time": "2026-01-01T00:00:00+00:00", "by": "keep.state: none of study `test`"}
        removed = {STATE: note} if run.role == "trunk" else {}
        files = {name: {"bytes": size, "sha256": ""} for name, size in file_bytes(run).items()}
        content = {"id": run.id, "files": files, "removed": removed, "metrics": {}}
        (folder / "manifest.json").write_bytes(json_bytes(sealed(content)))
        for name in removed:
            (folder / name).unlink()
    longer = {"dense": {"kind": "dense", "model": "tiny", "steps": [40, 80, 160]}}
    study = small_study(longer)
    extended = Workflow(study, build_plan(study, RESULTS), RESULTS)
    (point,) = [run for run in extended.plan.runs.values() if run.role == "trunk" and run.end_step == 144]
    assert (point.start_step, point.parent) == (0, None)
    launch = describe_plan(extended)["launch"]
    assert launch["trained_again"] == 72 * 8 * 256
    text = show_plan(extended, as_json=False, every_run=False)
    assert "147k of these tokens are trained again: `keep` removed the states to continue from." in text
