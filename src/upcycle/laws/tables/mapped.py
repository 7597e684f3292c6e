"""A table of someone's own with the columns that `--columns NAME=EXPR,...` and `--where EXPR` make of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.errors import UserError
from upcycle.laws.tables.arithmetic import evaluate_expression, numbers, truths
from upcycle.laws.tables.table_files import Cells, Table, read_table
from upcycle.study.expressions import Expression, parse

OPENING, CLOSING, QUOTES = "([{", ")]}", "'\"`"


@dataclass(frozen=True)
class MappedTable:
    """A file's columns and those given by arithmetic on them."""

    path: Path
    file: Table
    """The file's own columns."""
    given: Mapping[str, Expression]
    """Those of --columns, in order."""
    columns: Table
    """All of them; of one name the one given."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(next(iter(self.file.values())))

    def chosen(self, where: str) -> Cells:
        """Numbers, from 0, of the rows for which a condition holds; all without one.

        Raises `UserError` for a bad expression and an empty selection.
        """
        if not where.strip():
            return np.arange(self.rows)
        try:
            kept = np.flatnonzero(truths(parse(where, self.columns), self.columns))
        except UserError as error:
            raise UserError(f"{self.path}: --where {error}") from None
        if not len(kept):
            raise UserError(f"{self.path}: no row of {self.rows} is left where {where.strip()}")
        return kept

    def finite(self, name: str, rows: Cells) -> Cells:
        """A column as numbers, of these rows [N].

        Raises `UserError` naming the first row that has none, the wrong cell, and how to fix it.
        """
        column = np.asarray(numbers(self.columns[name][rows]))
        bad = np.flatnonzero(~np.isfinite(column))
        if not len(bad):
            return column
        row = int(rows[bad[0]])
        place = f"{self.path}: row {row + 1}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
        guilty = self.guilty(name, row)
        if guilty is None:
            expression = self.given[name]
            parts = ", ".join(f"{c} = {self.columns[c][row]}" for c in expression.columns if c in self.columns)
            raise UserError(
                f"{place}: {name} = {expression.text} is no finite number ({parts}); leave such rows out by --where"
            )
        cell, quoted = self.file[guilty][row], quoted_name(guilty)
        if not isinstance(cell, str):
            wrong, fix = "has no value", f"notna({quoted})"
        elif len(bad) < len(column):
            wrong, fix = f"holds {cell!r}, which is not a number", f"{quoted} != {cell!r}"
        else:
            raise UserError(
                f"{self.path}: column `{guilty}` holds words in every row, such as {cell!r}, where numbers are needed"
            )
        raise UserError(f'{place}: column `{guilty}` {wrong}; leave such rows out: --where "{fix}"')

    def guilty(self, name: str, row: int) -> str | None:
        """The file's column whose missing number makes `name` missing in a row; None if the arithmetic makes it."""
        if name not in self.given:
            return name
        earlier = list(self.given)[: list(self.given).index(name)]
        for column in self.given[name].columns:
            if column in earlier:
                found = self.guilty(column, row)
                if found is not None:
                    return found
            elif column in self.file and not np.isfinite(numbers(self.file[column][row : row + 1])):
                return column
        return None


def read_mapped(path: Path, columns: str) -> MappedTable:
    """A file's table with the columns of `--columns`: NAME=EXPR, parted by commas and evaluated in order.

    Raises `UserError` as `read_table` does, and for a bad expression or an unknown column.
    """
    file = read_table(path)
    table, n = dict(file), len(next(iter(file.values())))
    given: dict[str, Expression] = {}
    for name, text in _assignments(columns):
        try:
            given[name] = parse(text, table)
            table[name] = _column(evaluate_expression(given[name], table), n)
        except UserError as error:
            raise UserError(f"{path}: --columns {name}={text}: {error}") from None
    return MappedTable(path, file, given, table)


def _assignments(columns: str) -> list[tuple[str, str]]:
    """NAME and EXPR of each part of --columns."""
    found = []
    for part in _split(columns):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*(.+?)\s*", part, re.DOTALL)
        if match is None:
            raise UserError(f"--columns {part.strip()}: write NAME=EXPR, as in loss=final_loss,D=C/(6*N)")
        found.append((match[1], match[2]))
    return found


def _split(text: str) -> list[str]:
    """A text at its commas, those within parentheses or quotes apart."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part for part in parts if part.strip()]


def _column(value: Any, n: int) -> Cells:
    """A value of each row; words as objects."""
    array = np.asarray(value)
    return np.array(np.broadcast_to(array.astype(object) if array.dtype.kind == "U" else array, n))


def quoted_name(name: str) -> str:
    """A column's name as an expression has it."""
    return name if name.isidentifier() else f"`{name}`"
