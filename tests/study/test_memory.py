"""The memory formula's parts and policies, and what `upcycle plan` says of them. Its truth is tested in tests/train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upcycle.errors import UserError
from upcycle.study.execution import Execution, ModelExecution
from upcycle.study.memory import Memory, peak_memory
from upcycle.study.plan import build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, load_study
from upcycle.views.plan_view import describe_plan, show_plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS

REPOSITORY = Path(__file__).parents[2]
PARTS = ("weights", "optimizer", "gradients", "activations", "working", "snapshot", "process")


def run_of(**changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "model": {"n_layer": 30, "d_model": 1504, "n_head": 16, "vocab_size": 32000, "context": 1024},
        "data": {"dataset": "words", "vocab_size": 32000},
        "optim": {"lr": 1e-3, "batch": 1024},
        "schedule": {},
        "end_step": 2,
        "dtype": "bfloat16",
        "moe": {"n_expert": 8, "top_k": 2},
    }
    return RunSpec.model_validate(fields | changes)


def peak(run: RunSpec, **execution: Any) -> Memory:
    return peak_memory(run, Execution(**({"device": "cuda", "devices": 8, "micro_batch": 8} | execution)))


@pytest.mark.parametrize(
    ("less", "part"),
    [
        ({"micro_batch": 8}, "activations"),
        ({"activation_checkpointing": "block"}, "activations"),
        ({"cross_entropy": "chunked"}, "working"),
        ({"devices": 16}, "optimizer"),
        ({"tensor_parallel": 2}, "activations"),
    ],
)
def test_what_is_meant_to_save_memory_saves_it(less: dict[str, Any], part: str) -> None:
    """Each policy lowers the part that it is there for, and the peak."""
    before, after = peak(run_of(), micro_batch=16), peak(run_of(), **{"micro_batch": 16} | less)
    assert getattr(after, part) < getattr(before, part) or before.moment != after.moment
    assert after.peak < before.peak


def test_weights_gradients_and_moments_are_shared_by_processes() -> None:
    """16 bytes a parameter on one process, a part of it on several; gathered blocks are extra."""
    run = run_of(dtype="float32", model=run_of().model.model_copy(update={"context": 8}))
    one, eight = peak(run, devices=1, micro_batch=8), peak(run, devices=8, micro_batch=8)
    parameters = 6_786_500_704 + 2 * 32000 * 1504
    assert one.weights == pytest.approx(4 * parameters)
    assert one.optimizer == pytest.approx(8 * parameters)
    assert eight.optimizer == pytest.approx(one.optimizer / 8, rel=1e-3)
    assert eight.weights > 4 * parameters / 8 + 2 * 4 * 6_786_500_704 / 30 * 0.99, "two blocks are gathered"


def test_a_cpu_holds_the_snapshot_of_a_save_itself() -> None:
    """Three float32 numbers a parameter on a CPU; on CUDA it is in the host's memory."""
    run = run_of(dtype="float32")
    on_cpu = peak(run, device="cpu", devices=1)
    assert on_cpu.snapshot == pytest.approx(1.5 * on_cpu.optimizer)
    assert peak(run).snapshot == 0


def test_an_exchange_once_an_update_keeps_weights_and_gradients_whole() -> None:
    """2 bytes of each block's matrices from then on, with accumulation 4 more; their shards' gradients not yet."""
    run = run_of(moe=None)
    block, vocabulary = 16 * 1504**2, 2 * 32000 * 1504
    often, once = peak(run, micro_batch=4), peak(run, micro_batch=4, exchange="update")
    assert often.moment == once.moment == "loss"
    assert once.weights - often.weights == pytest.approx(2 * 28 * block)
    assert once.gradients == pytest.approx(4 * (30 * block + vocabulary), rel=1e-4)
    assert once.gradients == pytest.approx(8 * often.gradients, rel=1e-3)
    single = peak(run, micro_batch=128, exchange="update")
    assert single.gradients == 0, "one pass an update sums gradients as it goes"


def test_the_micro_batch_is_at_most_a_processs_share() -> None:
    """Of a batch of 1,024 over 8 processes, 128 sequences are a process's own: more cannot be asked for."""
    assert peak(run_of(), micro_batch=512).peak == peak(run_of(), micro_batch=None).peak
    assert peak(run_of(), micro_batch=128).gradients == 0, "the gradients of one pass over all are not there at first"


def plan_of(study: StudyConfig, root: Path, **execution: Any) -> Workflow:
    study = study.model_copy(update={"execution": study.execution.model_copy(update=execution)})
    return Workflow(study, build_plan(study, root), root)


@pytest.mark.slow
def test_the_papers_sizes_fit_80_gb_with_its_micro_batch_and_not_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` states the largest peak of each sweep, parts in the JSON, and warns by name with the mend."""
    monkeypatch.chdir(tmp_path)
    paper = load_study(REPOSITORY / "config" / "paper.yaml")
    workflow = plan_of(paper, tmp_path)
    plan = describe_plan(workflow)
    assert 30e9 < plan["total"]["peak_bytes"] < 80e9
    assert plan["total"]["peak_bytes"] == max(sweep["peak_bytes"] for sweep in plan["sweeps"].values())
    for run in plan["runs"]:
        assert run["peak_bytes"] == pytest.approx(sum(run["memory"][part] for part in PARTS), abs=1)
    assert 30e9 < plan["sweeps"]["moe"]["peak_bytes"] < plan["sweeps"]["configuration"]["peak_bytes"]
    text = show_plan(workflow, as_json=False, every_run=False)
    assert "WARNING" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("moe ")]
    assert line.endswith(f"{plan['sweeps']['moe']['peak_bytes'] / 1e9:,.0f} GB")

    plain = {"execution": ModelExecution(), "execution_moe": ModelExecution()}
    models = {name: model.model_copy(update=plain) for name, model in paper.models.items()}
    paper = paper.model_copy(update={"models": models})
    text = show_plan(plan_of(paper, tmp_path, micro_batch=None), as_json=False, every_run=True)
    (warning,) = [line for line in text.splitlines() if line.startswith("WARNING")]
    assert "execution.device_memory_gb is 80" in warning
    assert "moe-l30d1504-e8k2" in warning or "up-l30d1504-e8k2" in warning
    assert all(mend in warning for mend in ("micro_batch", "activation_checkpointing: block", "devices"))
    unstated = plan_of(paper, tmp_path, micro_batch=None, device_memory_gb=None)
    assert "WARNING" not in show_plan(unstated, as_json=False, every_run=False)


@pytest.mark.parametrize("content", ["{}", "[]", '{"segment_tokens": 1, "train_seconds": null}'])
def test_a_plan_names_metrics_that_state_no_speed(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workflow = plan_of(load_study(REPOSITORY / "config" / "paper.yaml"), tmp_path)
    run_id = next(iter(workflow.plan.runs))
    path = RESULTS / "runs" / run_id / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match=f"{run_id}/metrics.json is damaged: "):
        describe_plan(workflow)
