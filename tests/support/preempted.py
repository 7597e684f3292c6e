"""This process trains and is stopped by SIGTERM in a given step."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from small_runs import train_in

from upcycle.train.processes.preemption import Preempted


class SignalAtStep(logging.Handler):
    """Sends this process a signal when the loop logs a given step, as a scheduler might at that moment."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def emit(self, record: logging.LogRecord) -> None:
        if "step %d of" in str(record.msg) and record.args[1] == self.step:  # type: ignore[index]
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def preempted_at(step: int) -> Iterator[None]:
    """Within it this process trains and is stopped by SIGTERM in `step`."""
    logger, handler = logging.getLogger("upcycle.train.loop"), SignalAtStep(step)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(Preempted):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def preempt_at(step: int, *arguments: object) -> None:
    """`train_in(*arguments)`, stopped by SIGTERM in `step`."""
    with preempted_at(step):
        train_in(*arguments)  # type: ignore[arg-type]
