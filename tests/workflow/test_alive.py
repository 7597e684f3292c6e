"""Shares of a folder's lock: who is alive, and locks of the dead."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from upcycle.workflow.alive import LOCKS, is_anyone_alive

INVOCATION = """
import subprocess, sys
from pathlib import Path
from upcycle.workflow.alive import take_share
print(take_share(Path(sys.argv[1])), flush=True)
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)  # a job, which outlives its Snakemake
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def invocation(folder):
    """A process with a share; yields it, and whether it found locks of a dead one. Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", INVOCATION, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found = process.stdout.readline().strip() == "True"
    child = int(process.stdout.readline())
    try:
        yield process, found
    finally:
        process.kill()
        process.wait()
        subprocess.run(["kill", str(child)], check=True)
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def lock(tmp_path):
    """A lock of Snakemake's."""
    path = tmp_path / LOCKS / "0.output.lock"
    path.parent.mkdir(parents=True)
    path.write_text("results/losses.csv\n")
    return path


def test_the_locks_of_a_killed_invocation_are_removed_by_the_next(tmp_path, lock):
    with invocation(tmp_path) as (first, found):
        assert found
        assert not lock.exists()
        lock.write_text("its own\n")
        assert is_anyone_alive(tmp_path) is True
        first.kill()
        first.wait()
        assert is_anyone_alive(tmp_path) is False  # though its child runs
        with invocation(tmp_path) as (_, found):
            assert found
            assert not lock.exists()


def test_the_locks_of_one_that_lives_stay(tmp_path, lock):
    with invocation(tmp_path):
        lock.write_text("its own\n")
        with invocation(tmp_path) as (_, found):
            assert not found
            assert lock.read_text() == "its own\n"


def test_nobody_was_ever_here(tmp_path):
    assert is_anyone_alive(tmp_path) is False
