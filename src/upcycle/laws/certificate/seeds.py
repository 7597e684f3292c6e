"""Leave-one-out errors of a law, had other seeds been trained: does the order of laws depend on the seeds?

Where a setting was repeated with other seeds, any of its losses could have been the one fitted. A draw takes one of
them at each such setting. The draws are the same for every law of the same runs, so laws compare draw by draw. Settings
with one seed keep their loss: the spread is a lower bound of what all seeds would give.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from upcycle.laws.solver.prepare import Prepared
from upcycle.laws.solver.search import Refits, refit
from upcycle.laws.terms import Array
from upcycle.study.columns import EQUAL_SETTINGS

SEED_DRAWS = 200


def seed_draws(fitted: pd.DataFrame, losses: pd.DataFrame) -> dict[str, Array] | None:
    """Losses of each fitted run in `SEED_DRAWS` draws, by its id: one of those of its setting, of any seed.

    Both are rows of losses.csv, `losses` all of them. None where no fitted run was repeated. Runs of equal settings and
    equal seed differ in something else (an ablation): they stay as they are.
    """
    rng, found, varied = np.random.default_rng(0), {}, False
    groups = losses.groupby(list(EQUAL_SETTINGS), dropna=False).indices
    of_run = {place: rows for rows in groups.values() for place in rows}
    place_of = {run_id: place for place, run_id in enumerate(losses["id"])}
    for run_id in sorted(fitted["id"]):
        rows = losses.iloc[np.sort(of_run[place_of[run_id]])]
        if not rows["seed"].is_unique:
            rows = rows[rows["id"] == run_id]
        varied |= len(rows) > 1
        found[run_id] = rows["loss"].to_numpy(float)[rng.integers(len(rows), size=SEED_DRAWS)]
    return found if varied else None


def errors_by_seeds(prepared: Prepared, left_out: Refits, loss_BN: Array) -> Array:
    """Leave-one-out RMS [B], in nats, of a law fitted to each draw of losses.

    `left_out`: the refits to the measured losses without each point in turn, from which those to the draws start.
    """
    draws, n = loss_BN.shape
    target_SN = np.repeat(np.log(loss_BN), n, axis=0)
    phi_SR = np.tile(left_out.phi_SR, (draws, 1))
    weight_SN = np.tile(1.0 - np.eye(n), (draws, 1))
    refits = refit(prepared, phi_SR[:, None], target_SN=target_SN, weight_SN=weight_SN)
    predicted_SN = np.exp(prepared.model.value(refits.phi_SR))
    predicted_BN = predicted_SN[np.arange(draws * n), np.tile(np.arange(n), draws)].reshape(draws, n)
    return np.sqrt(np.mean((predicted_BN - loss_BN) ** 2, axis=1))
