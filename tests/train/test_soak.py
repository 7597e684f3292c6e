"""SIGKILL at any moment: the same command again, as often as needed, ends in the bits of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import EXECUTION, MOE, rows_of, small_run, tensors_sha256, train_in, upcycled_run
from spawner import Spawner

from upcycle.spec import RunSpec

# A state after every step: saves are then a third of a run's time.
EXECUTION = EXECUTION.model_copy(update={"save_seconds": 1e-6})
N_STEPS = 24
KILLS = 20
SHARE_IN_SAVE = 0.2


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    helper = Spawner()
    yield helper
    helper.close()


def test_killed_at_any_moment_ends_in_the_same_bits(spawner: Spawner, tokens_dir: Path, tmp_path: Path) -> None:
    """At least 20 SIGKILLs after a first step, at least a fifth of them inside a save; weights, moments, rows equal."""
    draw = random.Random(1)
    reference, victims = tmp_path / "reference", tmp_path / "victims"
    dense = small_run(end_step=N_STEPS)
    runs = [dense, small_run(end_step=N_STEPS, moe=MOE), upcycled_run(dense, end_step=N_STEPS)]
    for run in runs:
        train_in(reference, tokens_dir, run)
    phases: Counter[str] = Counter()
    rounds = 0
    while phases.total() < KILLS or phases["inside a save"] < SHARE_IN_SAVE * phases.total():
        rounds += 1
        assert rounds <= 12, f"too few kills landed: {phases}"
        for run in runs:
            folder = victims / str(rounds) / run.id
            folder.mkdir(parents=True)
            parent = reference / run.parent if run.parent else None
            phases += kill_until_finished(spawner, run, folder, tokens_dir, parent, draw)
            assert tensors_sha256(folder) == tensors_sha256(reference / run.id)
            assert rows_of(folder) == rows_of(reference / run.id)
            assert not (folder / "resume").exists()
    print(f"\n{phases.total()} kills: " + ", ".join(f"{count} {phase}" for phase, count in phases.most_common()))


def kill_until_finished(
    spawner: Spawner, run: RunSpec, folder: Path, tokens_dir: Path, parent: Path | None, draw: random.Random
) -> Counter[str]:
    """Start the run again and again, killing four times at moments drawn after its first new step; then let it finish.

    Every second kill waits for a save to be under way (a temporary file in `resume/`), the others for a drawn time.
    """
    phases: Counter[str] = Counter()
    for attempt in range(5):
        pid = spawner.start(run, folder, tokens_dir, EXECUTION, parent)
        if attempt < 4 and wait_for_a_step(spawner, folder):
            time.sleep(draw.uniform(0, 0.1))
            while attempt % 2 and not spawner.ended() and not unfinished_files(folder):
                time.sleep(0.0005)
            os.kill(pid, signal.SIGKILL)
        code = spawner.exit_code()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        phases[phase_of_death(folder, run)] += 1
    return phases


def wait_for_a_step(spawner: Spawner, folder: Path) -> bool:
    """Wait until this attempt has written something after its start; False if it ended first."""
    metrics = folder / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while not spawner.ended():
        if metrics.exists() and metrics.stat().st_mtime_ns > before and metrics.read_text().count('"loss"'):
            return True
        time.sleep(0.001)
    return False


def unfinished_files(folder: Path) -> list[Path]:
    return list((folder / "resume").glob("*.tmp"))


def phase_of_death(folder: Path, run: RunSpec) -> str:
    """What the process was doing, by what it left behind."""
    if unfinished_files(folder):
        return "inside a save"
    if list(folder.glob("*.tmp")) or (folder / "weights.safetensors").exists():
        return "writing the finished run"
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    saved = max((path.name for path in (folder / "resume").glob("step-*")), default="step-000000000")
    if int(saved[5:14]) == run.end_step:
        return "in the last evaluation"
    return "between two steps' rows" if last["step"] == int(saved[5:14]) else "between a row and its save"
