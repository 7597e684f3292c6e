"""The answer of `upcycle design` in plain words and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from upcycle.decisions.curves import PLURALS
from upcycle.decisions.design.answer import DesignAnswer
from upcycle.decisions.design.candidates import CHEAP
from upcycle.decisions.design.simulation import Simulated, design_doubts
from upcycle.decisions.quantities import percent
from upcycle.decisions.thresholds import Threshold


def design_in_words(answer: DesignAnswer) -> str:
    """The whole answer."""
    blocks = [
        _planned(answer),
        _parameters(answer.simulated),
        _interaction(answer.simulated),
        _identifiable(answer.simulated),
        _d_star(answer),
        _further(answer),
        "\n".join(f"Note: {note}" for note in answer.setting.notes),
    ]
    return "\n\n".join(block for block in blocks if block)


def _planned(answer: DesignAnswer) -> str:
    simulated, setting = answer.simulated, answer.setting
    lines = [
        f"Planned: {setting.sweep.words}; {setting.sweep.flops:.3g} FLOPs (6 N D, each run by itself).",
        f"Truth: {answer.source}. Noise: {simulated.noise:.3g} nats a loss ({answer.noise_words}).",
        f"{simulated.simulations} such sweeps were simulated and fitted as losses are (Huber's loss of log residuals).",
    ]
    if setting.shared_floor:
        lines.append("E comes from dense models and MoEs together and is then fixed for the upcycled ones (section 5).")
    return "\n".join(lines)


def _parameters(simulated: Simulated) -> str:
    lines = ["95 % of the estimates of each parameter"]
    sides = simulated.setting.sides()
    head = ("", "truth", "from", "to", "deviation", "")
    for name, parameters in simulated.parameters.items():
        law = sides[name].law
        lines += ["", f"{PLURALS[name]}: {law.formula} ({law.label})"]
        rows = [head]
        for parameter, expected in parameters.items():
            relative = "" if expected.relative is None else percent(expected.relative, 1)
            remark = expected.held or ("not identifiable" if expected.doubt else "")
            if expected.held == "fixed" or expected.undetermined:
                rows.append((parameter, f"{expected.truth:.4g}", "", "", "", remark))
            else:
                low, high = expected.interval
                rows.append((parameter, f"{expected.truth:.4g}", f"{low:.4g}", f"{high:.4g}", relative, remark))
        lines += _columns(rows)
    return "\n".join(lines)


def _interaction(simulated: Simulated) -> str:
    found, expected = simulated.interaction(), simulated.parameters["upcycled"].get("alpha3")
    if expected is None:
        return f"Law `{simulated.setting.up.law.name}` has no alpha3, so this sweep does not determine its sign."
    if expected.undetermined:
        return f"This sweep does not determine alpha3: {expected.doubt}."
    low, high = expected.interval
    if found is None and expected.truth == 0 and not expected.held:
        return f"The truth has alpha3 = 0: 95 % of its estimates lie in {low:.3g} to {high:.3g}."
    if found is None:
        return ""
    needed = (1.96 * expected.deviation / abs(expected.truth)) ** 2
    verdict = "settles" if found.settled else "does not settle"
    words = (
        f"One sweep of this size and noise {verdict} the sign of alpha3: 95 % of its estimates lie in {low:.3g} to "
        f"{high:.3g} (truth {expected.truth:.3g}), {percent(1 - found.right_sign, 1)} have the wrong sign, and "
        f"{percent(found.excludes_0)} of such sweeps would have a 95 % interval of their own that leaves 0 out."
    )
    if not found.settled:
        noise = simulated.noise / np.sqrt(needed)
        words += f" It would take about {_times(needed)} times as many runs, or a noise below {noise:.2g} nats."
    return words


def _times(factor: float) -> str:
    return f"{factor:.0f}" if factor >= 10 else f"{max(factor, 1.1):.1f}"


def _identifiable(simulated: Simulated) -> str:
    found = design_doubts(simulated)
    if not found:
        return "Every fitted parameter is identifiable: none runs to a bound or spans most of its plausible range."
    lines = [f"- {', '.join(names)} of {PLURALS[name]}: {why}" for name, names, why in found]
    return "\n".join(["Not identifiable:", *lines])


def _d_star(answer: DesignAnswer) -> str:
    setting, threshold = answer.setting, answer.threshold
    if threshold is None:
        return f"This sweep does not determine D*: {setting.no_d_star}."
    opening = f"D* at N1 = {setting.n1:.4g} (Equation 13, through the laws of MoEs and of upcycled models): "
    if threshold.roots:
        roots = " and ".join(f"{root:.3g}" for root in threshold.roots)
        lines = [f"{opening}the truth has {roots} tokens.", _spread(threshold)]
    else:
        ahead = "upcycling" if threshold.below == "upcycle" else "training from scratch"
        lines = [f"{opening}the truth has none, {ahead} is ahead from {threshold.within} tokens.", _spread(threshold)]
    far = {name: distance for name, distance in threshold.outside.items() if distance > 0}
    if far:
        words = ", ".join(f"{name} by a factor of {np.exp(distance):.2g}" for name, distance in far.items())
        lines.append(f"That lies outside the planned runs in {words}: errors of the law's form are not in the band.")
    if setting.one_size:
        lines.append("This holds at this size alone: one size does not determine the laws at others.")
    return "\n".join(lines)


def _spread(threshold: Threshold) -> str:
    names = {"none": "no D*", "one": "one", "two or more": "two or more"}
    shares = ", ".join(f"{percent(share)} {names[name]}" for name, share in threshold.shares.items() if share > 0)
    if threshold.band is None:
        return f"Of the simulated sweeps, {shares} would be found."
    low, high = threshold.band
    factor = f"a factor of {high / low:.3g}"
    return f"95 % of the reported D* found lie in {low:.3g} to {high:.3g} tokens, {factor}; of the sweeps, {shares}."


def _further(answer: DesignAnswer) -> str:
    linearised = answer.linearised
    if linearised is None:
        return ""
    before, target = linearised.error(), linearised.target.what
    if not answer.ranked:
        return f"Further runs are not ranked: a parameter lies at its wall, where nothing is linear in {target}."
    unit = "" if target == "ln D*" else " nats"
    sweep_flops = answer.setting.sweep.flops
    head = ("further run", "FLOPs", "of the sweep", "standard error", "less")
    rows = [head]
    for each in answer.ranked:
        share, less = f"{each.flops / sweep_flops:.2g}", percent(1 - each.error / before, 1)
        rows.append((each.words, f"{each.flops:.2e}", share, f"{each.error:.4g}", less))
    lines = [
        f"Further runs that shrink the standard error of {target} (now {before:.3g}{unit}) most per FLOP, linearised:",
        *_columns(rows),
    ]
    if answer.largest is not None:
        one = answer.largest
        lines.append(
            f"Of runs that cost at most {percent(CHEAP)} of the sweep, the largest effect: {one.words}, "
            f"{one.flops:.3g} FLOPs, to {one.error:.3g}{unit} ({percent(1 - one.error / before, 1)} less)."
        )
    lines.append(
        "Per FLOP the smallest runs come first; that the laws hold at budgets and sizes not planned is assumed."
    )
    lines += ["", "Simulated, with the same noise in the other runs:", *_columns(_simulated(answer))]
    return "\n".join(lines)


def _simulated(answer: DesignAnswer) -> list[tuple[str, ...]]:
    """The planned sweep and those with a further run: what the simulations say."""
    assert answer.threshold is not None
    found = [("as planned", answer.error, answer.threshold)]
    found += [(f"with {one.candidate.words}", one.error, one.threshold) for one in answer.verified]
    rows: list[tuple[str, ...]] = [("", "standard error", "95 % of D* from", "to", "no D*")]
    for words, error, threshold in found:
        low, high = ("", "") if threshold.band is None else (f"{tokens:.3g}" for tokens in threshold.band)
        rows.append((words, f"{error:.4g}", low, high, percent(threshold.shares["none"], 1)))
    return rows


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as aligned columns, the first and the last to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        cells[-1] = row[-1]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
