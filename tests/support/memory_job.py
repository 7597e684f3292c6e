"""A training in a process of its own, for test_peak_memory.py: prints its peak above its size after imports.

Pages of files are left out: code that the first update touches. Processes share them, the kernel drops them when memory
is short, and how many it maps at a time differs between kernels (a training took 20 MB of them on one, 64 on another).

Usage: python memory_job.py FOLDER, which holds `run.json`, `execution.json` and `tokens/`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401 (the first use of an optimizer imports it)

from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.loop import train_run


def resident(key: str) -> int:
    """Bytes of `VmRSS` (now), `RssFile` (pages of files in it) or `VmHWM` (the peak so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Train, and print the peak."""
    folder = Path(sys.argv[1])
    run = RunSpec.model_validate_json((folder / "run.json").read_text())
    execution = Execution.model_validate_json((folder / "execution.json").read_text())
    imported, code = resident("VmRSS"), resident("RssFile")
    train_run(run, run_dir=folder / "run", tokens_dir=folder / "tokens", parent_dir=None, execution=execution)
    print(json.dumps({"peak": resident("VmHWM") - imported - (resident("RssFile") - code)}))


if __name__ == "__main__":
    main()
