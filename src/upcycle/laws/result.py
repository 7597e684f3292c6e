"""What a fit returns, and its file: fits/<name>.json holds exactly these fields, numbers at full precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import read_record, write_atomic


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted law. A number that could not be computed is None; `statement` says why."""

    law: str
    label: str
    formula: str
    response: str
    """What was fitted: `loss`, or a parameter of other fits."""
    identifiable: bool
    """Whether the data determine every parameter."""
    statement: str
    """The verdict in words; to be shown wherever the numbers are."""
    parameters: dict[str, dict[str, Any]]
    """name: {value, unit, meaning}; with `by`, only those that all groups share."""
    fixed: dict[str, float]
    """Parameters held at a value instead of fitted (also among `parameters`)."""
    intervals: dict[str, list[float | None]]
    """95 % intervals of the fitted parameters and derived quantities; an end that is not finite is None."""
    interval_method: str
    derived: dict[str, dict[str, Any]]
    """name: {value, unit, meaning}"""
    objective: float
    """Sum of Huber's loss over the points."""
    delta: float | None
    """Huber's delta on residuals of the log response; None: least squares."""
    n: int
    rms: float
    rms_log: float | None
    loo_rms: float | None
    loo_rms_log: float | None
    certificate: dict[str, Any]
    box: dict[str, list[float]]
    """Smallest and largest value of each input fitted; of N1 too, where the table tells."""
    ids: list[str]
    """Runs fitted, in the order of the residuals."""
    residuals_log: list[float]
    """Fitted minus measured log response of each run (response, for a line)."""
    loo_residuals_log: list[float] | None
    """The same when the run was left out."""
    selection: str
    data_sha256: str
    version: str
    simulated: bool
    lineage: str | None = None
    """`dense`, `moe` (both from scratch) or `up` (upcycled), where all losses are of one."""
    method: str | None = None
    """The upcycling method, where all losses are of upcycled models of one."""
    n_expert: int | None = None
    top_k: int | None = None
    """Experts and active experts, where all losses are of one mixture (1 and 1 for dense models)."""
    floor: dict[str, Any] | None = None
    """The first step of a two-step fit (section 5): the fit that E was taken from."""
    warnings: dict[str, str] = field(default_factory=dict)
    """What to know before trusting the numbers, by short name: a sentence each, to be shown wherever the fit is."""
    by: str | None = None
    shared: list[str] | None = None
    """With `by`: the parameters common to all groups."""
    groups: list[dict[str, Any]] | None = None
    """With `by`: one fit a value, `{D1: value, ...fields of a fit}`."""
    relations: dict[str, dict[str, Any]] | None = None
    """With `by`: laws fitted to the groups' parameters, as fits."""
    draws: dict[str, list[float]] | None = None
    """Bootstrap draws of the fitted parameters, row by row together: bands of anything that follows from them."""

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name."""
        return {name: entry["value"] for name, entry in self.parameters.items()}

    @property
    def group_fits(self) -> dict[Any, FitResult]:
        """With `by`: the groups' fits by their value."""
        known = {f.name for f in fields(self)}  # `by` may name a field of a fit itself, as `lineage` does
        return {
            group[str(self.by)]: FitResult.from_json({key: item for key, item in group.items() if key in known})
            for group in self.groups or []
        }

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.by is None:
            for key in ("shared", "groups", "relations"):
                del content[key]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FitResult:
        """The result of a file's content.

        Raises `UserError` naming fields that are missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        missing = required - set(content)
        if missing or set(content) - known:
            raise UserError(
                f"not a fit: missing fields {sorted(missing)}, unknown fields {sorted(set(content) - known)}; fit again"
            )
        return cls(**content)


def write_fit(fit: FitResult, path: Path) -> None:
    """Write a fit as JSON, atomically; floats as their shortest exact form."""
    write_atomic(path, json.dumps(fit.to_json(), indent=1, allow_nan=False) + "\n")


def read_fit(path: Path) -> FitResult:
    """Read a fit's file.

    Raises `UserError` naming the file when it is missing, damaged or no fit.
    """
    content = read_record(path)
    try:
        return FitResult.from_json(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
