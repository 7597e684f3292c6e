"""`upcycle status` on real run folders: finished, stopped, live, killed, damaged; and it takes no lease."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import EXECUTION, MOE, VOCABULARY
from spawner import Spawner

from upcycle.study.plan import build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig
from upcycle.train.loop import train_run
from upcycle.views import status as module
from upcycle.views.plan_view import describe_plan
from upcycle.views.status import describe_status, show_status
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS

STUDY = {
    "study": "test",
    "data": {"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True},
    "context": 32,
    "execution": {"device": "cpu", "log_steps": 1},
    "models": {
        "tiny": {"n_layer": 1, "d_model": 16, "n_head": 2, "batch": 4, "warmup_steps": 2, "lr": 1e-2, "lr_moe": 1e-2}
    },
    "moes": {"4x2": MOE},
    "sweeps": {
        "dense": {"kind": "dense", "model": "tiny", "steps": [20, 3000]},
        "moe": {"kind": "moe", "model": "tiny", "moe": "4x2", "steps": 600},
    },
}


class Study:
    """The study in a folder of its own, with a first dense trunk point trained and its decay stopped at once."""

    def __init__(self, root: Path, tokens_dir: Path) -> None:
        self.tokens_dir = tokens_dir
        study = StudyConfig.model_validate(STUDY)
        self.workflow = Workflow(study, build_plan(study, RESULTS), root)
        runs = self.workflow.plan.runs.values()
        dense = sorted((run for run in runs if run.lineage == "dense"), key=lambda run: run.end_step)
        self.trunk, self.decay, self.long, self.last = dense
        self.moe_trunk, self.moe_decay = (run for run in runs if run.lineage == "moe")
        self.train(self.trunk)

    def folder(self, run: RunSpec) -> Path:
        return RESULTS / "runs" / run.id

    def folder_of(self, parent: str | None) -> Path | None:
        return RESULTS / "runs" / parent if parent else None

    def train(self, run: RunSpec) -> None:
        parent = self.folder_of(run.parent)
        train_run(run, run_dir=self.folder(run), tokens_dir=self.tokens_dir, parent_dir=parent, execution=EXECUTION)

    def start(self, spawner: Spawner, run: RunSpec) -> int:
        """Train in a process of its own, whose helper works in another folder; its pid."""
        parent = self.folder_of(run.parent)
        return spawner.start(run, self.folder(run).resolve(), self.tokens_dir, EXECUTION, parent and parent.resolve())

    def state(self, run: RunSpec) -> dict[str, Any]:
        return next(state for state in describe_status(self.workflow)["runs"] if state["id"] == run.id)


@pytest.fixture
def study(tmp_path: Path, tokens_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path, tokens_dir)


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    helper = Spawner()
    yield helper
    helper.close()


def wait_for_step(run_dir: Path, step: int) -> None:
    curve = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not curve.exists() or f'"step": {step},' not in curve.read_text():
        assert time.monotonic() < deadline, f"no row of step {step}"
        time.sleep(0.005)


def test_a_live_run_is_seen_with_its_pace_and_owner_and_is_left_alone(
    study: Study, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running with pid and host while the process lives; stopped, with what it goes on from, once it was killed."""
    pid = study.start(spawner, study.long)
    wait_for_step(study.folder(study.long), 25)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", None)  # a status that took a lease for a moment could stop a job from starting
        whole = describe_status(study.workflow)
        text = show_status(study.workflow, as_json=False, every_run=False)
    state = next(state for state in whole["runs"] if state["id"] == study.long.id)
    assert state["state"] == "running"
    assert (state["owner"]["pid"], state["owner"]["host"]) == (pid, socket.gethostname())
    assert study.trunk.end_step + 7 <= state["step"] < study.long.end_step
    assert state["tokens_per_second"] * state["step_seconds"] == pytest.approx(128, rel=1e-3)
    assert 0 < state["data_seconds"] < state["step_seconds"]
    assert 0 < state["mfu"] < 1
    assert state["row_age"] >= 0
    assert state["loss"] > 0
    assert state["heldout"] > 0
    steps_left = (study.long.end_step - state["step"]) * state["step_seconds"]
    measured = json.loads((study.folder(study.trunk) / "metrics.json").read_text())  # the one run that was measured
    assert steps_left <= state["seconds_left"] < 2 * steps_left + measured["wall_seconds"]
    total = whole["total"]
    assert (total["running"], total["finished"], total["not started"], total["side_by_side"]) == (1, 1, 4, 1)
    assert total["seconds_left"] == pytest.approx(total["job_seconds_left"])
    assert total["longest_chain_seconds"] < total["seconds_left"]
    assert whole["sweeps"]["moe"]["not started"] == whole["sweeps"]["moe"]["runs"] == 2
    (line,) = [line for line in text.splitlines() if line.startswith(study.long.id)]
    assert f"pid {pid} on {socket.gethostname()}" in line
    assert study.trunk.id not in text, "finished runs are shown with --all"
    assert not spawner.ended(), "the job goes on"

    os.kill(pid, signal.SIGKILL)
    spawner.exit_code()
    killed = study.state(study.long)
    assert (killed["state"], killed["note"]) == ("stopped", "nothing saved: starts from its first step")
    assert killed["owner"] is None


def test_a_stopped_run_says_where_it_goes_on(study: Study, spawner: Spawner) -> None:
    """After SIGTERM: the saved step, the last row's pace, no owner; then it is finished, by its own command."""
    pid = study.start(spawner, study.moe_trunk)
    wait_for_step(study.folder(study.moe_trunk), 4)
    os.kill(pid, signal.SIGTERM)
    assert spawner.exit_code() == 75
    stopped = study.state(study.moe_trunk)
    assert stopped["state"] == "stopped"
    assert stopped["saved_step"] == stopped["step"] >= 4
    assert stopped["note"] == f"continues from step {stopped['saved_step']}"
    assert stopped["owner"] is None
    study.train(study.moe_trunk)
    finished = study.state(study.moe_trunk)
    metrics = json.loads((study.folder(study.moe_trunk) / "metrics.json").read_text())
    assert finished["state"] == "finished"
    assert finished["seconds_left"] == 0
    assert (finished["heldout"], finished["mfu"]) == (metrics["loss"], metrics["mfu"])


def unfinished(study: Study) -> Path:
    """The first trunk's folder as a killed process leaves it: no metrics, no manifest, a signed lease."""
    run_dir = study.folder(study.trunk)
    for name in ("metrics.json", "manifest.json"):
        (run_dir / name).unlink()
    sign(run_dir, socket.gethostname())
    return run_dir


def sign(run_dir: Path, host: str) -> None:
    (run_dir / "lease").write_text(json.dumps({"host": host, "pid": os.getpid(), "since": "2026-01-01"}))


@pytest.mark.parametrize("torn", ['{"step": 19, "loss"', '{"step": 19, "lo\n', '"a word"\n', "\x00\x00"])
def test_a_torn_row_is_passed_over(study: Study, torn: str) -> None:
    """The last whole row counts, whatever follows it."""
    run_dir = unfinished(study)
    with (run_dir / "metrics.jsonl").open("a") as curve:
        curve.write(torn)
    assert study.state(study.trunk)["step"] == study.trunk.end_step


def test_a_long_curve_is_read_from_its_end(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the reading begins within is no damage."""
    unfinished(study)
    monkeypatch.setattr(module, "TAIL_BYTES", 700)
    assert study.state(study.trunk)["step"] == study.trunk.end_step
    assert 1 <= len(module.last_rows(study.folder(study.trunk) / "metrics.jsonl")) < study.trunk.end_step


def test_a_living_pid_without_the_lock_is_no_owner(study: Study) -> None:
    """The lease is the lock, not the name in it: this process signed, but holds nothing."""
    run_dir = unfinished(study)
    assert study.state(study.trunk)["state"] == "stopped"
    with (run_dir / "lease").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert study.state(study.trunk)["state"] == "running"
    assert module.holds(module.read_owner(run_dir / "lease"), run_dir / "lease", None) is True, "all that is known"


def test_an_owner_on_another_machine_counts_until_it_was_silent_for_long(study: Study) -> None:
    """Its lock cannot be seen from here: running while it writes, then silent, with the machine to look at."""
    run_dir = unfinished(study)
    sign(run_dir, "node17")
    state = study.state(study.trunk)
    assert (state["state"], state["owner"]["host"]) == ("running", "node17")
    long_ago = time.time() - 3600
    for path in (run_dir / "metrics.jsonl", run_dir / "lease"):
        os.utime(path, (long_ago, long_ago))
    state = study.state(study.trunk)
    assert state["state"] == "silent"
    assert state["note"] == "nothing written for 1 h: check whether it still runs on node17"
    assert study.trunk.id in show_status(study.workflow, as_json=False, every_run=False)


@pytest.mark.parametrize(
    ("name", "damage", "note"),
    [
        ("metrics.json", b"{}", "metrics.json lacks what training writes"),
        ("metrics.json", b'{"lo', "metrics.json lacks what training writes"),
        ("weights.safetensors", b"short", "weights.safetensors does not have the size that it was written with"),
        ("weights.safetensors", None, "weights.safetensors: No such file or directory"),
        ("manifest.json", None, "manifest.json: missing"),
    ],
)
def test_damage_that_can_be_seen_without_reading_weights_is_named(
    study: Study, name: str, damage: bytes | None, note: str
) -> None:
    path = study.folder(study.trunk) / name
    path.unlink() if damage is None else path.write_bytes(damage)
    state = study.state(study.trunk)
    assert state["state"] == "damaged"
    assert note in state["note"]
    text = show_status(study.workflow, as_json=False, every_run=False)
    assert f"{state['note']}\n" in text
    assert "restores metrics.json or names the damaged file; --fresh trains it again" in text


def test_nothing_is_written(study: Study) -> None:
    """Reading the status changes no file, and its JSON is complete."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    data = json.loads(show_status(study.workflow, as_json=True, every_run=False))
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    assert len(data["runs"]) == data["total"]["runs"] == len(study.workflow.plan.runs)
    assert set(data["sweeps"]) == {"dense", "moe"}


def test_times_left_are_those_of_the_plan_at_the_speed_of_so_many_devices(study: Study) -> None:
    """A trunk that was trained by two devices is half as fast by one, here as in `upcycle plan`."""
    waiting = study.state(study.decay)["seconds_left"]
    path = study.folder(study.trunk) / "metrics.json"
    metrics = json.loads(path.read_text())
    beside = metrics["wall_seconds"] - metrics["train_seconds"]
    path.write_text(path.read_text().replace('"devices": 1', '"devices": 2'))
    planned = {run["id"]: run["seconds"] for run in describe_plan(study.workflow)["runs"]}
    slower = study.state(study.decay)["seconds_left"]
    assert slower == pytest.approx(planned[study.decay.id] + beside)
    assert slower - beside == pytest.approx(2 * (waiting - beside))
