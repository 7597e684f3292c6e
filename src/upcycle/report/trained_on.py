"""A mixture against the dense model trained on: what `upcycle advise --study` prints, for the page."""

from __future__ import annotations

from typing import Any

from upcycle.decisions.advice.measured import advise_measured
from upcycle.decisions.advice.measured_words import (
    at_same_tokens,
    caveats,
    law_cells,
    law_title,
    measured_cells,
    measured_title,
    recommendation,
    scratch_words,
    what_is_compared,
)
from upcycle.paper.inputs import Grid, Inputs


def trained_on(inputs: Inputs, grid: Grid) -> list[dict[str, Any]]:
    """The section's content, for each D1 of a grid that was trained on too; empty where none was."""
    found = [advise_measured(each) for each in inputs.rivals(grid)]
    return [
        {
            "recommendation": recommendation(advice),
            "same_tokens": at_same_tokens(advice),
            "compared": what_is_compared(advice.rivals),
            "tables": [
                (title, rows)
                for title, rows in (
                    (measured_title(), measured_cells(advice)),
                    (law_title(advice), law_cells(advice)),
                )
                if rows
            ],
            "scratch": scratch_words(advice),
            "caveats": caveats(advice),
        }
        for advice in found
    ]
