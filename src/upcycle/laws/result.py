"""What a fit returns, and its file: fits/<name>.json holds exactly these fields, numbers at full precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.errors import UserError
from upcycle.files import read_record, write_atomic
from upcycle.laws.forms import get_law
from upcycle.laws.terms import Array


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted law. Every number is None where it could not be had; `statement` says in words why."""

    law: str
    label: str
    formula: str
    tex: str
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


@dataclass(frozen=True)
class Prediction:
    """Predicted responses, and how far outside the fitted data they are asked for."""

    response_N: Array
    outside: dict[str, Array]
    """For each input the distance in natural logarithms to the range fitted; 0 inside."""

    @property
    def farthest_N(self) -> Array:
        """The largest of the distances of each point."""
        return np.max(list(self.outside.values()), axis=0)


def predict(fit: FitResult, inputs: Mapping[str, Any]) -> Prediction:
    """The response at inputs (scalars or arrays of one length), with its distance to the data.

    A grouped fit takes the group's column too, at values that were fitted. Raises `UserError` for other values.
    """
    columns = {name: np.atleast_1d(np.asarray(value)) for name, value in inputs.items()}
    columns = {name: column if column.dtype.kind == "U" else column.astype(float) for name, column in columns.items()}
    if fit.by is not None:
        return _predict_groups(fit, columns)
    response_N = get_law(fit.law).predict(fit.values, columns)
    with np.errstate(divide="ignore"):
        outside = {
            name: np.maximum(0.0, np.maximum(np.log(low / columns[name]), np.log(columns[name] / high)))
            for name, (low, high) in fit.box.items()
            if name in get_law(fit.law).inputs
        }
    return Prediction(response_N, outside)


def _predict_groups(fit: FitResult, columns: Mapping[str, Array]) -> Prediction:
    by, groups = str(fit.by), {group[str(fit.by)]: group for group in fit.groups or []}
    if by not in columns:
        raise UserError(f"this fit is one of each {by}: give {by} too")
    wrong = set(columns[by].tolist()) - set(groups)
    if wrong:
        raise UserError(
            f"no group with {by} = {_text(min(wrong))}; fitted: {', '.join(_text(value) for value in sorted(groups))}"
        )
    arrays = dict(zip(columns, np.broadcast_arrays(*columns.values()), strict=True))
    response_N = np.empty(len(arrays[by]))
    outside = {name: np.zeros(len(arrays[by])) for name in get_law(fit.law).inputs}
    for value, group in groups.items():
        here = arrays[by] == value
        if here.any():
            one = FitResult.from_json({key: item for key, item in group.items() if key != by})
            part = predict(one, {name: column[here] for name, column in arrays.items()})
            response_N[here] = part.response_N
            for name, distance in part.outside.items():
                outside[name][here] = distance
    return Prediction(response_N, outside)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


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
