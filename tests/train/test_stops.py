"""Stops: preemption, a second writer, a non-finite loss, a full disk, and finding a run finished."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
import torch
from preempted import preempt_at, preempted_at
from small_runs import EXECUTION, VOCABULARY, rows_of, small_run, tensors_sha256, train_in
from spawner import Spawner

from upcycle.errors import UserError
from upcycle.model.transformer import Transformer
from upcycle.study.spec import RunSpec
from upcycle.train.processes.preemption import Preempted, StopRequest, TrainingError
from upcycle.train.record import MetricsLog
from upcycle.train.states.lease import lease

SAVE_ALWAYS = EXECUTION.model_copy(update={"save_seconds": 1e-6})


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    helper = Spawner()
    yield helper
    helper.close()


def long_run() -> RunSpec:
    """Far more steps than any test waits for."""
    return small_run(end_step=3000, data={"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True})


def wait_for_rows(spawner: Spawner, run_dir: Path, count: int) -> None:
    """Until the curve has that many rows."""
    curve = run_dir / "metrics.jsonl"
    while not curve.exists() or len(curve.read_text().splitlines()) < count:
        assert not spawner.ended(), f"the training ended with {spawner.exit_code()}"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_exits_75_and_the_same_command_goes_on(
    number: signal.Signals, spawner: Spawner, tokens_dir: Path, tmp_path: Path
) -> None:
    """A real process that gets the signal leaves with 75 after its step, one state saved; then it is resumed."""
    run = long_run()
    run_dir = tmp_path / run.id
    pid = spawner.start(run, run_dir, tokens_dir, EXECUTION)
    wait_for_rows(spawner, run_dir, 4)
    os.kill(pid, number)
    assert spawner.exit_code() == 75
    (saved,) = (run_dir / "resume").iterdir()
    step = int(saved.name[5:14])
    assert rows_of(run_dir)[-1]["step"] == step, "the rows end where the state does"
    pid = spawner.start(run, run_dir, tokens_dir, EXECUTION)
    wait_for_rows(spawner, run_dir, len(rows_of(run_dir)) + 3)
    os.kill(pid, number)
    assert spawner.exit_code() == 75
    steps = [row["step"] for row in rows_of(run_dir) if "loss" in row]
    assert steps == list(range(1, steps[-1] + 1)), "no row is missing or doubled"
    assert steps[-1] > step + 1


def test_a_second_writer_is_kept_out_and_told_who_holds_the_lease(
    spawner: Spawner, tokens_dir: Path, tmp_path: Path
) -> None:
    """The message names pid and host; when the owner is killed its lease is free at once."""
    run = long_run()
    run_dir = tmp_path / run.id
    pid = spawner.start(run, run_dir, tokens_dir, EXECUTION)
    wait_for_rows(spawner, run_dir, 3)
    with pytest.raises(UserError, match=f"pid {pid} on {os.uname().nodename} since 20"):
        train_in(tmp_path, tokens_dir, run)
    os.kill(pid, signal.SIGKILL)
    spawner.exit_code()
    with lease(run_dir):
        assert json.loads((run_dir / "lease").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused_naming_folder_and_mend(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("upcycle.train.states.lease.fcntl.flock", without)
    with pytest.raises(UserError, match=f"{tmp_path}: its file system has no locks .*-o flock"), lease(tmp_path):
        pass


def test_a_non_finite_loss_stops_by_name_and_overwrites_nothing(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names step and value; the last good state stays, and finishes the run once the cause is mended."""
    run, reference = small_run(), small_run()
    forward, calls = Transformer.forward, 0

    def poisoned(self: Transformer, *arguments: torch.Tensor, **named: bool) -> object:
        nonlocal calls
        output = forward(self, *arguments, **named)
        calls += self.training
        return output._replace(loss=output.loss * torch.nan) if calls == 8 and self.training else output

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "forward", poisoned)
        with pytest.raises(TrainingError, match=r"step 8: loss nan.*optim\.lr") as stop:
            train_in(tmp_path, tokens_dir, run, SAVE_ALWAYS)
    assert stop.value.exit_code == 3
    run_dir = tmp_path / run.id
    assert max(path.name for path in (run_dir / "resume").iterdir()).startswith("step-000000007")
    assert not (run_dir / "metrics.json").exists()
    train_in(tmp_path, tokens_dir, run)
    train_in(tmp_path / "undisturbed", tokens_dir, reference)
    assert tensors_sha256(run_dir) == tensors_sha256(tmp_path / "undisturbed" / run.id)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_mend_and_keeps_the_state(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """The message says what to lower; the last state stays. Any other error passes through as it is."""
    run = small_run()
    forward, calls = Transformer.forward, 0

    def greedy(self: Transformer, *arguments: torch.Tensor, **named: bool) -> object:
        nonlocal calls
        calls += self.training
        if calls == 8 and self.training:
            raise error
        return forward(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "forward", greedy)
        with pytest.raises(TrainingError, match=r"out of memory.*execution\.micro_batch"):
            train_in(tmp_path, tokens_dir, run, SAVE_ALWAYS)
        assert max(path.name for path in (tmp_path / run.id / "resume").iterdir()).startswith("step-000000007")
        calls, error = 7, RuntimeError("another")
        with pytest.raises(RuntimeError, match="another"):
            train_in(tmp_path, tokens_dir, run, SAVE_ALWAYS)


def test_a_full_disk_keeps_the_last_state_and_names_the_mend(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC while saving: the message says what to do, no half file stays, and the run goes on once there is room."""
    run = small_run()
    run_dir = tmp_path / run.id
    fsync, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        if "resume" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            count += 1
            if count == 7:  # file and folder for three states, then the fourth's file
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"disk is full.*intact.*free some space"):
            train_in(tmp_path, tokens_dir, run, SAVE_ALWAYS)
    assert [path.name[:14] for path in sorted((run_dir / "resume").iterdir())] == ["step-000000002", "step-000000003"]
    train_in(tmp_path, tokens_dir, run)
    train_in(tmp_path / "undisturbed", tokens_dir, run)
    assert tensors_sha256(run_dir) == tensors_sha256(tmp_path / "undisturbed" / run.id)


def test_a_disk_too_full_for_a_row_keeps_the_last_state_and_names_the_mend(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rows fit and a part of the eighth, which is cut off when the run goes on: its bits and rows are whole."""
    run = small_run()
    run_dir = tmp_path / run.id
    write, count = FileIO.write, 0

    class Full(FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            nonlocal count
            count += 1
            if count == 9:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, data[:20] if count == 8 else data)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "__enter__", lambda log: setattr(log, "_file", Full(log._path, "ab")) or log)
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: the disk is full.*intact.*free some space"):
            train_in(tmp_path, tokens_dir, run, SAVE_ALWAYS)
    assert (run_dir / "metrics.jsonl").read_bytes()[-21:-20] == b"\n"
    train_in(tmp_path, tokens_dir, run)
    train_in(tmp_path / "undisturbed", tokens_dir, run)
    assert tensors_sha256(run_dir) == tensors_sha256(tmp_path / "undisturbed" / run.id)
    assert rows_of(run_dir) == rows_of(tmp_path / "undisturbed" / run.id)


def test_a_finished_run_is_verified_and_its_declared_output_restored(
    tokens_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A workflow that runs the job again removes metrics.json first: it comes back, byte for byte, without training."""
    run = small_run()
    run_dir = train_in(tmp_path, tokens_dir, run)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.name != "lease"}
    (run_dir / "metrics.json").unlink()
    with caplog.at_level("INFO"):
        train_in(tmp_path, tokens_dir, run)
    assert "verified" in caplog.text
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.name != "lease"} == before


def test_fresh_trains_a_finished_run_again(tokens_dir: Path, tmp_path: Path) -> None:
    """`fresh` starts over: new times, the same bits."""
    run = small_run()
    run_dir = train_in(tmp_path, tokens_dir, run)
    before = tensors_sha256(run_dir)
    stamp = (run_dir / "weights.safetensors").stat().st_mtime_ns
    train_in(tmp_path, tokens_dir, run, fresh=True)
    assert (run_dir / "weights.safetensors").stat().st_mtime_ns > stamp
    assert tensors_sha256(run_dir) == before


def test_fresh_goes_on_after_a_preemption(tokens_dir: Path, tmp_path: Path) -> None:
    """The finished result is discarded, the new training stopped; the same command goes on from where that was."""
    run = small_run()
    before = tensors_sha256(train_in(tmp_path, tokens_dir, run))
    with preempted_at(5):
        train_in(tmp_path, tokens_dir, run, fresh=True)
    run_dir = tmp_path / run.id
    assert not (run_dir / "metrics.json").exists()
    train_in(tmp_path, tokens_dir, run, fresh=True)
    assert json.loads((run_dir / "metrics.json").read_text())["resumed"] == 1
    assert tensors_sha256(run_dir) == before


@pytest.mark.parametrize("found", ["damaged state", "late kill"])
def test_fresh_begins_anew_where_nothing_valid_is_unfinished(found: str, tokens_dir: Path, tmp_path: Path) -> None:
    """No state that can be loaded; or one that a kill has left beside the finished result."""
    run = small_run()
    preempt_at(5, tmp_path, tokens_dir, run)
    (state,) = (tmp_path / run.id / "resume").iterdir()
    data = state.read_bytes()
    if found == "damaged state":
        state.write_bytes(data[:-1])
    else:
        train_in(tmp_path, tokens_dir, run)
        state.parent.mkdir()
        state.write_bytes(data)
    train_in(tmp_path, tokens_dir, run, fresh=True)
    assert json.loads((tmp_path / run.id / "metrics.json").read_text())["resumed"] == 0


@pytest.mark.slow
def test_a_stop_during_the_last_evaluation_leaves_it_between_two_batches() -> None:
    """The state was saved before the evaluation, so its next batch is simply not begun."""
    with StopRequest() as stop:
        batches = stop.watch([1, 2, 3])
        assert next(batches) == 1
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Preempted, match="SIGUSR1") as preempted:
            next(batches)
    assert preempted.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the handlers before are back"
