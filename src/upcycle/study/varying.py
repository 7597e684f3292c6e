"""What varies between runs: settings within a sweep beside what ids show, and short names that tell runs apart."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from upcycle.study.columns import dotted_fields, value_text
from upcycle.study.plan import Plan
from upcycle.study.spec import RunSpec, short_count

_IN_ID = (
    *("model.n_layer", "model.d_model", "moe.n_expert", "moe.top_k", "seed", "role"),
    *("dense_parent", "dense_tokens", "start_step", "end_step", "parent", "parent_moe"),
)
"""Fields of RunSpec that a run's id, or the steps beside it, show."""
LINEAGES = {"dense": "dense", "moe": "moe", "up": "upcycled", "cont": "continued", "import": "imported"}
"""What people call a run, by its lineage; an imported one by its kind."""
OF_PARENT = {"dense_set.": "dense_", "parents.": "parent_"}
"""Prefix of a setting of an upcycled model's parent, after the study's key that gives a dense one or a mixture; and the
prefix of its last part in a label."""


def varying(plan: Plan, sweep: str) -> dict[str, list[Any]]:
    """Settings (dotted paths of RunSpec) that differ between a sweep's finished models, with their values in order.

    A setting of the parents that always equals the models' own is left out.
    """
    models = [_settings(plan, plan.runs[run_id]) for run_id in plan.sweeps[sweep]]
    values: dict[str, list[Any]] = {}
    for path in dict.fromkeys(path for model in models for path in model):
        found = values[path] = []
        for model in models:
            if model.get(path) not in found:
                found.append(model.get(path))
    repeated = {
        prefix + path
        for prefix in OF_PARENT
        for path in values
        if all(model.get(path) == model.get(prefix + path) for model in models)
    }
    return {path: found for path, found in values.items() if len(found) > 1 and path not in repeated}


def varying_by_run(plan: Plan) -> dict[str, dict[str, Any]]:
    """For every run its own values of the settings that vary within a sweep which needs it."""
    shown: dict[str, dict[str, Any]] = {run_id: {} for run_id in plan.runs}
    for sweep, finished in plan.sweeps.items():
        paths = set(varying(plan, sweep))
        of_parents = {_own(path) for path in paths if _own(path) != path}
        begins = {(plan.runs[run_id].lineage, plan.runs[run_id].dense_parent) for run_id in finished}
        for run_id in plan.members(sweep):
            run = plan.runs[run_id]
            wanted = paths if (run.lineage, run.dense_parent) in begins else of_parents
            settings = _settings(plan, run)
            shown[run_id] |= {path: settings[path] for path in sorted(wanted & set(settings))}
    return shown


def _settings(plan: Plan, run: RunSpec) -> dict[str, Any]:
    """The settings of a run, defaults too, and those of its parent, less those that the id shows."""
    fields = dotted_fields(run.model_dump(mode="json"))
    if run.dense_parent is not None:
        dense, mixture = OF_PARENT
        prefix, known = (mixture, ("moe.", "parent_moe.")) if run.parent_moe else (dense, ())
        parent = dotted_fields(plan.runs[run.dense_parent].model_dump(mode="json"))
        fields |= {prefix + path: value for path, value in parent.items() if not path.startswith(known)}
    return {path: value for path, value in fields.items() if _own(path) not in _IN_ID}


def _own(path: str) -> str:
    """The path of a parent's setting in the parent itself; any other as it is."""
    for prefix in OF_PARENT:
        path = path.removeprefix(prefix)
    return path


def run_labels(plan: Plan) -> dict[str, str]:
    """What people call each run, different for all: `upcycled 33k 8x2 D1=492k D2=983k lr=0.004`.

    Model and mixture are shown where the study has several, settings where runs are alike in all else.
    """
    several = [len({names[place] for names in plan.names.values()} - {""}) > 1 for place in (0, 1)]
    alike: dict[str, list[str]] = defaultdict(list)
    for run_id, run in plan.runs.items():
        names = [name for name, shown in zip(plan.names.get(run_id, ("", "")), several, strict=True) if shown and name]
        alike[" ".join([LINEAGES["import" if run.role == "imported" else run.lineage], *names, *_budget(run)])].append(
            run_id
        )
    labels = {}
    for label, ids in alike.items():
        for run_id, shown in _told_apart(plan, ids).items():
            labels[run_id] = " ".join([label, *shown])
    return {run_id: labels[run_id] for run_id in plan.runs}


def _budget(run: RunSpec) -> list[str]:
    """Tokens of a run as D, or D1 and D2; a trunk point's are where it ends; a seed other than 0."""
    d1 = [f"D1={short_count(run.dense_tokens)}"] if run.dense_parent else []
    name = "D2" if run.dense_parent else "D"
    end = f"trunk to {short_count(run.tokens)}" if run.role == "trunk" else f"{name}={short_count(run.tokens)}"
    return [*d1, end, *([f"seed={run.seed}"] if run.seed else [])]


def _told_apart(plan: Plan, ids: list[str]) -> dict[str, list[str]]:
    """For runs of one label the settings that tell them apart, as few as there are; the id's digest if none does."""
    shown: dict[str, list[str]] = {run_id: [] for run_id in ids}
    settings = {run_id: _settings(plan, plan.runs[run_id]) for run_id in ids} if len(ids) > 1 else {}

    def kinds(path: str) -> int:
        """How many of the runs differ if this setting is shown too."""
        return len({(*shown[run_id], value_text(settings[run_id].get(path))) for run_id in ids})

    paths = list(dict.fromkeys(path for run_id in settings for path in settings[run_id]))
    while (now := len({tuple(words) for words in shown.values()})) < len(ids):
        best = max(paths, key=kinds)
        if kinds(best) == now:
            return {run_id: [*words, run_id[-10:]] for run_id, words in shown.items()}
        for run_id in ids:
            value = settings[run_id].get(best)
            if value is None and best.startswith("upcycling."):
                continue  # its method has no such parameter
            whose = next((word for prefix, word in OF_PARENT.items() if best.startswith(prefix)), "")
            whose = "parent_" if best.startswith("parent_moe.") else whose
            word = f"{best.rpartition('.')[2]}={value_text(value)}".replace("origin=upcycle:", "method=")
            shown[run_id].append(whose + word)
    return shown
