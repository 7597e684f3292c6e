"""A study whose fits are the paper's Table 2, and one of a single small size: laws without the wait for a fit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from upcycle.decisions.curves import Curve, published
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.laws.tables.losses import law_columns
from upcycle.paper.inputs import Inputs

SIZES = [16 * n_layer * d_model**2 for n_layer, d_model in ((9, 320), (12, 480), (15, 640), (21, 832), (30, 1504))]
LONGEST = [2.307e9, 4.614e9, 9.227e9, 18.455e9, 73.82e9]
CONFIGURATION = {"A": 0.3, "beta1": 1.87, "F": 560.0, "beta2": 0.34, "E": 2.1}
DRAWS = 60


def fit_result(law_name: str, values: Mapping[str, float], rows: pd.DataFrame, **more: Any) -> FitResult:
    """A fit with these values, of these rows, as if it had been found."""
    law = get_law(law_name)
    data = law_columns(rows, [*law.inputs, "loss", "N1"])
    mixtures = rows[["n_expert", "top_k"]].drop_duplicates().to_numpy().tolist()
    content: dict[str, Any] = {
        "law": law.name,
        "label": law.label,
        "formula": law.formula,
        "response": "loss",
        "identifiable": True,
        "statement": "identifiable",
        "parameters": {p.name: {"value": values[p.name], "unit": p.unit, "meaning": p.meaning} for p in law.parameters},
        "fixed": {},
        "intervals": {},
        "interval_method": "none",
        "derived": {},
        "objective": 0.0,
        "delta": 1e-3,
        "n": len(rows),
        "rms": 0.0,
        "rms_log": 0.0,
        "loo_rms": 0.0,
        "loo_rms_log": 0.0,
        "certificate": {},
        "box": {name: [float(data[name].min()), float(data[name].max())] for name in (*law.inputs, "N1")},
        "ids": rows["id"].tolist(),
        "residuals_log": [0.0] * len(rows),
        "loo_residuals_log": None,
        "selection": "all",
        "data_sha256": "0",
        "version": "0",
        "simulated": False,
        "lineage": rows["lineage"].iloc[0] if rows["lineage"].nunique() == 1 else None,
        "n_expert": mixtures[0][0] if len(mixtures) == 1 else None,
        "top_k": mixtures[0][1] if len(mixtures) == 1 else None,
    }
    return FitResult(**(content | more))


def grouped(law_name: str, curves: Mapping[str, Curve], rows: pd.DataFrame) -> FitResult:
    """A fit by lineage, as fits of dense models and MoEs from scratch with one E are."""
    groups = []
    for lineage, curve in curves.items():
        one = fit_result(law_name, curve.values, rows[rows["lineage"] == lineage], draws=_lists(curve.draws))
        groups.append({"lineage": lineage, **one.to_json()})
    whole = fit_result(law_name, curves["dense"].values, rows)
    return FitResult(**{**vars(whole), "by": "lineage", "shared": ["E"], "groups": groups, "relations": {}})


def inputs() -> Inputs:
    """Losses at five sizes by Table 2 with its rounding as draws, and a sweep of configurations with their fit."""
    three = published(draws=DRAWS)
    dense, moe, up = three.need("dense"), three.need("moe"), three.upcycled
    rows = []
    for size, longest in zip(SIZES, LONGEST, strict=True):
        budgets = [longest / 2**k for k in range(5)]
        for D in budgets:
            rows.append(_row("dense", size, 1, 1, D, 0, dense.loss(D=D, N1=size)))
            rows.append(_row("moe", size, 8, 2, D, 0, moe.loss(D=D, N1=size)))
        for D1, D2 in itertools.product(budgets, budgets):
            rows.append(_row("up", size, 8, 2, D2, D1, up.loss(D1=D1, D2=D2, N1=size)))
    configurations = [
        _row("up", size, E, K, LONGEST[0], LONGEST[0], 0.0) for size in SIZES[:4] for E in (4, 8, 32) for K in (1, 2, 4)
    ]
    losses = _frame(rows + configurations)
    last = losses.index[-len(configurations) :]
    exact = get_law("configuration").predict(CONFIGURATION, law_columns(losses.loc[last], ["P", "N2"]))
    losses.loc[last, "loss"] = exact + np.random.default_rng(0).normal(0, 0.01, len(exact))
    table = losses.drop(last)
    scratch = grouped("chinchilla", {"dense": dense, "moe": moe}, table[table["lineage"] != "up"])
    joint = {"draws": _lists(up.draws), "floor": scratch.to_json()}
    fits = {
        "scratch": scratch,
        "joint": fit_result("joint", up.values, table[table["lineage"] == "up"], **joint),
        "configuration": fit_result("configuration", CONFIGURATION, losses.loc[last]),
    }
    return Inputs(losses, fits, Path("nowhere"))


def one_size() -> Inputs:
    """A small study of one size, whose laws know tokens alone; no draws."""
    budgets = [262_144.0 * 2**k for k in range(5)]
    size = 98_304
    values = {
        "dense": {"A": 21.0, "alpha": 0.15, "E": 1.0},
        "moe": {"A": 33.0, "alpha": 0.183, "E": 1.0},
        "up": {"A": 1.2e5, "alpha1": 0.689, "alpha2": 0.712, "alpha3": 0.0444, "E": 1.0},
    }
    laws = {"dense": "power_in_tokens", "moe": "power_in_tokens", "up": "multiplicative"}
    rows = [
        _row(lineage, size, *((1, 1) if lineage == "dense" else (8, 2)), D, 0, 0.0)
        for lineage in ("dense", "moe")
        for D in budgets
    ]
    rows += [_row("up", size, 8, 2, D2, D1, 0.0) for D1, D2 in itertools.product(budgets, budgets)]
    losses = _frame(rows)
    for lineage, law in laws.items():
        here = losses["lineage"] == lineage
        inputs_ = law_columns(losses[here], get_law(law).inputs)
        losses.loc[here, "loss"] = get_law(law).predict(values[lineage], inputs_)
    fits = {
        lineage: fit_result(law, values[lineage], losses[losses["lineage"] == lineage]) for lineage, law in laws.items()
    }
    return Inputs(losses, fits, Path("nowhere"))


def _row(lineage: str, size: float, E: int, K: int, D: float, D1: float, loss: Any) -> dict[str, Any]:
    return {
        "lineage": lineage,
        "n_expert": E,
        "top_k": K,
        "N1": size,
        "N2": size if lineage == "dense" else (4 + 12 * K) * size / 16,
        "N_total": size if lineage == "dense" else (4 + 12 * E) * size / 16,
        "D": D,
        "D1": D1,
        "D2": D if lineage == "up" else 0,
        "loss": float(loss),
    }


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    losses = pd.DataFrame(rows)
    ids = [f"run{k}" for k in range(len(losses))]
    return losses.assign(id=ids, seed=0, sweeps="all", role="decay", simulated=0, source="")


def _lists(draws: Mapping[str, Any] | None) -> dict[str, list[float]] | None:
    return None if draws is None else {name: np.asarray(column).tolist() for name, column in draws.items()}
