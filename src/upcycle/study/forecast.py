"""What a study registers before its larger runs train: which law, fitted to which budgets, predicts which runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from upcycle.errors import UserError
from upcycle.manifest import unsealed
from upcycle.study.shape import Frozen
from upcycle.study.values import AnyNames, Count, Name, Names

Budget = Literal["D", "D1", "D2"]


class ForecastConfig(Frozen):
    """A forecast of the larger runs of a sweep by laws that are fitted to its smaller ones. It is written before these
    larger runs train, and never again."""

    sweep: Name
    """The sweep."""
    laws: Names
    """Laws that are fitted; `upcycle fit --law list` shows all."""
    up_to: Annotated[dict[Budget, Count], Field(min_length=1)]
    """Largest budgets, in tokens, of the runs that laws are fitted to. All other runs of the sweep are predicted, and
    train once the forecast is written."""
    seeds: AnyNames = []  # noqa: RUF012 - pydantic copies it
    """Sweeps that repeat runs with other seeds: those within the budgets give the noise of a loss. None: the laws'
    residuals do."""


def read_forecast(path: Path) -> dict[str, Any]:
    """A forecast as it was written.

    Raises `UserError` naming the file if it is missing or altered.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; the forecast was not written before the runs that it predicts")
    content = unsealed(path.read_bytes())
    if content is None:
        raise UserError(f"{path}: altered since `upcycle forecast` wrote it; restore it from a copy")
    return content
