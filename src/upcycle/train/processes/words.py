"""Exit codes and last words that workers leave to their launcher, and nodes to the process that started them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from upcycle.train.processes.preemption import PREEMPTED

ENDS_VARIABLE = "UPCYCLE_ENDS"
"""Folder where each process leaves its end, for the one that started it."""
NODE_VARIABLE = "UPCYCLE_NODE"
"""Set for a process that srun started on a node (train/processes/allocation.py)."""


@dataclass(frozen=True)
class End:
    """How a process ended, in its own words."""

    code: int
    message: str


def is_worker() -> bool:
    """Whether this process was started as one of several that train."""
    return "RANK" in os.environ


def is_first() -> bool:
    """Whether a worker is the first, which reports for all."""
    return os.environ["RANK"] == "0"


def leave_word(end: End) -> bool:
    """Leave last words to whoever waits for them; False if they are to be printed, as nobody of ours does."""
    if not is_worker() and NODE_VARIABLE not in os.environ:
        return False
    folder = os.environ.get(ENDS_VARIABLE)
    if folder is None:
        return end.code == PREEMPTED and not is_first()  # all have saved together: the first says it
    name = os.environ["RANK"] if is_worker() else f"node-{os.environ['SLURM_NODEID']}"
    path = Path(folder) / f"{name}.json"
    path.with_suffix(".tmp").write_text(json.dumps({"code": end.code, "message": end.message}))
    path.with_suffix(".tmp").replace(path)
    return True


def read_end(folder: Path, name: str) -> End | None:
    """How the process of this name ended; None if it left no word."""
    try:
        return End(**json.loads((folder / f"{name}.json").read_text()))
    except FileNotFoundError:
        return None


def exit_code(code: int) -> int:
    """The code of this process: a node that has saved ends well for srun, which would kill the other nodes."""
    of_node = NODE_VARIABLE in os.environ and not is_worker()
    return 0 if of_node and code == PREEMPTED else code
