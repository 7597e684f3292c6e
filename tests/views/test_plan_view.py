"""Times that `upcycle plan` and `status` state before anything was measured, and what they are from."""

import json
import math
import re
from pathlib import Path

import pytest
from small_studies import dense_study

from upcycle.study.counting import flops_per_token
from upcycle.study.plan import build_plan
from upcycle.views.plan_view import describe_plan, show_plan
from upcycle.views.status import describe_status
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import Node
from upcycle.workflow.paths import RESULTS
from upcycle.workflow.resources import Cluster


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def workflow(**execution) -> Workflow:
    small = dense_study([400, 1000])
    small = small.model_copy(update={"execution": small.execution.model_copy(update=execution)})
    return Workflow(small, build_plan(small, RESULTS), RESULTS)


@pytest.mark.parametrize(
    ("execution", "rate", "source"),
    [
        ({}, 1e10, "the default for a CPU's thread (1e+10 FLOP/s; execution.flops_per_second)"),
        ({"threads": 4}, 4e10, "the default for a CPU's thread (1e+10 FLOP/s; execution.flops_per_second)"),
        ({"device": "cuda", "devices": 8}, 8 * 400e12, "the default for a GPU (an H100) (4e+14 FLOP/s; execution.fl"),
        ({"flops_per_second": 2e9, "devices": 2}, 4e9, "execution.flops_per_second (2e+09)"),
    ],
)
def test_times_are_a_devices_own_before_anything_is_measured(execution, rate, source):
    """A CPU study without a rate of its own is planned at a CPU's, not at an H100's; and the plan says at which."""
    planned = workflow(**execution)
    flops = flops_per_token(planned.study.model_spec("tiny")) * 8 * 256 * (900 + 40 + 100)
    plan = describe_plan(planned)
    assert plan["total"]["seconds_to_train"] == pytest.approx(flops / rate)
    text = show_plan(planned, as_json=False, every_run=False)
    assert f"Job time: the sum over jobs, which run side by side, by {source}" in text
    assert not re.search(r" 0 s\b", text)
    assert describe_status(planned)["total"]["job_seconds_left"] == pytest.approx(flops / rate)


def write_speed(folder: Path, speed: float, **execution) -> None:
    times = {"segment_tokens": 2 * speed, "train_seconds": 2, "wall_seconds": 3}
    metrics = times | {"execution": {"device": "cpu", "devices": 1} | execution}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_times_are_measured_once_a_run_of_the_shape_is_finished():
    planned = workflow()
    first = next(iter(planned.plan.runs.values()))
    folder = RESULTS / "runs" / first.id
    folder.mkdir(parents=True)
    write_speed(folder, 500)
    tokens = (900 + 40 + 100 - first.end_step) * 8 * 256
    assert describe_plan(planned)["total"]["seconds_to_train"] == pytest.approx(tokens / 500)
    assert "by measured speed." in show_plan(planned, as_json=False, every_run=False)


def test_a_speed_is_that_of_so_many_devices_of_a_kind():
    """Measured with one, it is scaled to two, and the plan says so; one of a GPU tells nothing about a CPU."""
    planned = workflow(devices=2)
    first, second, *_ = planned.plan.runs.values()
    tokens = (900 + 40 + 100 - first.end_step) * 8 * 256
    folder = RESULTS / "runs" / first.id
    folder.mkdir(parents=True)
    write_speed(folder, 500)
    assert describe_plan(planned)["total"]["seconds_to_train"] == pytest.approx(tokens / 1000)
    words = "by the speed measured with 1 device, taken as proportional to the number of devices."
    assert words in show_plan(planned, as_json=False, every_run=False)
    assert Cluster(planned, Node(cpus=8, memory_gb=64, max_hours=24)).train(second.id).minutes == math.ceil(
        15 + 1.5 * second.segment_tokens / 1000 / 60
    )
    write_speed(folder, 800, devices=2)
    assert describe_plan(planned)["total"]["seconds_to_train"] == pytest.approx(tokens / 800)
    assert "by measured speed." in show_plan(planned, as_json=False, every_run=False)
    write_speed(folder, 5e6, device="cuda")
    assert describe_plan(planned)["total"]["seconds_to_train"] > 100 * tokens / 5e6
    assert "by the default for a CPU's thread" in show_plan(planned, as_json=False, every_run=False)


def test_a_cpus_trunk_is_cut_at_a_cpus_rate():
    step = flops_per_token(dense_study([400]).model_spec("tiny")) * 8 * 256
    hours = 100.5 * step / 1e10 / 3600
    ends = sorted(run.end_step for run in workflow(max_segment_hours=hours).plan.runs.values() if run.role == "trunk")
    assert ends == [100, 200, 300, 360, 460, 560, 660, 760, 860, 900]
