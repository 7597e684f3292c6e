"""Real training processes for tests that kill them: one helper imports torch once and forks each from itself.

The helper runs no torch operation of its own, so its children begin as fresh processes do, but in 20 ms.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from upcycle.execution import Execution
from upcycle.spec import RunSpec


class Spawner:
    """Starts trainings, one at a time, as processes with their own pid."""

    def __init__(self) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(
        self, run: RunSpec, run_dir: Path, tokens_dir: Path, execution: Execution, parent: Path | None = None
    ) -> int:
        """Start a training; returns its pid."""
        request = {
            "run": run.model_dump(mode="json"),
            "execution": execution.model_dump(mode="json"),
            "folders": {"run_dir": str(run_dir), "tokens_dir": str(tokens_dir), "parent_dir": parent and str(parent)},
        }
        assert self._helper.stdin
        assert self._helper.stdout
        self._helper.stdin.write(json.dumps(request) + "\n")
        return int(self._helper.stdout.readline())

    def ended(self) -> bool:
        """Whether the training has ended and `exit_code` would return at once."""
        return bool(select.select([self._helper.stdout], [], [], 0)[0])

    def exit_code(self) -> int:
        """Wait for the end; the exit code, or minus the signal that killed it."""
        assert self._helper.stdout
        return int(self._helper.stdout.readline())

    def close(self) -> None:
        """End the helper."""
        assert self._helper.stdin
        self._helper.stdin.close()
        self._helper.terminate()
        self._helper.wait()


def run_job(request: dict[str, Any]) -> None:
    """In the forked child: train as the command line would."""
    from upcycle.train.loop import train

    folders = {key: value and Path(value) for key, value in request["folders"].items()}
    execution = Execution.model_validate(request["execution"])
    train(RunSpec.model_validate(request["run"]), execution=execution, **folders)


def main() -> None:
    """Serve requests from standard input: print the child's pid, then its exit code."""
    import torch._dynamo  # noqa: F401 (the first use of an optimizer imports it)

    import upcycle.train.loop  # noqa: F401 (the seconds that children are spared)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                run_job(json.loads(line))
            except SystemExit as exit_:
                os._exit(exit_.code)  # type: ignore[arg-type]
            except BaseException:  # noqa: BLE001 (as the interpreter does)
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
