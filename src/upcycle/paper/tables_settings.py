"""Tables of what was trained and how: shapes and training settings as the runs of a study record them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.study.counting import count_parameters
from upcycle.study.shape import MoESpec
from upcycle.study.spec import RunSpec

SAME_IN_ABLATIONS = ("role", "start_step", "end_step", "parent", "dense_parent", "dense_tokens", "schedule.floor")
"""What follows from a budget: not a setting that an ablation compares."""


def table_3(inputs: Inputs) -> pd.DataFrame:
    """Table 3. Dense models.

    Shapes and exact numbers of non-embedding parameters: of the dense model, and of its mixture with the most common
    number of experts of the study.
    """
    experts = inputs.losses.loc[inputs.losses["n_expert"] > 1, "n_expert"]
    n_expert = int(experts.mode().iloc[0]) if len(experts) else None
    rows = {}
    for name, specs in _by_model(inputs).items():
        model = specs[0].model
        row = {"n_layer": model.n_layer, "d_model": model.d_model, "n_head": model.n_head}
        row["N_dense"] = count_parameters(model).non_embedding
        if n_expert is not None:
            mixture = MoESpec(n_expert=n_expert, top_k=min(2, n_expert), gate="topk_softmax")
            row[f"N_total of {n_expert} experts"] = count_parameters(model, mixture).non_embedding
        rows[name] = row
    return _frame(rows, "model")


def table_4(inputs: Inputs) -> pd.DataFrame:
    """Table 4. Training configuration.

    Settings of all runs; several values where runs differ.
    """
    specs = [inputs.spec(run_id) for run_id in inputs.losses["id"]]
    settings: dict[str, Any] = {
        "context length (tokens)": _values(spec.model.context for spec in specs),
        "embedding tying": "false",
        "optimizer": "AdamW",
        "Adam β1": _values(spec.optim.beta1 for spec in specs),
        "Adam β2": _values(spec.optim.beta2 for spec in specs),
        "Adam ε": _values(spec.optim.eps for spec in specs),
        "weight decay": _values(spec.optim.weight_decay for spec in specs),
        "gradient clipping": _values(spec.optim.clip for spec in specs),
    }
    return _frame({name: {"setting": value} for name, value in settings.items()}, "configuration")


def table_5(inputs: Inputs) -> pd.DataFrame:
    """Table 5. Training configuration by model.

    Settings of the longest runs of each model: warm-up steps, standard deviation of the initial weights, steps,
    sequences a step, and the maximum learning rate of the dense model and of its mixtures.
    """
    rows = {}
    for name, specs in _by_model(inputs).items():
        dense = _longest(spec for spec in specs if spec.moe is None)
        mixtures = _longest(spec for spec in specs if spec.moe is not None)
        both = [*dense, *mixtures]
        rows[name] = {
            "warm-up iterations": _values(spec.schedule.warmup_steps for spec in both),
            "init. size": _values(spec.model.weight_std for spec in both),
            "max. iterations": max(spec.end_step for spec in both),
            "batch size": _values(spec.optim.batch for spec in both),
            "LR dense": _values(spec.optim.lr for spec in dense),
            "LR MoE": _values(spec.optim.lr for spec in mixtures),
        }
    return _frame(rows, "model")


def table_6(inputs: Inputs, sweeps: Sequence[str] | None = None) -> pd.DataFrame:
    """Table 6. Training configuration of the ablations.

    One row a sweep, by default each sweep whose models were all trained for the same number of steps. Last column: the
    settings in which its runs differ.

    Raises `UserError` when there is no such sweep.
    """
    chosen = list(sweeps or ())
    if not chosen:
        chosen = [
            name for name in inputs.sweep_names() if len({spec.end_step for spec in _of_sweep(inputs, name)}) == 1
        ]
    if not chosen:
        raise UserError("no sweep has models of one number of steps alone: name the ablations, tables.table6.sweeps")
    rows = {}
    for name in chosen:
        specs = _of_sweep(inputs, name)
        coefficients = [spec.moe.aux_coef for spec in specs if spec.moe is not None]
        rows[name] = {
            "batch size": _values(spec.optim.batch for spec in specs),
            "iterations": _values(spec.end_step for spec in specs),
            "warm-up iterations": _values(spec.schedule.warmup_steps for spec in specs),
            "auxiliary coefficient": _values(coefficients) if coefficients else "–",
            "compares": ", ".join(_compared(specs)) or "–",
        }
    return _frame(rows, "ablation")


def _by_model(inputs: Inputs) -> dict[str, list[RunSpec]]:
    """Runs of the finished models by the study's name of their dense shape, smallest first."""
    groups = inputs.losses.sort_values("N1", kind="stable").groupby("model", sort=False)
    return {str(name): [inputs.spec(run_id) for run_id in rows["id"]] for name, rows in groups}


def _of_sweep(inputs: Inputs, sweep: str) -> list[RunSpec]:
    return [inputs.spec(run_id) for run_id in inputs.in_sweep(sweep)["id"]]


def _longest(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """Those trained for the most tokens."""
    runs = list(specs)
    most = max((run.tokens for run in runs), default=0)
    return [run for run in runs if run.tokens == most]


def _values(values: Iterable[Any]) -> Any:
    """The one value of a setting, or all of them as text; a dash for none."""
    different = sorted(set(values))
    if len(different) == 1:
        return different[0]
    return ", ".join(number(value) for value in different) or "–"


def _compared(specs: Sequence[RunSpec]) -> list[str]:
    """Settings in which runs differ, as their dotted paths."""
    flat = [dict(_leaves(spec.model_dump(mode="json"))) for spec in specs]
    paths = list(dict.fromkeys(path for each in flat for path in each if path not in SAME_IN_ABLATIONS))
    return [path for path in paths if len({str(each.get(path)) for each in flat}) > 1]


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _frame(rows: dict[str, dict[str, Any]], index: str) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name=index), dtype=object)
