"""What was found, in plain words that are computed from the losses and fits; no result is written down here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from upcycle.laws.compare import ErrorRatio
from upcycle.laws.result import FitResult
from upcycle.laws.validate import SeedNoise
from upcycle.paper.comparisons import Lead, Standing, clear_difference, leads, standing, tally
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, plural, signed
from upcycle.paper.tables_data import LAWS, law_errors
from upcycle.study.spec import short_count

Verdict = Literal["clear", "part", "open", "against"]
SAME = 1.1
"""Errors of two laws within this factor are called equal."""
REJECTED = 0.05
"""Probability of the residuals under the noise of seeds below which a law is called rejected."""


@dataclass(frozen=True)
class Finding:
    """One sentence that says it, and the numbers behind it."""

    sentence: str
    detail: str
    verdict: Verdict = "clear"
    """Whether the losses settle it: `clear`, in `part` (at some points), `open`, or `against` what the paper found."""


def headline(inputs: Inputs, sweep: str | None = None) -> str:
    """What the sweep found, in one line for the end of `make sweep`."""
    found = findings(inputs, sweep)
    mark = "SIMULATED LOSSES. " if inputs.simulated else ""
    return mark + " ".join(finding.sentence for finding in found[:2])


def findings(inputs: Inputs, sweep: str | None = None) -> list[Finding]:
    """Everything that the report says first, the most important first."""
    grid = inputs.grid(sweep)
    noise = inputs.noise
    found = [
        _best_law(inputs, grid, noise),
        _against_scratch(inputs, grid, noise),
        _offset(inputs, grid, noise),
        _interaction(inputs, grid),
        _noise(noise, grid),
    ]
    return [finding for finding in found if finding is not None]


def _best_law(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    errors = {law: error for law, error in law_errors(inputs, grid).items() if math.isfinite(error)}
    if len(errors) < 2:
        return None
    best, second = sorted(errors, key=lambda law: errors[law])[:2]
    factor = errors[second] / errors[best]
    sure = inputs.error_ratio(inputs.fit(grid, second), inputs.fit(grid, best))
    details = [_gain(inputs, grid, errors, family) for family in ("multiplicative", "additive")]
    details.append(_lack_of_fit(inputs, inputs.fit(grid, best), "The best law", noise))
    detail = " ".join(filter(None, details))
    if factor < SAME:
        return Finding(
            f"The losses do not choose between the {LAWS[best]} and the {LAWS[second]}: "
            f"leave-one-out errors of {number(errors[best])} and {number(errors[second])} nats.",
            detail,
            "open",
        )
    settled = sure is not None and sure.clear
    sentence = (
        f"Of the paper's {_count(len(errors))} laws the {LAWS[best]} fits best: leaving one loss out, it predicts it "
        f"to {number(errors[best], 2)} nats, {number(factor, 3)} times closer than the next (the {LAWS[second]})"
        + ("." if settled else ", which so few points do not settle.")
    )
    detail = f"That factor: {_interval(sure)}. {detail}" if sure else detail
    return Finding(sentence, detail, "open" if not settled else "clear" if best == "multiplicative" else "against")


def _gain(inputs: Inputs, grid: Grid, errors: dict[str, float], family: str) -> str:
    """What interaction does to the error of a family of laws, in words; nothing where one of the two is not fitted."""
    plain = f"{family}_no_interaction"
    if family not in errors or plain not in errors:
        return ""
    ratio = errors[plain] / errors[family]
    sure = inputs.error_ratio(inputs.fit(grid, plain), inputs.fit(grid, family))
    interval = f" ({_interval(sure)} of the factor without over with)" if sure else ""
    if ratio >= SAME:
        return f"Interaction makes the {family} law's error {number(ratio, 3)} times smaller{interval}."
    if ratio <= 1 / SAME:
        return f"Interaction makes the {family} law's error {number(1 / ratio, 3)} times larger{interval}."
    return f"Interaction makes no difference to the {family} law's error{interval}."


def _interval(ratio: ErrorRatio) -> str:
    """The 95 % intervals of a ratio of errors."""
    points = f"95 % interval {number(ratio.by_points[0])} to {number(ratio.by_points[1])} by drawing points"
    if ratio.by_groups is None:
        return points
    return f"{points}, {number(ratio.by_groups[0])} to {number(ratio.by_groups[1])} by drawing whole rows of D1"


def _lack_of_fit(inputs: Inputs, fit: FitResult, what: str, noise: SeedNoise | None) -> str:
    """Whether a law misses the losses by more than seeds do, in words; nothing where that cannot be told."""
    test = inputs.lack_of_fit(fit)
    if test is None or noise is None:
        return ""
    numbers = f"F({test.freedom[0]}, {test.freedom[1]}) = {number(test.F)}, p = {number(test.p, 2)}"
    verdict = "is rejected: it misses the losses by more than" if test.p < REJECTED else "is not rejected by"
    return f"{what} {verdict} the noise of seeds, {number(noise.deviation, 2)} nats ({numbers})."


def _against_scratch(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    """Upcycling against the same mixture from scratch, by the tokens of the mixture and by all tokens, in one sentence.

    The two can point to different winners, since only the second counts the dense model's tokens.
    """
    bound = clear_difference(noise) if noise else 0.0
    added, both = leads(inputs, grid), leads(inputs, grid, dense_tokens_count=True)
    if not added and not both:
        return None
    parts: list[str] = []
    details: list[str] = []
    for found, rival, tokens in (
        (added, "the tokens that upcycling adds (D2)", "D2"),
        (both, "all the tokens, the dense model's included (D1 + D2)", "D1 + D2"),
    ):
        if found:
            parts.append(f"against {'one' if parts else 'the same mixture'} trained from scratch on {rival}, ")
            parts[-1] += f"{'it' if len(parts) > 1 else 'upcycling'} {_stands(tally(found, bound))}"
            details.append(_extremes(found, f"training from scratch on {tokens} tokens"))
    details.insert(1, _along_d2(added, bound))
    kinds = tally([*added, *both], bound)
    if kinds["undecided"] and noise:
        details.append(f"Undecided: the difference is within what seeds alone give ({number(bound, 2)} nats).")
    if noise is None:
        details.append("No point was trained with two seeds, so some of these differences may be chance.")
    if both:
        details.append(
            "A dense token costs fewer FLOPs than a token of the mixture: an account in FLOPs that pays for the dense "
            "model lies between these two."
            if added
            else "A dense token costs fewer FLOPs than a token of the mixture, so this is an account in tokens alone."
        )
    decided = kinds["ahead"] + kinds["behind"]
    verdict: Verdict = "open" if noise is None or not decided else "part" if kinds["undecided"] else "clear"
    sentence = "; ".join(parts) + "."
    return Finding(sentence[0].upper() + sentence[1:], " ".join(filter(None, details)), verdict)


_VERBS: dict[Standing, str] = {"ahead": "wins", "behind": "loses", "undecided": "is undecided"}


def _stands(kinds: Counter[Standing]) -> str:
    """`wins at 22 of 25 points and is undecided at 3`: what upcycling does, each point counted once."""
    n, present = kinds.total(), [kind for kind in _VERBS if kinds[kind]]
    if len(present) == 1:
        return f"{_VERBS[present[0]]} at {f'each of the {n} points' if n > 1 else 'the one point'}"
    first, *rest = (f"{_VERBS[kind]} at {kinds[kind]}" for kind in present)
    return _and([f"{first} of {n} points", *rest])


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _extremes(found: list[Lead], rival: str) -> str:
    least, most = min(found, key=lambda lead: lead.nats), max(found, key=lambda lead: lead.nats)
    places = [f"D1 = {short_count(lead.D1)}, D2 = {short_count(lead.D2)}" for lead in (least, most)]
    if least == most:
        return f"The lead of upcycling over {rival} is {signed(least.nats)} nats at {places[0]}."
    return (
        f"The lead of upcycling over {rival} runs from {signed(least.nats)} nats at {places[0]} "
        f"to {signed(most.nats)} at {places[1]}."
    )


def _along_d2(found: list[Lead], bound: float) -> str:
    """From which D2 on the lead is no longer clear, and between which D2 training from scratch overtakes, by D1."""
    overtaken, faded = [], []
    for D1 in sorted({lead.D1 for lead in found}):
        line = sorted((lead for lead in found if lead.D1 == D1), key=lambda lead: lead.D2)
        at = f"at D1 = {short_count(D1)}"
        ahead = [lead for lead in line if standing(lead, bound) == "ahead"]
        later = [lead for lead in line if ahead and lead.D2 > ahead[-1].D2]
        behind = [lead for lead in later if standing(lead, bound) == "behind"]
        if behind:
            overtaken.append(f"between D2 = {short_count(ahead[-1].D2)} and {short_count(behind[0].D2)} {at}")
        elif later:
            faded.append(f"from D2 = {short_count(later[0].D2)} on {at}")
    sentences = [f"Training from scratch overtakes {'; '.join(overtaken)}."] if overtaken else []
    sentences += [f"The lead is no longer clear {'; '.join(faded)}."] if faded else []
    if len(found) > 1 and tally(found, bound)["ahead"] == len(found):
        sentences.append("Nowhere in the grid did training from scratch catch up.")
    return " ".join(sentences)


def _offset(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    """What an offset in D2, which the paper's laws have not, does to the multiplicative law."""
    plain, offset = (inputs.fit_or_none(grid, law) for law in ("multiplicative", "multiplicative_offset"))
    if plain is None or offset is None or set(plain.ids) != set(offset.ids):
        return None
    if plain.loo_rms is None or offset.loo_rms is None:
        return None
    ratio = plain.loo_rms / offset.loo_rms
    detail = (
        f"The law with (1 + D2/D0) in place of (1 + D2) ends in the dense model's loss at D2 = 0 and has one parameter "
        f"more: D0 = {short_count(offset.values['D0'])} tokens. Its AIC is "
        f"{signed(offset.certificate['aic'] - plain.certificate['aic'], 0)} against the law without."
    )
    sure = inputs.error_ratio(plain, offset)
    detail += f" The factor: {_interval(sure)}." if sure else ""
    detail = f"{detail} {_lack_of_fit(inputs, offset, 'The law with the offset', noise)}".strip()
    if ratio >= SAME:
        return Finding(
            f"With an offset in D2, which the paper's laws lack, the multiplicative law predicts a left-out loss to "
            f"{number(offset.loo_rms, 2)} nats, {number(ratio, 2)} times closer.",
            detail,
            "clear" if sure is not None and sure.clear else "open",
        )
    return Finding(
        f"An offset in D2, which the paper's laws lack, makes the multiplicative law no better: leave-one-out errors "
        f"of {number(offset.loo_rms)} nats with it and {number(plain.loo_rms)} without.",
        detail,
        "open",
    )


def _interaction(inputs: Inputs, grid: Grid) -> Finding | None:
    fit = inputs.fit_or_none(grid, "multiplicative")
    if fit is None:
        return None
    unsettled = "Whether more dense training slows upcycled training down is not settled."
    value = f"α3 = {number(fit.values['alpha3'])}"
    low, high = fit.intervals.get("alpha3", [None, None])
    if low is None or high is None:
        return Finding(unsettled, f"{value}, without an interval: the law is {fit.statement}.", "open")
    first, last = (f"{number(exponent(fit, D1))} at D1 = {short_count(D1)}" for D1 in (grid.D1[0], grid.D1[-1]))
    goes = f"is {first}" if len(grid.D1) == 1 else f"goes from {first} to {last}"
    detail = f"{value}, 95 % interval {number(low)} to {number(high)}: the exponent of D2 {goes}."
    if not fit.identifiable:
        detail += f" The law as a whole is {fit.statement}."
    if low <= 0 <= high:
        return Finding(unsettled, detail, "open")
    if low > 0:
        return Finding("The longer the dense model was trained, the more slowly its upcycled model improves.", detail)
    return Finding("The longer the dense model was trained, the faster its upcycled model improves.", detail, "against")


def exponent(fit: FitResult, D1: float) -> float:
    """alpha2 - alpha3 ln D1 of Equation 8: how fast the reducible loss falls with D2."""
    return float(fit.values["alpha2"] - fit.values["alpha3"] * math.log(D1))


def _noise(noise: SeedNoise | None, grid: Grid) -> Finding:
    if noise is None:
        return Finding(
            "The noise of a loss was not measured: no point was trained with more than one seed.",
            "Small differences may be chance. The standard errors shown are of the held-out text alone.",
            "open",
        )
    spread = float(grid.rows["loss"].max() - grid.rows["loss"].min())
    span = ""
    if len(grid.rows) > 1:
        span = f"The upcycled losses span {spread:.2f} nats, {number(spread / noise.deviation, 2)} times that. "
    return Finding(
        f"The same run with another seed ends {number(noise.deviation, 2)} nats away (standard deviation).",
        f"Measured at {plural(noise.points, 'point')} with {plural(noise.freedom, 'degree')} of freedom. {span}Two "
        f"single losses differ clearly if they are more than {number(clear_difference(noise), 2)} nats apart.",
    )


def _count(items: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(items, str(items))
