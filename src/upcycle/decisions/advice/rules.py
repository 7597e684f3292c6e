"""Rules of thumb of the literature for upcycling or training from scratch, as the paper reports them (5.1, 6).

Tokens throughout: D1 of the dense model, D2 of the budget for the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def rules_of_thumb(d1: float, d2: float | None, active_ratio: float, d_star: float | None = None) -> tuple[Rule, ...]:
    """What the literature would say of a dense model of D1 tokens and D2 tokens for its mixture.

    `active_ratio` is N2 / N1; `d_star` adds the paper's own short rule, Equation 2, at its value in tokens.
    """
    rules = [
        _rule(
            "Komatsuzaki et al.",
            "upcycling stays ahead until training from scratch has seen 120 % of D1",
            1.2 * d1,
            d2,
        ),
        _rule(
            "Muennighoff et al., 2024",
            "training from scratch catches up before it has seen 100 % of D1",
            d1,
            d2,
            below="silent",
        ),
        _rule(
            "Wei et al., 2024",
            "upcycle while the budget is below twice that of the dense training, here taken in FLOPs",
            2 * d1 / active_ratio,
            d2,
        ),
    ]
    if d_star is not None:
        rules.append(
            _rule(
                "Liew et al., 2025",
                "upcycle up to D* tokens, where D* is for D1 = D2: Equation 2 as printed",
                d_star,
                d2,
            )
        )
    return tuple(rules)


def _rule(name: str, rule: str, tokens: float, d2: float | None, below: str = "upcycle") -> Rule:
    turn = short_count(tokens)
    if d2 is None:
        first = "upcycle" if below == "upcycle" else "silent"
        return Rule(name, rule, tokens, None, f"{first} below {turn} tokens, scratch from there on")
    verdict = below if d2 < tokens else "scratch"
    if verdict == "silent":
        return Rule(name, rule, tokens, verdict, f"silent, as it says no more than `below {turn} tokens`")
    where = "under" if d2 < tokens else "at or over"
    return Rule(name, rule, tokens, verdict, f"{verdict}, as {short_count(d2)} tokens are {where} {turn}")
