"""Checkouts in which Snakemake runs: the workflow, a copy of the code that a test may edit, a made-up text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from made_up_text import write_texts

REPOSITORY = Path(__file__).parents[2]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


@dataclass
class Checkout:
    """A folder in which Snakemake runs as a user runs it."""

    root: Path

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`snakemake words`; the code under `root`/src is what it runs."""
        done = subprocess.run(
            [SNAKEMAKE, *words], cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def environment(self) -> dict[str, str]:
        """The caller's, less what an outer invocation may have left, with this checkout's code first.

        The virtual environment is not activated: rules must find its tools all the same.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith("UPCYCLE_")}
        bare = [folder for folder in kept["PATH"].split(os.pathsep) if Path(folder) != SNAKEMAKE.parent]
        path = os.pathsep.join(bare)
        return kept | {"PYTHONPATH": str(self.root / "src"), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def jobs(self, *words: str) -> dict[str, int]:
        """What `snakemake -n words` would do: jobs by rule, the target rule left out; {} for nothing to be done."""
        output = self.run(*words, "-n")
        text = output.stdout + output.stderr
        if "Nothing to be done" in text:
            return {}
        table = re.search(r"Job stats:\njob +count\n-+ +-+\n(.*?)\ntotal +(\d+)", text, re.DOTALL)
        assert table, text
        counts = {rule: int(count) for rule, count in (line.split() for line in table[1].splitlines())}
        assert sum(counts.values()) == int(table[2])
        return {rule: count for rule, count in counts.items() if not rule.startswith(("all", "sweep_"))}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file; it must be there."""
        file = self.root / path
        text = file.read_text()
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new))

    def copy(self, target: Path) -> Checkout:
        """The same with results, without Snakemake's records, every file dated anew in an order of no meaning."""
        shutil.copytree(self.root, target, ignore=shutil.ignore_patterns(".snakemake"), copy_function=shutil.copyfile)
        return Checkout(target)


def make_checkout(root: Path) -> Checkout:
    """A checkout without results."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "workflow", "profiles", "src"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, root / name)
    shutil.copy(REPOSITORY / "tests" / "workflow" / "config.yaml", root / "config.yaml")
    write_texts(root)
    return Checkout(root)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
