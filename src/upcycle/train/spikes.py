"""Updates that are skipped (`optim.skip_above`): a spike of the loss or the gradient, or one that is not finite.

A spike lies more than `skip_above` standard deviations above the mean of the last `WINDOW` updates that were taken, by
its loss or by its gradient's norm. (OLMo-core's SkipStepOptimizer compares so too.) A skipped update changes neither
weights nor moments; its batch counts as seen. What decides is saved with the state of a run and handed on to the next
segment, so a stopped run and a chain of segments skip what the undisturbed run skips.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

WINDOW = 128
"""Updates to compare with: before as many were taken, only a non-finite update is skipped."""
MOST_IN_A_ROW = 10
"""More are no spike of a batch: the run stops."""


@dataclass
class Spikes:
    """What was skipped since scratch or upcycling, and what the next update is compared with."""

    skip_above: float | None = None
    """Standard deviations; None: nothing is ever skipped."""
    taken: list[tuple[float, float]] = field(default_factory=list)
    """Loss and gradient norm of the last updates that were taken, at most `WINDOW`."""
    skipped: int = 0
    in_a_row: int = 0
    """Updates skipped since the last one that was taken."""

    def skip(self, loss: float, grad_norm: float) -> bool:
        """Whether to skip an update, which is noted. The first one is never skipped: AdamW has no moments yet."""
        if self.skip_above is None or not self.taken:
            skips = False
        else:
            skips = not (math.isfinite(loss) and math.isfinite(grad_norm)) or self._is_spike(loss, grad_norm)
        self.skipped += skips
        self.in_a_row = self.in_a_row + 1 if skips else 0
        if self.skip_above is not None and not skips:
            self.taken = [*self.taken[1 - WINDOW :], (loss, grad_norm)]
        return skips

    def _is_spike(self, loss: float, grad_norm: float) -> bool:
        if len(self.taken) < WINDOW:
            return False
        assert self.skip_above is not None
        before = np.array(self.taken)
        limits = before.mean(0) + self.skip_above * before.std(0)
        return bool((np.array([loss, grad_norm]) > limits).any())

    def notes(self) -> dict[str, Any]:
        """JSON-able, empty if nothing is ever skipped; `Spikes(**notes)` is this again."""
        return {} if self.skip_above is None else {"spikes": asdict(self)}
