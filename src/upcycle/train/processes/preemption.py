"""Being asked to stop, and stopping well.

SIGTERM (a scheduler's preemption, a workflow that ends) and SIGUSR1 (SLURM's early warning) only set a flag; the
loop finishes its step, saves and leaves with exit code 75 (EX_TEMPFAIL of sysexits.h: try again). The same command
resumes. Standard library only: the command line imports this.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")

PREEMPTED = 75
"""Exit code: call the same command again."""
HOPELESS = 3
"""Exit code: the same command would fail again until the user changes something."""


class Preempted(SystemExit):
    """The run was asked to stop and its state is saved; ends the process with code 75 unless caught."""

    exit_code = PREEMPTED

    def __init__(self, message: str) -> None:
        super().__init__(self.exit_code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class EndedByPeer(SystemExit):
    """Another process of the run failed, and says why; this one ends with the same exit code and without a word."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message


class TrainingError(RuntimeError):
    """Training cannot continue; the last good state is kept. The message names what to do.

    Exit code 1 where the same command may succeed (a process was killed). 3 where it would fail again (loss not finite,
    disk full, out of memory): schedulers then do not try.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Context within which SIGTERM and SIGUSR1 set `requested`; the previous handlers come back at its end."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal received, if any."""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name

    def watch(self, items: Iterable[Item], of_any: Callable[[bool], bool] = bool) -> Iterator[Item]:
        """Pass items on until a stop is requested, then raise Preempted: for work that needs no saving.

        Several processes stop together: `of_any` turns each one's flag into whether any process has it set.
        """
        for item in items:
            if of_any(self.requested is not None):
                by = self.requested or "a signal to another of its processes"
                raise Preempted(f"stopped by {by}; the same command continues")
            yield item
