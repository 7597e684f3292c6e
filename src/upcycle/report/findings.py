"""What was found, in plain words that are computed from the losses and fits; no result is written down here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from upcycle.laws.result import FitResult
from upcycle.laws.validate import SeedNoise
from upcycle.paper.comparisons import Lead, clear_difference, leads
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, signed
from upcycle.paper.tables_data import LAWS, law_errors
from upcycle.study.spec import short_count

Verdict = Literal["clear", "open", "against"]
SAME = 1.1
"""Errors of two laws within this factor are called equal."""
EXPLAINED = 1.5
"""An error of at most this many standard deviations of the seeds' noise leaves little to explain."""


@dataclass(frozen=True)
class Finding:
    """One sentence that says it, and the numbers behind it."""

    sentence: str
    detail: str
    verdict: Verdict = "clear"
    """Whether the losses settle it: `clear`, `open`, or `against` what the paper found."""


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
        _dense_tokens_too(inputs, grid, noise),
        _noise(noise, grid),
    ]
    return [finding for finding in found if finding is not None]


def _best_law(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    errors = {law: error for law, error in law_errors(inputs, grid).items() if math.isfinite(error)}
    if len(errors) < 2:
        return None
    best, second = sorted(errors, key=lambda law: errors[law])[:2]
    factor = errors[second] / errors[best]
    details = [_gain(errors, family) for family in ("multiplicative", "additive")]
    if noise is not None:
        share = errors[best] / noise.deviation
        details.append(
            f"The best law's error is {number(share, 2)} times the spread that seeds alone give "
            f"({number(noise.deviation, 2)} nats): "
            + ("little is left to explain." if share < EXPLAINED else "it does not explain everything.")
        )
    detail = " ".join(filter(None, details))
    if factor < SAME:
        return Finding(
            f"The losses do not choose between the {LAWS[best]} and the {LAWS[second]}: "
            f"leave-one-out errors of {number(errors[best])} and {number(errors[second])} nats.",
            detail,
            "open",
        )
    sentence = (
        f"Of the paper's {_count(len(errors))} laws the {LAWS[best]} fits best: leaving one loss out, it predicts it "
        f"to {number(errors[best], 2)} nats, {number(factor, 2)} times closer than the next (the {LAWS[second]})."
    )
    return Finding(sentence, detail, "clear" if best == "multiplicative" else "against")


def _gain(errors: dict[str, float], family: str) -> str:
    """What interaction does to the error of a family of laws, in words; nothing where one of the two is not fitted."""
    plain = f"{family}_no_interaction"
    if family not in errors or plain not in errors:
        return ""
    ratio = errors[plain] / errors[family]
    if ratio >= SAME:
        return f"Interaction makes the {family} law's error {number(ratio, 2)} times smaller."
    if ratio <= 1 / SAME:
        return f"Interaction makes the {family} law's error {number(1 / ratio, 2)} times larger."
    return f"Interaction makes no difference to the {family} law's error."


def _against_scratch(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    found = leads(inputs, grid)
    if not found:
        return None
    rival = "training the same mixture from scratch on the tokens that it adds (D2)"
    sentence, verdict = _lead_sentence(found, noise, rival)
    detail = _extremes(found)
    if flips := _flips(found):
        detail += " " + flips
    elif all(lead.nats > 0 for lead in found):
        detail += " Nowhere in the grid did training from scratch catch up."
    return Finding(sentence, detail, verdict)


def _dense_tokens_too(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    found = leads(inputs, grid, dense_tokens_count=True)
    if not found:
        return None
    rival = "training the same mixture from scratch on all the tokens, the dense model's included (D1 + D2)"
    sentence, verdict = _lead_sentence(found, noise, rival)
    detail = (
        f"Measured where the grid holds a model trained from scratch on D1 + D2 tokens. {_extremes(found)} A dense "
        "token costs less compute than a token of the mixture, so this is an account in tokens, not in FLOPs."
    )
    return Finding(sentence, detail, verdict)


def _extremes(found: list[Lead]) -> str:
    least, most = min(found, key=lambda lead: lead.nats), max(found, key=lambda lead: lead.nats)
    places = [f"D1 = {short_count(lead.D1)}, D2 = {short_count(lead.D2)}" for lead in (least, most)]
    return f"Upcycling's lead runs from {signed(least.nats)} nats at {places[0]} to {signed(most.nats)} at {places[1]}."


def _lead_sentence(found: list[Lead], noise: SeedNoise | None, rival: str) -> tuple[str, Verdict]:
    """Who is ahead at how many points, and whether by more than the seeds' noise."""
    n, ahead = len(found), sum(lead.nats > 0 for lead in found)
    at = f"each of the {n} points" if n > 1 else "the one point"
    if ahead == n:
        sentence = f"At {at} upcycling beats {rival}"
    elif ahead == 0:
        sentence = f"At {at} upcycling loses to {rival}"
    else:
        sentence = f"At {ahead} of {n} points upcycling beats {rival}, at {n - ahead} it loses"
    if noise is None:
        return sentence + ".", "open"
    bound = clear_difference(noise)
    unclear = sum(abs(lead.nats) <= bound for lead in found)
    if unclear == 0:
        sentence += f", always by more than seeds explain ({number(bound, 2)} nats)."
    elif unclear < n:
        sentence += f"; at {unclear} the difference is within what seeds alone give ({number(bound, 2)} nats)."
    else:
        sentence += f", nowhere by more than seeds alone give ({number(bound, 2)} nats)."
    return sentence, "open" if unclear == n else "clear"


def _flips(found: list[Lead]) -> str:
    """Between which D2 training from scratch overtakes, for each D1 where it does."""
    places = []
    for D1 in sorted({lead.D1 for lead in found}):
        line = sorted((lead for lead in found if lead.D1 == D1), key=lambda lead: lead.D2)
        places += [
            f"between D2 = {short_count(before.D2)} and {short_count(after.D2)} at D1 = {short_count(D1)}"
            for before, after in pairwise(line)
            if before.nats > 0 >= after.nats
        ]
    return f"Training from scratch overtakes {'; '.join(places)}." if places else ""


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
    if noise is not None:
        share = offset.loo_rms / noise.deviation
        detail += f" Its leave-one-out error is {number(share, 2)} times the spread that seeds alone give."
    if ratio >= SAME:
        return Finding(
            f"With an offset in D2, which the paper's laws lack, the multiplicative law predicts a left-out loss to "
            f"{number(offset.loo_rms, 2)} nats, {number(ratio, 2)} times closer.",
            detail,
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
        return Finding(unsettled, f"{value}, without an interval. {fit.statement}", "open")
    first, last = (exponent(fit, D1) for D1 in (grid.D1[0], grid.D1[-1]))
    detail = (
        f"{value}, 95 % interval {number(low)} to {number(high)}: the exponent of D2 goes from {number(first)} at "
        f"D1 = {short_count(grid.D1[0])} to {number(last)} at D1 = {short_count(grid.D1[-1])}."
    )
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
    spread = grid.rows["loss"].max() - grid.rows["loss"].min()
    return Finding(
        f"The same run with another seed ends {number(noise.deviation, 2)} nats away (standard deviation).",
        f"Measured at {noise.points} points, {noise.freedom} degrees of freedom. The upcycled losses span {spread:.2f} "
        f"nats, {spread / noise.deviation:,.0f} times that; two single losses differ clearly if more than "
        f"{number(clear_difference(noise), 2)} nats apart.",
    )


def _count(items: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(items, str(items))
