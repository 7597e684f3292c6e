"""Anyone's table from a file: delimited text, JSON lines, JSON or parquet, as columns of numbers, truths or words."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from upcycle.errors import UserError

Cells = NDArray[Any]
"""float64 (missing is NaN), bool, or object: words, with None where missing."""
Table = dict[str, Cells]
"""Columns of equal length, by name."""

MISSING = frozenset(("", "na", "n/a", "nan", "null", "none"))
"""Cells, in lower case, that hold no value."""
DELIMITERS = (",", "\t", ";", "|")
COMMENT = "#"
SAMPLE = 50
"""Lines that the delimiter is judged by."""
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SUFFIXES = ".csv, .tsv, .txt, .dat, .jsonl, .ndjson, .json or .parquet, or text with .gz, .bz2 or .xz behind"


def read_table(path: Path) -> Table:
    """The table in a file, by its suffix; a column is of numbers if each of its cells is one, or missing.

    Raises `UserError` naming the file, and the line where one is damaged.
    """
    suffix = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if suffix in _OPENERS else suffix
    try:
        if suffix in (".parquet", ".pq"):
            table = _parquet(path)
        elif kind in (".csv", ".tsv", ".tab", ".txt", ".dat"):
            table = _delimited(_text(path), tabs=kind in (".tsv", ".tab"))
        elif kind in (".jsonl", ".ndjson", ".json"):
            table = _json(_text(path), lines=kind != ".json")
        else:
            raise UserError(f"a table is read from {_SUFFIXES}; save it as one of these")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (EOFError, lzma.LZMAError, ValueError) as error:  # of the unpackers and readers: what they read is damaged
        raise UserError(f"{path} is damaged: {error}") from None
    if not table or not len(next(iter(table.values()))):
        raise UserError(f"{path} holds no rows")
    return table


def _text(path: Path) -> str:
    """The text of a file, unpacked as its suffix says."""
    with _OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig") as file:
        return str(file.read())


def _parquet(path: Path) -> Table:
    frame = pd.read_parquet(path)
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    return _columns([str(name) for name in frame.columns], (frame.iloc[:, k] for k in range(frame.shape[1])))


def _json(text: str, *, lines: bool) -> Table:
    """Records, one a line or in a list; or columns, as lists or (as pandas writes them) by row."""
    content: Any
    try:
        content = json.loads(text)
    except ValueError as error:
        if not lines and text.lstrip().startswith("["):
            raise UserError(f"it is damaged: {error}") from None
        content = [_record(line, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if isinstance(content, dict) and content and all(isinstance(cells, (list, dict)) for cells in content.values()):
        cells = [list(value.values()) if isinstance(value, dict) else value for value in content.values()]
        if len({len(column) for column in cells}) > 1:
            raise UserError(f"columns differ in length: {dict(zip(content, map(len, cells), strict=True))}")
        return _columns(list(content), cells)
    records = [content] if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError("its content is neither records ({column: value}, one a line or in a list) nor columns")
    names = list(dict.fromkeys(str(name) for record in records for name in record))
    return _columns(names, ([record.get(name) for record in records] for name in names))


def _record(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"line {number} is no JSON: {error}") from None


def _delimited(text: str, *, tabs: bool) -> Table:
    """Cells parted by commas, tabs, semicolons or bars, whichever makes the lines agree; else by spaces."""
    header, body = _comments(text)
    if not body:
        return {}
    lines = body if header is None else [header, *body]
    delimiter = "\t" if tabs else _delimiter(lines[:SAMPLE])
    first, *rows = _cells(lines, delimiter)
    if header is None and _numeric(first):
        first, rows = [], [first, *rows]
    if not rows:
        return {}
    width = len(rows[0])
    odd = next((k for k, row in enumerate(rows) if len(row) != width), None)
    if odd is not None:
        filled = [number for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        line = filled[len(filled) - len(rows) + odd]
        raise UserError(f"line {line} has {len(rows[odd])} cells where the first row has {width}")
    names = [name.strip() or f"column{k}" for k, name in enumerate(first or [""] * width, start=1)]
    while len(names) > width and names[-1] == f"column{len(names)}":
        names.pop()  # a delimiter at the end of the header
    if len(names) != width:
        raise UserError(f"its header names {len(names)} columns and its rows have {width}: {', '.join(names)}")
    return _columns(names, zip(*rows, strict=True))


def _comments(text: str) -> tuple[str | None, list[str]]:
    """The header, where the last comment before the first row is one (as numpy writes it), and all other lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((k for k, line in enumerate(lines) if not line.lstrip().startswith(COMMENT)), len(lines))
    body = lines[start:]
    if start == 0 or not body:
        return None, body
    last = lines[start - 1].lstrip().lstrip(COMMENT).strip()
    delimiter = _delimiter([last, body[0]])
    names, cells = _cells([last, body[0]], delimiter)
    return (last if len(names) == len(cells) and _numeric(cells) else None), body


def _delimiter(lines: Sequence[str]) -> str | None:
    """What parts the cells of these lines; None for spaces.

    The delimiter by which all lines have equally many cells, at least 2; of several the one that makes most.
    """
    counts = {d: [len(cells) for cells in _cells(lines, d)] for d in (*DELIMITERS, None)}
    agreeing = {d: count[0] for d, count in counts.items() if len(set(count)) == 1 and count[0] > 1}
    if agreeing:
        # A delimiter goes before spaces: `a, b` has two cells either way.
        marks = {d: count for d, count in agreeing.items() if d is not None}
        return max(marks, key=lambda d: marks[d]) if marks else None
    return max(DELIMITERS, key=lambda d: counts[d][0])


def _cells(lines: Sequence[str], delimiter: str | None) -> list[list[str]]:
    if delimiter is None:
        lines = [" ".join(line.split()) for line in lines]
    # With the ends of lines, which are part of a quoted cell that has several.
    return list(csv.reader((line + "\n" for line in lines), delimiter=delimiter or " ", skipinitialspace=True))


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a first line is a row already: most of its cells are numbers, and none is empty."""
    numbers = sum(not math.isnan(as_number(cell)) for cell in cells)
    return all(cell.strip() for cell in cells) and 2 * numbers > len(cells)


def _columns(names: Sequence[str], columns: Iterable[Iterable[Any]]) -> Table:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"several columns are named `{repeated[0]}`; rename all but one")
    return {name: _column(list(cells)) for name, cells in zip(names, columns, strict=True)}


def _column(cells: list[Any]) -> Cells:
    """One column's cells in the narrowest type that holds them all."""
    words = [None if is_missing(cell) else str(cell).strip() for cell in cells]
    truths = [{"true": True, "false": False}.get(str(word).lower()) for word in words]
    if cells and None not in truths:
        return np.array(truths, dtype=bool)
    numbers = np.array([as_number(cell) for cell in cells])
    if np.isnan(numbers).sum() == words.count(None):
        return numbers
    return np.array(words, dtype=object)


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no value."""
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell is pd.NaT or cell is pd.NA


def as_number(cell: Any) -> float:
    """A cell as a number, exact to the last bit; NaN where it is none."""
    if isinstance(cell, (bool, np.bool_)) or cell is None:
        return math.nan
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
