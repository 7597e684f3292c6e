"""`upcycle advise --study`: the answer in words, one recommendation first, for a terminal and for the report."""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import pandas as pd

from upcycle.decisions.advice.advice import given_budget
from upcycle.decisions.advice.measured import (
    REACH,
    Budgeted,
    Contrast,
    MeasuredAdvice,
    Outcome,
    Rivals,
    advise_measured,
    find_rivals,
)
from upcycle.decisions.advice.words import WIDTH, reach
from upcycle.decisions.published import D_RANGE
from upcycle.decisions.quantities import quantity
from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.study.spec import short_count

ACTS: dict[Outcome, str] = {
    "upcycle": "upcycle",
    "dense": "train the dense model on",
    "too close to call": "too close to call",
    "neither": "leave the dense model as it is",
}
"""What each outcome is to do."""
OF_LAWS = ("d1", "n_expert", "top_k", "fits", "full")
"""Arguments of `upcycle advise` that a study's losses tell, or that only the advice by laws has."""
CLOSE = "neither is clearly ahead"
BETWEEN = "~"
"""Marks a loss between two measured budgets."""
OUTSIDE = "*"
"""Marks what a law gives outside the measured budgets."""


def recommendation(advice: MeasuredAdvice) -> str:
    """What to do, in one sentence: with the budget asked for, else over the measured budgets."""
    asked = advice.asked
    if asked is not None:
        return _sentence(_asked(advice, asked))
    known = [each for each in advice.budgets if each.outcome != "unknown"]
    if not known:
        return f"No answer: the measured range does not reach it. {_why_unknown(advice, advice.budgets[-1])}."
    runs = [(outcome, list(part)) for outcome, part in itertools.groupby(known, key=lambda each: each.outcome)]
    if len(runs) == 1:
        outcome, part = runs[0]
        return _sentence(f"{ACTS[outcome]}; {_how_far(outcome, part)}")
    parts = [f"{ACTS[outcome]} at D2 = {_span(part)}" for outcome, part in runs]
    return f"It depends on the budget: {', '.join(parts)} (same FLOPs)."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _asked(advice: MeasuredAdvice, asked: Budgeted) -> str:
    if asked.decisive is None:
        return f"no answer: the measured range does not reach {_budget(asked)}. {_why_unknown(advice, asked)}"
    outside = asked.decisive is asked.by_law.same_flops
    words = f"{ACTS[asked.outcome]}; {_how_far(asked.outcome, [asked])}"
    return f"{words}, by laws in D2 {_times_outside(advice, asked)}" if outside else words


def _budget(row: Budgeted) -> str:
    return f"D2 = {short_count(row.tokens)} ({row.flops:.3g} FLOPs)"


def _times_outside(advice: MeasuredAdvice, row: Budgeted) -> str:
    """How far the budget, or the dense model's tokens for its FLOPs, lies outside what was measured."""
    rivals = advice.rivals
    factors = [
        factor
        for tokens, arm in ((row.tokens, rivals.upcycled), (row.tokens * rivals.n2 / rivals.n1, rivals.continued))
        for factor in (tokens / arm.budgets[-1], arm.budgets[0] / tokens)
    ]
    return f"{max(factors):.2g} times outside the measured budgets"


def _why_unknown(advice: MeasuredAdvice, row: Budgeted) -> str:
    """Why a budget has no answer, and what would give one."""
    rivals = advice.rivals
    needed = row.tokens * rivals.n2 / rivals.n1
    measured = [
        f"{name} on {short_count(arm.budgets[0])} to {short_count(arm.budgets[-1])} tokens"
        for name, arm in (("the mixture was trained", rivals.upcycled), ("the dense model", rivals.continued))
    ]
    what = f"Its FLOPs are {short_count(row.tokens)} tokens of the mixture or {short_count(needed)} of the dense model"
    laws = f"and laws in D2 answer up to {REACH:g} times outside" if rivals.upcycled.curve else "and no law was fitted"
    return f"{what}; {' and '.join(measured)}, {laws}: add these budgets to the sweeps"


def _how_far(outcome: Outcome, rows: Sequence[Budgeted]) -> str:
    """By how much the outcome holds at these budgets, at the same FLOPs."""
    where = f"at {_budget(rows[0])}" if len(rows) == 1 else f"at each of {len(rows)} budgets, D2 = {_span(rows)}"
    found = [each.decisive for each in rows if each.decisive is not None]
    gaps = sorted(abs(each.comparison.difference) for each in found)
    nats = " to ".join(dict.fromkeys(f"{gap:.3f}" for gap in (gaps[0], gaps[-1]))) + " nats"
    if outcome == "too close to call":
        return f"for the same FLOPs the two differ by {nats}, which is not clear, {where}"
    if outcome == "neither":
        return f"both end above its loss {where}"
    ends, other = ("it ends", "upcycling") if outcome == "dense" else ("the mixture ends", "the dense model trained on")
    return f"for the same FLOPs {ends} {nats} below {other} {where}"


def _span(rows: Sequence[Budgeted]) -> str:
    return " to ".join(dict.fromkeys(short_count(each.tokens) for each in (rows[0], rows[-1])))


def at_same_tokens(advice: MeasuredAdvice) -> str:
    """How often each is ahead where both were measured on the same tokens, in one sentence; nothing if nowhere."""
    found = [each.measured.same_tokens for each in advice.budgets if not each.asked and each.measured.same_tokens]
    counts = Counter(each.comparison.ahead for each in found)
    words = {"upcycled": "upcycling ends lower", "other": "the dense model trained on ends lower"}
    parts = [f"{words.get(kind, CLOSE)} at {_of(count, len(found))}" for kind, count in counts.items()]
    return f"For the same tokens, {', '.join(parts)}." if found else ""


def _of(count: int, of: int) -> str:
    if count == of:
        return f"each of {of} budgets" if of > 1 else "the one budget"
    return f"{count} of {of} budgets"


def what_is_compared(rivals: Rivals) -> str:
    """The dense model, the mixture and the noise, in one line."""
    stated = ", as its owner states" if rivals.imported else ""
    loss = "" if rivals.parent_loss is None else f", held-out loss {rivals.parent_loss:.3f}"
    noise = "unknown: no point has two seeds"
    if rivals.noise is not None:
        noise = f"{rivals.noise.deviation:.2g} nats"
    return (
        f"Dense model {rivals.model}: N1 = {short_count(rivals.n1)}, D1 = {short_count(rivals.d1)}{stated}{loss}. "
        f"Mixture {rivals.moe}: {rivals.n_expert} experts, top-{rivals.top_k}; a token costs "
        f"{rivals.n2 / rivals.n1:.3g} times a dense one. Noise of a loss between seeds: {noise}."
    )


def measured_title() -> str:
    """Heading of the table of measured losses."""
    return f"As measured (nats; {BETWEEN} between two budgets, linear in ln D2)"


def law_title(advice: MeasuredAdvice) -> str:
    """Heading of the table by the laws."""
    fits = " and ".join(dict.fromkeys(arm.fit for arm in (advice.rivals.upcycled, advice.rivals.continued)))
    return f"By the laws in D2 (fit {fits}; {OUTSIDE} outside the measured budgets)"


def measured_cells(advice: MeasuredAdvice) -> list[dict[str, str]]:
    """The measured losses by budget, as text by column; nats."""
    rows = []
    for each in advice.budgets:
        up = advice.rivals.upcycled.measured(each.tokens)
        if up is None:
            continue
        cells = {"D2": short_count(each.tokens), "FLOPs": f"{each.flops:.2e}"}
        cells["upcycled"] = f"{up[0]:.3f}{BETWEEN if up[2] else ''}"
        for name, contrast in _named(each.measured.same_tokens, each.measured.same_flops):
            mark = BETWEEN if contrast and contrast.how == "interpolated" else ""
            cells[f"dense on, {name}"] = f"{contrast.continued:.3f}{mark}" if contrast else "–"
            cells[f"upcycled minus it, {name}"] = _difference(contrast)
        rows.append(cells)
    return rows


def law_cells(advice: MeasuredAdvice) -> list[dict[str, str]]:
    """The same by the laws in D2, with 95 % of their draws; empty without laws."""
    rows = []
    for each in advice.budgets:
        found = (each.by_law.same_tokens, each.by_law.same_flops)
        known = next((contrast for contrast in found if contrast), None)
        if known is None:
            continue
        on = each.by_law.same_flops
        cells = {"D2": short_count(each.tokens) + (OUTSIDE if each.measured.same_flops is None else "")}
        cells["upcycled"] = _with_band(known.upcycled, known.bands[0])
        cells["dense on, same FLOPs"] = _with_band(on.continued, on.bands[1]) if on else "–"
        cells |= {f"upcycled minus it, {name}": _difference(contrast) for name, contrast in reversed(_named(*found))}
        rows.append(cells)
    return rows


def _named(tokens: Contrast | None, flops: Contrast | None) -> tuple[tuple[str, Contrast | None], ...]:
    return ("same tokens", tokens), ("same FLOPs", flops)


def _difference(contrast: Contrast | None) -> str:
    if contrast is None:
        return "–"
    band = contrast.comparison.band
    inside = "" if band is None else f" ({band[0]:+.3f} to {band[1]:+.3f})"
    return f"{contrast.comparison.difference:+.3f}{inside}"


def _with_band(loss: float, band: tuple[float, float] | None) -> str:
    return f"{loss:.3f}" if band is None else f"{loss:.3f} ({band[0]:.3f} to {band[1]:.3f})"


def scratch_words(advice: MeasuredAdvice) -> list[str]:
    """Training from scratch, by the published law: what it is not of, what it expects, how far it is from its data."""
    found = advice.scratch
    gap = found.comparison
    sides = {"upcycled": "upcycling is ahead", "other": "training from scratch is ahead"}
    mixture = "" if found.same_mixture else " It is of 8 experts, top-2, not of this mixture."
    far = [each.words for each in found.distances if each.factor != 1]
    return [
        "Not measured here: the paper's Table 2, of other data, another tokenizer and other sizes. Its losses do not "
        f"compare with the measured ones; only their difference may carry over.{mixture}",
        f"At D2 = {short_count(found.scratch.tokens)} it expects {found.scratch.loss:.3f} from scratch and "
        f"{found.upcycled.loss:.3f} upcycled ({gap.difference:+.3f} for upcycling): "
        f"{sides.get(gap.ahead, 'too close to call')}. Tokens from scratch to reach the upcycled loss: "
        f"{reach(found.catch_up, D_RANGE)}.",
        f"Distance: {'; '.join(far) if far else 'within the data of its laws'}.",
    ]


def caveats(advice: MeasuredAdvice) -> list[str]:
    """What limits the answer; only what applies."""
    rivals = advice.rivals
    notes = []
    if rivals.simulated:
        notes.append("SIMULATED LOSSES: nothing of this was measured.")
    if rivals.noise is None:
        notes.append("No point was trained with two seeds: small differences may be chance.")
    above = [each for each in advice.budgets if each.outcome == "neither"]
    if above:
        notes.append(
            f"At D2 = {_span(above)} both end above the dense model's own loss: the budget is short, or the learning "
            "rate high."
        )
    for name, arm in (("upcycled", rivals.upcycled), ("trained on", rivals.continued)):
        if arm.others:
            notes.append(
                f"The study varied settings of the runs {name}: those with most budgets, of equals the best, are "
                f"compared ({arm.rows['id'].iloc[0]} and others of its settings)."
            )
    doubts = {arm.fit: arm.doubt for arm in (rivals.upcycled, rivals.continued) if arm.doubt}
    notes += [f"Fit {fit} is {doubt}." for fit, doubt in doubts.items()]
    notes.append("Held-out losses of one text: they say nothing of other texts or of tasks.")
    return notes


def measured_in_words(advice: MeasuredAdvice) -> str:
    """The whole answer, for a terminal."""
    sections = [
        (
            "",
            _wrapped(
                [f"Recommendation: {recommendation(advice)}", at_same_tokens(advice), what_is_compared(advice.rivals)],
                "",
            ),
        ),
        (measured_title(), _aligned(measured_cells(advice))),
        (law_title(advice), _aligned(law_cells(advice))),
        ("From scratch, by the published law", _wrapped(scratch_words(advice))),
        ("Limits", _wrapped(caveats(advice))),
    ]
    return "\n\n".join("\n".join([title, *lines] if title else lines) for title, lines in sections if lines)


def _wrapped(lines: Sequence[str], indent: str = "  ") -> list[str]:
    found = []
    for line in lines:
        found += textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return found


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Cells in columns; a heading is over two lines, at its comma."""
    if not rows:
        return []
    heads = [name.partition(", ")[::2] for name in rows[0]]
    lines = [[head[0] for head in heads], [head[1] for head in heads], *(list(row.values()) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


class MeasuredStudy(Protocol):
    """Losses and fits of a study."""

    @property
    def losses(self) -> pd.DataFrame:
        """losses.csv."""

    @property
    def fits(self) -> Mapping[str, FitResult]:
        """Its fits by name."""


def run_measured_advice(args: argparse.Namespace, read_study: Callable[[], MeasuredStudy]) -> None:
    """The verb with `--study`: an answer for each mixture, as text or, with --json, as data.

    Raises `UserError` for arguments that the study's losses tell, and for a study that did not train both.
    """
    for name in OF_LAWS:
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} is of the advice by laws, and --study of a study's own losses")
    budget = given_budget(args)
    rate = quantity(args.flops_per_second, "--flops-per-second")
    study = read_study()
    found = [advise_measured(each, **budget, flops_per_second=rate) for each in find_rivals(study.losses, study.fits)]
    if not found:
        raise UserError(
            f"study `{args.study}` has no dense model that was both upcycled and trained on (sweeps of kinds "
            "`upcycled` and `continued` from one parent); `upcycle advise --fits FOLDER` answers from its laws"
        )
    if args.json:
        print(json.dumps([each.to_json() for each in found], indent=1, allow_nan=False))
    else:
        print("\n\n".join(map(measured_in_words, found)))
