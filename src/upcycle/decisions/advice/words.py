"""The answer of `upcycle advise` in plain words."""

from __future__ import annotations

import textwrap
from itertools import groupby

from upcycle.decisions.advice.answer import DENSE_ON, Advice, Row
from upcycle.decisions.advice.expectations import Comparison, Distance, Reach, Verdict, verdict_of
from upcycle.decisions.advice.settling import SettlingRun
from upcycle.decisions.thresholds import Threshold
from upcycle.study.spec import short_count

WIDTH = 118
VERDICTS: dict[Verdict, str] = {
    "upcycle": "upcycle",
    "scratch": "train from scratch",
    "too close to call": "too close to call",
    "depends on the budget": "it depends on the budget",
}


OPPOSITE: dict[Verdict, Verdict] = {"upcycle": "scratch", "scratch": "upcycle"}


def advice_statement(
    verdict: Verdict,
    comparisons: tuple[Comparison, ...],
    sunk: Threshold,
    table: tuple[Row, ...],
    far: tuple[Distance, ...],
) -> str:
    """The verdict in a few sentences: who is ahead, where it flips, what of the dense model, how far this reaches."""
    return " ".join(filter(None, (_verdict(verdict, comparisons, sunk, table), _extrapolation(far))))


def _verdict(verdict: Verdict, comparisons: tuple[Comparison, ...], sunk: Threshold, table: tuple[Row, ...]) -> str:
    if not comparisons:
        parts = [f"{VERDICTS[key]} at {_span(list(rows))}" for key, rows in groupby(table, key=_row_verdict)]
        opening = "" if len(parts) > 1 else "At every budget of the table: "
        return f"{_capital(opening + '; '.join(parts))}. {_flip(sunk)}"
    first = comparisons[0]
    share = f"ahead in {_percent(first.share_of_draws, 1)} of the draws of the laws' parameters"
    if first.share_with_error != first.share_of_draws:
        share += f", {_percent(first.share_with_error, 1)} with the laws' own error on each loss"
    leaning = VERDICTS[verdict]
    if verdict == "too close to call":
        leaning += f", leaning to {'upcycling' if first.share_with_error > 0.5 else 'training from scratch'}"
    sentences = [f"{_capital(leaning)}: with the same FLOPs, upcycling is {share}.", _flip(sunk)]
    dense = {each.against: each for each in comparisons}.get(DENSE_ON)
    if dense is not None and dense.ahead == "other" and dense.difference > first.difference:
        margin = dense.difference - max(0.0, first.difference)
        sentences.append(
            "But neither is expected to reach the dense model trained on with the same FLOPs "
            f"({margin:.3f} nats better than the better of the two)."
        )
    return " ".join(sentences)


def _extrapolation(far: tuple[Distance, ...]) -> str:
    """What lies outside the data, in a sentence; empty if nothing does."""
    # the ends of a table that goes over three orders of magnitude are not what was asked about
    outside = [each.words.split(" (")[0] for each in far if each.factor != 1 and "table" not in each.input]
    return f"This is extrapolation: {', '.join(outside)}." if outside else ""


def advice_in_words(advice: Advice) -> str:
    """The whole answer, for a terminal."""
    sections = [
        ("", _question(advice)),
        ("", [f"Answer: {advice.statement}"]),
        ("Expected losses (nats per token)", _losses(advice)),
        ("By budget", _table(advice)),
        ("Where the answer flips", _thresholds(advice)),
        ("How many tokens", _tokens(advice)),
        ("How far outside the data", [each.words for each in advice.distances]),
        ("What run would settle it", settling(advice.settling_run, advice.question.n1)),
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
    """A line of a table as it is, other text within the width of a page."""
    if len(indent + line) <= WIDTH:
        return [indent + line]
    return textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def settling(run: SettlingRun | None, n1: float) -> list[str]:
    """The run worth making, what it costs and how to read its loss."""
    if run is None:
        return [
            "none: no affordable run (a tenth of the budget) tells a twentieth of the variance, or there are no draws"
        ]
    made = run.run
    size = f"N1 = {short_count(made.n1)}" + (" (the size asked about)" if made.n1 == n1 else "")
    if made.d1 is None:
        what = f"a MoE from scratch, {size}, on D = {short_count(made.d2)} tokens"
    else:
        parent = "a dense model to be trained for it" if made.trains_dense else "the dense model"
        what = f"an upcycled MoE, {size}, from {parent} (D1 = {short_count(made.d1)}), on D2 = {short_count(made.d2)}"
    opening = "" if run.told >= 0.5 else "no single affordable run settles it; the one that tells most is "
    about, other = short_count(run.about_tokens), OPPOSITE[run.lower_speaks_for]
    if run.turning_loss is None:
        reading = "no plausible loss of this run alone would turn the answer"
    else:
        reading = f"below {run.turning_loss:.3f} it speaks for: {VERDICTS[run.lower_speaks_for]}; "
        reading += f"above, for: {VERDICTS[other]}"
    return [
        f"{opening}{what}: {made.flops:.2e} FLOPs, {_hours(run.gpu_hours)} GPU-hours, "
        f"{_percent(run.share_of_budget, 1)} of the budget of {about} tokens",
        f"why: of the runs of at most a tenth of the budget its loss, measured to {run.noise:.3f} nats, goes most "
        "closely with the difference of the two losses over the draws (or nearly so, and it is nearer in size, then "
        f"cheaper): knowing it takes away {_percent(run.told)} of the difference's variance",
        f"how to read it: expected is a loss of {run.loss:.3f} ({run.band[0]:.3f} to {run.band[1]:.3f}); {reading}",
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
            f"{row.scratch:>9.3f}{dense:>10}{_percent(row.comparison.share_with_error, 1):>9}  {verdict}"
        )
    return lines


def _thresholds(advice: Advice) -> list[str]:
    return [each.statement for each in advice.thresholds]


def _tokens(advice: Advice) -> list[str]:
    lines, optimum, d1 = [], advice.compute_optimal, advice.question.d1
    if advice.catch_up is not None:
        lines.append(
            f"from scratch, reaching the upcycled loss takes {reach(advice.catch_up)}"
            + ("" if advice.catch_up.tokens is None else f", {_percent(advice.catch_up.tokens / d1)} of D1")
        )
    if advice.overtakes_dense is not None:
        overtakes = reach(advice.overtakes_dense)
        lines.append(f"upcycled, better than the dense model as it is takes D2 = {overtakes}")
    if optimum is not None:
        lines.append(
            f"compute-optimal D2 for this N1 and D1 (Equation 14): {short_count(optimum.tokens)} tokens "
            f"{_band(optimum.band, '')}, {optimum.flops:.2e} FLOPs; with more, a larger model would use them better"
        )
    return lines


def reach(found: Reach) -> str:
    """Tokens to reach a loss, in words."""
    if found.tokens is None:
        central = "more tokens than there are (never, by the central estimate)"
    else:
        central = f"{short_count(found.tokens)} tokens"
    if found.band is None:
        return central
    ends = ["never" if end is None else short_count(end) for end in found.band]
    never = f"; never in {_percent(found.share_never)} of the draws" if found.share_never else ""
    return f"{central} ({ends[0]} to {ends[1]}{never})"


def _flip(sunk: Threshold) -> str:
    """Where the answer flips, in a sentence."""
    if sunk.root is None:
        return f"The central estimate never flips: {VERDICTS[sunk.below]} at any budget of {sunk.within} tokens."
    never = f"; {_percent(sunk.shares['none'])} of the draws never do" if sunk.shares.get("none") else ""
    band = ""
    if sunk.band is not None:
        band = f" (95 % of the draws that flip: {short_count(sunk.band[0])} to {short_count(sunk.band[1])}{never})"
    higher = [root for root in sunk.roots if root > sunk.root]
    again = f", and back at {short_count(higher[0])}" if higher else ""
    below = sunk.ahead(sunk.root)
    return (
        f"The central estimate flips at D2 = {short_count(sunk.root)} tokens{band}{again}: "
        f"{VERDICTS[below]} below, {VERDICTS[OPPOSITE[below]]} above."
    )


def _row_verdict(row: Row) -> Verdict:
    return verdict_of(row.comparison)


def _span(rows: list[Row]) -> str:
    ends = dict.fromkeys((short_count(rows[0].tokens), short_count(rows[-1].tokens)))
    return f"D2 = {' to '.join(ends)}"


def _band(band: tuple[float, float] | None, form: str) -> str:
    if band is None:
        return ""
    low, high = (format(end, form) if form else short_count(end) for end in band)
    return f"({low} to {high})"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
