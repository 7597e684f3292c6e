"""What a study shows of upcycling methods, a sentence for each question; all of them are computed from its losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from upcycle.laws.result import FitResult
from upcycle.paper.ablations import Observation, joined
from upcycle.paper.comparisons import Finding, Verdict
from upcycle.paper.inputs import Inputs
from upcycle.paper.method_arms import MethodArms, compare_methods, law_by_arm, own_interval, router_curves
from upcycle.paper.paired import Difference
from upcycle.paper.render import number, plural, reasons, signed
from upcycle.study.spec import short_count

GREEK = {"alpha1": "α1", "alpha2": "α2", "alpha3": "α3"}
"""Exponents of Equation 8."""
CLAIM = "noise on the experts' weights, partial re-initialisation and low-rank experts gain nothing over copying (A.6)."


def see_methods(inputs: Inputs, sweeps: Sequence[str] | None = None) -> Observation:
    """The comparison of final losses in words, beside what the paper reports of three of the methods."""
    return Observation(CLAIM, _losses(compare_methods(inputs, sweeps)))


def method_findings(inputs: Inputs, sweeps: Sequence[str] | None = None) -> list[Finding]:
    """Whether a method ends with a lower loss, whether its interaction differs, what its routers do, Equation 8.

    Raises `UserError` as `compare_methods` does.
    """
    found = compare_methods(inputs, sweeps)
    return [
        each
        for each in (_losses(found), _interactions(found), _routers(inputs, found), _laws(law_by_arm(inputs, found)))
        if each is not None
    ]


def _losses(found: MethodArms) -> Finding:
    differences = found.differences(found.losses())
    groups = _groups(differences)
    within = groups["within noise"]
    parts: list[str] = []
    for how in ("lower", "higher"):
        if arms := groups[how]:
            ends = f" end{'s' if len(arms) == 1 else ''} with a {how} loss than copying" if not parts else ""
            parts.append(f"{_listed(arms)}{ends or f' with a {how} one'}")
    if groups["one seed"]:
        best = min(differences, key=lambda arm: differences[arm].nats)
        sentence = (
            f"Each budget has one seed, so whether a method is better than copying is open; {best} has the lowest "
            f"mean loss of the others, {signed(differences[best].nats)} nats against copying."
        )
    elif not parts:
        which = f"all {len(within)} differences are" if len(within) > 1 else f"that of {_listed(within)} is"
        sentence = f"That a method ends with another loss than copying is not shown: {which} within noise."
    else:
        rest = "difference is" if len(within) == 1 else "differences are"
        parts += [f"the other {f'{len(within)} ' if len(within) > 1 else ''}{rest} within noise"] if within else []
        sentence = _capital("; ".join(parts) + ".")
    places = [
        f"at D1 = {short_count(D1)} and D2 = {short_count(D2)}: {_short(found.differences(found.losses(D1, D2)))}"
        for D1, D2 in found.corners
    ]
    details = (
        [f"At single budgets, each taken alone: {'; '.join(places)}."] if len(places) > 1 and found.seeds > 1 else []
    )
    return Finding(sentence, " ".join([*details, _how(found)]), _verdict(differences))


def _interactions(found: MethodArms) -> Finding:
    table = found.interactions()
    if table is None:
        return Finding(
            "Whether the interaction of D1 and D2 differs between methods is open.",
            "It needs two D1 that have two D2 in common.",
            "open",
        )
    differences = found.differences(table)
    own = table[found.reference]
    what = (
        f"The interaction is the slope of the loss in ln D2 at D1 = {short_count(found.D1[-1])} minus that at "
        f"{short_count(found.D1[0])}, in nats"
    )
    interval = own_interval(own.tolist())
    bounds = f" (95 % interval {signed(interval[0])} to {signed(interval[1])})" if interval else ""
    shown = "" if interval is None else _shown(interval)
    detail = f"{what}; that of {found.reference} is {signed(own.mean())}{bounds}{shown}. {_how(found)}"
    clear = {arm: difference for arm, difference in differences.items() if difference.clear}
    if not clear:
        why = "each has one seed" if found.seeds < 2 else "every difference to copying's is within noise"
        largest = max(differences, key=lambda arm: abs(differences[arm].nats))
        sentence = f"That the interaction of D1 and D2 differs between methods is not shown: {why}."
        return Finding(sentence, f"The largest is {largest}'s, {_value(differences[largest])}. {detail}", "open")
    return Finding(
        f"The interaction of D1 and D2 differs from copying's with {_listed(clear)}.", detail, _verdict(differences)
    )


def _shown(interval: tuple[float, float]) -> str:
    if interval[0] > 0:
        return ", so more dense training slows upcycled training"
    return ", so more dense training speeds it up" if interval[1] < 0 else ", so an interaction itself is not shown"


def _routers(inputs: Inputs, found: MethodArms) -> Finding | None:
    last = {arm: curves.last() for arm, curves in router_curves(inputs, found).items()}
    if not last:
        return None
    entropy = {arm: 100 * values[0] for arm, values in last.items()}
    dead = {arm: 100 * values[1] for arm, values in last.items() if values[1] > 0}
    distance = {arm: values[2] for arm, values in last.items() if not math.isnan(values[2])}
    parts = [f"router entropy is {_range(entropy, ' %')} of its maximum"]
    if dead:
        most = max(dead, key=lambda arm: dead[arm])
        parts.append(
            f"{plural(len(dead), 'method')} of {len(last)} leave{'s' if len(dead) == 1 else ''} experts without a "
            f"token in a batch, at most {number(dead[most], 2)} % of them ({most})"
        )
    else:
        parts.append("no method leaves an expert without a token")
    if distance:
        parts.append(f"the distance between experts is {_range(distance, '')} of an expert's norm")
    budget = f"D1 = {short_count(found.D1[-1])} and D2 = {short_count(found.D2[-1])}"
    return Finding(
        f"At the end of training {joined(parts)}.",
        f"Means over {plural(found.seeds, 'seed')} at {budget}, entropy and unused experts over the last tenth of "
        "training. These are descriptions: no test says which differences exceed noise.",
    )


def _laws(fits: Mapping[str, FitResult]) -> Finding | None:
    """Exponents of Equation 8 by method; None where it is fitted to fewer than two methods."""
    if len(fits) < 2:
        return None
    reference, *others = fits
    apart = [
        f"{GREEK[name]} of {arm} is {'above' if fits[arm].values[name] > fits[reference].values[name] else 'below'} "
        f"that of {reference}"
        for arm in others
        for name in GREEK
        if _disjoint(fits[arm].intervals.get(name), fits[reference].intervals.get(name))
    ]
    values = "; ".join(
        f"{arm}: {', '.join(_parameter(fit, name) for name in GREEK)}"
        + ("" if fit.identifiable else f" ({reasons(fit.statement)})")
        for arm, fit in fits.items()
    )
    if apart:
        sentence = f"By their 95 % intervals exponents of Equation 8 differ: {joined(apart)}."
    else:
        sentence = (
            f"That the exponents of Equation 8 differ between {joined(list(fits))} is not shown: their 95 % intervals "
            "overlap."
        )
    verdict: Verdict = "clear" if apart and all(fit.identifiable for fit in fits.values()) else "open"
    return Finding(sentence, f"{values}. Intervals are of each fit's bootstrap and are not paired.", verdict)


def _disjoint(one: Sequence[float | None] | None, other: Sequence[float | None] | None) -> bool:
    ends = [*(one or (None, None)), *(other or (None, None))]
    low, high, other_low, other_high = (math.nan if end is None else end for end in ends)
    return low > other_high or high < other_low


def _parameter(fit: FitResult, name: str) -> str:
    low, high = fit.intervals.get(name, (None, None))
    bounds = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{GREEK[name]} {number(fit.values[name])}{bounds}"


def standing_of(difference: Difference) -> str:
    """Whether a loss is `lower` or `higher` than copying's, `within noise`, or known from `one seed` alone."""
    if difference.error is None:
        return "one seed"
    return ("lower" if difference.nats < 0 else "higher") if difference.clear else "within noise"


def _groups(differences: Mapping[str, Difference]) -> dict[str, dict[str, Difference]]:
    groups: dict[str, dict[str, Difference]] = {"lower": {}, "higher": {}, "within noise": {}, "one seed": {}}
    for arm in sorted(differences, key=lambda arm: differences[arm].nats):
        groups[standing_of(differences[arm])][arm] = differences[arm]
    return groups


def _verdict(differences: Mapping[str, Difference]) -> Verdict:
    clear = sum(each.clear for each in differences.values())
    return "clear" if clear == len(differences) else "part" if clear else "open"


def _value(difference: Difference) -> str:
    """`−0.012 ± 0.004`: the difference and half its interval."""
    if difference.error is None:
        return signed(difference.nats)
    decimals = 3 if difference.bound >= 0.002 else 4
    return f"{signed(difference.nats, decimals)} ± {difference.bound:.{decimals}f}"


def _listed(differences: Mapping[str, Difference]) -> str:
    return joined([f"{arm} ({_value(each)})" for arm, each in differences.items()])


def _short(differences: Mapping[str, Difference]) -> str:
    groups = _groups(differences)
    parts = [f"{how} with {joined(list(groups[how]))}" for how in ("lower", "higher") if groups[how]]
    return ", ".join(parts) if parts else "no difference is clear"


def _range(values: Mapping[str, float], unit: str) -> str:
    low, high = min(values, key=lambda arm: values[arm]), max(values, key=lambda arm: values[arm])
    return f"{number(values[low])}{unit} ({low}) to {number(values[high])}{unit} ({high})"


def _how(found: MethodArms) -> str:
    budgets = f"{len(found.D1)} D1 and {len(found.D2)} D2"
    if found.seeds < 2:
        return f"Budgets compared: {budgets}."
    apart = [arm for arm in found.others if arm not in found.paired]
    several = f", for all {len(found.paired)} differences together" if len(found.paired) > 1 else ""
    own = (
        f" {_capital(joined(apart))} begin{'s' if len(apart) == 1 else ''} with other parents: the interval comes from "
        "the spread of that difference over seeds."
        if apart
        else ""
    )
    return (
        f"Budgets compared: {budgets}, {found.seeds} seeds, paired by seed; in brackets nats and half of the 95 % "
        f"interval{several}, by noise pooled over methods.{own}"
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
