"""Ending a process at once: no teardown of the interpreter, none of C++ objects. Standard library only.

A process that has torch's communication threads beside it, or was forked, has more to lose than to gain from an orderly
exit: gloo's threads outlive `destroy_process_group` in groups that a model still refers to, and one that releases a
tensor while the interpreter is finalised asks for its lock and aborts the process. What a run leaves is durable before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave(main: Callable[[], int | None]) -> NoReturn:
    """Do what `sys.exit(main())` does up to the exit code and flushed output, then end: nothing at exit is run."""
    code = _exit_code_of(main)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also if nobody reads them any more
        os._exit(code)


def _exit_code_of(main: Callable[[], int | None]) -> int:
    """What the interpreter would make of `sys.exit(main())`, for a `main` that returns its exit code."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        return 130
    except BaseException:  # noqa: BLE001 (the interpreter prints any exception and exits 1; so does this)
        sys.excepthook(*sys.exc_info())
        return 1
