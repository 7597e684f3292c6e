"""The first screen of the page: the answer in one sentence, and three numbers. The picture is of `pictures`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from upcycle.decisions.advice.measured import advise_measured
from upcycle.decisions.advice.measured_words import recommendation
from upcycle.paper.ablations import Observation, joined
from upcycle.paper.comparisons import Lead, clear_difference, leads, tally
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, plural
from upcycle.report.findings import findings
from upcycle.report.laws import best_fit
from upcycle.study.catalogue import find_item
from upcycle.study.spec import short_count

NUMBERS = 3
"""Numbers on the first screen."""
_MEASURED = re.compile(r" \((?:[^()]|\([^()]*\))*±(?:[^()]|\([^()]*\))*\)")
"""A measured difference in brackets, which may hold a bracket."""


@dataclass(frozen=True)
class Fact:
    """A number with the words above and below it."""

    name: str
    value: str
    unit: str


def answer(inputs: Inputs, grid: Grid, seen: Mapping[str, Observation], *, overview: bool) -> str:
    """What the study found, in one sentence.

    Of a study that trains dense models on: what to do. Of one that shows the overview, or that compares nothing else:
    upcycling against training from scratch. Of others: what its figures show of the claims behind them (`seen`). Of
    what is left: its first finding.
    """
    if rivals := inputs.rivals(grid):
        return recommendation(advise_measured(rivals[-1]))
    scratch = _against_scratch(inputs, grid)
    if scratch and (overview or not seen):
        return scratch
    if len(seen) > 1:
        return _claims(seen)
    for each in seen.values():
        return _MEASURED.sub("", each.finding.sentence).partition(". ")[0].rstrip(".") + "."
    return findings(inputs)[0].sentence


def _against_scratch(inputs: Inputs, grid: Grid) -> str:
    """How often upcycling clearly beats the mixture from scratch; nothing where no point compares."""
    added, both = _won(inputs, leads(inputs, grid)), _won(inputs, leads(inputs, grid, dense_tokens_count=True))
    if not added and not both:
        return ""
    words = "Upcycling beats training the same mixture from scratch"
    if added:
        words += f" on as many tokens as after the copy (D2) at {_share(added)}"
    if both:
        joint = "" if not added else ", but" if 2 * both[0] < both[1] and 2 * added[0] >= added[1] else " and"
        words += f"{joint} on all tokens (D1 + D2) at {_share(both)}"
    return words + "."


def _won(inputs: Inputs, found: list[Lead]) -> tuple[int, int] | None:
    """Points at which upcycling is ahead by more than noise, and all of them; None without any."""
    bound = clear_difference(inputs.noise) if inputs.noise else 0.0
    return (tally(found, bound)["ahead"], len(found)) if found else None


def _share(won: tuple[int, int]) -> str:
    return f"{won[0]} of {plural(won[1], 'point')}"


def _claims(seen: Mapping[str, Observation]) -> str:
    """Which of the paper's claims these losses support, which they contradict, and which they leave open."""
    named: dict[str, list[str]] = {"support": [], "contradict": [], "do not settle": []}
    for name, each in seen.items():
        verb = {"clear": "support", "against": "contradict"}.get(each.finding.verdict, "do not settle")
        named[verb].append(find_item(name).label or name.replace("_", " "))
    parts = [f"{verb} {joined(names)}" for verb, names in named.items() if names]
    return f"Of the claims behind the paper's ablations these losses {'; they '.join(parts)}."


def facts(inputs: Inputs, grid: Grid, seen: Mapping[str, Observation], *, overview: bool) -> list[Fact]:
    """Three numbers, the most telling first; fewer where a study has fewer."""
    found = []
    if len(seen) > 1 and not overview:
        settled = sum(each.finding.verdict in ("clear", "against") for each in seen.values())
        found.append(Fact("settled", f"{settled} of {len(seen)}", "claims"))
    for tokens, both in (("D2", False), ("D1 + D2", True)):
        won = _won(inputs, leads(inputs, grid, dense_tokens_count=both))
        if won and (overview or not seen):
            found.append(Fact("upcycling wins", f"{won[0]} of {won[1]}", f"at equal {tokens}"))
    best = best_fit(inputs, grid)
    if best is not None and (overview or not seen):
        error = inputs.fits[best].loo_rms
        assert error is not None  # of those without, none is best
        found.append(Fact("best law's error", number(error, 2), "nats, leave-one-out"))
    if inputs.noise is not None:
        found.append(Fact("noise of a seed", number(inputs.noise.deviation, 2), "nats"))
    planned = len({run_id for ids in inputs.sweeps.values() for run_id in ids})
    unit = f"of {planned}" if planned > len(inputs.losses) else "all finished" if planned else "with a loss"
    found.append(Fact("models", str(len(inputs.losses)), unit))
    found.append(Fact("dense model", short_count(float(grid.rows["N1"].iloc[0])), "parameters"))
    found.append(Fact("points D1 × D2", f"{len(grid.D1)} × {len(grid.D2)}", ""))
    return found[:NUMBERS]
