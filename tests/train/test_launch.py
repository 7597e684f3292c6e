"""Two real processes under `upcycle train`: signals, deaths, a second launch, and one message for all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import VOCABULARY, small_run, write_tokens
from torch.distributed.launcher.api import LaunchConfig

from upcycle.errors import UserError
from upcycle.study.spec import RunSpec
from upcycle.train.processes.launch import _raise_outcome
from upcycle.train.processes.preemption import Preempted, TrainingError
from upcycle.train.processes.words import End
from upcycle.train.states.lease import lease

pytestmark = pytest.mark.slow

STUDY = f"""
study: default
data: {{dataset: walk, vocab_size: {VOCABULARY}}}
datasets: {{walk: {{files: ["unused.txt"]}}}}
context: 32
execution: {{device: cpu, log_steps: 1, devices: 2, save_seconds: 3600}}
models: {{small: {{n_layer: 2, d_model: 16, n_head: 2, batch: 4, lr: 2e-2, lr_moe: 2e-2, warmup_steps: 4}}}}
sweeps: {{dense: {{kind: dense, model: small, tokens: [12e3]}}}}
"""
SITE = """
import atexit, os, time
atexit.register(lambda: open(os.environ["DESK"] + "/torn-down-" + os.environ.get("RANK", "launcher"), "w").close())
def fsync(descriptor, fsync=os.fsync):
    if os.path.exists(os.environ["SLOW_SAVES"]) and "/resume/" in os.readlink(f"/proc/self/fd/{descriptor}"):
        time.sleep(3600)
    fsync(descriptor)
os.fsync = fsync
"""
SHUTDOWN_SECONDS = 8
STOP_SECONDS = 30
"""From a signal to the launcher's end, as docs/cluster.md states it: what workers have not done by then is not done, as
torch kills them."""
PATIENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
"""For stops that must not be cut off, however busy the machine is."""
HANGS = 600
"""Seconds until a test gives up."""


class Desk:
    """A study folder and launches in it, their output caught."""

    def __init__(self, folder: Path, tokens_dir: Path) -> None:
        self.folder = folder
        self.launched: list[subprocess.Popen[str]] = []
        (folder / "results" / "tokens").mkdir(parents=True)
        (folder / "results" / "tokens" / small_run().data.tokens_id).symlink_to(tokens_dir)
        (folder / "config.yaml").write_text(STUDY)
        (folder / "code").mkdir()
        (folder / "code" / "sitecustomize.py").write_text(SITE)
        data = {"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True}
        self.run: RunSpec = small_run(end_step=100_000, data=data)
        (folder / "run.json").write_text(self.run.model_dump_json())
        self.run_dir = folder / "results" / "runs" / self.run.id
        self.slow_saves = folder / "slow"

    def launch(self, spec: str = "run.json", **variables: str) -> subprocess.Popen[str]:
        """Start the command, with `variables` in its environment."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.folder / "code"), os.environ.get("PYTHONPATH", "")]),
            "SLOW_SAVES": str(self.slow_saves),
            "DESK": str(self.folder),
        }
        command = [sys.executable, "-m", "upcycle.cli", "train", spec]
        launcher = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment | PATIENT | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.launched.append(launcher)
        return launcher

    def rows(self) -> list[int]:
        """Steps of the curve's rows."""
        curve = self.run_dir / "metrics.jsonl"
        lines = curve.read_text().split("\n")[:-1] if curve.exists() else []
        return [row["step"] for row in map(json.loads, lines) if "loss" in row]

    def launch_and_train(self, **variables: str) -> tuple[subprocess.Popen[str], list[int]]:
        """A launch that has begun to train; the pids of its two workers by rank."""
        saved = max((int(name[5:14]) for name in self.states() if not name.endswith(".tmp")), default=0)
        begun, curve = time.time(), self.run_dir / "metrics.jsonl"
        launcher = self.launch(**variables)
        deadline = time.monotonic() + HANGS
        # A resumed run writes its curve anew first, without the rows after its state.
        while not (curve.exists() and curve.stat().st_mtime > begun and self.rows()[-1:] > [saved + 1]):
            assert launcher.poll() is None, launcher.communicate()[1]
            assert time.monotonic() < deadline, "no new row"
            time.sleep(0.02)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        ranks = {rank_of(int(pid)): int(pid) for pid in children if rank_of(int(pid)) is not None}
        return launcher, [ranks["0"], ranks["1"]]

    def states(self) -> list[str]:
        return sorted(path.name[:14] + path.suffix for path in (self.run_dir / "resume").glob("*"))


def rank_of(pid: int) -> str | None:
    """RANK in a process's environment."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")), None)


def end(launcher: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and the launcher's last words: its lines that begin with the verb."""
    _, said = launcher.communicate(timeout=HANGS)
    return launcher.returncode, [line for line in said.splitlines() if line.startswith("upcycle train:")]


@pytest.fixture(scope="module")
def desk(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(tmp_path_factory.mktemp("desk"), tokens_dir)
    yield made
    for launcher in made.launched:
        launcher.kill()  # whatever a failed test has left; its workers go with it
        launcher.wait()


def test_a_damaged_block_of_tokens_ends_all_processes_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    tokens = write_tokens(tmp_path / "tokens")
    path = tokens / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    (tmp_path / "desk").mkdir()
    desk = Desk(tmp_path / "desk", tokens)
    code, said = end(desk.launch())
    assert code == 2
    (line,) = said
    assert "train-00000.bin: damaged in block 0 of 1" in line


def test_a_second_launch_is_refused_and_a_signal_to_one_worker_stops_all(desk: Desk) -> None:
    """Exit 75 naming the owner, once; then USR1 to the worker that does not write: state saved, 75."""
    launcher, pids = desk.launch_and_train()
    code, words = end(desk.launch())
    assert code == 75
    (message,) = words
    assert f"another process is writing this run: pid {pids[0]} on {os.uname().nodename}" in message
    assert launcher.poll() is None
    os.kill(pids[1], signal.SIGUSR1)
    code, words = end(launcher)
    assert code == 75
    (message,) = words
    assert "after step" in message
    assert len(desk.states()) == 1
    assert desk.rows()[-1] == int(desk.states()[0][5:14]), "the rows end where the state does"


def test_workers_leave_without_a_teardown_once_their_run_is_whole(desk: Desk) -> None:
    """A run to its end: the result is there, the first worker's line is printed, and what is registered to be done at
    exit is done by the launcher alone. (In the test before, workers were stopped.)"""
    run = small_run()
    (desk.folder / "short.json").write_text(run.model_dump_json())
    launcher = desk.launch("short.json")
    said, warned = launcher.communicate(timeout=HANGS)
    assert launcher.returncode == 0, warned
    assert f"{run.id}: held-out loss" in said
    assert (desk.folder / "results" / "runs" / run.id / "metrics.json").exists()
    assert [path.name for path in desk.folder.glob("torn-down-*")] == ["torn-down-launcher"]


def test_the_stated_time_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that the documentation promises is when torch kills workers, here as under a user's own torchrun."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2).shutdown_timeout == STOP_SECONDS
    stated = " ".join((Path(__file__).parents[2] / "docs" / "cluster.md").read_text().split())
    assert f"exits 75, within {STOP_SECONDS} s of the first signal" in stated


def test_a_save_that_does_not_fit_is_cut_off_and_the_last_state_serves(desk: Desk) -> None:
    """Saves that never end, killed after eight seconds: 75, no half state counts, and the same command goes on."""
    (before,) = desk.states()
    launcher, _ = desk.launch_and_train(TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(SHUTDOWN_SECONDS))
    desk.slow_saves.touch()
    launcher.send_signal(signal.SIGTERM)
    code, words = end(launcher)
    desk.slow_saves.unlink()
    assert code == 75
    assert "SIGTERM, and ended before a new state was saved; the last one is kept" in words[0]
    assert before in desk.states()
    assert any(name.endswith(".tmp") for name in desk.states())


def test_signals_to_the_launcher_save_resume_and_exit_75(desk: Desk) -> None:
    """Resumed from the state of the first test; two SIGTERMs and a USR1 in a row are one stop."""
    (before,) = [name for name in desk.states() if not name.endswith(".tmp")]
    launcher, _ = desk.launch_and_train()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        launcher.send_signal(number)
        time.sleep(0.05)
    code, words = end(launcher)
    assert code == 75
    assert len(words) == 1
    assert len(desk.states()) == 2
    assert desk.states()[0] == before
    steps = desk.rows()
    assert steps == list(range(1, len(steps) + 1)), "no row is missing or doubled"
    assert steps[-1] == int(desk.states()[1][5:14])


def test_a_worker_that_dies_ends_the_job_with_its_name(desk: Desk) -> None:
    states = desk.states()
    launcher, pids = desk.launch_and_train()
    os.kill(pids[1], signal.SIGKILL)
    code, words = end(launcher)
    assert code == 1
    assert words == [
        "upcycle train: process 1 of 2 was killed by SIGKILL. The last saved state is kept: the same command continues"
    ]
    assert desk.states() == states


def test_workers_die_with_their_launcher_and_the_lease_with_them(desk: Desk) -> None:
    launcher, pids = desk.launch_and_train()
    with pytest.raises(UserError, match=f"pid {pids[0]}"), lease(desk.run_dir):
        pass
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + HANGS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "orphans train on"
        time.sleep(0.02)
    with lease(desk.run_dir):
        pass


def is_alive(pid: int) -> bool:
    """Whether a process computes (a zombie waiting for its reaper does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


TERM, KILL = -signal.SIGTERM, -signal.SIGKILL


@pytest.mark.parametrize(
    ("ends", "codes", "stopped_by", "expected"),
    [
        ({0: End(0, ""), 1: End(0, "")}, {}, None, None),
        ({0: End(0, ""), 1: End(0, "")}, {}, signal.SIGTERM, None),
        ({1: End(2, "bad key")}, {0: 2, 1: 2}, None, UserError("bad key")),
        ({0: End(75, "first"), 1: End(75, "second")}, {0: 75, 1: 75}, None, Preempted("first")),
        ({1: End(75, "saved")}, {0: TERM, 1: 75}, None, Preempted("saved")),
        ({1: End(1, "bad")}, {}, signal.SIGTERM, TrainingError("bad")),
        ({1: End(3, "disk is full")}, {}, signal.SIGTERM, TrainingError("disk is full", 3)),
        ({0: End(75, "saved"), 1: End(3, "disk is full")}, {0: 75, 1: 3}, None, TrainingError("disk is full", 3)),
        ({0: End(75, "saved")}, {0: 75, 1: KILL}, None, Preempted("saved")),
        ({0: End(0, "")}, {}, signal.SIGUSR1, Preempted("stopped by SIGUSR1, and ended before")),
        ({0: End(1, "peer gone")}, {0: 1, 1: KILL}, None, TrainingError("process 1 of 2 was killed by SIGKILL")),
        ({0: End(1, "loss nan"), 1: End(1, "loss nan")}, {0: 1, 1: TERM}, None, TrainingError("loss nan")),
        ({}, {1: 1, 0: TERM}, None, TrainingError("process 1 of 2 failed with exit code 1; its words are above")),
    ],
)
def test_many_ends_make_one(
    ends: dict[int, End],
    codes: dict[int, int],
    stopped_by: signal.Signals | None,
    expected: BaseException | None,
) -> None:
    if expected is None:
        _raise_outcome(ends, codes, stopped_by, devices=2)
        return
    with pytest.raises(type(expected), match=str(expected)):
        _raise_outcome(ends, codes, stopped_by, devices=2)
