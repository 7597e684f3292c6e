"""What the losses of a study show of the claim behind a figure: its computed caption, and a line of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from upcycle.paper.ablation_grids import see_texts, see_tuning
from upcycle.paper.ablations import Observation, see_coefficients, see_rates, see_repetition, see_schedules
from upcycle.paper.inputs import Inputs
from upcycle.paper.method_findings import see_methods
from upcycle.paper.routes import see_routes
from upcycle.study.catalogue import find_item

OBSERVATIONS: Mapping[str, Callable[..., Observation]] = {
    "figure7": see_schedules,
    "figure8": see_rates,
    "figure9": see_coefficients,
    "figure10": see_repetition,
    "figure11": see_texts,
    "learning_rates": see_tuning,
    "methods": see_methods,
    "routing": see_routes,
}
"""By the figure's name; each takes the options of its figure."""


def observe(inputs: Inputs, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Observation]:
    """Observations on those of a study's figures, given with their options, that have one.

    Raises `UserError` as the figures do.
    """
    found = {}
    for name, options in figures.items():
        if name in OBSERVATIONS:
            item = find_item(name, "figure")
            found[name] = OBSERVATIONS[name](inputs, **{**item.defaults, **item.read(options)})
    return found
