"""pip for an sdist, stopped before it builds: `python -m upcycle.data.unbuilt FILE FOLDER download ...`.

pip downloads and unpacks an sdist, and then runs its build backend in a child process to learn its name and version.
Here no child process can start: an audit hook of Python refuses it, and where pip has opened FILE before, copies FILE
into FOLDER and ends. So the code in FILE cannot run, whatever its build system is. pip's settings count as always.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from typing import Any

_STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"}
"""Audit events of a process that starts another program."""


def refuse_children(file: str, folder: str) -> None:
    """Install the hook: `file` is the sdist's name without its folder."""
    opened: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and os.path.basename(str(arguments[0])) == file:  # noqa: PTH119
            opened.append(str(arguments[0]))
        elif event in _STARTS:
            if opened:
                shutil.copyfile(opened[0], os.path.join(folder, file))  # noqa: PTH118
                os._exit(0)
            raise OSError(f"{event}: no program is run here")  # pip only asks for the names of the system and compiler

    sys.addaudithook(hook)


if __name__ == "__main__":
    refuse_children(*sys.argv[1:3])
    sys.argv = ["pip", *sys.argv[3:]]
    runpy.run_module("pip", run_name="__main__")
