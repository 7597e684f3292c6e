"""losses.csv: the one table between training and the laws, a row a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from upcycle.errors import UserError, nearest
from upcycle.files import write_atomic
from upcycle.laws.tables.arithmetic import truths
from upcycle.laws.tables.mixed_kernels import kernels_text
from upcycle.laws.tables.table_files import Table, is_missing
from upcycle.manifest import check_listed, check_metrics
from upcycle.study.columns import COLUMNS, KINDS, LINEAGES, ORDER, described
from upcycle.study.expressions import parse
from upcycle.study.spec import RunSpec

DERIVED: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "N": lambda rows: rows["N1"],
    "P": lambda rows: rows["N_total"] / rows["N2"],
    "T1": lambda rows: (
        rows["D1"].where(rows["lineage"] == "up", 0)
        + (rows["D1"] + rows["D"]).where(rows["lineage"].isin(("dense", "cont")), 0)
    ),
    "T2": lambda rows: rows["D"].where(rows["lineage"].isin(("moe", "up")), 0),
}
"""Inputs of laws that follow from columns: the size in Equation 3 (the dense model's for all), the sparsity of Equation
11, and for the unified law the tokens seen as a dense model and as a mixture."""


def law_columns(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Columns of losses.csv, or derived from them, by name; numbers as float64 [N], text as it is."""
    found: dict[str, Any] = {}
    for name in names:
        column = DERIVED[name](rows) if name in DERIVED else rows.get(name)
        if column is not None:
            numeric = pd.api.types.is_numeric_dtype(column)
            found[name] = column.to_numpy(float) if numeric else column.to_numpy(str)
    return found


def collect_losses(
    run_dirs: Sequence[Path],
    membership: Mapping[str, Sequence[str]],
    names: Mapping[str, tuple[str, str]],
    *,
    simulated: bool = False,
) -> pd.DataFrame:
    """losses.csv's rows from finished run folders, sorted by `ORDER`.

    `membership`: sweeps by run id; `names`: the study's names of (model, mixture) by run id; `simulated`: whether the
    losses are those of a rehearsal. Raises `UserError` naming the folder that is missing, unfinished or damaged, and
    for a simulated loss among measured ones.
    """
    rows = [_row(Path(run_dir), membership, names, simulated) for run_dir in run_dirs]
    return ordered(rows)


def ordered(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of losses.csv, each column in its type, sorted by `ORDER`."""
    return sorted_losses(pd.DataFrame(rows, columns=[c.name for c in COLUMNS]))


def sorted_losses(table: pd.DataFrame) -> pd.DataFrame:
    """A table of these columns, each in its type, sorted by `ORDER`."""
    return _typed(table).sort_values(
        list(ORDER),
        key=lambda column: column.map(LINEAGES.index) if column.name == "lineage" else column,
        ignore_index=True,
    )


def _row(
    run_dir: Path, membership: Mapping[str, Sequence[str]], names: Mapping[str, tuple[str, str]], simulated: bool
) -> dict[str, Any]:
    metrics = _read(run_dir / "metrics.json")
    if bool(metrics.get("simulated")) != simulated:
        what = "is not simulated, as all others are" if simulated else "is simulated (`upcycle rehearse`), not measured"
        raise UserError(f"{run_dir / 'metrics.json'}: the loss {what}; move the folder away and train the run")
    check_metrics(run_dir, metrics)
    spec = _read(run_dir / "spec.json")
    check_listed(run_dir / "spec.json")
    run_id = spec.pop("id", None)
    try:
        run = RunSpec.model_validate(spec)
    except ValidationError as error:
        raise UserError(
            f"{run_dir / 'spec.json'} is damaged: {error.errors()[0]['msg']}; train the run again"
        ) from None
    if not run.id == run_id == metrics.get("id") == run_dir.name:
        raise UserError(
            f"{run_dir}: folder, spec.json ({run_id}, its content {run.id}) and metrics.json ({metrics.get('id')}) "
            "name different runs; train the run again"
        )
    model, moe = names.get(run.id, ("", ""))
    try:
        measured = (
            {"loss": metrics["loss"]}
            if simulated
            else {
                **{name: metrics[name] for name in ("loss", "loss_se", "wall_seconds", "tokens_per_second")},
                "device": metrics["execution"]["device"],
                "kernels": kernels_text(metrics["execution"]["kernels"], run),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"{type(error).__name__}: {error}"
        raise UserError(f"{run_dir / 'metrics.json'} is damaged ({wrong}); train the run again") from None
    loss = measured["loss"]
    if not (isinstance(loss, float) and 0 < loss < float("inf")) and not (loss is None and run.role == "trunk"):
        raise UserError(f"{run_dir / 'metrics.json'}: loss {loss} is not a positive number; train the run again")
    sweeps = ";".join(sorted(membership.get(run.id, ())))
    known = {"id": run.id, "sweeps": sweeps, "model": model, "moe": moe, **described(run)}
    return {**known, **measured, "simulated": int(simulated), "source": ""}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the run is not finished, train it first") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; train the run again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: not a JSON object; train the run again")
    return content


def write_losses(losses: pd.DataFrame, path: Path) -> None:
    """Write losses.csv atomically; floats as their shortest exact form, so that equal losses give equal bytes."""
    whole = {c.name: losses[c.name].astype("Int64") for c in COLUMNS if c.kind == "int"}  # also where some are missing
    write_atomic(path, losses.assign(**whole).to_csv(index=False, lineterminator="\n"))


def read_losses(path: Path) -> pd.DataFrame:
    """Read losses.csv, exact to the last bit.

    Raises `UserError` naming the file, and the columns that are missing, unknown or ill-typed.
    """
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; collect the losses first") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}; collect the losses again") from None
    names = [c.name for c in COLUMNS]
    missing, unknown = [n for n in names if n not in text], [n for n in text if n not in names]
    if missing or unknown:
        raise UserError(f"{path}: missing columns {missing}, unknown columns {unknown}; collect the losses again")
    try:
        return _typed(text[names])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Each column in its type; text is never missing, a whole number only where the row is imported."""
    typed: dict[str, pd.Series] = {}
    imported = table["source"].astype(object).fillna("") != ""
    for column in COLUMNS:
        cells = table[column.name]
        try:
            if column.kind == "text":
                typed[column.name] = cells.astype(object).fillna("").astype(str)
            elif column.kind == "int":
                present = ~(imported & cells.map(is_missing).astype(bool))
                whole = cells[present].map(int).astype("int64")
                typed[column.name] = whole if present.all() else whole.astype("float64").reindex(cells.index)
            else:
                numbers = [float("nan") if cell in ("", None) else float(cell) for cell in cells]
                typed[column.name] = pd.Series(numbers, cells.index, dtype="float64")
        except ValueError as error:
            raise ValueError(f"column `{column.name}`: {error}") from None
    return pd.DataFrame(typed)


def select_losses(losses: pd.DataFrame, *, sweep: str | Sequence[str] | None = None, where: str = "") -> pd.DataFrame:
    """Rows of any of the sweeps (None or empty: all) for which the expression over columns holds.

    Raises `UserError` for a sweep without rows, a bad expression, or an empty selection.
    """
    chosen = losses
    wanted = [sweep] if isinstance(sweep, str) else list(sweep or ())
    if wanted:
        member = losses["sweeps"].map(lambda names: set(names.split(";")) - {""})
        known = sorted(set().union(*member))
        for name in wanted:
            if name not in known:
                raise UserError(f"no run of sweep `{name}` has finished; {nearest(name, known)}")
        chosen = losses[member.map(lambda names: bool(names & set(wanted)))]
    if where.strip():
        chosen = chosen[_holds(chosen, where)]
    if chosen.empty:
        raise UserError(f"no finished run in {selection_words(sweep, where)}")
    return chosen.reset_index(drop=True)


def _holds(losses: pd.DataFrame, where: str) -> NDArray[np.bool_]:
    columns: Table = {
        c.name: losses[c.name].to_numpy(dtype=object if c.kind == "text" else np.float64) for c in COLUMNS
    }
    try:
        return truths(parse(where, columns), columns, KINDS)
    except UserError as error:
        raise UserError(f"where: {error}") from None


def selection_words(sweep: str | Sequence[str] | None, where: str) -> str:
    """A selection in words."""
    names = [sweep] if isinstance(sweep, str) else list(sweep or ())
    parts = [f"sweep {', '.join(names)}" if names else "all runs", where.strip()]
    return " where ".join(part for part in parts if part)
