"""What a study that takes its losses from files (`losses_from`) has: the names that their rows give.

Planning reads names alone, with the standard library; `upcycle.laws.tables.losses` reads and checks the losses.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upcycle.errors import UserError
from upcycle.study.forecast import read_forecast
from upcycle.study.study import ImportedStudy, StudyConfig

NAMES = ("sweeps", "model", "lineage")


def forecast_files(study: StudyConfig) -> dict[str, Path]:
    """Files of forecasts that a study of losses from files takes, by name.

    Raises `UserError` naming a file that is missing or altered, and for two of one name.
    """
    paths = [Path(path) for path in study.forecasts_from] if isinstance(study, ImportedStudy) else []
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        raise UserError("forecasts_from: two files have the same name, by which results are shown; rename one")
    for path in paths:
        try:
            read_forecast(path)
        except UserError as error:
            raise UserError(f"forecasts_from: {error}") from None
    return found


@dataclass(frozen=True)
class StudyNames:
    """Names that fits, figures and tables of a study may give."""

    sweeps: frozenset[str]
    upcycled: frozenset[str]
    """Sweeps that have upcycled models."""
    models: frozenset[str]


def study_names(study: StudyConfig) -> StudyNames:
    """Of a study's own sweeps and models, or of the rows that it takes from files.

    Raises `UserError` naming a file that cannot be read or is no losses.csv.
    """
    if not isinstance(study, ImportedStudy):
        upcycled = frozenset(name for name, sweep in study.sweeps.items() if sweep.kind == "upcycled")
        return StudyNames(frozenset(study.sweeps), upcycled, frozenset(study.models))
    rows = [row for path in study.losses_from for row in _rows(Path(path))]
    return StudyNames(
        frozenset(name for sweeps, _, _ in rows for name in sweeps.split(";") if name),
        frozenset(name for sweeps, _, lineage in rows for name in sweeps.split(";") if name and lineage == "up"),
        frozenset(model for _, model, _ in rows),
    )


def _rows(path: Path) -> Sequence[tuple[str, str, str]]:
    """Sweeps, model and lineage of each row."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"losses_from: {path}: {error.strerror}; `upcycle import-losses` writes such a file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"losses_from: {path} is damaged: {error}; write it again") from None
    if not rows or not set(NAMES) <= set(rows[0]):
        raise UserError(
            f"losses_from: {path} is no losses.csv; `upcycle import-losses` makes one of any table of losses"
        )
    return [(row["sweeps"] or "", row["model"] or "", row["lineage"] or "") for row in rows]
