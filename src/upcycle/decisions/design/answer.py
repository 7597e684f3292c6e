"""What `upcycle design` answers, as data."""

from __future__ import annotations

from dataclasses import dataclass

from upcycle.decisions.design.candidates import Candidate, Linearised
from upcycle.decisions.design.model import Setting
from upcycle.decisions.design.simulation import Simulated
from upcycle.decisions.thresholds import Threshold


@dataclass(frozen=True)
class Verified:
    """A further run, simulated."""

    candidate: Candidate
    threshold: Threshold
    error: float
    """Standard error of the target over the simulations with it."""


@dataclass(frozen=True)
class DesignAnswer:
    """All that `upcycle design` answers."""

    setting: Setting
    source: str
    """Where the truth is from."""
    noise_words: str
    simulated: Simulated
    threshold: Threshold | None = None
    linearised: Linearised | None = None
    """None where the sweep does not determine D*."""
    ranked: tuple[Candidate, ...] = ()
    """The best further runs per FLOP."""
    largest: Candidate | None = None
    """Of further runs that cost at most 5 % of the sweep, the run that reduces the error most."""
    error: float | None = None
    """Standard error of the target over the simulations."""
    verified: tuple[Verified, ...] = ()
    """The best per FLOP and the largest, simulated with the same noise in the other runs."""
