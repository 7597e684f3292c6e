"""`upcycle fit --law NAME --csv FILE`: any law to anyone's table of losses (docs/your-own-losses.md)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from upcycle.bars import showing
from upcycle.errors import UserError
from upcycle.laws.context import PLAIN, check_one_method, with_context
from upcycle.laws.fit import DRAWS, fit
from upcycle.laws.forms import LAWS, get_law
from upcycle.laws.grouped import fit_by
from upcycle.laws.law import Law
from upcycle.laws.result import FitResult, read_fit, write_fit
from upcycle.laws.tables.arithmetic import numbers
from upcycle.laws.tables.losses import DERIVED
from upcycle.laws.tables.mapped import MappedTable, quoted_name, read_mapped
from upcycle.laws.tables.mixed_kernels import warned
from upcycle.laws.tables.table_files import Cells, Table
from upcycle.study.columns import COLUMNS, LINEAGES
from upcycle.study.expressions import of_columns

CONTEXT = ("lineage", "n_expert", "top_k", *PLAIN, "N1")
"""Columns that say what a fit is of; taken where the table or --columns has them."""


def run_own_fit(args: argparse.Namespace) -> None:
    """Fit, print a summary, and write the fit as JSON where asked to.

    Raises `UserError` for a missing argument, and as `read_table`, `select_inputs` and `fit` do.
    """
    given = args.name or (args.study and "--study") or (args.out and "--out")
    if given:
        raise UserError(f"`{given}` is for a fit of a study, --law, --csv and so on for your own: give one kind")
    if args.law == "list":
        print("\n".join(f"{law.name:<45} of {', '.join(law.inputs):<14} {law.formula}" for law in LAWS.values()))
        return
    if not args.law or args.csv is None:
        raise UserError("a fit of your own losses needs both --law NAME and --csv FILE")
    law = get_law(args.law)
    if args.delta is not None:
        law = replace(law, delta=args.delta)
    if not law.delta > 0:
        raise UserError(f"--delta {law.delta:g}: Huber's delta is above 0")
    if args.json is not None and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder: name a file, e.g. {args.json / 'fit.json'}")
    draws = DRAWS if args.draws is None else args.draws
    if draws < 0:
        raise UserError(f"--draws {draws}: a number of draws is at least 0")
    fixed, floor = read_fixed(args.fix)
    shared = [name.strip() for name in args.shared.split(",") if name.strip()]
    if shared and args.by is None:
        raise UserError(f"--shared {args.shared} without --by: without groups every parameter is shared")
    data, context, about = select_inputs(args.csv, law, args.columns or "", args.where, by=args.by)
    about |= {"fixed": fixed, "draws": draws}
    try:
        with showing("refits"):
            if args.by is None:
                result = fit(law, data, floor=floor, **about)
            elif floor is not None:
                raise UserError("E of another fit can be held in a fit without --by only")
            else:
                result = fit_by(law, data, by=args.by, shared=shared, **about)
    except UserError as error:
        raise UserError(f"{args.csv}: {error}") from None
    result = with_context(result, context)
    if "kernels" in context:
        result = warned(result, context)
    print(own_fit_summary(result))
    if args.json is not None:
        try:
            write_fit(result, args.json)
        except OSError as error:
            raise UserError(f"--json {args.json}: {error.strerror or error}; name a file that can be written") from None
        print(f"written: {args.json}")


def read_fixed(text: str) -> tuple[dict[str, float], FitResult | None]:
    """Parameters held: at values, or E (as the second item) of an earlier fit, such as `E=fits/scratch.json`.

    Raises `UserError` for what is neither, and for a fit that has no E.
    """
    fixed: dict[str, float] = {}
    floor: FitResult | None = None
    for name, value in named_values(text, "--fix").items():
        if value is None:
            raise UserError(f"--fix {name}: write NAME=VALUE, as in E=1.69,alpha=0.5")
        if not value.endswith(".json"):
            fixed[name] = finite_number(f"--fix {name}={value}", value, "neither a number nor a fit (a .json file)")
            continue
        if name != "E":
            raise UserError(f"--fix {name}={value}: of another fit, only E can be held; give {name} a number")
        floor = read_fit(Path(value))
        if "E" not in floor.parameters:
            raise UserError(f"--fix {name}={value}: law `{floor.law}` fitted there shares no E")
        if floor.draws is not None and "E" not in floor.draws:
            floor = replace(floor, draws=None)
    return fixed, floor


def named_values(text: str, option: str) -> dict[str, str | None]:
    """The parts of `NAME=VALUE,NAME`; a name without a value has None.

    Raises `UserError` for a part without a name, and for a name that comes twice.
    """
    found: dict[str, str | None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or name in found:
            raise UserError(f"{option} {part}: write NAME=VALUE, each name once")
        found[name] = value if equals else None
    return found


def finite_number(what: str, text: str, wrong: str = "no number, e.g. 0.165") -> float:
    """A number.

    Raises `UserError` that begins with `what`, for a text that is none (then `wrong` says what it is), or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{what}: `{text}` is {wrong}") from None
    if not math.isfinite(value):
        raise UserError(f"{what}: a value must be finite")
    return value


def select_inputs(
    csv: Path, law: Law, columns: str, where: str, *, by: str | None = None
) -> tuple[Table, pd.DataFrame, dict[str, Any]]:
    """The rows of a file for which `where` holds: inputs, response and groups; their context; what a fit says of them.

    `columns`: NAME=EXPR, parted by commas and evaluated in order over the file's columns and the names before; `where`
    may use them all. A column that no NAME gives is the file's. Raises `UserError` for a missing or unknown column, a
    bad expression, an empty selection, the first row whose value is missing or no number, and upcycled models of
    several methods in a losses.csv.
    """
    mapped = read_mapped(csv, columns)
    derived = _derive(mapped, law)
    wanted = [*law.inputs, law.response, *([by] if by else [])]
    for name in wanted:
        if name not in mapped.columns:
            raise UserError(
                f"{csv}: law `{law.name}` ({law.formula}) needs `{name}`: give it as --columns {name}=EXPR; "
                f"{of_columns(name, mapped.columns)}"
            )
    rows = mapped.chosen(where)
    table = {name: column[rows] for name, column in mapped.columns.items()}
    data = {name: mapped.finite(name, rows) for name in wanted if name != by}
    if by is not None:
        data[by] = _group(csv, by, table, rows)
    if "lineage" in mapped.given and not set(table["lineage"]) <= set(LINEAGES):
        wrong = next(word for word in table["lineage"] if word not in LINEAGES)
        raise UserError(f"{csv}: --columns lineage: {wrong!r} is not one of {', '.join(LINEAGES)}")
    if derived:
        try:
            check_one_method(
                pd.DataFrame({name: table[name] for name in {"lineage", "method", by or "method"}}), by, wanted
            )
        except UserError as error:
            raise UserError(f"{csv}: {error}") from None
    words = ", ".join([str(csv.name), *(f"{name} = {e.text}" for name, e in mapped.given.items() if e.text != name)])
    about = {
        "ids": [str(row + 1) for row in rows],
        "selection": f"{words} where {where.strip()}" if where.strip() else words,
        "simulated": derived and bool(np.any(numbers(table["simulated"]))),
    }
    return data, _context(table, (*CONTEXT, "kernels") if derived else CONTEXT, by), about


def _derive(mapped: MappedTable, law: Law) -> bool:
    """Add inputs that follow from the columns of this project's losses.csv; whether the file is one."""
    file, table = mapped.file, mapped.columns
    if not {column.name for column in COLUMNS} <= set(file):
        return False
    frame = pd.DataFrame({column.name: file[column.name] for column in COLUMNS})
    for name in law.inputs:
        if name not in table and name in DERIVED:
            table[name] = DERIVED[name](frame).to_numpy(float)
    return True


def _group(csv: Path, by: str, table: Table, rows: Cells) -> Cells:
    """The column of groups, as numbers or as words."""
    column = table[by]
    missing = [k for k, cell in enumerate(column) if cell is None or cell != cell]
    if missing:
        raise UserError(
            f'{csv}: row {rows[missing[0]] + 1} has no `{by}`; leave such rows out: --where "notna({quoted_name(by)})"'
        )
    return column.astype(str) if column.dtype == object else column.astype(np.float64)


def _context(table: Table, names: Sequence[str], by: str | None) -> pd.DataFrame:
    """The columns of these names that the table has and that are what their names say, and the column of groups."""
    frame = pd.DataFrame(index=range(len(next(iter(table.values())))))
    for name in names:
        if name in table:
            worded = name in ("lineage", "kernels")
            column = np.asarray(table[name] if worded else numbers(table[name]))
            if worded or np.isfinite(column).all():
                frame[name] = column
    return frame if by is None else frame.assign(**{by: table[by]})


def own_fit_summary(result: FitResult) -> str:
    """A fit to read: law, rows, parameters with intervals, errors, verdict."""
    lines = [f"{result.law} ({result.label}): {result.formula}", f"{result.n} rows of {result.selection}"]
    if result.simulated:
        lines.append("SIMULATED losses")
    lines.append(_known(result))
    lines += ["", *_parameters(result)]
    for value, one in result.group_fits.items():
        lines += ["", f"{result.by} = {value}: {one.n} rows", *_parameters(one)]
    delta = "least squares" if result.delta is None else f"Huber delta {result.delta:g} on the log {result.response}"
    lines += ["", f"objective  {result.objective:.10g} (sum over the rows; {delta})"]
    errors = {name: getattr(result, name) for name in ("rms", "rms_log", "loo_rms", "loo_rms_log")}
    lines.append("  ".join(f"{name} {value:.4g}" for name, value in errors.items() if value is not None))
    lines += ["", result.statement, *(f"WARNING: {sentence}" for sentence in result.warnings.values())]
    return "\n".join(lines)


def _known(result: FitResult) -> str:
    """What the rows are of, for the advice."""
    said = {"lineage": result.lineage, "experts": result.n_expert, "top-k": result.top_k}
    if result.by == "lineage":
        said["lineage"] = " and ".join(result.group_fits)
    known = [f"{name} {value}" for name, value in said.items() if value is not None]
    if said["lineage"] is None:
        known.append("lineage not known: `upcycle advise` needs a column `lineage`, or --columns lineage='up'")
    return f"({', '.join(known)})"


def _parameters(result: FitResult) -> list[str]:
    """A line a parameter and derived quantity."""
    rows = [("", "value", "95 % interval", "")]
    for name, entry in (result.parameters | result.derived).items():
        low, high = result.intervals.get(name, (None, None))
        interval = f"{_number(low)} .. {_number(high)}" if name in result.intervals else ""
        interval = "held" if name in result.fixed else interval
        rows.append((name, _number(entry["value"]), interval, f"{entry['meaning']} ({entry['unit']})"))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.6g}"
