"""Learning rate as a pure function of the step (3.1, A.5): nothing to save, nothing to restore.

A branch of a WSD trunk, a resumed run and a chain of segments all ask the same function.
"""

from __future__ import annotations

import math

from upcycle.study.spec import RunSpec


def learning_rate(run: RunSpec, step: int) -> float:
    """Learning rate of the update with index `step` (0 is the first since scratch or upcycling).

    Linear warm-up over `warmup_steps` updates, then by role and kind: a decay falls linearly from its branch point
    to `floor` x lr, which is what its last update uses; cosine falls to the same over all updates after warm-up;
    a trunk and a constant run stay at lr.
    """
    warmup = run.schedule.warmup_steps
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return run.optim.lr * rise * _cooling(run, step)


def _cooling(run: RunSpec, step: int) -> float:
    """Share of the maximum that is left by cooling, 1 down to `floor`."""
    floor = run.schedule.floor
    if run.role == "decay":
        return 1 - (1 - floor) * (step + 1 - run.start_step) / (run.end_step - run.start_step)
    if run.schedule.kind == "cosine" and step >= run.schedule.warmup_steps:
        progress = (step + 1 - run.schedule.warmup_steps) / (run.end_step - run.schedule.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
