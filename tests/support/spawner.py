"""Real training processes for tests that kill them: one helper imports torch once and forks each from itself.

The helper runs no torch operation of its own, so its children begin as fresh processes do, but in 20 ms.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from upcycle.leave import leave
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec


class Spawner:
    """Starts trainings, one at a time, as processes with their own pid; a training may be several processes."""

    def __init__(self, stderr: TextIO | None = None) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            bufsize=1,
        )

    def start(
        self, run: RunSpec, run_dir: Path, tokens_dir: Path, execution: Execution, parent: Path | None = None
    ) -> int:
        """Start a training; returns its (first) pid."""
        return self.start_all(run, run_dir, tokens_dir, execution, parent)[0]

    def start_all(
        self, run: RunSpec, run_dir: Path, tokens_dir: Path, execution: Execution, parent: Path | None = None
    ) -> list[int]:
        """Start a training of `execution.devices` processes; returns their pids by rank."""
        request = {
            "run": run.model_dump(mode="json"),
            "execution": execution.model_dump(mode="json"),
            "folders": {"run_dir": str(run_dir), "tokens_dir": str(tokens_dir), "parent_dir": parent and str(parent)},
        }
        assert self._helper.stdin
        assert self._helper.stdout
        self._helper.stdin.write(json.dumps(request) + "\n")
        return json.loads(self._helper.stdout.readline())

    def ended(self) -> bool:
        """Whether the training has ended and `exit_code` would return at once."""
        return bool(select.select([self._helper.stdout], [], [], 0)[0])

    def exit_code(self) -> int:
        """Wait for the end; the (first) exit code, or minus the signal that killed it."""
        return self.exit_codes()[0]

    def exit_codes(self) -> list[int]:
        """Wait for the end of all processes; their exit codes by rank. AssertionError if any did not end by itself."""
        assert self._helper.stdout
        codes, hung = json.loads(self._helper.stdout.readline())
        assert not hung, f"ranks {hung} hung and had to be killed; exit codes {codes}"
        return codes

    def close(self) -> None:
        """End the helper."""
        assert self._helper.stdin
        self._helper.stdin.close()
        self._helper.terminate()
        self._helper.wait()


def run_job(request: dict[str, Any]) -> int:
    """In the forked child: train as the command line would; the exit code."""
    from upcycle.train.loop import train_run

    folders = {key: value and Path(value) for key, value in request["folders"].items()}
    execution = Execution.model_validate(request["execution"])
    try:
        train_run(RunSpec.model_validate(request["run"]), execution=execution, **folders)
    except SystemExit as stop:  # preempted, or ended by a peer
        return int(stop.code or 0)
    return 0


def main() -> None:
    """Serve requests from standard input: print the children's pids, then their exit codes."""
    import torch._dynamo  # noqa: F401 (the first use of an optimizer imports it)

    import upcycle.train.loop

    for line in sys.stdin:
        request = json.loads(line)
        size = request["execution"]["devices"]
        if size > 1:
            import upcycle.model.parallel
            import upcycle.train.states.sharded  # noqa: F401
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        children = [fork_job(request, rank, size, port) for rank in range(size)]
        print(json.dumps(children), flush=True)
        print(json.dumps(wait_for_all(children)), flush=True)


def fork_job(request: dict[str, Any], rank: int, size: int, port: int) -> int:
    """Fork one process of a training; its environment is what torchrun would give it."""
    pid = os.fork()
    if pid:
        return pid
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    leave(lambda: run_job(request))


def wait_for_all(
    children: list[int], *, longest: float = 600, patience: float = 30, grace: float = 120
) -> tuple[list[int], list[int]]:
    """Exit codes by rank, and the ranks that hung: that had to be killed.

    Those that outlive a failed one by `patience` seconds, or that take `longest` seconds, get SIGTERM, as torchrun
    does. It ends a process that still waits for the others to join, which is no fault of its own; one that trains notes
    it, and hangs if it has not ended `grace` seconds later.
    """
    codes: dict[int, int] = {}
    hung: set[int] = set()
    deadline, asked = time.monotonic() + longest, False
    while len(codes) < len(children):
        for pid in set(children) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid] and not asked:
                    deadline = min(deadline, time.monotonic() + patience)
        if time.monotonic() > deadline:
            left = set(children) - codes.keys()
            for pid in left:
                os.kill(pid, signal.SIGKILL if asked else signal.SIGTERM)
            if asked:
                hung |= left
            deadline, asked = time.monotonic() + grace, True
        time.sleep(0.002)
    return [codes[pid] for pid in children], [rank for rank, pid in enumerate(children) if pid in hung]


if __name__ == "__main__":
    main()
