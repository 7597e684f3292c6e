"""The answer of `upcycle advise` as data: what is asked, what is expected, and what it rests on.

D, D1, D2 in tokens, N1 in non-embedding parameters, losses in nats. docs/advice.md lists the keys of its JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from upcycle.decisions.advice.expectations import Comparison, Distance, Expected, Reach, Verdict
from upcycle.decisions.advice.recommendation import Recommendation
from upcycle.decisions.advice.rules import Rule
from upcycle.decisions.advice.settling import SettlingRun
from upcycle.decisions.thresholds import Threshold
from upcycle.files import plain


@dataclass(frozen=True)
class Question:
    """What is asked: a dense model, a mixture and, unless it is left open, a budget."""

    n1: float
    d1: float
    n_expert: int
    top_k: int
    n2: float
    """Active parameters of the mixture (Equation 5)."""
    tokens: float | None
    """The budget as D2; None: left open."""
    flops: float | None
    gpu_hours: float | None
    flops_per_second: float


@dataclass(frozen=True)
class Laws:
    """The laws that the answer uses, and how far they are known."""

    source: str
    rounded: bool
    paired: bool
    n_expert: int
    top_k: int
    hold_for_this_mixture: bool
    """False: losses are those of the laws' mixture, only FLOPs are those of the one asked for."""
    error: float | None
    """Error of a predicted loss within the data, in nats (held-out RMS); None: not known."""
    draws: int
    data_tokens: tuple[float, float] | None
    """Fewest and most tokens of the data (D, D1, D2)."""


@dataclass(frozen=True)
class Row:
    """One budget of the table."""

    share_of_d1: float
    tokens: float
    flops: float
    gpu_hours: float
    upcycled: float
    scratch: float
    dense_trained_on: float | None
    comparison: Comparison
    """Upcycled against scratch with the same FLOPs."""


@dataclass(frozen=True)
class ComputeOptimal:
    """The D2 of Equation 14 for this N1 and D1."""

    tokens: float
    band: tuple[float, float] | None
    flops: float
    gpu_hours: float
    exponent: float
    """D2 grows as N1 to this power."""


@dataclass(frozen=True)
class Advice:
    """The whole answer; `to_json` is its strict JSON, `words.advice_in_words` its text."""

    question: Question
    recommendation: Recommendation
    """Of all three options; `verdict` compares upcycling with training from scratch alone."""
    verdict: Verdict
    statement: str
    """The answer in five lines."""
    losses: tuple[Expected, ...]
    """With a budget: upcycled, and every alternative."""
    comparisons: tuple[Comparison, ...]
    """Upcycled against each alternative; the first one gives the verdict."""
    catch_up: Reach | None
    """Tokens that a MoE from scratch needs to reach the upcycled loss."""
    overtakes_dense: Reach | None
    """D2 from which the upcycled model is expected to be better than the dense model as it is."""
    thresholds: tuple[Threshold, ...]
    table: tuple[Row, ...]
    compute_optimal: ComputeOptimal | None
    distances: tuple[Distance, ...]
    settling_run: SettlingRun | None
    rules_of_thumb: tuple[Rule, ...]
    laws: Laws
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The answer as plain data: docs/advice.md lists the keys. Nothing is NaN or infinite."""
        data = asdict(self)
        for expected_loss in data["losses"]:
            del expected_loss["rows"]
        for threshold in data["thresholds"]:
            del threshold["draws"]
        return dict(plain(data))
