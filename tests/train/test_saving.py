"""Saving in the background: a snapshot in time, one save at a time, errors heard, and no bit of training changed."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_runs import EXECUTION, small_run, tensors_sha256, train_in

from upcycle.errors import UserError
from upcycle.train.evaluate import sequence_losses
from upcycle.train.processes.preemption import Preempted, TrainingError
from upcycle.train.states.checkpoint import safetensors_parts
from upcycle.train.states.rolling import load_rolling, save_rolling
from upcycle.train.states.saving import Saver

NOTES = {"id": "dense-x"}


def test_the_files_are_the_librarys_byte_for_byte() -> None:
    """Any shapes, more than one type, names beyond ASCII, memory that is not contiguous, with and without notes."""
    tensors = {
        "model.b": torch.randn(3, 5).T,
        "model.a": torch.arange(7, dtype=torch.int64),
        "model.é": torch.randn(2, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 4),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    for notes in (None, {"notes": json.dumps({"id": "x"})}):
        assert b"".join(safetensors_parts(tensors, notes)) == safetensors.torch.save(contiguous, notes)


class Gate:
    """A `before` that holds the background save until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(20)


def step_loaded(folder: Path) -> tuple[int, float] | None:
    """Step and value of the newest state."""
    state = load_rolling(folder, "dense-x")
    if state is None:
        return None
    tensors = {"model.w": torch.empty(4)}
    state.fill(tensors)
    return state.step, tensors["model.w"][0].item()


def test_save_returns_with_a_snapshot_and_publishes_it_later(tmp_path: Path) -> None:
    """While the rows before it are not durable no state is there; what is published is the moment of the call."""
    weight, gate, seconds = torch.full((4,), 1.0), Gate(), []
    with Saver() as saver:
        saver.save(tmp_path / "resume", 1, {"model.w": weight}, NOTES, before=gate, after=seconds.append)
        assert gate.reached.wait(20)
        weight.fill_(2.0)  # the next update
        assert step_loaded(tmp_path / "resume") is None
        gate.opened.set()
        saver.wait()
        assert step_loaded(tmp_path / "resume") == (1, 1.0)
        assert len(seconds) == 1
        assert seconds[0] > 0
        saver.save(tmp_path / "resume", 2, {"model.w": weight}, NOTES, before=lambda: None, after=seconds.append)
    assert step_loaded(tmp_path / "resume") == (2, 2.0), "the end of the context waits"


def test_a_new_save_waits_for_the_one_under_way(tmp_path: Path) -> None:
    """Two states, both whole: the buffers of the first are not written over while it is being saved."""
    weight, gate = torch.full((4,), 1.0), Gate()
    with Saver() as saver:
        saver.save(tmp_path / "resume", 1, {"model.w": weight}, NOTES, before=gate, after=lambda _: None)
        weight.fill_(2.0)
        opener = threading.Timer(0.2, gate.opened.set)
        opener.start()
        saver.save(tmp_path / "resume", 2, {"model.w": weight}, NOTES, before=lambda: None, after=lambda _: None)
        assert gate.opened.is_set()
    newest, older = sorted((tmp_path / "resume").iterdir(), reverse=True)
    assert step_loaded(tmp_path / "resume") == (2, 2.0)
    newest.unlink()
    assert older.exists()
    assert step_loaded(tmp_path / "resume") == (1, 1.0)


def test_an_error_is_raised_by_the_next_call_once(tmp_path: Path) -> None:
    weight = {"model.w": torch.ones(4)}

    def fails() -> None:
        raise TrainingError("the disk is full")

    with Saver() as saver:
        saver.save(tmp_path / "resume", 1, weight, NOTES, before=fails, after=lambda _: None)
        with pytest.raises(TrainingError, match="full"):
            saver.save(tmp_path / "resume", 2, weight, NOTES, before=lambda: None, after=lambda _: None)
        saver.save(tmp_path / "resume", 3, weight, NOTES, before=fails, after=lambda _: None)
        with pytest.raises(TrainingError, match="full"):
            saver.wait()
        saver.wait()


def test_at_the_end_an_error_is_raised_unless_another_is_on_its_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise TrainingError("the disk is full")

    def save(saver: Saver) -> None:
        saver.save(tmp_path, 1, {"model.w": torch.ones(4)}, NOTES, before=fails, after=lambda _: None)

    def save_then_load() -> None:
        with Saver() as saver:
            save(saver)
            load_rolling(damaged.parent, "dense-x")

    damaged = save_rolling(tmp_path / "resume", 1, {"model.w": torch.ones(4)}, NOTES)
    damaged.write_bytes(b"")
    with pytest.raises(TrainingError, match="full"), Saver() as saver:
        save(saver)
    with pytest.raises(UserError, match="no state in it is valid"):
        save_then_load()
    assert "the last save failed: the disk is full" in caplog.text


def test_a_failed_save_is_no_preemption(tmp_path: Path) -> None:
    """Stopped while a save is under way that then fails: its words and exit code 1, not 75, which says "saved"."""

    def fails() -> None:
        raise TrainingError("the disk is full")

    def save_and_stop() -> None:
        with Saver() as saver:
            saver.save(tmp_path, 1, {"model.w": torch.ones(4)}, NOTES, before=fails, after=lambda _: None)
            raise Preempted("stopped")

    with pytest.raises(TrainingError, match="full"):
        save_and_stop()


def test_saving_changes_no_bit_and_its_two_times_are_recorded(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state after every step against none before the end; each save takes a second by its own clock."""
    ticks = itertools.count()
    monkeypatch.setattr("upcycle.train.states.saving.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    run = small_run()
    always = train_in(tmp_path / "always", tokens_dir, run, EXECUTION.model_copy(update={"save_seconds": 1e-6}))
    never = train_in(tmp_path / "never", tokens_dir, run)
    assert tensors_sha256(always) == tensors_sha256(never)
    times = [json.loads((folder / "metrics.json").read_text()) for folder in (always, never)]
    assert [each["save_background_seconds"] for each in times] == [run.end_step, 1]
    assert times[0]["save_seconds"] > 0


def test_the_last_evaluation_begins_when_the_last_state_is_published(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that takes its time is waited for: what a kill or stop costs from then on is the evaluation alone."""
    run, states = small_run(), []

    def slowly(folder: Path, *state: Any) -> Path:
        time.sleep(0.3)
        return save_rolling(folder, *state)

    def watched(*arguments: Any) -> np.ndarray:
        states.append(sorted(path.name[:14] for path in (tmp_path / run.id / "resume").iterdir()))
        return sequence_losses(*arguments)

    monkeypatch.setattr("upcycle.train.states.saving.rolling.save_rolling", slowly)
    monkeypatch.setattr("upcycle.train.finish.sequence_losses", watched)
    train_in(tmp_path, tokens_dir, run)
    assert states == [["step-000000012"]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("save of")]


def test_a_kept_state_outlives_the_folder_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new `resume` folder itself is made durable before a state is published in it."""
    synced: list[Path] = []
    monkeypatch.setattr("upcycle.train.states.folder.sync_folder", synced.append)
    save_rolling(tmp_path / "resume", 1, {"model.w": torch.ones(4)}, NOTES)
    save_rolling(tmp_path / "resume", 2, {"model.w": torch.ones(4)}, NOTES)
    assert synced == [tmp_path]
