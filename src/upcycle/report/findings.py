"""What was found, in plain words that are computed from the losses and fits; no result is written down here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.paper.comparisons import Lead, clear_difference, leads
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, signed
from upcycle.paper.tables_data import LAWS, law_errors
from upcycle.spec import short_count

Verdict = Literal["clear", "open", "against"]


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
    found = [_best_law(inputs, grid, noise), _against_scratch(inputs, grid, noise), _interaction(inputs, grid)]
    found += [_dense_tokens_too(inputs, grid, noise), _noise(noise, grid)]
    return [finding for finding in found if finding is not None]


def _best_law(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    errors = law_errors(inputs, grid)
    if len(errors) < 2:
        return None
    ranked = sorted(errors, key=lambda law: errors[law])
    best, second = ranked[0], ranked[1]
    factor = errors[second] / errors[best]
    sentence = (
        f"Of {_count(len(ranked))} laws the {LAWS[best]} fits best: leaving one loss out, it predicts it to {number(errors[best])} nats, "
        f"{factor:.1f} times closer than the next ({LAWS[second]})."
    )
    verdict: Verdict = "clear" if factor >= 1.1 else "open"
    if verdict == "open":
        sentence = (
            f"The losses do not choose between the {LAWS[best]} and the {LAWS[second]}: "
            f"leave-one-out errors of {number(errors[best])} and {number(errors[second])} nats."
        )
    parts = []
    for family in ("multiplicative", "additive"):
        plain = f"{family}_no_interaction"
        if family in errors and plain in errors:
            ratio = errors[plain] / errors[family]
            if ratio >= 1.1:
                parts.append(f"Interaction makes the {family} law's error {ratio:.1f} times smaller.")
            elif ratio <= 1 / 1.1:
                parts.append(f"Interaction makes the {family} law's error {1 / ratio:.1f} times larger.")
            else:
                parts.append(f"Interaction makes no difference to the {family} law's error.")
    if noise is not None:
        share = errors[best] / noise.deviation
        parts.append(
            f"The best law's error is {share:.1f} times the spread that seeds alone give ({number(noise.deviation)} nats): "
            + ("little is left to explain." if share < 1.5 else "it does not explain everything.")
        )
    return Finding(sentence, " ".join(parts), verdict if best == "multiplicative" or verdict == "open" else "against")


def _against_scratch(inputs: Inputs, grid: Grid, noise: SeedNoise | None) -> Finding | None:
    found = leads(inputs, grid)
    if not found:
        return None
    sentence, verdict = _lead_sentence(found, noise, "trained from scratch on as many tokens as upcycling added")
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
    reference = "trained from scratch on all the tokens, those of the dense model counted too"
    sentence, verdict = _lead_sentence(found, noise, reference)
    detail = (
        f"Measured where the grid holds a model trained from scratch on D1 + D2 tokens. {_extremes(found)} A dense token costs "
        "less compute than a token of the mixture, so this is an account in tokens, not in FLOPs."
    )
    return Finding(sentence, detail, verdict)


def _extremes(found: list[Lead]) -> str:
    least, most = min(found, key=lambda lead: lead.nats), max(found, key=lambda lead: lead.nats)
    return (
        f"Upcycling's lead runs from {signed(least.nats)} nats at D1 = {short_count(least.D1)}, D2 = {short_count(least.D2)} "
        f"to {signed(most.nats)} at D1 = {short_count(most.D1)}, D2 = {short_count(most.D2)}."
    )


def _lead_sentence(found: list[Lead], noise: SeedNoise | None, reference: str) -> tuple[str, Verdict]:
    """Who is ahead at how many points, and whether by more than the seeds' noise."""
    ahead = sum(lead.nats > 0 for lead in found)
    n = len(found)
    if ahead == n:
        sentence = f"Upcycling beat the same mixture {reference} at {'each' if n > 1 else 'the one'} of {n} points"
    elif ahead == 0:
        sentence = f"Upcycling lost to the same mixture {reference} at {'each' if n > 1 else 'the one'} of {n} points"
    else:
        sentence = f"Upcycling beat the same mixture {reference} at {ahead} of {n} points and lost at {n - ahead}"
    if noise is None:
        return sentence + ".", "open"
    bound = clear_difference(noise)
    unclear = sum(abs(lead.nats) <= bound for lead in found)
    if unclear == 0:
        sentence += f", always by more than seeds explain ({number(bound)} nats)."
    elif unclear < n:
        sentence += f"; at {unclear} the difference is within what seeds alone give ({number(bound)} nats)."
    else:
        sentence += f", nowhere by more than seeds alone give ({number(bound)} nats)."
    return sentence, "open" if unclear == n or 0 < ahead < n else "clear"


def _flips(found: list[Lead]) -> str:
    """Between which D2 the winner changes, for each D1 where it does."""
    words = []
    for D1 in sorted({lead.D1 for lead in found}):
        line = sorted((lead for lead in found if lead.D1 == D1), key=lambda lead: lead.D2)
        for before, after in zip(line, line[1:], strict=False):
            if before.nats > 0 >= after.nats:
                words.append(f"D1 = {short_count(D1)} between D2 = {short_count(before.D2)} and {short_count(after.D2)}")
    return f"Training from scratch overtakes upcycling from {'; '.join(words)}." if words else ""


def _interaction(inputs: Inputs, grid: Grid) -> Finding | None:
    fit = inputs.fit_or_none(grid, "multiplicative")
    if fit is None:
        return None
    value = f"α3 = {number(fit.values['alpha3'])}"
    interval = fit.intervals.get("alpha3")
    if interval is None:
        return Finding("Whether more dense training slows upcycled training down is not settled.", f"{value}. {fit.statement}", "open")
    low, high = interval
    value += f", 95 % interval {number(low)} to {number(high)}"
    first, last = (exponent(fit, D1) for D1 in (grid.D1[0], grid.D1[-1]))
    detail = (
        f"{value}: the exponent of D2 goes from {number(first)} at D1 = {short_count(grid.D1[0])} to {number(last)} at "
        f"D1 = {short_count(grid.D1[-1])}."
    )
    if not fit.identifiable:
        detail += f" The law as a whole is not identifiable: {fit.statement}"
    if low <= 0 <= high:
        return Finding("Whether more dense training slows upcycled training down is not settled.", detail, "open")
    if low > 0:
        return Finding("The longer the dense model was trained, the more slowly its upcycled model improves.", detail)
    return Finding("The longer the dense model was trained, the faster its upcycled model improves.", detail, "against")


def exponent(fit: FitResult, D1: float) -> float:
    """alpha2 - alpha3 ln D1 of Equation 8: how fast the reducible loss falls with D2."""
    return fit.values["alpha2"] - fit.values["alpha3"] * math.log(D1)


def _noise(noise: SeedNoise | None, grid: Grid) -> Finding | None:
    if noise is None:
        return Finding(
            "The noise of a loss was not measured: no point was trained with more than one seed.",
            "Small differences may be chance. The standard errors shown are of the held-out text alone.",
            "open",
        )
    spread = grid.rows["loss"].max() - grid.rows["loss"].min()
    return Finding(
        f"The same run with another seed ends {number(noise.deviation)} nats away (standard deviation).",
        f"Measured at {noise.points} points, {noise.freedom} degrees of freedom. The upcycled losses span {spread:.2f} nats, "
        f"{spread / noise.deviation:,.0f} times that; two single losses differ clearly if more than {number(clear_difference(noise))} nats apart.",
    )


def _count(number: int) -> str:
    return {2: "two", 3: "three", 4: "four"}.get(number, str(number))
