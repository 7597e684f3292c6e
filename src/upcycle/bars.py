"""A progress bar on the terminal for verbs that take long. Deep code counts its work; only `showing` shows it.

Nothing is shown, nor is rich imported, where standard error is no terminal: in a job's log, in a pipe, in a test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[int, int], None]] = []


def count_work(*, expected: int = 0, done: int = 0) -> None:
    """More units of work are expected, or done. Costs nothing while no bar is shown."""
    for listener in _listeners:
        listener(expected, done)


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Show a bar of the work that is counted within, if standard error is a terminal; it goes when the work ends."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # Results go to standard output as they are: rich would send them through its console.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(what, total=0)

        def listen(expected: int, done: int) -> None:
            progress.update(task, total=(progress.tasks[task].total or 0) + expected, advance=done)

        _listeners.append(listen)
        try:
            yield
        finally:
            _listeners.remove(listen)
