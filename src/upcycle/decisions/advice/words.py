"""The answer of `upcycle advise` in plain words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from upcycle.decisions.advice.answer import Advice, Laws, Row
from upcycle.decisions.advice.expectations import Distance, Expected, Reach, Verdict, times_in_words, verdict_of
from upcycle.decisions.advice.recommendation import Option, Recommendation
from upcycle.decisions.advice.settling import SettlingRun
from upcycle.decisions.quantities import percent
from upcycle.decisions.thresholds import OTHER, Threshold, Window, band_in_words, near_or_words
from upcycle.study.spec import short_count

WIDTH = 118
VERDICTS: dict[Verdict, str] = {
    "upcycle": "upcycle",
    "scratch": "train from scratch",
    "too close to call": "too close to call",
    "depends on the budget": "it depends on the budget",
}
ACTIONS: dict[Option, str] = {
    "upcycle": "upcycle",
    "scratch": "from scratch",
    "dense": "train the dense model on",
}
DOINGS: dict[Option, str] = {
    "upcycle": "upcycling",
    "scratch": "training from scratch",
    "dense": "training the dense model on",
}
RESULTS: dict[Option, str] = {"upcycle": "upcycled", "scratch": "from scratch", "dense": "dense trained on"}
SHOWN_ROWS = (0.1, 1.0)
"""Budgets, as D2 / D1, that the short answer shows where no budget was given."""


def short_answer(
    found: Recommendation,
    losses: Mapping[Option, Expected],
    table: tuple[Row, ...],
    mixtures: Threshold,
    far: tuple[Distance, ...],
    laws: Laws,
    warning: str,
) -> str:
    """The answer in five lines: recommendation, expected losses, where it flips, confidence, the gravest warning.

    `losses`: of each option, empty where no budget was given; `mixtures`: upcycling against scratch at equal FLOPs.
    """
    best, again = _best_by_budget(found, laws)
    shown = [row for row in table if row.share_of_d1 in SHOWN_ROWS]
    if found.option is None:
        lines = [
            f"Recommendation: {best}.",
            f"Expected loss, {_losses_of_rows(shown)}.",
            f"Flips: {_flip(mixtures, laws)}{again}.",
        ]
    else:
        lines = [
            f"Recommendation: {_what_to_do(found)}.",
            f"Expected loss: {_losses_of_options(losses)}.",
            f"Flips: {best}{again}.",
        ]
    lines.append(f"Confidence: {_confidence(found, shown, laws)}; {_outside(far)}.")
    lines.append(f"Warning: {warning.split('. ')[0].rstrip('.')}.")
    return "\n".join(textwrap.shorten(line, WIDTH, placeholder=" ... (--full)") for line in lines)


def _what_to_do(found: Recommendation) -> str:
    assert found.option is not None
    assert found.over is not None
    lead = f"({found.lead:.3f} nats below {DOINGS[found.over]})"
    if not found.sure:
        return f"too close to call, leaning to {DOINGS[found.option]} {lead}"
    action = VERDICTS["scratch"] if found.option == "scratch" else ACTIONS[found.option]
    return f"{action}{', not a mixture' if found.option == 'dense' else ''} {lead}"


def _losses_of_options(losses: Mapping[Option, Expected]) -> str:
    words = ", ".join(f"{losses[option].loss:.3f} {RESULTS[option]}" for option in losses)
    spent = losses["upcycle"]
    return f"{words} (nats; {spent.flops:.3g} FLOPs, D2 = {short_count(spent.tokens)})"


def _losses_of_rows(rows: Sequence[Row]) -> str:
    names, parts = "upcycled/scratch/dense on", []
    for row in rows:
        losses = [row.upcycled, row.scratch]
        if row.dense_trained_on is None:
            names = "upcycled/scratch"
        else:
            losses.append(row.dense_trained_on)
        parts.append(f"{'/'.join(f'{loss:.3f}' for loss in losses)} at D2 = {short_count(row.tokens)}")
    return f"{names}: {', '.join(parts)} (nats)"


def _best_by_budget(found: Recommendation, laws: Laws) -> tuple[str, str]:
    """The best option at each budget near the data, and whether that changes again far outside."""
    window, stretches = Window(laws.data_tokens), found.stretches
    near = [each for each in stretches if each.low < window.high and each.high > window.low]
    sides = [side for side, end in (("below", 0), ("above", -1)) if near[end] != stretches[end]]
    again = f", more flips far {' and '.join(sides)} the data" if sides else ""
    if len(near) == 1:
        return f"{ACTIONS[near[0].option]} at every budget near the data (D2 = {window.words})", again
    first, *between, last = near
    parts = [f"{ACTIONS[first.option]} below D2 = {short_count(first.high)}"]
    parts += [f"{ACTIONS[each.option]} to {short_count(each.high)}" for each in between]
    return f"{', '.join(parts)}, {ACTIONS[last.option]} above", again


def _flip(mixtures: Threshold, laws: Laws) -> str:
    """Where upcycling and training from scratch change places."""
    near = Window(laws.data_tokens).counted(mixtures.roots)
    if not near:
        return "upcycling and training from scratch do not change places near the data"
    root = mixtures.root if mixtures.root in near else near[0]
    band = ""
    if mixtures.band is not None and root == mixtures.root:
        band = f" (95 % of draws: {band_in_words(mixtures.band, laws.data_tokens)})"
    sides = {"upcycle": "upcycling", "scratch": "scratch"}
    before, after = (sides[mixtures.ahead(root * factor)] for factor in (0.999, 1.001))
    return f"{before} to {after} at D2 = {short_count(root)}{band}"


def _confidence(found: Recommendation, rows: Sequence[Row], laws: Laws) -> str:
    """Of the recommendation; without a budget, of upcycling against scratch at the rows' budgets."""
    if laws.draws == 0:
        return "not known, as the fits have no draws"
    if found.share is not None:
        error = f", laws' error of {laws.error:.2g} nats included" if laws.error else ""
        digits = 1 if found.share > 0.99 else 0  # more would differ between processors
        return f"best in {percent(found.share, digits)} of draws{error}"
    shares = [f"{percent(row.comparison.share_with_error)} ({short_count(row.tokens)})" for row in rows]
    return f"upcycling beats scratch in {', '.join(shares)} of draws"


def _outside(far: Sequence[Distance]) -> str:
    """The input farthest outside the data, and the next one on that side."""
    # The ends of a table over three orders of magnitude are not what was asked about.
    outside = [each for each in far if each.factor != 1 and "table" not in each.input]
    if not outside:
        return "all inputs lie within the data"
    farthest, *others = sorted(outside, key=lambda each: -abs(math.log(each.factor)))
    above = farthest.factor > 1
    same = [farthest, *(each for each in others if (each.factor > 1) == above)][:2]
    words = [f"{each.input} {times_in_words(each.factor if above else 1 / each.factor)}" for each in same]
    return f"{' and '.join(words)} {'above' if above else 'below'} the data"


def advice_in_words(advice: Advice) -> str:
    """The whole answer, for a terminal: the five lines, then what they rest on."""
    sections = [
        ("", advice.statement.splitlines()),
        ("", _question(advice)),
        ("Expected losses (nats per token)", _losses(advice)),
        ("By budget", _table(advice)),
        ("Where the answer flips", [each.statement for each in advice.thresholds]),
        ("How many tokens", _tokens(advice)),
        ("How far outside the data", [each.words for each in advice.distances]),
        ("What run would tell most", settling(advice.settling_run, advice.question.n1)),
        ("Rules of thumb", [f"{rule.name}: {rule.says}. Rule: {rule.rule}." for rule in advice.rules_of_thumb]),
        (f"Laws: {advice.laws.source}", list(advice.notes)),
    ]
    text = []
    for title, lines in sections:
        if lines:
            text += [title] if title else []
            for line in lines:
                text += _wrapped(line, "  " if title else "")
            text.append("")
    return "\n".join(text).rstrip()


def _wrapped(line: str, indent: str) -> list[str]:
    """A line that fits as it is, a longer one wrapped to the width of a page."""
    if len(indent + line) <= WIDTH:
        return [indent + line]
    return textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def settling(run: SettlingRun | None, n1: float) -> list[str]:
    """The run worth making, what it costs and how to read its loss."""
    if run is None:
        return ["none: no run of a tenth of the budget removes a twentieth of the variance, or the fits have no draws"]
    made = run.run
    size = f"N1 = {short_count(made.n1)}" + (" (the size asked about)" if made.n1 == n1 else "")
    if made.d1 is None:
        what = f"a MoE from scratch, {size}, on D = {short_count(made.d2)} tokens"
    else:
        parent = "a dense model to be trained for it" if made.trains_dense else "the dense model"
        what = f"an upcycled MoE, {size}, from {parent} (D1 = {short_count(made.d1)}), on D2 = {short_count(made.d2)}"
    opening = "" if run.told >= 0.5 else "no single affordable run settles it; the most informative is "
    about, other = short_count(run.about_tokens), OTHER[run.lower_speaks_for]
    if run.turning_loss is None:
        reading = "no plausible loss of this run alone would change the answer"
    else:
        reading = f"below {run.turning_loss:.3f} it favours: {VERDICTS[run.lower_speaks_for]}; "
        reading += f"above: {VERDICTS[other]}"
    return [
        f"{opening}{what}: {made.flops:.2e} FLOPs, {_hours(run.gpu_hours)} GPU-hours, "
        f"{percent(run.share_of_budget, 1)} of the budget of {about} tokens",
        f"why: its loss, measured to {run.noise:.3f} nats, is the best affordable predictor of which mixture ends "
        f"lower: it removes {percent(run.told)} of the variance of their difference over the draws",
        f"how to read it: the expected loss is {run.loss:.3f} ({run.band[0]:.3f} to {run.band[1]:.3f}); {reading}",
    ]


def _question(advice: Advice) -> list[str]:
    asked = advice.question
    lines = [
        f"Dense model: N1 = {short_count(asked.n1)} parameters, D1 = {short_count(asked.d1)} tokens. "
        f"Mixture: {asked.n_expert} experts, top-{asked.top_k}, N2 = {short_count(asked.n2)} active."
    ]
    if asked.tokens is not None:
        lines.append(
            f"Budget: {short_count(asked.tokens)} tokens on the mixture = {asked.flops:.3g} FLOPs = "
            f"{_hours(asked.gpu_hours or 0.0)} GPU-hours at {asked.flops_per_second / 1e12:g} TFLOP/s."
        )
    if not advice.laws.hold_for_this_mixture:
        lines.append(advice.notes[0])
    return lines


def _losses(advice: Advice) -> list[str]:
    if not advice.losses:
        return []
    lines = [f"{'':<34}{'loss':>7}  {'95 % of draws':<16}{'tokens':>8}{'FLOPs':>10}  upcycled minus it"]
    gaps = {each.against: each for each in advice.comparisons}
    for each in advice.losses:
        gap = gaps.get(each.what)
        difference = "" if gap is None else f"{gap.difference:+.3f} {_band(gap.band, '+.3f')}"
        numbers = f"{each.loss:>7.3f}  {_band(each.band, '.3f'):<16}{short_count(each.tokens):>8}{each.flops:>10.2e}"
        lines.append(f"{each.what:<34}{numbers}  {difference}".rstrip())
    return lines


def _table(advice: Advice) -> list[str]:
    titles = f"{'D2 / D1':>7}{'D2':>8}{'GPU-hours':>12}{'upcycled':>10}{'scratch':>9}{'dense on':>10}{'ahead':>9}"
    lines = [f"{titles}  verdict, same FLOPs"]
    for row in advice.table:
        verdict = VERDICTS[verdict_of(row.comparison)]
        dense = "" if row.dense_trained_on is None else f"{row.dense_trained_on:.3f}"
        lines.append(
            f"{row.share_of_d1:>7g}{short_count(row.tokens):>8}{_hours(row.gpu_hours):>12}{row.upcycled:>10.3f}"
            f"{row.scratch:>9.3f}{dense:>10}{percent(row.comparison.share_with_error, 1):>9}  {verdict}"
        )
    return lines


def _tokens(advice: Advice) -> list[str]:
    lines, optimum, data = [], advice.compute_optimal, advice.laws.data_tokens
    if advice.catch_up is not None:
        lines.append(f"from scratch, to reach the upcycled loss: {reach(advice.catch_up, data)}")
    if advice.overtakes_dense is not None:
        lines.append(f"upcycled, to beat the dense model as it is: D2 = {reach(advice.overtakes_dense, data)}")
    if optimum is not None:
        band = "" if optimum.band is None else f" ({band_in_words(optimum.band, data)})"
        lines.append(
            f"compute-optimal D2 for this N1 and D1 (Equation 14): {near_or_words(optimum.tokens, data)}{band}; "
            "with more tokens, a larger model would use them better"
        )
    return lines


def reach(found: Reach, data: tuple[float, float] | None) -> str:
    """Tokens to reach a loss, in words."""
    central = "never, by the central estimate" if found.tokens is None else near_or_words(found.tokens, data)
    if found.band is None:
        return central
    ends = ["never" if end is None else near_or_words(end, data) for end in found.band]
    never = f"; never in {percent(found.share_never)} of the draws" if found.share_never else ""
    if set(ends) == {central} and not never:  # all equally far outside the data
        return central
    return f"{central} ({' to '.join(dict.fromkeys(ends))}{never})"


def _band(band: tuple[float, float] | None, form: str) -> str:
    if band is None:
        return ""
    low, high = (format(end, form) for end in band)
    return f"({low} to {high})"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
