"""Losses of runs that are still to train: laws fitted to smaller runs, and what needs no law.

A prediction's 95 % interval adds two sources, taken as independent: the bootstrap draws of the fit, and the noise of
one loss between seeds. It leaves out that the law may be wrong beyond the budgets that it was fitted to: coverage
shows that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from upcycle.errors import UserError
from upcycle.laws.certificate.validate import seed_noise
from upcycle.laws.fit import DRAWS, fit
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.laws.tables.losses import law_columns
from upcycle.laws.terms import Array

LAST_POINT, POWER_BY_D1 = "last point", "power law of each D1"
"""Forecasts without a law of D1 and D2."""
_NOISE_QUANTILES = norm.ppf((np.arange(99) + 0.5) / 99)
_SETTING = ("N1", "n_expert", "top_k")
"""Columns that a naive forecast holds fixed."""


def forecast_losses(fitted: pd.DataFrame, repeated: pd.DataFrame, planned: pd.DataFrame, laws: list[str]) -> Any:
    """Predictions of `planned` by each law, and by two naive rules, as data.

    All are rows of losses.csv: `fitted` with the losses that laws are fitted to, `repeated` with those of other seeds,
    `planned` without losses. Intervals are at 95 %; naive rules have none. Raises `UserError` for too few rows.
    """
    known = pd.concat([fitted, repeated]).drop_duplicates("id", ignore_index=True)
    noise = seed_noise(known)
    found: dict[str, list[dict[str, float | None]]] = {}
    fits: dict[str, dict[str, Any]] = {}
    for name in laws:
        law = get_law(name)
        data = law_columns(fitted, [*law.inputs, law.response])
        result = fit(law, data, ids=fitted["id"].tolist(), noise=noise.deviation if noise else None)
        if result.draws is None:
            raise UserError(
                f"law `{name}`: {result.statement}; forecast from more runs, or by a law of fewer parameters"
            )
        deviation = noise.deviation if noise else _residual_deviation(result, fitted)
        found[name] = _predictions(result, planned, deviation)
        fits[name] = {key: getattr(result, key) for key in ("statement", "identifiable", "rms", "loo_rms")}
        fits[name] |= {"parameters": result.values, "intervals": result.intervals, "deviation": deviation}
    budgets = (
        np.where(fitted["D2"] > 0, fitted["D2"], fitted["D"]),
        np.where(planned["D2"] > 0, planned["D2"], planned["D"]),
    )
    for rule in (LAST_POINT, POWER_BY_D1):
        values = _naive(rule, fitted.assign(budget=budgets[0]), planned.assign(budget=budgets[1]))
        found[rule] = [{"loss": value, "low": None, "high": None} for value in values]
    source = {"from": "seeds", "freedom": noise.freedom, "points": noise.points} if noise else {"from": "residuals"}
    return {
        "interval": f"95 %: {DRAWS} bootstrap draws of the fit, and the noise of one loss",
        "noise": source | {"deviation": noise.deviation if noise else None},
        "fits": fits,
        "predictions": {
            name: [{"id": run_id, **each} for run_id, each in zip(planned["id"], values, strict=True)]
            for name, values in found.items()
        },
    }


def _residual_deviation(result: FitResult, fitted: pd.DataFrame) -> float:
    """Standard deviation of a loss about a fit, nats."""
    residual_N = fitted["loss"].to_numpy(float) * np.expm1(np.array(result.residuals_log))
    freedom = max(len(residual_N) - int(result.certificate["parameters"]), 1)
    return math.sqrt(float(np.sum(residual_N**2)) / freedom)


def _predictions(result: FitResult, planned: pd.DataFrame, deviation: float) -> list[dict[str, float | None]]:
    """Loss and the ends of its 95 % interval of each planned run, nats."""
    law = get_law(result.law)
    data = law_columns(planned, law.inputs)
    columns = {name: np.asarray(values) for name, values in (result.draws or {}).items()}
    drawn_BN = np.array(
        [
            law.predict(result.values | {name: float(values[b]) for name, values in columns.items()}, data)
            for b in range(len(next(iter(columns.values()))))
        ]
    )
    with_noise_CN = (drawn_BN[:, None, :] + deviation * _NOISE_QUANTILES[None, :, None]).reshape(-1, len(planned))
    low_N, high_N = np.quantile(with_noise_CN, [0.025, 0.975], axis=0)
    loss_N = law.predict(result.values, data)
    return [
        {"loss": float(loss), "low": float(low), "high": float(high)}
        for loss, low, high in zip(loss_N, low_N, high_N, strict=True)
    ]


def _naive(rule: str, fitted: pd.DataFrame, planned: pd.DataFrame) -> list[float | None]:
    """Losses [N] by the fitted runs of the same size and mixture, and of the largest D1 that is no larger: the loss of
    the largest budget that is no larger, or a straight line in ln D through all budgets. None without such runs."""
    found: list[float | None] = []
    for _, run in planned.iterrows():
        same = fitted[(fitted[list(_SETTING)] == run[list(_SETTING)]).all(axis=1) & (fitted["D1"] <= run["D1"])]
        row = same[same["D1"] == same["D1"].max()].sort_values("budget")
        if rule == LAST_POINT:
            before = row[row["budget"] <= run["budget"]]
            found.append(None if before.empty else float(before["loss"].iloc[-1]))
        elif row["budget"].nunique() < 2:
            found.append(None)
        else:
            slope, start = np.polyfit(np.log(row["budget"]), np.log(row["loss"]), 1)
            found.append(float(np.exp(start + slope * np.log(run["budget"]))))
    return found


def forecast_scores(predictions: list[dict[str, Any]], loss_by_id: dict[str, float]) -> dict[str, float]:
    """How good the predictions of one rule were: runs, RMS and mean of predicted minus measured (nats), and the share
    of the measured losses that their 95 % intervals hold (NaN without intervals)."""
    known = [each for each in predictions if each["loss"] is not None]
    error_N: Array = np.array([each["loss"] - loss_by_id[each["id"]] for each in known])
    held = [each["low"] <= loss_by_id[each["id"]] <= each["high"] for each in known if each["low"] is not None]
    return {
        "runs": len(known),
        "RMS (nats)": float(np.sqrt(np.mean(error_N**2))) if known else math.nan,
        "mean (nats)": float(np.mean(error_N)) if known else math.nan,
        "held by 95 %": sum(held) / len(held) if held else math.nan,
    }
