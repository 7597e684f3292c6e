"""Each job asks for what its own plan needs, within what a node offers."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_studies import dense_study, small_study

from upcycle.errors import UserError
from upcycle.study.memory import peak_memory
from upcycle.study.plan import build_plan
from upcycle.study.rates import expected_seconds
from upcycle.views.requests import show_requests
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import Node, read_profile, split_config
from upcycle.workflow.resources import Cluster, job_resources, machine_memory_mb

NODE = Node(gpus=8, gpu_type="h100", cpus=64, memory_gb=900, max_hours=24)
SIZE = {"n_layer": 2, "n_head": 2, "batch": 128, "warmup_steps": 4, "lr": 8e-3, "lr_moe": 4e-3}
MODELS = {
    "small": SIZE | {"d_model": 64, "execution": {"devices": 1}},
    "large": SIZE | {"d_model": 1024, "execution": {"devices": 4}, "execution_moe": {"devices": 16, "nodes": 2}},
}
SWEEPS = {
    "dense": {"kind": "dense", "model": ["small", "large"], "steps": [400_000]},
    "moe": {"kind": "moe", "model": ["small", "large"], "moe": "8x2", "steps": [400_000]},
}


def workflow_of(tmp_path, node=NODE, device="cuda", **changes) -> Workflow:
    study = small_study(SWEEPS, execution={"device": device}, models=MODELS, **changes)
    return Workflow(study, build_plan(study, tmp_path / "results"), tmp_path / "results", node)


def trunks(workflow: Workflow) -> dict[str, str]:
    """Ids of trunk points by model and mixture."""
    runs = workflow.plan.runs.items()
    return {"-".join(filter(None, workflow.plan.names[i])): i for i, run in runs if run.role == "trunk"}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_requests_follow_model_mixture_and_tokens(tmp_path):
    workflow = workflow_of(tmp_path)
    cluster, runs = Cluster(workflow, NODE), trunks(workflow)
    asked = {name: cluster.train(run_id) for name, run_id in runs.items()}
    assert {name: (r.nodes, r.gpus, r.cpus) for name, r in asked.items()} == {
        "small": (1, 1, 8),
        "large": (1, 4, 32),
        "small-8x2": (1, 1, 8),
        "large-8x2": (2, 8, 64),
    }
    assert asked["small"].memory_mb < asked["small-8x2"].memory_mb < asked["large"].memory_mb
    for name, run_id in runs.items():
        run = workflow.plan.runs[run_id]
        seconds = expected_seconds(run, workflow.study.execution_of(run), {})
        assert 60 * asked[name].minutes > 1.4 * seconds
        decay = next(i for i, other in workflow.plan.runs.items() if other.parent == run_id)
        assert cluster.train(decay).minutes <= asked[name].minutes
    assert cluster.evaluate(runs["large-8x2"]).gpus == 1


def test_measured_speed_replaces_the_given_rate(tmp_path):
    workflow = workflow_of(tmp_path)
    run_id = trunks(workflow)["small"]
    decay = next(i for i, run in workflow.plan.runs.items() if run.parent == run_id)
    before = Cluster(workflow, NODE).train(run_id).minutes
    folder = tmp_path / "results" / "runs" / decay
    folder.mkdir(parents=True)
    tokens = workflow.plan.runs[decay].segment_tokens
    trained = workflow.plan.runs[run_id].segment_tokens
    speed = trained / (4 * 3600)  # the trunk will take four hours
    execution = workflow.study.execution_of(workflow.plan.runs[decay]).model_dump()
    times = {"segment_tokens": tokens, "train_seconds": tokens / speed, "wall_seconds": tokens / speed}
    (folder / "metrics.json").write_text(json.dumps(times | {"execution": execution}))
    assert before < 4 * 60 < Cluster(workflow, NODE).train(run_id).minutes == (4 * 1.5 + 0.25) * 60


def test_rules_ask_for_more_time_at_each_retry_up_to_the_longest(tmp_path):
    workflow = workflow_of(tmp_path, NODE.model_copy(update={"max_hours": 0.6}))
    resources = job_resources(workflow)["train"]
    wildcards = SimpleNamespace(run=trunks(workflow)["small"])
    minutes = [resources["runtime"](wildcards, attempt) for attempt in (1, 2, 3, 4)]
    assert minutes[1] == 2 * minutes[0] < 36 == minutes[3]
    assert resources["gres"](wildcards) == "gpu:h100:1"
    assert resources["mpi"] == ""
    assert "tasks" not in resources


def test_a_cpu_study_asks_for_no_gpu(tmp_path):
    workflow = workflow_of(tmp_path, device="cpu")
    resources = job_resources(workflow)
    wildcards = SimpleNamespace(run=trunks(workflow)["large-8x2"])
    assert not any("gres" in rule for rule in resources.values())
    assert [resources["train"][key](wildcards) for key in ("nodes", "tasks", "cpus_per_task")] == [2, 2, 8]


def test_a_run_of_this_machine_asks_for_memory_alone(tmp_path):
    workflow = workflow_of(tmp_path, node=None, device="cpu")
    resources = job_resources(workflow)
    assert {kind: list(asked) for kind, asked in resources.items() if asked} == {
        "train": ["mem_mb"],
        "evaluate": ["mem_mb"],
    }
    run_id = trunks(workflow)["large-8x2"]
    run = workflow.plan.runs[run_id]
    execution = workflow.study.execution_of(run)
    peak = execution.devices * peak_memory(run, execution).peak / 1e6
    assert peak < resources["train"]["mem_mb"](SimpleNamespace(run=run_id)) < peak + 1000 * execution.devices
    assert 1000 < machine_memory_mb() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize(
    ("offer", "named"),
    [({"gpus": 2}, "4 GPUs.*execution.devices"), ({"memory_gb": 1}, "MB of memory.*execution.nodes")],
)
def test_what_no_node_can_give_is_refused(tmp_path, offer, named):
    workflow = workflow_of(tmp_path, NODE.model_copy(update=offer))
    with pytest.raises(UserError, match=named):
        Cluster(workflow, NODE.model_copy(update=offer)).train(trunks(workflow)["large"])


def test_an_evaluation_that_one_gpu_cannot_hold_is_refused(tmp_path):
    """The mixture's weights alone take more than this device has."""
    workflow = workflow_of(tmp_path)
    execution = workflow.study.execution.model_copy(update={"device_memory_gb": 0.03})
    small = replace(workflow, study=workflow.study.model_copy(update={"execution": execution}))
    run_id = trunks(workflow)["large-8x2"]
    assert Cluster(workflow, NODE).evaluate(run_id).gpus == 1
    with pytest.raises(UserError, match=r"on one GPU, and execution.device_memory_gb is 0.03; lower execution.eval_b"):
        Cluster(small, NODE).evaluate(run_id)


def test_trunks_are_cut_to_the_wall_time(tmp_path, monkeypatch):
    """Through a profile, as Snakemake and `upcycle plan --profile` read it: every request fits without being capped."""
    from upcycle.workflow import invocation

    study = dense_study([2_000_000])
    monkeypatch.setattr(invocation, "find_study", lambda name, root: study)
    whole = invocation.read_workflow("test", tmp_path)
    trunk = next(run for run in whole.plan.runs.values() if run.role == "trunk")
    hours = expected_seconds(trunk, study.execution, {}) / 3600
    (tmp_path / "nodes.yaml").write_text(
        f"study: test\nnode: {{cpus: 2, memory_gb: 16, max_hours: {0.25 + 1.5 * hours / 3}}}\n"
    )
    name, node, settings = split_config(read_profile(tmp_path))
    workflow = invocation.read_workflow(name, tmp_path, node, **settings)
    segments = [run for run in workflow.plan.runs.values() if run.role == "trunk"]
    assert len(segments) in (3, 4)
    longest = max(Cluster(workflow, node).train(run.id).minutes for run in segments)
    assert longest <= 60 * node.max_hours + 1


def test_a_plan_shows_requests_by_rule_and_model(tmp_path):
    rows = [line.split() for line in show_requests(workflow_of(tmp_path)).splitlines()]
    assert ["pretrain_moe", "large", "1", "2", "8", "64"] in [row[:6] for row in rows]
    assert sum(row[0] == "decay" for row in rows) == 2


@pytest.mark.parametrize(
    ("node", "named"), [({"cpu": 8}, "`cpu`.*cpus"), ({"cpus": 8, "memory_gb": 10}, "max_hours"), (3, "node")]
)
def test_a_wrong_node_is_named(node, named):
    with pytest.raises(UserError, match=named):
        split_config({"node": node})


def test_a_profile_without_nodes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nodes\.yaml"):
        read_profile(tmp_path)
