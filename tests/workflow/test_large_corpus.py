"""`benchmarks/large_corpus.py` with three megabytes: killed in three kinds of steps, and every count exact."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large_corpus.py"


@pytest.mark.slow
@pytest.mark.workflow
def test_a_corpus_is_killed_and_resumed_with_every_count_exact(tmp_path: Path) -> None:
    size = ["--megabytes", "3", "--taken", "0.5", "--dataset", "python-stdlib", "--memory", "800"]
    kills = ["--kill-in", "read", "encode", "merge"]
    command = [sys.executable, SCRIPT, *size, *kills, "--whole", "--scratch", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed while running") == 3
    assert done.stdout.endswith("all counts are those of what was written; as undisturbed\n")
    assert not list(tmp_path.iterdir())
