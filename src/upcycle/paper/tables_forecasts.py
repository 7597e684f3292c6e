"""Table of how good forecasts were."""

from __future__ import annotations

from typing import Any

import pandas as pd

from upcycle.laws.forecast import forecast_scores
from upcycle.paper.inputs import Inputs


def forecasts(inputs: Inputs) -> pd.DataFrame:
    """Forecasts of larger runs, written before these trained, and how good they were.

    A row a law, and a naive rule: the last point (the loss of the largest budget fitted, at the nearest D1 fitted that
    is no larger), and a power law in D2 through the losses of that D1. RMS and mean of predicted minus measured loss,
    in nats. Held: share of the measured losses within the 95 % intervals, which add the bootstrap of the fit and the
    noise of one loss. The date and the hash are those of the file.

    Raises `UserError` as `Inputs.forecasts` does.
    """
    loss_by_id = inputs.loss_by_id()
    rows: dict[str, dict[str, Any]] = {}
    found = inputs.forecasts()
    for name, written in found.items():
        for rule, predictions in written["predictions"].items():
            label = rule.replace("_", " ") if len(found) == 1 else f"{name}: {rule.replace('_', ' ')}"
            rows[label] = forecast_scores(predictions, loss_by_id)
            rows[label] |= {"written": written["written"][:16], "sha256": written["made_of_sha256"][:12]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("forecast by")
