"""What decisions need to know of the fitted rows besides a law's inputs: lineage, mixture, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.grouped import group_json
from upcycle.laws.result import FitResult
from upcycle.study.columns import LINEAGES
from upcycle.study.spec import EXPAND

PLAIN = {"granularity": 1, "shared_expert": 0}
"""Experts as wide as the dense MLP and none shared: the mixtures that `n_expert` and `top_k` describe."""


def with_context(result: FitResult, rows: pd.DataFrame) -> FitResult:
    """The fit with `lineage`, `method`, `n_expert`, `top_k` and the range of N1, from the columns that `rows` have.

    `rows` are those fitted, in any order, with the column of a grouped fit's `by`. Where rows differ, or the table does
    not tell, the field is None; so are both numbers of experts where their shape is another than the paper's. Sizes N
    of Equation 3 are N1.
    """
    plain = all(name not in rows or (rows[name] == value).all() for name, value in PLAIN.items())
    n_expert, top_k = (_only(rows, name) if plain else None for name in ("n_expert", "top_k"))
    lineage, method = _only(rows, "lineage"), _only(rows, "method")
    box = dict(result.box)
    if "N1" in rows:
        box["N1"] = [float(rows["N1"].min()), float(rows["N1"].max())]
    elif "N" in box:
        box["N1"] = list(box["N"])
    result = replace(
        result,
        box=box,
        lineage=lineage if lineage in LINEAGES else None,
        method=method if lineage == "up" and method else None,
        n_expert=None if n_expert is None else int(n_expert),
        top_k=None if top_k is None else int(top_k),
    )
    if result.by is None:
        return result
    parts = {value: with_context(one, rows[rows[result.by] == value]) for value, one in result.group_fits.items()}
    return replace(result, groups=[group_json(result.by, value, part) for value, part in parts.items()])


def check_one_method(rows: pd.DataFrame, by: str | None, inputs: Sequence[str]) -> None:
    """Raise `UserError` where a fit, or a group of it, has upcycled models of several methods.

    A method is no input of a law, so its differences would pass as noise. And for `expand`, whose D1 has tokens of a
    mixture, where the law counts tokens seen as a dense model.
    """
    upcycled = rows[rows["lineage"] == "up"]
    for _, part in upcycled.groupby(by if by else "lineage"):
        counts = part["method"].value_counts().sort_index()
        if len(counts) > 1:
            found = ", ".join(f"`{method}` ({count})" for method, count in counts.items())
            raise UserError(
                f"upcycled models of several methods, {found}: a law is fitted to one; choose with `where`, e.g. "
                f"`where: method == '{counts.index[0]}'`"
            )
    if "T1" in inputs and (upcycled["method"] == EXPAND).any():
        raise UserError(
            f"this law counts tokens seen as a dense model, and D1 of `{EXPAND}` has tokens of a mixture; leave these "
            f"out by `where: method != '{EXPAND}'`"
        )


def _only(rows: pd.DataFrame, column: str) -> Any:
    """The one value of a column, or None."""
    values = rows[column].unique().tolist() if column in rows else []
    return values[0] if len(values) == 1 and not pd.isna(values[0]) else None
