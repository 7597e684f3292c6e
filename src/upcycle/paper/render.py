"""Tables as text. A value `x` with its interval `x low`, `x high` in the next columns becomes one cell."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from upcycle.audit.verdict import plain_number

WIDEST = 8
"""Columns of a table that fits on a page."""


def cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text, the index first, intervals folded into the cell of their value."""
    columns = [str(column) for column in frame.columns]
    values = [c for c in columns if not (c.endswith((" low", " high")) and c.rsplit(" ", 1)[0] in columns)]
    rows = []
    for label, row in zip(frame.index, frame.to_dict("records"), strict=True):
        texts = []
        for column in values:
            text = number(row[column])
            low, high = row.get(f"{column} low"), row.get(f"{column} high")
            if low is not None and high is not None and text and not (math.isnan(low) and math.isnan(high)):
                text += f" [{number(low)}, {number(high)}]"
            texts.append(text)
        rows.append([str(label), *texts])
    return [str(frame.index.name or ""), *values], rows


def with_interval(column: str, value: float, bounds: Sequence[float | None] | None) -> dict[str, float]:
    """A value and its interval as the columns that `cells` folds; NaN for an end that is missing or not finite."""
    low, high = bounds or (None, None)
    return {column: value, f"{column} low": or_nan(low), f"{column} high": or_nan(high)}


def or_nan(value: float | None) -> float:
    """NaN for a number that there is not."""
    return math.nan if value is None else value


def number(value: Any, digits: int = 3) -> str:
    """A number to three significant digits, as people write it; text as it is, a dash for NaN, nothing for None."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else plain_number(value, digits, plain=(1e-4, 1e5))


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def reasons(statement: str) -> str:
    """What a fit that is not identifiable says of itself, as what its losses leave open."""
    text = statement.replace("fits are not; group", "fits leave parameters open; group")
    text = text.replace("of fits that are not", "that the losses leave open")
    return text.removeprefix("not identifiable: ").replace(" is not identifiable: ", ": ")


def plural(count: int, noun: str) -> str:
    """`1 point`, `2 points`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub-style table, padded so that it also reads as plain text."""
    header, rows = cells(frame)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def to_html(frame: pd.DataFrame) -> str:
    """The table element alone, for a page that has its own style; a table too wide for it is turned on its side."""
    header, rows = cells(frame)
    if len(header) > max(WIDEST, len(rows)):
        header, *rows = (list(column) for column in zip(header, *rows, strict=True))

    def line(row: list[str]) -> str:
        first, *others = (html.escape(cell) for cell in row)
        return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"

    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "\n".join(map(line, rows))
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
