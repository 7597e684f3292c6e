"""`upcycle import-losses`: anyone's table of losses in the form of losses.csv (docs/your-own-losses.md)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError, nearest
from upcycle.laws.tables.arithmetic import numbers
from upcycle.laws.tables.losses import ordered, read_losses, sorted_losses, write_losses
from upcycle.laws.tables.mapped import MappedTable, read_mapped
from upcycle.laws.tables.table_files import Cells, is_missing
from upcycle.study.columns import COLUMNS, LINEAGES, Column
from upcycle.study.spec import short_count
from upcycle.study.values import is_name

OURS = ("id", "source")
"""Columns that importing makes; a table's own of these names are not read."""
SWEEPS = {"dense": "dense", "moe": "moe", "up": "upcycled", "cont": "continued"}
"""Sweep of a row by its lineage, where the table names none."""
MIXTURES, LATER = ("moe", "up"), ("up", "cont")
"""Lineages of mixtures, and of models that begin with a dense one."""
WHOLE = 1e-6
"""Relative distance of a count from a whole number that is taken for rounding."""


def run_import(args: argparse.Namespace) -> None:
    """Convert a table, write it, and print what it holds.

    Raises `UserError` as `import_losses` does, and for an --out that is no .csv file, or the table.
    """
    if args.out.suffix != ".csv" or args.out.is_dir():
        raise UserError(f"--out {args.out}: name a .csv file that is to be written, e.g. imported.csv")
    if args.out.exists() and args.table.exists() and args.out.samefile(args.table):
        raise UserError(f"--out {args.out}: is the table that is read; name another file")
    losses = import_losses(args.table, columns=args.columns or "", where=args.where, words=args.source)
    write_losses(losses, args.out)
    print(f"{args.out}: {len(losses)} losses\n  source: {losses['source'].iloc[0]}")
    for sweep, rows in losses.groupby("sweeps", sort=False):
        shapes = ", ".join(sorted({f"{row.model} {row.moe}".strip() for row in rows.itertuples()}))
        print(f"  sweep {sweep}: {len(rows)} rows ({shapes})")
    if blank := [str(name) for name in losses if _is_blank(losses[name])]:
        print(f"  empty: {', '.join(blank)}")


def _is_blank(column: pd.Series) -> bool:
    return bool(column.map(is_missing).all())


def import_losses(path: Path, *, columns: str, where: str, words: str) -> pd.DataFrame:
    """The rows of a table for which `where` holds, as rows of losses.csv.

    A column of losses.csv is that of --columns, else the table's own of this name, else it follows from others, else it
    is empty. `words`: where the table is from. Raises `UserError` naming the file, and the column and the row that is
    missing, no number, or impossible.
    """
    if not words.strip() or "\n" in words:
        raise UserError("--source: say in one line where the losses are from, e.g. 'Liew et al. 2025, section 4.2'")
    mapped = read_mapped(path, columns)
    _check_given(mapped, where)
    chosen = mapped.chosen(where)
    found = {column.name: _cells(mapped, column, chosen) for column in COLUMNS if column.name in mapped.columns}
    sha256 = sha256_file(path)
    source = f"{path.name};sha256={sha256};{words.strip()}"
    rows = []
    for place, number in enumerate(chosen):
        known = {name: cells[place] for name, cells in found.items() if not is_missing(cells[place])}
        row = _completed(known, f"{path}: row {number + 1}")
        rows.append({**row, "id": f"imported-{sha256[:10]}-{number + 1:05d}", "source": source})
    return ordered(rows)


def _check_given(mapped: MappedTable, where: str) -> None:
    """Raise `UserError` for a name of --columns that nothing reads: a column's, mistyped."""
    known = [column.name for column in COLUMNS if column.name not in OURS]
    for name in mapped.given:
        used = any(name in expression.columns for expression in mapped.given.values())
        if name not in known and not used and name not in where:
            raise UserError(
                f"{mapped.path}: --columns {name}: it is no column of losses.csv that a table can give, and no other "
                f"expression uses it; {nearest(name, known)}"
            )


def _cells(mapped: MappedTable, column: Column, chosen: Cells) -> list[Any]:
    """A column's cells in its type; None where missing.

    Raises `UserError` for a word where a number is needed, and for a count that is not whole.
    """
    if column.name in OURS:
        return [None] * len(chosen)
    cells = mapped.columns[column.name][chosen]
    if column.kind == "text":
        return [None if is_missing(cell) else _word(cell) for cell in cells]
    there = np.array([not is_missing(cell) for cell in cells])
    values = np.full(len(chosen), np.nan)
    if there.any():
        values[there] = mapped.finite(column.name, chosen[there])
    if column.kind == "float":
        return [None if np.isnan(value) else float(value) for value in values]
    whole = np.round(values)
    for number, value, nearby in zip(chosen, values, whole, strict=True):
        if abs(value - nearby) > WHOLE * abs(value) or nearby < 0:
            raise UserError(
                f"{mapped.path}: row {number + 1}: `{column.name}` is {value:g}, where a whole number "
                f"{f'of {column.unit} ' if column.unit else ''}is needed; convert it, as in --columns "
                f'"{column.name}={column.name}*1e9"'
            )
    return [None if np.isnan(value) else int(value) for value in whole]


def _word(cell: Any) -> str:
    number = numbers(cell)
    return f"{number:g}" if isinstance(cell, float | np.floating) and number == cell else str(cell)


def _checked_lineage(known: dict[str, Any], where: str) -> str:
    """The lineage of a row that has what a loss of that lineage needs. After a dense model, D may be given as D2."""
    lineage = known.get("lineage")
    if lineage not in LINEAGES:
        given = "missing" if lineage is None else f"{lineage!r}, not one of {', '.join(LINEAGES)}"
        raise UserError(f"{where}: `lineage` is {given}; give it as --columns \"lineage='up'\"")
    if lineage in LATER:
        known.setdefault("D", known.get("D2"))
    needed = ("loss", "N1", "D", *(("n_expert", "top_k") if lineage in MIXTURES else ()))
    for name in (*needed, *(("D1",) if lineage in LATER else ())):
        if known.get(name) is None:
            raise UserError(
                f"{where}: `{name}` is missing, and a loss of lineage {lineage} needs it: --columns {name}=EXPR"
            )
        if not known[name] > 0:
            raise UserError(f"{where}: `{name}` is {known[name]:g}, and must be above 0")
    return str(lineage)


def _completed(known: dict[str, Any], where: str) -> dict[str, Any]:
    """A row with the columns that follow from those that its table gives.

    Raises `UserError` for a lineage that is none, and for a number that is missing or impossible.
    """
    lineage = _checked_lineage(known, where)
    dense = lineage not in MIXTURES
    experts, top_k = (1, 1) if dense else (known["n_expert"], known["top_k"])
    shape = known.get("granularity") or 1, known.get("shared_expert") or 0
    if not top_k <= experts:
        raise UserError(f"{where}: `top_k` is {top_k}, more than its `n_expert` {experts}")
    if dense and (known.get("n_expert", 1), known.get("top_k", 1), *shape) != (1, 1, 1, 0):
        raise UserError(
            f"{where}: a dense model has one expert, and `n_expert`, `top_k`, `granularity` or `shared_expert` states "
            "another number"
        )
    tokens = {"D1": known["D1"] if lineage in LATER else 0, "D2": known["D"] if lineage in LATER else 0}
    if contrary := [name for name, value in tokens.items() if known.get(name, value) != value]:
        name = contrary[0]
        raise UserError(
            f"{where}: `{name}` is {known[name]:,}, and {tokens[name]:,} by its lineage {lineage} and D {known['D']:,}"
        )
    follows: dict[str, Any] = {
        "sweeps": SWEEPS[lineage],
        "model": short_count(known["N1"]),
        "moe": "" if dense else f"{experts}x{top_k}" + ("" if shape == (1, 0) else f"g{shape[0]}s{shape[1]}"),
        "n_expert": experts,
        "top_k": top_k,
        "granularity": shape[0],
        "shared_expert": shape[1],
        "N2": known["N1"] if dense else _size(known["N1"], top_k, *shape),
        "N_total": known["N1"] if dense else _size(known["N1"], experts, *shape),
        **tokens,
        "simulated": 0,
    }
    row = follows | known
    for name in (row["model"], *filter(None, [row["moe"]]), *row["sweeps"].split(";")):
        if not is_name(name):
            raise UserError(
                f"{where}: {name!r} names a model, mixture or sweep: letters, digits, `_`, `.` and `-` alone"
            )
    return row


def _size(n1: int, experts: int, granularity: int, shared: int) -> int:
    """N2 (of top_k experts) or N_total (of n_expert): Equations 5 and 6."""
    return round(n1 * (4 + 12 * (experts + shared) / granularity) / 16)


def taken_losses(paths: Iterable[Path]) -> pd.DataFrame:
    """losses.csv of a study that takes its losses from files: their rows, each marked with its source.

    A row without a mark, of a study of ours, gets its file and the file's SHA-256. Raises `UserError` as `read_losses`
    does, and for a row that comes twice.
    """
    tables = []
    for path in paths:
        rows = read_losses(path)
        mark = f"{path.name};sha256={sha256_file(path)}"
        tables.append(rows.assign(source=rows["source"].where(rows["source"] != "", mark)))
    whole = pd.concat(tables, ignore_index=True)
    repeated = whole["id"][whole["id"].duplicated()].tolist()
    if repeated:
        raise UserError(f"losses_from: {repeated[0]} comes twice; name each file once")
    return sorted_losses(whole)
