"""From the grids of a study to finished models: the points of each sweep as `RunSpec`s.

Layer 0. A point is a finished model: a WSD decay, or a whole cosine or constant run. What must be trained
to reach it (trunk chains, dense parents) is `plan.py`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from upcycle.errors import UserError, nearest
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, SweepConfig, describe_error


@dataclass(frozen=True)
class Point:
    """A finished model of a sweep, with the names its config gave to its model and mixture."""

    run: RunSpec
    model: str
    moe: str
    dense: Point | None = None
    """The finished dense parent, for an upcycled model."""


def expand(study: StudyConfig, name: str) -> list[Point]:
    """All points of one sweep, in the order of its axes; equal points once.

    Raises `UserError` naming the sweep and the value for an impossible one.
    """
    sweep = study.sweeps[name]
    where = f"sweeps.{name}"
    points: dict[str, Point] = {}
    for model, moe, schedule, seed in itertools.product(sweep.model, sweep.moe or [""], sweep.schedule, sweep.seed):
        for overrides in _grid(sweep.set):
            for dense, steps in _budgets(study, sweep, model, seed, where):
                for method in sweep.method if dense else [""]:
                    recipe = _recipe(study, sweep.kind, model, moe, seed, overrides, where)
                    if dense:
                        recipe |= {
                            "origin": f"upcycle:{method}",
                            "dense_parent": dense.run.id,
                            "dense_tokens": dense.run.tokens,
                        }
                    run = finished_run(recipe, steps, schedule, study.schedule.decay_fraction, where)
                    points.setdefault(run.id, Point(run=run, model=model, moe=moe, dense=dense))
    return list(points.values())


def _grid(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The product of axes as a list of {dotted path: value}; one empty choice when there are none."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _budgets(
    study: StudyConfig, sweep: SweepConfig, model: str, seed: int, where: str
) -> Iterator[tuple[Point | None, int]]:
    """(dense parent or None, steps) for each budget of the sweep."""
    per_step = study.models[model].batch * study.context
    if sweep.kind != "upcycled":
        for steps in _steps(study, model, sweep.tokens, sweep.steps, where):
            yield None, steps
        return
    if sweep.points:
        pairs = [(_whole_steps(d1, per_step, where), _whole_steps(d2, per_step, where)) for d1, d2 in sweep.points]
    else:
        dense_steps = _steps(study, model, sweep.dense_tokens, sweep.dense_steps, where)
        pairs = list(itertools.product(dense_steps, _steps(study, model, sweep.tokens, sweep.steps, where)))
    for overrides in _grid(sweep.dense_set):
        recipe = _recipe(study, "dense", model, "", seed, overrides, where)
        for dense_steps_, steps in pairs:
            run = finished_run(recipe, dense_steps_, "wsd", study.schedule.decay_fraction, where)
            yield Point(run=run, model=model, moe=""), steps


def _steps(study: StudyConfig, model: str, tokens: list[int] | None, steps: list[int] | None, where: str) -> list[int]:
    """Step budgets given in tokens, in steps, or by the model's own halvings."""
    entry = study.models[model]
    if steps:
        return steps
    if tokens:
        return [_whole_steps(count, entry.batch * study.context, where) for count in tokens]
    if not entry.budgets:
        raise UserError(f"{where}: give `tokens` or `steps`, or `max_steps` to models.{model}")
    return entry.budgets


def _whole_steps(tokens: int, per_step: int, where: str) -> int:
    """Budget in whole steps, to the nearest."""
    steps = round(tokens / per_step)
    if steps < 2:
        raise UserError(f"{where}: a budget of {tokens:,} tokens is under two steps of {per_step:,} tokens")
    return steps


def _recipe(
    study: StudyConfig, kind: str, model: str, moe: str, seed: int, overrides: dict[str, Any], where: str
) -> dict[str, Any]:
    """The fields of a RunSpec that do not depend on its budget, overrides applied."""
    entry = study.models[model]
    data = study.data.model_dump()
    recipe: dict[str, Any] = {
        "model": study.model_spec(model).model_dump(),
        "data": {**data, "seed": data["seed"] + seed},
        "optim": {
            "lr": entry.lr if kind == "dense" else entry.lr_moe,
            "batch": entry.batch,
            **study.optim.model_dump(),
        },
        "schedule": {"warmup_steps": entry.warmup_steps, "floor": study.schedule.floor},
        "moe": study.moes[moe].model_dump() if moe else None,
        "seed": seed,
        "dtype": study.dtype,
    }
    for path, value in overrides.items():
        _override(recipe, path, value, where)
    return recipe


def _override(recipe: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set one dotted path of a recipe; an unknown one is named with its nearest valid name."""
    *sections, field = path.split(".")
    target = recipe
    for section in sections:
        target = target.get(section) or {}
    known = set(_field_names(sections))
    if field not in known:
        raise UserError(f"{where}.set: unknown setting `{path}`; {nearest(field, known)}")
    target[field] = value


def _field_names(sections: list[str]) -> list[str]:
    """Settings that a sweep may override, at the top level or in one section of RunSpec."""
    if not sections:
        return ["dtype"]
    section = RunSpec.model_fields.get(sections[0])
    annotation: Any = section.annotation if section and len(sections) == 1 else None
    for candidate in getattr(annotation, "__args__", (annotation,)):
        if hasattr(candidate, "model_fields"):
            return list(candidate.model_fields)
    return []


def finished_run(recipe: dict[str, Any], steps: int, schedule: str, decay_fraction: float, where: str) -> RunSpec:
    """The run that ends a training of `steps` steps: the WSD decay, or the whole cosine or constant run.

    The decay takes round(decay_fraction x steps) steps, at least one (A.5: about 10 %).
    """
    recipe = {**recipe, "schedule": {**recipe["schedule"], "kind": schedule}}
    parent = recipe.get("dense_parent")
    try:
        if schedule != "wsd":
            return RunSpec(**recipe, role="full", end_step=steps, parent=parent)
        branch = steps - max(round(decay_fraction * steps), 1)
        if recipe["schedule"]["warmup_steps"] > branch:
            raise UserError(
                f"{where}: a budget of {steps} steps branches off at step {branch}, inside the warm-up of "
                f"{recipe['schedule']['warmup_steps']} steps; raise the budget or lower warmup_steps"
            )
        trunk = trunk_point(recipe, branch)
        return RunSpec(**recipe, role="decay", start_step=branch, end_step=steps, parent=trunk.id)
    except ValidationError as error:
        raise UserError(f"{where}: {describe_error(error)}") from None


def trunk_point(recipe: dict[str, Any], end_step: int) -> RunSpec:
    """The trunk point at `end_step`, written as one segment from the start (its id is the same in any chain)."""
    return RunSpec(**recipe, role="trunk", end_step=end_step, parent=recipe.get("dense_parent"))
