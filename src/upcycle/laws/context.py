"""What decisions need to know of the fitted rows besides a law's inputs: lineage, mixture, sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from upcycle.laws.grouped import group_json
from upcycle.laws.result import FitResult
from upcycle.study.columns import LINEAGES

PLAIN = {"granularity": 1, "shared_expert": 0}
"""Experts as wide as the dense MLP and none shared: the mixtures that `n_expert` and `top_k` describe."""


def with_context(result: FitResult, rows: pd.DataFrame) -> FitResult:
    """The fit with `lineage`, `n_expert`, `top_k` and the range of N1, from the columns of `rows` that there are.

    `rows` are those fitted, in any order, with the column of a grouped fit's `by`. Where rows differ, or the table does
    not tell, the field is None; so are both numbers of experts where their shape is another than the paper's. Sizes N
    of Equation 3 are N1.
    """
    plain = all(name not in rows or (rows[name] == value).all() for name, value in PLAIN.items())
    n_expert, top_k = (_only(rows, name) if plain else None for name in ("n_expert", "top_k"))
    lineage = _only(rows, "lineage")
    box = dict(result.box)
    if "N1" in rows:
        box["N1"] = [float(rows["N1"].min()), float(rows["N1"].max())]
    elif "N" in box:
        box["N1"] = list(box["N"])
    result = replace(
        result,
        box=box,
        lineage=lineage if lineage in LINEAGES else None,
        n_expert=None if n_expert is None else int(n_expert),
        top_k=None if top_k is None else int(top_k),
    )
    if result.by is None:
        return result
    parts = {value: with_context(one, rows[rows[result.by] == value]) for value, one in result.group_fits.items()}
    return replace(result, groups=[group_json(result.by, value, part) for value, part in parts.items()])


def _only(rows: pd.DataFrame, column: str) -> Any:
    """The one value of a column, or None."""
    values = rows[column].unique().tolist() if column in rows else []
    return values[0] if len(values) == 1 and not pd.isna(values[0]) else None
