"""Which runs a forecast is fitted to, which it predicts, and which wait until it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from upcycle.errors import UserError
from upcycle.study.forecast import ForecastConfig
from upcycle.study.plan import Plan
from upcycle.study.spec import RunSpec


@dataclass(frozen=True)
class ForecastRuns:
    """The runs of one forecast, by id."""

    fitted: tuple[str, ...]
    """Finished models within the budgets."""
    repeated: tuple[str, ...]
    """Finished models within the budgets, of the sweeps that repeat them with other seeds."""
    predicted: tuple[str, ...]
    """Finished models beyond the budgets."""
    waiting: frozenset[str]
    """Those, and all runs that only they need: segments of trunks beyond what smaller budgets share, dense parents."""

    @property
    def read(self) -> tuple[str, ...]:
        """Finished models whose losses the forecast is made from, each once."""
        return tuple(dict.fromkeys((*self.fitted, *self.repeated)))


def forecast_runs(forecasts: Mapping[str, ForecastConfig], plan: Plan) -> dict[str, ForecastRuns]:
    """The runs of each forecast of a study, by its name.

    Raises `UserError` for one that has no run to fit or to predict, and for two that wait for each other.
    """
    found = {name: _select(name, forecast, plan) for name, forecast in forecasts.items()}
    for (one, a), (other, b) in combinations(found.items(), 2):
        if not a.waiting.isdisjoint(b.read) and not b.waiting.isdisjoint(a.read):
            raise UserError(
                f"forecasts.{one} and forecasts.{other} wait for each other: each is fitted to runs that the other "
                "predicts; give both the same budgets in `up_to`"
            )
    return found


def _select(name: str, forecast: ForecastConfig, plan: Plan) -> ForecastRuns:
    def is_small(run_id: str) -> bool:
        budgets = _budgets(plan.runs[run_id])
        return all(budgets[key] <= most for key, most in forecast.up_to.items())

    runs = plan.sweeps[forecast.sweep]
    fitted = tuple(filter(is_small, runs))
    predicted = tuple(run_id for run_id in runs if run_id not in set(fitted))
    for what, chosen in (("no run to fit laws to", fitted), ("no run to predict", predicted)):
        if not chosen:
            limits = ", ".join(f"{key} <= {most:,}" for key, most in forecast.up_to.items())
            raise UserError(
                f"forecasts.{name}.up_to: sweep `{forecast.sweep}` has {what}, as {len(fitted)} of its {len(runs)} "
                f"runs have {limits}; give other budgets"
            )
    repeated = tuple(run_id for sweep in forecast.seeds for run_id in plan.sweeps[sweep] if is_small(run_id))
    others = [run_id for run_id in plan.finished_models if run_id not in set(predicted)]
    waiting = plan.with_ancestors(predicted) - plan.with_ancestors(others)
    return ForecastRuns(fitted, repeated, predicted, frozenset(waiting))


def _budgets(run: RunSpec) -> dict[str, int]:
    """Budgets as columns of losses.csv have them: D1 and D2 are 0 without a dense parent."""
    return {"D": run.tokens, "D1": run.dense_tokens, "D2": run.tokens if run.dense_parent else 0}
