"""Learning rate as a pure function of the step (3.1, A.5): nothing to save, nothing to restore.

A branch of a WSD trunk, a resumed run and a chain of segments all ask the same function.
"""

from __future__ import annotations

import math

from upcycle.study.spec import RunSpec


def learning_rate(run: RunSpec, step: int) -> float:
    """Learning rate of the update with index `step` (0 is the first since scratch or upcycling).

    Warm-up, then by role and kind: a WSD trunk and a constant run stay at `lr`, a WSD decay and a cosine run cool.
    """
    # A trunk's rate does not depend on where it ends, so that points can be inserted and appended without training it
    # again; a decay knows its own two ends alone.
    schedule = run.schedule
    rate = run.optim.lr * warm_up(step, schedule.warmup_steps)
    if run.role == "decay":
        rate *= wsd_decay(step, start=run.start_step, end=run.end_step, floor=schedule.floor)
    elif schedule.kind == "cosine":
        rate *= cosine(step, start=schedule.warmup_steps, end=run.end_step, floor=schedule.floor)
    return rate


def warm_up(step: int, warmup_steps: int) -> float:
    """Linear from 1 / `warmup_steps` at the first update to 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def wsd_decay(step: int, *, start: int, end: int, floor: float) -> float:
    """The D of WSD (warm-up, stable, decay): linear from 1 at the branch point `start` to `floor` at the last update.

    The last update has index `end` - 1. The stable part, the trunk, is the share 1.
    """
    return 1 - (1 - floor) * (step + 1 - start) / (end - start)


def cosine(step: int, *, start: int, end: int, floor: float) -> float:
    """Half a cosine from 1 at the end of warm-up, `start`, to `floor` at the last update, `end` - 1."""
    if step < start:
        return 1.0
    progress = (step + 1 - start) / (end - start)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
