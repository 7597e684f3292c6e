"""One writer a run folder: a lease that dies with its owner.

An orphan of a killed workflow may still be training when the same command is started again; two writers would
mix their states. The lease is an advisory lock (flock) on `run_dir/lease`, so the kernel frees it when the owner
ends, however it ends, and no stale file ever has to be removed by hand. NFS (Linux 2.6.12 and newer), Lustre (mounted
with `flock`) and GPFS pass flock on to other nodes; a file system that does not (Lustre with `localflock`) keeps
out writers of the same node only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from upcycle.errors import UserError
from upcycle.train.processes.preemption import PREEMPTED

LEASE = "lease"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What flock says on a file system that has no locks."""


class RunTakenError(UserError):
    """Another process writes the run. It may be dead already: NFS notices after a minute that a machine is gone."""

    exit_code = PREEMPTED


@contextmanager
def lease(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for the length of the `with`; RunTakenError naming the owner if another process does.

    UserError too if the file system has no locks: without them two writers could mix their states.
    """
    # The file stays when the lease ends: removing it would let two processes lock two files of the same name.
    try:
        opened = (run_dir / LEASE).open("a+")
    except OSError as error:
        raise UserError(f"{run_dir / LEASE}: cannot be opened ({error.strerror}); move it away") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunTakenError(
                f"{run_dir}: another process is writing this run: {_owner(run_dir / 'lease')}. "
                "Wait for it, or end it: the lease ends with it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"{run_dir}: its file system has no locks ({error.strerror}), which keep a second writer out. Mount it "
                "with them (Lustre: -o flock; NFS: without nolock, lockd running), or put results on another"
            ) from None
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # given back: readers on other machines, who cannot see the lock, see no owner


def _owner(path: Path) -> str:
    """Process, host and time of the owner; it may be caught between taking the lock and signing it."""
    try:
        owner = json.loads(path.read_text())
        return f"pid {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not yet signed"
