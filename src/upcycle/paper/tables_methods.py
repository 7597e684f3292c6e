"""Tables of upcycling methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.method_arms import MethodArms, compare_methods, law_by_arm, own_interval, router_curves
from upcycle.paper.method_findings import GREEK, standing_of
from upcycle.paper.paired import Difference
from upcycle.paper.render import with_interval
from upcycle.study.spec import short_count


def methods_compared(inputs: Inputs, sweeps: Sequence[str] | None = None) -> pd.DataFrame:
    """Upcycling methods compared.

    Mean final loss over the budgets and seeds that all methods have; by how much it differs from that of copying, over
    all budgets and at the smallest and largest; the interaction, which is the slope of the loss in ln D2 at the largest
    D1 minus that at the smallest, and by how much it differs from that of copying. Differences are paired by seed and
    in nats; brackets: 95 % intervals, for all methods with the parents of copying together. Then routers and experts at
    the end of training, at the largest budgets: entropy as a share of its maximum, experts that no token of a batch was
    sent to, and the largest distance between two experts over an expert's norm.

    Raises `UserError` for a study of one method, and for runs of different kernels.
    """
    found = compare_methods(inputs, sweeps)
    losses, interactions = found.losses(), found.interactions()
    against = found.differences(losses)
    corners = {
        f"at D1 {short_count(D1)}, D2 {short_count(D2)}": found.differences(found.losses(D1, D2))
        for D1, D2 in (found.corners if len(found.corners) > 1 else ())
    }
    of_interactions = {} if interactions is None else found.differences(interactions)
    routers = {arm: curves.last() for arm, curves in router_curves(inputs, found).items()}
    rows: dict[str, dict[str, Any]] = {}
    for arm in found.arms:
        row: dict[str, Any] = {"loss": float(losses[arm].mean())}
        row |= _difference("minus copy's", against.get(arm))
        row["against copying"] = standing_of(against[arm]) if arm in against else "–"
        for name, differences in corners.items():
            row |= _difference(name, differences.get(arm))
        if interactions is not None:
            values = interactions[arm].tolist()
            row |= with_interval("interaction", float(interactions[arm].mean()), own_interval(values))
            row |= _difference("interaction minus copy's", of_interactions.get(arm))
        if arm in routers:
            entropy, dead, distance = routers[arm]
            row |= {"router entropy, %": 100 * entropy, "unused experts, %": 100 * dead, "expert distance": distance}
        rows[arm] = row | _sizes(found, arm)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _difference(column: str, difference: Difference | None) -> dict[str, float]:
    if difference is None:
        return with_interval(column, math.nan, None)
    if math.isinf(difference.bound):
        return with_interval(column, difference.nats, None)
    return with_interval(
        column, difference.nats, (difference.nats - difference.bound, difference.nats + difference.bound)
    )


def _sizes(found: MethodArms, arm: str) -> dict[str, int]:
    """Parameters that a token uses, and all, where methods differ in them."""
    rows = found.rows[found.rows["arm"] == arm]
    names = {"N2": "active parameters, N2", "N_total": "parameters, N_total"}
    return {title: int(rows[name].iloc[0]) for name, title in names.items() if found.rows[name].nunique() > 1}


def methods_law(inputs: Inputs, sweeps: Sequence[str] | None = None) -> pd.DataFrame:
    """Equation 8 by upcycling method.

    Parameters of the multiplicative law with interaction, fitted to all budgets and seeds of one method. Brackets: 95 %
    intervals. D1 and D2 in tokens, losses in nats.

    Raises `UserError` where it is fitted to no method alone.
    """
    fits = law_by_arm(inputs, compare_methods(inputs, sweeps))
    if not fits:
        raise UserError(
            "no fit of law `multiplicative` to the runs of one upcycling method: add one under `fits` in the study, "
            "with `where: \"method == 'copy'\"`"
        )
    rows = {}
    for arm, fit in fits.items():
        row: dict[str, Any] = {"losses": fit.n}
        for name, value in fit.values.items():
            row |= with_interval(GREEK.get(name, name), value, fit.intervals.get(name))
        rows[arm] = row | {"leave-one-out RMS": math.nan if fit.loo_rms is None else fit.loo_rms}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
