"""A short soak (soak.py, `make soak`): SIGKILL at any moment, the same command again, the undisturbed run's bits."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from soak import ALONE, TOGETHER, Soak, runs
from spawner import Spawner, wait_for_all

KILLS = 20
SHARE_IN_SAVE = 0.2


@pytest.fixture
def soak(tokens_dir: Path, tmp_path: Path) -> Iterator[Soak]:
    spawner = Spawner()
    yield Soak(spawner, tokens_dir, tmp_path, random.Random(1))
    spawner.close()


@pytest.mark.slow
def test_killed_at_any_moment_ends_in_the_same_bits(soak: Soak) -> None:
    """20 SIGKILLs, a fifth of them inside a save, one at the end: weights, moments, rows equal. A run of two."""
    phases: Counter[str] = Counter()
    for number in itertools.count():
        at_the_end = phases["in the last evaluation"] + phases["writing the finished run"]
        if phases.total() >= KILLS and phases["inside a save"] >= SHARE_IN_SAVE * phases.total() and at_the_end:
            break
        assert number < 36, f"too few kills landed: {phases}"
        phases += soak.soak(list(runs())[number % 3], TOGETHER if number == 1 else ALONE, number)
    print(f"\n{phases.total()} kills: " + ", ".join(f"{count} {phase}" for phase, count in phases.most_common()))


def test_a_process_that_hangs_is_told_from_one_that_waits_for_others() -> None:
    """One fails; of its peers one ends at SIGTERM, one ignores it, as a hung training does, and is reported."""
    scripts = ["exit 3", "exec sleep 60", "trap '' TERM; echo; exec sleep 60"]
    processes = [subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) for script in scripts]
    assert processes[2].stdout
    processes[2].stdout.readline()  # it has set its trap
    codes, hung = wait_for_all([process.pid for process in processes], patience=0.1, grace=0.3)
    assert codes == [3, -signal.SIGTERM, -signal.SIGKILL]
    assert hung == [2]
    stuck = subprocess.Popen(["sh", "-c", scripts[2]], stdout=subprocess.PIPE)
    assert stuck.stdout
    stuck.stdout.readline()
    assert wait_for_all([stuck.pid], longest=0.3, grace=0.1) == ([-signal.SIGKILL], [0])
