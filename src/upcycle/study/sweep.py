"""From the grids of a study to finished models: the points of each sweep as `RunSpec`s.

Layer 0. A point is a finished model: a WSD decay, or a whole cosine or constant run. What must be trained
to reach it (trunk chains, dense parents) is up to `plan.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from upcycle.data.versions import full_version
from upcycle.errors import UserError, brief, nearest
from upcycle.study.methods import UpcyclingSpec
from upcycle.study.parent import Checkpoint, Parent
from upcycle.study.shape import Frozen, ModelSpec, MoESpec
from upcycle.study.spec import EXPAND, DataSpec, OptimSpec, Recipe, RunSpec, ScheduleSpec
from upcycle.study.study import StudyConfig, SweepConfig, describe_error

MAX_POINTS = 5_000
"""Points of one sweep; a study of more is a mistake in its axes."""
_SECTIONS: dict[str, type[Frozen]] = {
    "model": ModelSpec,
    "moe": MoESpec,
    "data": DataSpec,
    "optim": OptimSpec,
    "schedule": ScheduleSpec,
    "upcycling": UpcyclingSpec,
}
SETTABLE = ("dtype", *(f"{name}.{field}" for name, section in _SECTIONS.items() for field in section.model_fields))
"""What `set` and `dense_set` may override. The rest of a run follows from the grid (seed, budget, parent) or from the
code (engine)."""
_COPIED = (
    *("n_layer", "d_model", "n_head", "n_kv_head", "d_head", "d_mlp", "vocab_size"),
    *("tied", "qkv_bias", "qk_norm"),
)
"""Fields of a model that an upcycled or continued run has from its parent, with the weights."""
_IMPORTED: dict[str, Any] = {
    "optim": OptimSpec(lr=1.0, batch=1).model_dump(),
    "schedule": ScheduleSpec(kind="constant").model_dump(),
    "moe": None,
    "seed": 0,
    "origin": "checkpoint",
}
"""What an imported run does not use, at fixed values: one checkpoint is one run, whatever is trained from it."""


@dataclass(frozen=True)
class Point:
    """A finished model of a sweep, with the names its config gave to its model and mixture."""

    run: RunSpec
    model: str
    moe: str
    dense: Point | None = None
    """The finished parent of an upcycled or continued model: dense, or of method `expand` a mixture."""

    @property
    def first(self) -> Point:
        """What its weights began as: itself, or the first of its parents."""
        return self.dense.first if self.dense else self


@dataclass(frozen=True)
class Budget:
    """How long a model is trained, in the unit that the config gives."""

    amount: int
    unit: str
    """`tokens` or `steps`."""

    def steps(self, recipe: Recipe, where: str) -> int:
        """The budget in steps of this recipe, overrides and all: of tokens, the nearest whole number.

        Raises `UserError` for fewer than two: a trunk and a decay.
        """
        steps = self.amount if self.unit == "steps" else round(self.amount / recipe.tokens_per_step)
        if steps < 2:
            raise UserError(
                f"{where}: a budget of {self.amount:,} {self.unit} is under two steps of {recipe.tokens_per_step:,} "
                "tokens"
            )
        return steps


def expand_sweep(study: StudyConfig, name: str, checkpoints: Mapping[str, Checkpoint]) -> list[Point]:
    """All points of one sweep, in the order of its axes; equal points once.

    `checkpoints`: by the name of the model that begins with one. Raises `UserError` naming the sweep and the value for
    an impossible one.
    """
    sweep = study.sweeps[name]
    where = f"sweeps.{name}"
    if sweep.kind == "imported":
        return _as_they_are(study, sweep, checkpoints, where)
    _check_size(sweep, where)
    mixtures = _parents(study, name, checkpoints)
    points: dict[str, Point] = {}
    axes = itertools.product(sweep.model, sweep.moe or [""], sweep.schedule or ["wsd"], sweep.seed)
    for model, moe, schedule, seed in axes:
        parent = checkpoints.get(model) if sweep.has_parents else None
        pairs: Sequence[tuple[Point | None, Budget]]
        if sweep.parents:
            pairs = _of_mixtures(study, sweep, model, mixtures, seed, where)
        else:
            imported = _imported(study, model, parent, where) if parent else None
            pairs = _budgets(study, sweep, model, imported, seed, where)
        for overrides in _grid(sweep.set):
            base = _recipe(study, model, moe, seed, schedule)
            for dense, budget in pairs:
                origins = [f"upcycle:{each}" for each in sweep.method or ["copy"]] if moe else ["continued"]
                for origin in origins if dense else ["scratch"]:
                    recipe = _override(base | _origin(dense, origin), overrides, where, "set")
                    if dense:
                        _check_parent(recipe, dense.run, overrides, where)
                    if parent and dense and dense.first.run.checkpoint:
                        _check_context(recipe, parent.parent, where)
                    run = finished_run(recipe, budget.steps(recipe, where), study.schedule.decay_fraction, where)
                    # Axes can meet in one run: budgets in tokens that round to the same steps, a default written out.
                    points.setdefault(run.id, Point(run=run, model=model, moe=moe, dense=dense))
    return list(points.values())


def _check_size(sweep: SweepConfig, where: str) -> None:
    axes: list[list[Any] | None] = [sweep.model, sweep.moe, sweep.schedule, sweep.seed, sweep.method, sweep.points]
    axes += [sweep.tokens, sweep.steps, sweep.dense_tokens, sweep.dense_steps]
    size = math.prod(len(axis) for axis in [*axes, *sweep.set.values(), *sweep.dense_set.values()] if axis)
    if size > MAX_POINTS:
        raise UserError(f"{where}: its axes make {brief(size)} points, more than {MAX_POINTS:,}; shorten them")


def _grid(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The product of axes as a list of {dotted path: value}; one empty choice when there are none."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _imported(study: StudyConfig, model: str, checkpoint: Checkpoint, where: str) -> Point:
    """A checkpoint as the finished dense parent: its loss depends on the held-out text, the context and `dtype`."""
    data = _full(study.data.model_dump()) | {"seed": 0, "repeat": False}
    fields = {"model": study.model_spec(model).model_dump(), "data": data, "dtype": study.dtype, **_IMPORTED}
    known = {"dense_tokens": study.models[model].tokens, "checkpoint": checkpoint.fingerprint}
    try:
        run = _run(**dict(Recipe.model_validate(fields | known)), role="imported", end_step=0)
    except ValidationError as error:
        raise UserError(f"{where}, models.{model}: {describe_error(error)}") from None
    return Point(run=run, model=model, moe="")


def _as_they_are(
    study: StudyConfig, sweep: SweepConfig, checkpoints: Mapping[str, Checkpoint], where: str
) -> list[Point]:
    """The imported runs of a sweep's models. Raises `UserError` for a model that has no checkpoint."""
    points = []
    for model in sweep.model:
        if model not in checkpoints:
            raise UserError(f"{where}.model: models.{model} begins with no checkpoint; name one that has `checkpoint`")
        point = _imported(study, model, checkpoints[model], where)
        _check_context(point.run, checkpoints[model].parent, where)
        points.append(point)
    return points


def _check_context(recipe: Recipe, parent: Parent, where: str) -> None:
    """Raise `UserError` for sequences longer than those for which a checkpoint computes what we do."""
    if recipe.model.context > parent.context:
        raise UserError(
            f"{where}: a context of {recipe.model.context:,} tokens exceeds the {parent.context:,} of {parent.folder} "
            "(max_position_embeddings, or its sliding window); lower `context`"
        )


def _parents(study: StudyConfig, name: str, checkpoints: Mapping[str, Checkpoint]) -> list[Point]:
    """The finished mixtures of the sweep that a sweep names as its `parents`; none without that key.

    Raises `UserError` for sweeps that begin with each other, and for one of dense models.
    """
    chain = [name]
    while parents := study.sweeps[chain[-1]].parents:
        if parents in chain:
            raise UserError(
                f"sweeps.{name}.parents: sweeps {', '.join([*chain, parents])} begin with each other; name a sweep of "
                "kind moe, or one upcycled from dense models"
            )
        chain.append(parents)
    if len(chain) == 1:
        return []
    first = study.sweeps[chain[-1]]
    if not first.moe:
        raise UserError(
            f"sweeps.{chain[-2]}.parents: sweep `{chain[-1]}` is of kind {first.kind}, and `{EXPAND}` begins with "
            "mixtures; name a sweep of kind moe or upcycled"
        )
    return expand_sweep(study, chain[1], checkpoints)


def _of_mixtures(
    study: StudyConfig, sweep: SweepConfig, model: str, mixtures: list[Point], seed: int, where: str
) -> list[tuple[Point, Budget]]:
    """(mixture, budget) for the mixtures of this model and seed, and each budget of the sweep.

    Raises `UserError` if there is none.
    """
    parents = [point for point in mixtures if point.model == model and point.run.seed == seed]
    if not parents:
        raise UserError(
            f"{where}.parents: sweep `{sweep.parents}` has no mixture of model `{model}` with seed {seed}; add it "
            "there, or leave it out here"
        )
    return list(itertools.product(parents, _axis(study, model, sweep.tokens, sweep.steps, where)))


def _of_checkpoint(
    sweep: SweepConfig, imported: Point, budgets: list[Budget], where: str
) -> list[tuple[Point, Budget]]:
    """(imported parent, budget) for each budget of the sweep.

    Raises `UserError` for another D1 than the checkpoint's, and for settings of its training.
    """
    own, fix = imported.run.tokens, f"a checkpoint, whose D1 is models.{imported.model}.tokens"
    for key in ("dense_steps", "dense_set"):
        if getattr(sweep, key):
            raise UserError(f"{where}.{key}: model {imported.model} begins with {fix}; leave `{key}` out")
    for key, given in (("dense_tokens", sweep.dense_tokens or []), ("points", [d1 for d1, _ in sweep.points or []])):
        if wrong := [d1 for d1 in given if d1 != own]:
            raise UserError(f"{where}.{key}: D1 = {wrong[0]:,}, but model {imported.model} begins with {fix}, {own:,}")
    return [(imported, budget) for budget in budgets]


def _budgets(
    study: StudyConfig, sweep: SweepConfig, model: str, imported: Point | None, seed: int, where: str
) -> Sequence[tuple[Point | None, Budget]]:
    """(dense parent or None, budget) for each budget of the sweep."""
    if sweep.points:
        pairs = [(Budget(d1, "tokens"), Budget(d2, "tokens")) for d1, d2 in sweep.points]
        budgets = [budget for _, budget in pairs]
    else:
        budgets = _axis(study, model, sweep.tokens, sweep.steps, where)
    if imported:
        return _of_checkpoint(sweep, imported, budgets, where)
    if not sweep.has_parents:
        return [(None, budget) for budget in budgets]
    if not sweep.points:
        dense_budgets = _axis(study, model, sweep.dense_tokens, sweep.dense_steps, where)
        pairs = list(itertools.product(dense_budgets, budgets))
    starts: list[tuple[Point | None, Budget]] = []
    for overrides in _grid(sweep.dense_set):
        recipe = _override(_recipe(study, model, "", seed, "wsd"), overrides, where, "dense_set")
        for dense_budget, budget in pairs:
            steps = dense_budget.steps(recipe, where)
            run = finished_run(recipe, steps, study.schedule.decay_fraction, f"{where}, dense parent")
            starts.append((Point(run=run, model=model, moe=""), budget))
    return starts


def _axis(
    study: StudyConfig, model: str, tokens: list[int] | None, steps: list[int] | None, where: str
) -> list[Budget]:
    """Budgets given in tokens, in steps, or by the model's own halvings: tokens, at its own batch and context."""
    entry = study.models[model]
    if steps:
        return [Budget(count, "steps") for count in steps]
    if tokens:
        return [Budget(count, "tokens") for count in tokens]
    if not entry.budgets:
        raise UserError(f"{where}: give `tokens` or `steps`, or `max_steps` to models.{model}")
    return [Budget(count * entry.batch * study.context, "tokens") for count in entry.budgets]


def _recipe(study: StudyConfig, model: str, moe: str, seed: int, schedule: str) -> dict[str, Any]:
    """The fields of a `Recipe` as the study gives them."""
    entry = study.models[model]
    data = study.data.model_dump()
    return {
        "model": study.model_spec(model).model_dump(),
        "data": {**data, "seed": data["seed"] + seed},
        "optim": {
            "lr": entry.lr_moe if moe else entry.lr,
            "batch": entry.batch,
            **study.optim.model_dump(),
        },
        "schedule": {"kind": schedule, "warmup_steps": entry.warmup_steps, "floor": study.schedule.floor},
        "moe": study.moes[moe].model_dump() if moe else None,
        "upcycling": {},
        "seed": seed,
        "dtype": study.dtype,
    }


def _origin(dense: Point | None, origin: str) -> dict[str, Any]:
    """The fields of a `Recipe` that say what was upcycled or continued, and how."""
    if dense is None:
        return {}
    moe = dense.run.moe.model_dump() if dense.run.moe else None
    return {
        **{"origin": origin, "dense_parent": dense.run.id, "dense_tokens": dense.run.all_tokens},
        "parent_moe": moe,
    }


def _override(fields: dict[str, Any], overrides: dict[str, Any], where: str, key: str) -> Recipe:
    """The recipe with dotted paths set, as the sweep's `key` asks for.

    Raises `UserError` for an unknown path, for a path that would have no effect, and for an impossible recipe.
    """
    changed = dict(fields)
    where = f"{where}.{key}" if overrides else where
    for path, value in overrides.items():
        section, _, field = path.rpartition(".")
        if path in SweepConfig.model_fields:
            raise UserError(f"{where}: `{path}` is a key of the sweep itself; give it there")
        if path not in SETTABLE:
            raise UserError(f"{where}: unknown setting `{path}`; {nearest(path, SETTABLE)}")
        if section and changed[section] is None:
            raise UserError(f"{where}: `{path}` would have no effect: a dense model has no mixture")
        if section == "upcycling" and not changed.get("origin", "").startswith("upcycle:"):
            raise UserError(f"{where}: `{path}` would have no effect: only runs of kind upcycled have a method")
        if section:
            changed[section] = {**changed[section], field: value}
        else:
            changed[path] = value
    changed["data"] = _full(changed["data"])
    try:
        recipe = Recipe.model_validate(changed)
    except ValidationError as error:
        raise UserError(f"{where}: {describe_error(error)}") from None
    if recipe.schedule.kind == "constant" and "schedule.floor" in overrides:
        raise UserError(f"{where}: `schedule.floor` would have no effect: a constant schedule does not cool")
    return recipe


def _full(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `DataSpec` with the version of a source that is not pinned, as it is here."""
    named = isinstance(data["dataset"], str) and isinstance(data["version"], str)  # else refused when it is validated
    return data | {"version": full_version(data["dataset"], data["version"])} if named else data


def _check_parent(recipe: Recipe, dense: RunSpec, overrides: dict[str, Any], where: str) -> None:
    """A run that begins with its parent's weights has their shape and tokenizer.

    Raises `UserError` naming the setting.
    """
    of_parent = "in that of its parents' sweep" if dense.moe else "`dense_set`"
    for field in _COPIED:
        own, parents = getattr(recipe.model, field), getattr(dense.model, field)
        if own != parents:
            raise UserError(
                f"{where}: model.{field} is {own}, but {parents} in the parent whose weights it begins with; give it "
                f"in `set` and {of_parent} alike"
            )
    for field in ("init_std", "output_init"):
        if f"model.{field}" in overrides:
            raise UserError(
                f"{where}.set: `model.{field}` would have no effect: the weights are the parent's; give it in "
                f"{of_parent} alone"
            )
    if recipe.copies_moments and dense.role != "decay":
        what = "an imported checkpoint" if dense.checkpoint else f"a parent of schedule {dense.schedule.kind}"
        raise UserError(
            f"{where}.set: `upcycling.optimizer: copied` takes AdamW's moments from the trunk point off which the "
            f"parent's decay branched, and {what} has none; give `fresh`"
        )
    own_data, parents_data = recipe.data, dense.data
    same = own_data.tokenizer == parents_data.tokenizer and own_data.vocab_size == parents_data.vocab_size
    if not same or (own_data.tokenizer == "bpe" and own_data.tokens_id != parents_data.tokens_id):
        raise UserError(
            f"{where}: its tokens are {own_data.tokens_id}, but {parents_data.tokens_id} in the parent, cut by another "
            f"tokenizer: its embedding would be of other pieces; give data.* in `set` and {of_parent} alike, or name "
            "one tokenizer.json"
        )


def finished_run(recipe: Recipe, steps: int, decay_fraction: float, where: str) -> RunSpec:
    """The run that ends a training of `steps` steps: the WSD decay, or the whole cosine or constant run.

    The decay takes round(decay_fraction x steps) steps, at least one (A.5: about 10 %).
    """
    fields = dict(recipe)
    try:
        if recipe.schedule.kind != "wsd":
            return _run(**fields, role="full", end_step=steps, parent=recipe.dense_parent)
        branch = steps - max(round(decay_fraction * steps), 1)
        trunk = trunk_point(fields, branch)
        return _run(**fields, role="decay", start_step=branch, end_step=steps, parent=trunk.id)
    except ValidationError as error:
        raise UserError(f"{where}: {describe_error(error)}") from None


def trunk_point(recipe: dict[str, Any], end_step: int) -> RunSpec:
    """The trunk point at `end_step`, written as one segment from the start (its id is the same in any chain)."""
    return _run(**recipe, role="trunk", end_step=end_step, parent=recipe.get("dense_parent"))


@cache
def _run(**fields: Any) -> RunSpec:
    """A run of these fields, made once: sweeps share runs, and each decay asks for its trunk point."""
    return RunSpec(**fields)
