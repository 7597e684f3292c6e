"""Every numbered item of the paper: whether this study has it, and whether of trained models or of a law's losses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from upcycle.laws.forms import LAWS
from upcycle.paper.figures_summary import PUBLISHED_FROM
from upcycle.paper.inputs import Inputs
from upcycle.report.background import Background
from upcycle.report.laws import deciding
from upcycle.study import catalogue

State = Literal["real", "real, imported", "rehearsed", "not run"]
KINDS_OF_ITEM = ("Figure", "Table", "Equation", "Requirement", "Section")
_LABEL = re.compile(rf"({'|'.join(KINDS_OF_ITEM)}) ([A-F]\.)?(\d+)")
DRAWING = "Figure 2"
"""The paper's drawing of upcycling, which has no data: no study has it."""
OTHERS = {
    "Equation 2": "closed approximation of the threshold D*",
    "Equation 4": "N1, the dense size",
    "Equation 5": "N2, the active size of the mixture",
    "Equation 6": "N_total, the whole size of the mixture",
    "Equation 13": "definition of the threshold D*",
    "Equation 14": "compute-optimal upcycling",
    "Equation 15": "gate: softmax over the top-k router logits",
    "Requirement 1": "power law in D2 at fixed D1",
    "Requirement 2": "as D2 goes to 0, the dense law in D1",
    "Requirement 4": "as D2 goes to 0, the law of dense training",
}
"""Items that are neither a figure nor a table nor the label of a law."""


@dataclass(frozen=True)
class PaperItem:
    """A numbered item of the paper, as a study has it."""

    label: str
    what: str
    state: State
    link: str
    """Id of the place on the page that shows it; empty without one."""


def paper_items(inputs: Inputs, background: Background) -> list[PaperItem]:
    """Every figure, table, equation and requirement, and each section that names a law, in the paper's order."""
    state: State = "rehearsed" if inputs.simulated else "real, imported" if inputs.sources else "real"
    shown = {catalogue.find_item(name).label: name for name in (*background.figures, *background.tables)}
    present = dict(_present(inputs, background))
    found = []
    for label, what in _all().items():
        link = present.get(label, "")
        if label in shown:
            link = f"{'figure' if label.startswith('Figure') else 'table'}-{shown[label]}"
        found.append(PaperItem(label, what, state if link else "not run", link))
    return sorted(found, key=lambda item: _place(item.label))


def not_run(items: Sequence[PaperItem]) -> list[tuple[str, str]]:
    """(`Figures`, `1, 2, 5`): the items that a study does not have, by kind."""
    found: dict[str, list[str]] = {}
    for item in items:
        if not item.link:
            kind, name = item.label.split(" ")
            found.setdefault(kind, []).append(name)
    return [(kind if len(names) == 1 else f"{kind}s", ", ".join(names)) for kind, names in found.items()]


def _all() -> dict[str, str]:
    """What each item is, by its label."""
    drawn = {item.label: item.title.rstrip(".") for item in catalogue.catalogue().values() if item.label}
    laws = {law.label: law.formula for law in LAWS.values() if _LABEL.fullmatch(law.label)}
    return {DRAWING: "drawing of upcycling, without data"} | drawn | laws | OTHERS


def _place(label: str) -> tuple[int, str, int]:
    match = _LABEL.fullmatch(label)
    assert match is not None  # every label of `_all` is one
    return KINDS_OF_ITEM.index(match[1]), match[2] or "", int(match[3])


def _present(inputs: Inputs, background: Background) -> Iterator[tuple[str, str]]:
    """(label, id on the page) of the equations and requirements that the study computed."""
    rows, laws = inputs.losses, {fit.law for fit in inputs.fits.values()}
    for fit in inputs.fits.values():
        yield fit.label, "laws"
        yield from ((relation["label"], "laws") for relation in (fit.relations or {}).values())
    yield "Equation 4", "run"
    if (rows["n_expert"] > 1).any():
        yield from (("Equation 5", "run"), ("Equation 6", "run"))
    if (rows["gate"] == "topk_softmax").any():
        yield "Equation 15", "run"
    for law, label in (("power", 1), ("multiplicative_offset", 2), ("joint_offset", 4)):
        if law in laws:
            yield f"Requirement {label}", "laws"
    # Figure 1 draws Equation 2 at sizes up to a hundred times the largest.
    if "figure1" in background.figures and 100 * rows["N1"].max() >= PUBLISHED_FROM:
        yield "Equation 2", "figure-figure1"
    used = deciding(inputs)
    if used:
        yield "Equation 13", "decisions"
    if any("N1" in LAWS[inputs.fits[name].law].inputs for name in used):
        yield "Equation 14", "decisions"
