"""What varies between the runs of a sweep, beside what their ids show."""

from __future__ import annotations

from typing import Any

from upcycle.study.columns import dotted_fields
from upcycle.study.plan import Plan
from upcycle.study.spec import RunSpec

_IN_ID = (
    *("model.n_layer", "model.d_model", "moe.n_expert", "moe.top_k", "seed", "role"),
    *("dense_parent", "dense_tokens", "start_step", "end_step", "parent"),
)
"""Fields of RunSpec that a run's id, or the steps beside it, show."""
DENSE = "dense_set."
"""Prefix of a setting of an upcycled model's dense parent, after the study's key that sets it."""


def varying(plan: Plan, sweep: str) -> dict[str, list[Any]]:
    """Settings (dotted paths of RunSpec) that differ between a sweep's finished models, with their values in order.

    A setting of the dense parents that always equals the models' own is left out.
    """
    models = [_settings(plan, plan.runs[run_id]) for run_id in plan.sweeps[sweep]]
    values: dict[str, list[Any]] = {}
    for path in dict.fromkeys(path for model in models for path in model):
        found = values[path] = []
        for model in models:
            if model.get(path) not in found:
                found.append(model.get(path))
    repeated = {DENSE + path for path in values if all(model.get(path) == model.get(DENSE + path) for model in models)}
    return {path: found for path, found in values.items() if len(found) > 1 and path not in repeated}


def varying_by_run(plan: Plan) -> dict[str, dict[str, Any]]:
    """For every run its own values of the settings that vary within a sweep which needs it."""
    shown: dict[str, dict[str, Any]] = {run_id: {} for run_id in plan.runs}
    for sweep, finished in plan.sweeps.items():
        paths = set(varying(plan, sweep))
        of_parents = {path.removeprefix(DENSE) for path in paths if path.startswith(DENSE)}
        for run_id in plan.members(sweep):
            run = plan.runs[run_id]
            wanted = paths if run.lineage == plan.runs[finished[0]].lineage else of_parents
            settings = _settings(plan, run)
            shown[run_id] |= {path: settings[path] for path in sorted(wanted & set(settings))}
    return shown


def _settings(plan: Plan, run: RunSpec) -> dict[str, Any]:
    """The settings of a run, defaults too, and those of its dense parent, less those that the id shows."""
    fields = dotted_fields(run.model_dump(mode="json"))
    if run.dense_parent is not None:
        parent = dotted_fields(plan.runs[run.dense_parent].model_dump(mode="json"))
        fields |= {DENSE + path: value for path, value in parent.items()}
    return {path: value for path, value in fields.items() if path.removeprefix(DENSE) not in _IN_ID}
