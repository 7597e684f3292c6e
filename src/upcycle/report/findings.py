"""What was found, in sentences computed from the losses and fits; no result is typed in here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from upcycle.decisions.advice.measured import MeasuredAdvice, advise_measured
from upcycle.decisions.advice.measured_words import at_same_tokens, recommendation
from upcycle.laws.certificate.validate import SeedNoise
from upcycle.laws.compare import ErrorRatio
from upcycle.laws.result import FitResult
from upcycle.paper.ablation_grids import REJECTED
from upcycle.paper.comparisons import Finding, Lead, Standing, Verdict, clear_difference, leads, standing, tally
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, plural, reasons, signed
from upcycle.paper.tables_data import LAWS, law_errors
from upcycle.study.spec import short_count


def headline(inputs: Inputs, sweep: str | None = None) -> str:
    """What the sweep found, in one line for the end of `make sweep`."""
    found = findings(inputs, sweep)
    mark = f"{inputs.mark}. " if inputs.mark else ""
    return mark + " ".join(finding.sentence for finding in found[:2])


def findings(inputs: Inputs, sweep: str | None = None) -> list[Finding]:
    """The findings at the head of the report, the most important first."""
    grid = inputs.grid(sweep)
    noise, rivals = inputs.noise, inputs.rivals(grid)
    found = [
        _best_law(inputs, grid),
        _against_scratch(inputs, grid, noise),
        *(_against_trained_on(advise_measured(each), several=len(rivals) > 1) for each in rivals),
        _offset(inputs, grid),
        _interaction(inputs, grid),
        _noise(inputs, grid),
    ]
    return [finding for finding in found if finding is not None]


def _best_law(inputs: Inputs, grid: Grid) -> Finding | None:
    errors = {law: error for law, error in law_errors(inputs, grid).items() if math.isfinite(error)}
    if len(errors) < 2:
        return None
    best, second = sorted(errors, key=lambda law: errors[law])[:2]
    fits = {law: inputs.fit(grid, law) for law in errors}
    ratio = inputs.error_ratio(fits[second], fits[best])
    # Where a family's two laws are the best and the second, their ratio is told already.
    families = [name for name in ("multiplicative", "additive") if {best, second} != {name, f"{name}_no_interaction"}]
    gains = [_gain(inputs, fits, family) for family in families]
    against = f"The ratio of the second error to the first is {_ratio(ratio)}." if ratio else ""
    detail = " ".join(filter(None, [against, *gains, _misfit(inputs, fits[best], LAWS[best])]))
    if ratio is None or not ratio.clear:
        return Finding(
            f"The losses do not separate the {LAWS[best]} from the {LAWS[second]}: their leave-one-out errors are "
            f"{number(errors[best], 2)} and {number(errors[second], 2)} nats.",
            detail,
            "open",
        )
    count = ("two", "three", "four")[len(errors) - 2]
    sentence = (
        f"Of the paper's {count} laws the {LAWS[best]} fits best: its leave-one-out error is "
        f"{number(errors[best], 2)} nats; that of the next, the {LAWS[second]}, is {number(errors[second], 2)}."
    )
    return Finding(sentence, detail, "clear" if best == "multiplicative" else "against")


def _ratio(ratio: ErrorRatio) -> str:
    """`1.3 (95 % interval 0.84 to 1.6 over points, 1.1 to 1.5 over rows of D1)`: what the bootstrap draws."""
    points = "95 % interval {} to {} over points".format(*map(number, ratio.by_points))
    rows = ", {} to {} over rows of D1".format(*map(number, ratio.by_groups)) if ratio.by_groups else ""
    return f"{number(ratio.ratio)} ({points}{rows})"


def _gain(inputs: Inputs, fits: Mapping[str, FitResult], family: str) -> str:
    """What interaction does to the error of a family of laws; nothing where one of the two is not fitted."""
    plain = f"{family}_no_interaction"
    if family not in fits or plain not in fits:
        return ""
    # Clear one way or the other: a ratio's bootstrap interval is not that of its inverse turned round.
    ratio, inverse = inputs.error_ratio(fits[plain], fits[family]), inputs.error_ratio(fits[family], fits[plain])
    if ratio is None or inverse is None:
        return ""
    verdict = "improves" if ratio.clear else "worsens" if inverse.clear else "neither clearly improves nor worsens"
    return (
        f"Interaction {verdict} the {family} law: the ratio of the error without it to that with it is {_ratio(ratio)}."
    )


def _misfit(inputs: Inputs, fit: FitResult, name: str) -> str:
    """Whether the noise between seeds explains a law's residuals; nothing where that noise is unknown."""
    test = inputs.lack_of_fit(fit)
    if test is None:
        return ""
    verdict = "rejects" if test.p < REJECTED else "does not reject"
    return (
        f"The noise between seeds {verdict} the {name} (lack of fit: F = {number(test.F)} with {test.freedom[0]} and "
        f"{test.freedom[1]} degrees of freedom, p = {number(test.p, 2)})."
    )


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
        (added, "the upcycling tokens (D2)", "D2"),
        (both, "all tokens (D1 + D2)", "D1 + D2"),
    ):
        if found:
            parts.append(f"against {'one' if parts else 'the same mixture'} trained from scratch on {rival}, ")
            parts[-1] += f"{'it' if len(parts) > 1 else 'upcycling'} {_stands(tally(found, bound))}"
            details.append(_extremes(found, f"training from scratch on {tokens} tokens"))
    details.insert(1, _along_d2(added, bound))  # after the first comparison, which it continues
    kinds = tally([*added, *both], bound)
    if kinds["undecided"] and noise:
        details.append(f"Undecided means a difference within the noise between seeds ({number(bound, 2)} nats).")
    if noise is None:
        details.append("No point was trained with two seeds, so some of these differences may be chance.")
    if both:
        details.append(
            "A dense token costs fewer FLOPs than a mixture token, so a comparison at equal FLOPs, dense model "
            "included, lies between these two."
            if added
            else "A dense token costs fewer FLOPs than a mixture token: this comparison is at equal tokens alone."
        )
    decided = kinds["ahead"] + kinds["behind"]
    verdict: Verdict = "open" if noise is None or not decided else "part" if kinds["undecided"] else "clear"
    sentence = "; ".join(parts) + "."
    return Finding(sentence[0].upper() + sentence[1:], " ".join(filter(None, details)), verdict)


def _against_trained_on(advice: MeasuredAdvice, *, several: bool) -> Finding:
    """Upcycling against the dense model trained on, at the same FLOPs and at the same tokens.

    `several`: whether there is one for each of several D1, which is then said.
    """
    which = f"D1 = {short_count(advice.rivals.d1)}: " if several else ""
    outcomes = {each.outcome for each in advice.budgets} - {"unknown"}
    decided = outcomes & {"upcycle", "dense"}
    verdict: Verdict = "open" if not decided or advice.rivals.noise is None else "clear"
    if decided and len(outcomes) > 1:
        verdict = "part"
    chance = "" if advice.rivals.noise else "No point was trained with two seeds, so these differences may be chance."
    return Finding(which + recommendation(advice), f"{at_same_tokens(advice)} {chance}".strip(), verdict)


_VERBS: dict[Standing, str] = {"ahead": "wins", "behind": "loses", "undecided": "is undecided"}


def _stands(kinds: Counter[Standing]) -> str:
    """`wins at 22 of 25 points and is undecided at 3`: what upcycling does, each point counted once."""
    n, present = kinds.total(), [kind for kind in _VERBS if kinds[kind]]
    if len(present) == 1:
        return f"{_VERBS[present[0]]} at {f'each of the {n} points' if n > 1 else 'the one point'}"
    first, *rest = (f"{_VERBS[kind]} at {kinds[kind]}" for kind in present)
    *before, last = f"{first} of {n} points", *rest
    return f"{', '.join(before)} and {last}"


def _extremes(found: list[Lead], rival: str) -> str:
    least, most = min(found, key=lambda lead: lead.nats), max(found, key=lambda lead: lead.nats)
    places = [f"D1 = {short_count(lead.D1)}, D2 = {short_count(lead.D2)}" for lead in (least, most)]
    if least == most:
        return f"The lead of upcycling over {rival} is {signed(least.nats)} nats at {places[0]}."
    return (
        f"The lead of upcycling over {rival} ranges from {signed(least.nats)} nats at {places[0]} "
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
            faded.append(f"from D2 = {short_count(later[0].D2)} {at}")
    sentences = [f"Training from scratch overtakes {'; '.join(overtaken)}."] if overtaken else []
    sentences += [f"Upcycling is no longer clearly ahead {'; '.join(faded)}."] if faded else []
    if len(found) > 1 and tally(found, bound)["ahead"] == len(found):
        sentences.append("Training from scratch caught up nowhere in the grid.")
    return " ".join(sentences)


def _offset(inputs: Inputs, grid: Grid) -> Finding | None:
    """What an offset in D2, which the paper's laws do not have, does to the multiplicative law's error."""
    plain, offset = (inputs.fit_or_none(grid, law) for law in ("multiplicative", "multiplicative_offset"))
    if plain is None or offset is None or plain.loo_rms is None or offset.loo_rms is None:
        return None
    ratio = inputs.error_ratio(plain, offset)
    if ratio is None:
        return None
    difference = offset.certificate["aic"] - plain.certificate["aic"]
    detail = (
        f"The ratio of the error without the offset to that with it is {_ratio(ratio)}. Replacing 1 + D2 by 1 + D2/D0 "
        f"makes the law equal the dense law at D2 = 0; D0 = {short_count(offset.values['D0'])} tokens. AIC is "
        f"{number(abs(difference), 2)} {'lower' if difference < 0 else 'higher'} with the offset. "
        f"{_misfit(inputs, offset, 'law with the offset')}"
    )
    verb = "improves" if ratio.clear else "does not clearly improve"
    return Finding(
        f"An offset in D2, which the paper's laws do not have, {verb} the multiplicative law: the leave-one-out error "
        f"is {number(offset.loo_rms, 2)} nats with it and {number(plain.loo_rms, 2)} without.",
        detail.strip(),
        "clear" if ratio.clear else "open",
    )


def _interaction(inputs: Inputs, grid: Grid) -> Finding | None:
    fit = inputs.fit_or_none(grid, "multiplicative")
    if fit is None or "alpha3" in fit.fixed:
        return None
    unsettled = "These losses do not settle whether more dense training slows upcycled training."
    value = f"α3 = {number(fit.values['alpha3'])}"
    low, high = fit.intervals.get("alpha3", [None, None])
    if low is None or high is None:
        return Finding(unsettled, f"{value}, without an interval: {reasons(fit.statement)}.", "open")
    first, last = (f"{number(d2_exponent(fit, D1))} at D1 = {short_count(D1)}" for D1 in (grid.D1[0], grid.D1[-1]))
    ends = first if len(grid.D1) == 1 else f"{first} and {last}"
    detail = f"{value} (95 % interval {number(low)} to {number(high)}): the exponent of D2 is {ends}."
    if not fit.identifiable:
        detail += f" Of this law the losses leave open: {reasons(fit.statement)}."
    test = inputs.lack_of_fit(fit)
    rejected = test is not None and test.p < REJECTED
    if rejected:
        detail += " The noise between seeds rejects this law (lack of fit): trust the interval only as far as the law."
    if low <= 0 <= high:
        return Finding(unsettled, detail, "open")
    verdict: Verdict = "open" if rejected else "clear" if low > 0 else "against"
    how = "the more slowly" if low > 0 else "the faster"
    given = "By the multiplicative law, the" if rejected else "The"
    return Finding(f"{given} longer the dense model was trained, {how} its upcycled model improves.", detail, verdict)


def d2_exponent(fit: FitResult, D1: float) -> float:
    """alpha2 - alpha3 ln D1 of Equation 8: how fast the reducible loss falls with D2."""
    return float(fit.values["alpha2"] - fit.values["alpha3"] * math.log(D1))


def _noise(inputs: Inputs, grid: Grid) -> Finding:
    noise = inputs.noise
    if noise is None:
        errors = "" if inputs.mark else " The standard errors shown cover the held-out text alone."
        return Finding(
            "The noise between seeds is unknown: no point has more than one seed.",
            f"Small differences may be chance.{errors}",
            "open",
        )
    spread = float(grid.rows["loss"].max() - grid.rows["loss"].min())
    span = ""
    if len(grid.rows) > 1:
        span = f"The upcycled losses span {spread:.2f} nats, {number(spread / noise.deviation, 2)} times as much. "
    return Finding(
        f"Losses that differ in the seed alone have a standard deviation of {number(noise.deviation, 2)} nats.",
        f"Estimated at {plural(noise.points, 'point')} with {plural(noise.freedom, 'degree')} of freedom. {span}Two "
        f"single losses differ clearly when they are more than {number(clear_difference(noise), 2)} nats apart.",
    )
