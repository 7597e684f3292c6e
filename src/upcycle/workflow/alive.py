"""Which invocations of Snakemake are alive in a folder, and locks of those that are not.

Snakemake's own lock is a list of files in `.snakemake/locks`, which stays when Snakemake is killed: the next
invocation then wants `--unlock`, and nothing tells the user whether that is safe. Here each invocation holds a share
of a kernel lock (flock) on a file beside it as long as it lives, however it ends. Who gets all of it is alone: locks
that are there then are a dead invocation's. As `train.states.lease`, this works on every file system that passes
flock on to other machines; on one that has no flock nothing is removed. Standard library only.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

SHARE = Path(".snakemake/upcycle.lock")
LOCKS = Path(".snakemake/locks")
_held: list[IO[str]] = []
"""What this process holds until it ends."""


def take_share(folder: Path) -> bool:
    """Be one of the folder's invocations until this process ends; remove the locks of dead ones if it is the only one.

    Returns whether there were any. Programs that this process starts do not hold the share.
    """
    (folder / SHARE).parent.mkdir(exist_ok=True)
    file = (folder / SHARE).open("w")
    left = False
    try:
        if _take(file, fcntl.LOCK_EX):
            for lock in (folder / LOCKS).glob("*.lock"):
                lock.unlink()
                left = True
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:  # no locks here: Snakemake's own stays as it is
        file.close()
        return False
    _held.append(file)
    return left


def is_anyone_alive(folder: Path) -> bool | None:
    """Whether an invocation of Snakemake runs in the folder; None if its file system has no locks."""
    try:
        with (folder / SHARE).open() as file:
            return not _take(file, fcntl.LOCK_EX)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _take(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
