"""What figures, tables and the report read: losses.csv, fits and run folders, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from upcycle.decisions.advice.measured import Rivals, find_rivals
from upcycle.errors import UserError, nearest
from upcycle.files import read_record
from upcycle.laws.certificate.validate import SeedNoise, seed_noise
from upcycle.laws.compare import ErrorRatio, LackOfFit, error_ratio, lack_of_fit
from upcycle.laws.result import FitResult, read_fit
from upcycle.laws.tables.losses import read_losses
from upcycle.manifest import check_listed, check_metrics
from upcycle.study.columns import GRID_SETTINGS
from upcycle.study.forecast import read_forecast
from upcycle.study.spec import EXPAND, RunSpec


@dataclass(frozen=True)
class Grid:
    """The upcycled models of one sweep that differ in D1, D2 and seed alone."""

    sweep: str
    model: str
    moe: str
    rows: pd.DataFrame
    arm: str = ""
    """Settings in which it differs from other grids of its model and mixture, e.g. `aux_coef 0.01`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_expert, top_k)."""
        return int(self.rows["n_expert"].iloc[0]), int(self.rows["top_k"].iloc[0])

    @property
    def label(self) -> str:
        """`(8,2)`, as the paper heads its columns; the arm of an ablation after it."""
        return "({},{})".format(*self.shape) + (f" {self.arm}" if self.arm else "")

    @property
    def D1(self) -> list[int]:
        """Budgets of the dense parents in tokens, ascending."""
        return sorted(int(value) for value in self.rows["D1"].unique())

    @property
    def D2(self) -> list[int]:
        """Upcycled budgets in tokens, ascending."""
        return sorted(int(value) for value in self.rows["D2"].unique())


@dataclass(frozen=True)
class Inputs:
    """Losses, fits and run folders of one study; every figure, table and the report is a function of it."""

    losses: pd.DataFrame
    """The finished models of losses.csv (`upcycle.study.columns.COLUMNS`)."""
    fits: Mapping[str, FitResult]
    """fits/*.json by name."""
    runs: Path
    """The folder of run folders; metrics.json, spec.json and receipt.json are read when asked for."""
    sweeps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Planned finished models of each sweep in the study's order; empty: the sweeps that losses.csv names."""
    specs: Mapping[str, RunSpec] = field(default_factory=dict)
    """Planned runs by id; what is not here is read from its run folder."""
    scores: Path | None = None
    """benchmarks.csv, of a study with `benchmarks`."""
    forecast_files: Mapping[str, Path] = field(default_factory=dict)
    """Files of the study's forecasts by name."""

    @classmethod
    def read(cls, losses: Path, fits: Path, runs: Path, *, sweeps: Mapping[str, Sequence[str]] | None = None) -> Inputs:
        """Read a losses.csv and a folder of fits.

        Raises `UserError` naming the file that is missing or damaged.
        """
        rows = read_losses(losses)
        finished = rows[rows["role"] != "trunk"]
        return cls(finished, {path.stem: read_fit(path) for path in sorted(fits.glob("*.json"))}, runs, sweeps or {})

    @cached_property
    def noise(self) -> SeedNoise | None:
        """Spread of a loss over seeds; None where no point was repeated."""
        return seed_noise(self.losses)

    @cached_property
    def simulated(self) -> bool:
        """Whether any loss or fit is simulated: it then marks every title."""
        return bool(self.losses["simulated"].any()) or any(fit.simulated for fit in self.fits.values())

    @cached_property
    def sources(self) -> list[str]:
        """Where imported losses are from; empty for runs of ours."""
        return sorted(set(self.losses["source"]) - {""})

    @property
    def mark(self) -> str:
        """What stands above every figure and table of losses that are not of our runs; else nothing."""
        return "SIMULATED LOSSES" if self.simulated else "IMPORTED LOSSES" if self.sources else ""

    def record(self, run_id: str, name: str) -> dict[str, Any]:
        """A JSON file of a run folder, e.g. `metrics`.

        Raises `UserError` naming the file when it is missing or damaged.
        """
        path = self.runs / run_id / f"{name}.json"
        content = read_record(path)
        if name == "metrics":
            check_metrics(path.parent, content)
        else:
            check_listed(path)
        return content

    def spec(self, run_id: str) -> RunSpec:
        """What a run is: its shape, data, optimizer, schedule.

        Raises `UserError` as `record` does, for a run that is not planned.
        """
        if run_id in self.specs:
            return self.specs[run_id]
        content = {key: value for key, value in self.record(run_id, "spec").items() if key != "id"}
        try:
            return RunSpec.model_validate(content)
        except ValidationError as error:
            wrong = error.errors()[0]["msg"]
            raise UserError(f"{self.runs / run_id / 'spec.json'} is damaged: {wrong}; train the run again") from None

    def sweep_names(self) -> list[str]:
        """Sweeps that have a finished model, in the study's order."""
        named = [name for names in self.losses["sweeps"] for name in str(names).split(";") if name]
        ordered = [name for name in self.sweeps if name in named]
        return list(dict.fromkeys([*ordered, *named]))

    def in_sweep(self, sweep: str) -> pd.DataFrame:
        """Rows of a sweep.

        Raises `UserError` naming the sweeps that there are.
        """
        chosen = self.losses[[sweep in str(names).split(";") for names in self.losses["sweeps"]]]
        if chosen.empty:
            known = ", ".join(f"`{name}`" for name in self.sweep_names()) or "none"
            raise UserError(f"losses.csv has no finished run of sweep `{sweep}`; sweeps in it: {known}")
        return chosen

    def upcycled_sweeps(self) -> list[str]:
        """Sweeps of upcycled models alone, those of most points (D1, D2) first; of equals, in the study's order. Those
        that begin with mixtures come last."""

        def rank(name: str) -> tuple[bool, int]:
            rows = self.in_sweep(name)
            return bool((rows["method"] == EXPAND).any()), -len(rows[["D1", "D2"]].drop_duplicates())

        return sorted((name for name in self.sweep_names() if (self.in_sweep(name)["lineage"] == "up").all()), key=rank)

    def grids(self, sweep: str | None = None) -> list[Grid]:
        """The (D1, D2) grids of an upcycled sweep (None: the first of `upcycled_sweeps`), one a model, mixture and arm.

        An arm is what an ablation sets: the axes of the sweep's `set`. Raises `UserError` for a sweep without upcycled
        models, or with several at one point of a grid, as axes of the dense parent's settings give.
        """
        if sweep is None:
            upcycled = self.upcycled_sweeps()
            if not upcycled:
                raise UserError("losses.csv has no finished upcycled sweep: train one, e.g. `snakemake sweep_upcycled`")
            sweep = upcycled[0]
        rows = self.in_sweep(sweep)
        rows = rows[rows["lineage"] == "up"]
        if rows.empty:
            raise UserError(f"sweep `{sweep}` has no upcycled run: give the figure or table an upcycled sweep")
        grids = []
        for (model, moe), arms in rows.groupby(["model", "moe"], sort=False):
            # Only what varies within the sweep names an arm; grouping by all settings finds arms of any of them.
            varying = [name for name in GRID_SETTINGS if arms[name].nunique(dropna=False) > 1]
            for _, group in arms.groupby(list(GRID_SETTINGS), sort=False, dropna=False):
                repeated = group[group.duplicated(["D1", "D2", "seed"], keep=False)]
                if not repeated.empty:
                    raise UserError(
                        f"sweep `{sweep}` has several runs at one D1, D2 and seed ({', '.join(repeated['id'][:2])}, "
                        "...), whose dense parents differ: give each kind of parent a sweep of its own"
                    )
                arm = ", ".join(f"{name} {group[name].iloc[0]}" for name in varying)
                grids.append(Grid(sweep, str(model), str(moe), group.sort_values(["D1", "D2", "seed"]), arm))
        return grids

    def grid(self, sweep: str | None = None, model: str | None = None) -> Grid:
        """The grid of a sweep (and of one model) with the most points; of equals the first.

        Raises `UserError` for a model that the sweep does not have.
        """
        grids = self.grids(sweep)
        chosen = [grid for grid in grids if model in (None, grid.model)]
        if not chosen:
            known = list(dict.fromkeys(grid.model for grid in grids))
            raise UserError(
                f"sweep `{grids[0].sweep}` has no upcycled run of model `{model}`; {nearest(str(model), known)}"
            )
        return max(chosen, key=lambda grid: len(grid.rows))

    def baseline(self, grid: Grid, lineage: str) -> pd.DataFrame:
        """Models trained from scratch beside a grid: its dense model's (`dense`) or its mixture's (`moe`), by D.

        The first sweep, in the study's order, that has any of the same model, mixture, text and schedule; may be empty.
        """
        like = grid.rows.iloc[0]
        for sweep in self.sweep_names():
            rows = self.in_sweep(sweep)
            rows = rows[(rows["lineage"] == lineage) & (rows["model"] == grid.model)]
            rows = rows[(rows["schedule"] == like["schedule"]) & (rows["dataset"] == like["dataset"])]
            rows = rows[rows["role"] != "imported"]
            if lineage == "moe":
                rows = rows[(rows["moe"] == grid.moe) & (rows["gate"] == like["gate"])]
            # Two runs of one D and seed are an ablation's arms: none of them is the baseline.
            if not rows.empty and not rows.duplicated(["D", "seed"]).any():
                return rows.sort_values(["D", "seed"])
        return self.losses.iloc[:0]

    def imported(self, grid: Grid) -> bool:
        """Whether a grid begins with an imported checkpoint, whose D1 its owner states."""
        rows = self.losses[self.losses["id"].isin(set(grid.rows["dense_parent"]))]
        return bool((rows["role"] == "imported").any())

    def rivals(self, grid: Grid) -> list[Rivals]:
        """A grid's mixture and its dense models trained on, one for each D1 that has both."""
        found = find_rivals(self.losses, self.fits)
        return [each for each in found if (each.model, each.moe) == (grid.model, grid.moe)]

    def fit(self, grid: Grid, law: str, *, by: str | None = None) -> FitResult:
        """The fit of a law to a grid.

        Raises `UserError` naming the law when there is none.
        """
        fit = self.fit_or_none(grid, law, by=by)
        if fit is None:
            grouped = f" by {by}" if by else ""
            raise self._no_fit(law, f"{grouped} to sweep `{grid.sweep}`, {grid.model} {grid.label}")
        return fit

    def fit_or_none(self, grid: Grid, law: str, *, by: str | None = None) -> FitResult | None:
        """The fit of a law to runs of a grid's mixture alone: of several the one to most of its runs, then fewest."""
        # A fit to other mixtures too answers another question, however many of the grid's runs it has.
        rows = self.losses
        same = (rows["lineage"] == "up") & (rows["model"] == grid.model) & (rows["moe"] == grid.moe)
        mixture = set(rows.loc[same, "id"])
        own = set(grid.rows["id"])
        candidates = [
            fit
            for fit in self.fits.values()
            if fit.law == law and fit.by == by and own & set(fit.ids) and set(fit.ids) <= mixture
        ]
        return max(candidates, key=lambda fit: (len(own & set(fit.ids)), not fit.fixed, -len(fit.ids)), default=None)

    def fit_of(self, law: str) -> FitResult:
        """The fit of a law to whatever runs: of several the one to most.

        Raises `UserError` naming the law when there is none.
        """
        found = [fit for fit in self.fits.values() if fit.law == law and fit.by is None]
        if not found:
            raise self._no_fit(law)
        return max(found, key=lambda fit: len(fit.ids))

    def loss_by_id(self) -> dict[str, float]:
        """Loss of every finished model."""
        return dict(zip(self.losses["id"].tolist(), self.losses["loss"].astype(float).tolist(), strict=True))

    def forecasts(self) -> dict[str, dict[str, Any]]:
        """Forecasts of these losses as they were written, by name.

        Raises `UserError` naming a file that is missing or altered, a run that losses.csv lacks, and one that the
        forecast was made from with another loss.
        """
        loss_by_id, found = self.loss_by_id(), {}
        for name, path in self.forecast_files.items():
            written = found[name] = read_forecast(path)
            known = {**written["made_of"]["fitted"], **written["made_of"]["repeated"]}
            if missing := [each for each in (*known, *written["made_of"]["predicted"]) if each not in loss_by_id]:
                raise UserError(f"{path}: losses.csv has no run {missing[0]}; the forecast is of other runs")
            if other := [each for each in known if not math.isclose(known[each], loss_by_id[each], rel_tol=1e-12)]:
                raise UserError(
                    f"{path}: made from a loss of {known[other[0]]!r} of run {other[0]}, and losses.csv has "
                    f"{loss_by_id[other[0]]!r}: take the losses that belong to the forecast"
                )
        return found

    def _no_fit(self, law: str, to: str = "") -> UserError:
        fits = ", ".join(self.fits) or "none"
        return UserError(f"no fit of law `{law}`{to}: add one under `fits` in the study (it has: {fits})")

    def rows_of(self, fit: FitResult) -> pd.DataFrame:
        """The rows of losses.csv that a fit was made to, in its order.

        Raises `UserError` when losses.csv lacks some: the fit is of other losses.
        """
        rows = self.losses.set_index("id", drop=False)
        if missing := [run_id for run_id in fit.ids if run_id not in rows.index]:
            raise UserError(
                f"the fit of `{fit.law}` is of runs that losses.csv does not have ({missing[0]}, ...): fit again"
            )
        return rows.loc[fit.ids].reset_index(drop=True)

    def error_ratio(self, fit: FitResult, reference: FitResult) -> ErrorRatio | None:
        """Ratio of the leave-one-out errors of two fits to the same losses; None where one has no such error.

        Groups of the bootstrap are the rows of equal D1.
        """
        if fit.loo_residuals_log is None or reference.loo_residuals_log is None or set(fit.ids) != set(reference.ids):
            return None
        rows = self.rows_of(fit)
        place = {run_id: index for index, run_id in enumerate(reference.ids)}
        against_N = np.array(reference.loo_residuals_log)[[place[run_id] for run_id in fit.ids]]
        loss_N = rows["loss"].to_numpy(float)
        error_N = loss_N * np.expm1(np.array(fit.loo_residuals_log))
        return error_ratio(error_N, loss_N * np.expm1(against_N), rows["D1"].tolist())

    def lack_of_fit(self, fit: FitResult) -> LackOfFit | None:
        """Test of a fit's residuals against the noise between seeds; None where that was not measured."""
        if self.noise is None or fit.by is not None:
            return None
        residual_N = self.rows_of(fit)["loss"].to_numpy(float) * np.expm1(np.array(fit.residuals_log))
        return lack_of_fit(residual_N, int(fit.certificate["parameters"]), self.noise)

    def chain(self, run_id: str) -> list[str]:
        """A finished model's run and the runs of its own stage that led to it, first to last.

        Raises `UserError` when a run folder is missing.
        """
        chain = [run_id]
        while True:
            spec = self.spec(chain[-1])
            if not spec.start_step or spec.parent is None:
                return chain[::-1]
            chain.append(spec.parent)

    def curve(self, run_id: str) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl along the runs of `chain`: those of updates, and those with a held-out loss.

        Raises `UserError` naming the file when it is missing or damaged.
        """
        rows: list[dict[str, Any]] = []
        for run in self.chain(run_id):
            path = self.runs / run / "metrics.jsonl"
            check_listed(path)
            try:
                rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; it has the run's curve, train the run again") from None
            except ValueError as error:
                raise UserError(f"{path} is damaged: {error}; train the run again") from None
        return rows
