"""Rules of thumb of the literature for upcycling or training from scratch, as the paper reports them (5.1, 6).

Tokens throughout: D1 of the dense model, D2 of the budget for the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

from upcycle.decisions.thresholds import near_or_words
from upcycle.study.spec import short_count


@dataclass(frozen=True)
class Rule:
    """One rule of thumb, and what it says of one case."""

    name: str
    rule: str
    """What it states, in words."""
    tokens: float
    """The D2 at which its answer turns."""
    verdict: str | None
    """`upcycle`, `scratch`, `silent` where the rule leaves the case open; None: no budget was given."""
    says: str
    """What it says of this case, in words."""


def rules_of_thumb(
    d1: float, d2: float | None, active_ratio: float, d_star: float, data: tuple[float, float] | None = None
) -> tuple[Rule, ...]:
    """What the literature would say of a dense model of D1 tokens and D2 tokens for its mixture.

    `active_ratio` is N2 / N1; `d_star` is the value of the paper's own short rule, Equation 2, in tokens; `data` are
    the fewest and most tokens of the laws' data, far outside which words name no number.
    """
    rules = [
        ("Komatsuzaki et al.", "upcycling stays ahead until training from scratch has seen 120 % of D1", 1.2 * d1),
        ("Muennighoff et al., 2024", "training from scratch catches up before it has seen 100 % of D1", d1),
        (
            "Wei et al., 2024",
            "upcycle while the budget is below twice that of the dense training, here taken in FLOPs",
            2 * d1 / active_ratio,
        ),
        ("Liew et al., 2025", "upcycle up to D* tokens, where D* is for D1 = D2: Equation 2 as printed", d_star),
    ]
    return tuple(_rule(*rule, d2, data) for rule in rules)


def _rule(name: str, rule: str, tokens: float, d2: float | None, data: tuple[float, float] | None) -> Rule:
    # Muennighoff et al. give an upper bound of where scratch catches up, so below it they leave the case open.
    below = "silent" if name.startswith("Muennighoff") else "upcycle"
    turn = near_or_words(tokens, data)
    if d2 is None:
        return Rule(name, rule, tokens, None, f"{below} below {turn}, scratch from there on (tokens)")
    verdict = below if d2 < tokens else "scratch"
    where = "below" if d2 < tokens else "at or above"
    return Rule(name, rule, tokens, verdict, f"{verdict}, as {short_count(d2)} tokens are {where} its turn ({turn})")
