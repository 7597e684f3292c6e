"""A short soak (soak.py, `make soak`): SIGKILL at any moment, the same command again, the undisturbed run's bits."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from soak import ALONE, TOGETHER, Soak, runs
from spawner import Spawner

KILLS = 20
SHARE_IN_SAVE = 0.2


@pytest.fixture
def soak(tokens_dir: Path, tmp_path: Path) -> Iterator[Soak]:
    spawner = Spawner()
    yield Soak(spawner, tokens_dir, tmp_path, random.Random(1))
    spawner.close()


def test_killed_at_any_moment_ends_in_the_same_bits(soak: Soak) -> None:
    """At least 20 SIGKILLs, at least a fifth of them inside a save; weights, moments, rows equal. One run of two."""
    phases: Counter[str] = Counter()
    for number in itertools.count():
        if phases.total() >= KILLS and phases["inside a save"] >= SHARE_IN_SAVE * phases.total():
            break
        assert number < 36, f"too few kills landed: {phases}"
        phases += soak.soak(list(runs())[number % 3], TOGETHER if number == 1 else ALONE, number)
    print(f"\n{phases.total()} kills: " + ", ".join(f"{count} {phase}" for phase, count in phases.most_common()))
