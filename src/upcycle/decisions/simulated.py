"""A simulated world: the loss of every model of a study by law, with noise, so that all that follows can be tried.

The constants that the paper prints are used as printed (Tables 2 and 8, Equation 11's exponents); those that it does
not print are ours, and `statements` names each. Fits of a user's own replace them for the losses that they describe
(`choose_world`). D, D1 and D2 are in tokens, sizes in non-embedding parameters, losses in nats. Nothing is measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from upcycle.data.sources import sha256_file
from upcycle.decisions.curves import published
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult, read_fit
from upcycle.laws.tables.losses import law_columns
from upcycle.laws.terms import Array

JOINT_MIXTURE = (8, 2)
"""(experts, active experts) of the mixture that Table 2 is fitted to."""
TOKENS = 2_306_867_200
"""D1 = D2 of the sweep of section 4.2, to which Equation 11 belongs: 2.3 B."""
SHAPES = ((9, 320), (12, 480), (15, 640), (21, 832))
"""(layers, width) of the dense models of that sweep: 15M, 44M, 0.1B and 0.2B."""
GRID_SHAPE = (15, 640)
"""Layers and width of the model of Table 8's grids, 0.1B."""
CONFIGURATION_EXPONENTS = {"beta1": 1.87, "beta2": 0.34}
"""Exponents of Equation 11 as printed (section 4.2)."""
CONFIGURATION_SCALE = 0.1
"""A of Equation 11, nats at P = 1. Ours: at one mixture no printed number separates it from E."""
MIXTURE_EXPONENTS: dict[tuple[int, int], dict[str, float]] = {
    (4, 1): {"alpha1": 0.28, "alpha2": 0.29, "alpha3": 0.01},
    (4, 2): {"alpha1": 0.19, "alpha2": 0.20, "alpha3": 0.008},
    (8, 1): {"alpha1": 0.29, "alpha2": 0.30, "alpha3": 0.01},
}
"""Exponents of Equation 8 as Table 8 prints them, by (experts, active experts); (8, 2) follows Table 2 instead."""
SAME_TOKENS = 1e-3
"""Relative difference up to which a budget of whole steps counts as `TOKENS`."""
WITHOUT_INTERACTION = {"joint": "joint_no_interaction", "multiplicative": "multiplicative_no_interaction"}
"""Laws and what they are called where alpha3 = 0."""
FORM_AT_ONE_SIZE = {"joint": "multiplicative", "chinchilla": "power_in_tokens"}
"""Laws of the model's size, and their forms where B N1^-beta is one number. (Eq. 8 has 1 + D2: here the same.)"""
OF_LINEAGE = {"dense": "Dense models", "moe": "MoEs from scratch", "up": "Upcycled models"}
PRINTED = ("joint", WITHOUT_INTERACTION["joint"])
"""Laws of upcycled models with all constants in Table 2."""


Case = tuple[str, Mapping[str, float], NDArray[np.bool_]]
"""A law, its constants, and which rows of a losses.csv follow it [N]."""


@dataclass(frozen=True)
class ChosenLaw:
    """A fit of a user's own as the law of the losses that it describes: of its lineage, mixture and, at one, size."""

    path: str
    sha256: str
    """Of the file."""
    fit: FitResult

    def describes(self, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows of a losses.csv [N]."""
        fit = self.fit
        same = {"lineage": self.lineage, "n_expert": fit.n_expert, "top_k": fit.top_k}
        here = np.ones(len(rows), bool)
        for name, value in same.items():
            if value is not None:
                here &= rows[name].to_numpy() == value
        if not {"N", "N1"} & set(get_law(fit.law).inputs) and "N1" in fit.box:
            low, high = fit.box["N1"]
            here &= (rows["N1"].to_numpy(float) >= low) & (rows["N1"].to_numpy(float) <= high)
        return here

    @property
    def lineage(self) -> str:
        """`dense`, `moe` or `up`."""
        return "up" if get_law(self.fit.law).decides == "upcycled" else str(self.fit.lineage)

    def statement(self) -> str:
        """What it is of, and its constants."""
        fit = self.fit
        mixture = f" with {fit.n_expert} experts, top-{fit.top_k}" if self.lineage != "dense" and fit.n_expert else ""
        sized = {"N", "N1"} & set(get_law(fit.law).inputs) or "N1" not in fit.box
        size = "" if sized else f" of {fit.box['N1'][0]:,.0f} parameters"
        return (
            f"{OF_LINEAGE[self.lineage]}{mixture}{size}: {fit.formula} "
            f"of the fit {self.path} (SHA-256 {self.sha256[:12]}): {_words(fit.values)}."
        )


@dataclass(frozen=True)
class World:
    """The laws that simulated losses follow; every constant that is not printed is derived here, once."""

    dense: Mapping[str, float]
    """Equation 3 for dense models."""
    moe: Mapping[str, float]
    """Equation 3 for MoEs from scratch, in N1."""
    joint: Mapping[str, float]
    """Equation 12 for models upcycled to `JOINT_MIXTURE`."""
    chosen: tuple[ChosenLaw, ...] = ()
    """What comes before all of these; of two fits that describe a loss the first."""

    @cached_property
    def configuration(self) -> dict[str, float]:
        """Equation 11 at D1 = D2 = `TOKENS`: F and E by least squares against Equation 12 at the four sizes."""
        N1, N2 = _sizes(SHAPES, JOINT_MIXTURE)
        design = np.stack([N2 ** -CONFIGURATION_EXPONENTS["beta2"], np.ones_like(N2)], axis=1)
        (F, level), *_ = np.linalg.lstsq(design, self._joint_at(N1), rcond=None)
        sparse = CONFIGURATION_SCALE * sparsity(JOINT_MIXTURE) ** -CONFIGURATION_EXPONENTS["beta1"]
        return {"A": CONFIGURATION_SCALE, "F": float(F), "E": float(level - sparse), **CONFIGURATION_EXPONENTS}

    @property
    def misfit(self) -> Array:
        """Equation 11 less Equation 12, nats, at the four models (`SHAPES`) that both describe."""
        N1, N2 = _sizes(SHAPES, JOINT_MIXTURE)
        return self._configuration_at(JOINT_MIXTURE, N2) - self._joint_at(N1)

    @cached_property
    def mixtures(self) -> dict[tuple[int, int], dict[str, float]]:
        """Equation 8 of each mixture of Table 8 but (8, 2).

        A and E are such that the loss at D1 = D2 = `TOKENS` is Equation 11's and that it falls over the grid, from a
        quarter of `TOKENS` to four times that, by as much as Equation 12's does; E is at least Table 2's.
        """
        N1, _ = _sizes((GRID_SHAPE,), JOINT_MIXTURE)
        ends = np.array([TOKENS / 4, TOKENS * 4])
        joint = get_law("joint").predict(self.joint, {"D1": ends, "D2": ends, "N1": N1})
        fall = float(joint[0] - joint[1])
        found = {}
        for mixture, exponents in MIXTURE_EXPONENTS.items():
            _, N2 = _sizes((GRID_SHAPE,), mixture)
            loss = float(self._configuration_at(mixture, N2)[0])
            D = np.array([ends[0], TOKENS, ends[1]])
            low, middle, high = get_law("multiplicative").predict({"A": 1.0, "E": 0.0, **exponents}, {"D1": D, "D2": D})
            reducible = min(fall * middle / (low - high), loss - self.joint["E"])
            found[mixture] = {"A": float(reducible / middle), **exponents, "E": float(loss - reducible)}
        return found

    def losses(self, rows: pd.DataFrame) -> Array:
        """Loss of each row of a losses.csv without noise [N].

        Ablations (schedule, learning rate, balance loss, repetition, data set) make no difference, nor do granularity
        at equal cost and shared experts. Raises `UserError` for a mixture, size and budget that none of the laws
        describes.
        """
        loss = np.full(len(rows), np.nan)
        # Trained on, a dense model is one of all of its tokens.
        of_all_tokens = rows.assign(D=rows["D"] + rows["D1"].where(rows["lineage"] == "cont", 0))
        for name, values, here in self._cases(rows):
            if here.any():
                law = get_law(name)
                columns = law_columns((of_all_tokens if values is self.dense else rows)[here], law.inputs)
                loss[here] = law.predict(values, columns)
        if np.isnan(loss).any():
            row = rows[np.isnan(loss)].iloc[0]
            raise UserError(
                f"the simulated world has no law for run {row['id']} ({row['lineage']}, mixture ({row['n_expert']},"
                f"{row['top_k']})): it knows (8,2) of any size, (4,1), (4,2) and (8,1) upcycled from "
                f"{GRID_SHAPE[0]} layers of width {GRID_SHAPE[1]}, any upcycled mixture at D1 = D2 = {TOKENS:,} "
                "tokens; name a fit that describes it by --law"
            )
        return loss

    def truth(self, rows: pd.DataFrame, law: str) -> dict[str, float] | None:
        """The law's constants, if losses of all these rows follow it; None if they follow another form, or several."""
        followed = [(name, values) for name, values, here in self._cases(rows) if here.any()]
        if any(name == "multiplicative" for name, _ in followed):  # whose one point at `TOKENS` is Equation 11's too
            followed = [case for case in followed if case[0] != "configuration"]
        if len(followed) != 1:
            return None
        [(name, values)] = followed
        if values is self.dense and (rows["lineage"] == "cont").any():  # no law is fitted to D1 + D2
            return None
        forms = {name: dict(values)}
        if name in FORM_AT_ONE_SIZE and rows["N1"].nunique() == 1:
            level = values["E"] + values["B"] * float(rows["N1"].iloc[0]) ** -values["beta"]
            form = get_law(FORM_AT_ONE_SIZE[name])
            forms[form.name] = {**{each: values[each] for each in form.names if each != "E"}, "E": level}
        for form_name, special in WITHOUT_INTERACTION.items():
            if special in forms:
                forms[form_name] = {**forms[special], "alpha3": 0.0}
            elif form_name in forms and forms[form_name]["alpha3"] == 0:
                forms[special] = {each: value for each, value in forms[form_name].items() if each != "alpha3"}
        return forms.get(law)

    def _cases(self, rows: pd.DataFrame) -> list[Case]:
        """Laws with the rows that follow them, each row at most once."""
        column = {name: rows[name].to_numpy() for name in ("lineage", "n_expert", "top_k", "n_layer", "d_model")}
        tokens_N2 = rows[["D1", "D2"]].to_numpy(float)
        fine = rows["granularity"].to_numpy()
        experts, used = column["n_expert"] / fine, column["top_k"] / fine
        dense, moe, up, cont = (column["lineage"] == lineage for lineage in ("dense", "moe", "up", "cont"))

        def of(mixture: tuple[int, int]) -> NDArray[np.bool_]:
            return (experts == mixture[0]) & (used == mixture[1])

        cases: list[Case] = [(each.fit.law, each.fit.values, each.describes(rows)) for each in self.chosen]
        other = up & ~of(JOINT_MIXTURE)
        common = (np.abs(tokens_N2 / TOKENS - 1) < SAME_TOKENS).all(axis=1)
        of_grid = (column["n_layer"] == GRID_SHAPE[0]) & (column["d_model"] == GRID_SHAPE[1])
        cases += [
            ("chinchilla", self.dense, dense | cont),
            ("chinchilla", self.moe, moe & of(JOINT_MIXTURE)),
            ("joint", self.joint, up & of(JOINT_MIXTURE)),
            ("configuration", self.configuration, other & common),
            *(
                ("multiplicative", values, other & of(mixture) & of_grid & ~common)
                for mixture, values in self.mixtures.items()
            ),
        ]
        free = np.ones(len(rows), bool)
        for k, (name, values, here) in enumerate(cases):
            cases[k] = (name, values, here & free)
            free &= ~here
        return cases

    def statements(self) -> list[str]:
        """Every law with its constants, and which of them are ours."""
        values, misfit = self.configuration, ", ".join(f"{value:+.4f}" for value in self.misfit)
        ours = {name: values[name] for name in ("A", "F", "E")}
        printed = "all constants as Table 2 prints them"
        up = "likewise" if self.joint["alpha3"] else "likewise but alpha3, which is 0 (ours)"
        chosen = [each.statement() for each in self.chosen]
        return [
            *chosen,
            *(["The statements that follow are of all other losses."] if chosen else []),
            f"Dense models: Equation 3, {printed}: {_words(self.dense)}.",
            "A dense model that is trained on (ours): the same, of D1 + D2 tokens.",
            f"MoEs of 8 experts, top-2, from scratch: Equation 3 in N1, likewise: {_words(self.moe)}.",
            f"Upcycled, 8 experts, top-2: Equation 12, {up}: {_words(self.joint)}.",
            f"Other mixtures at D1 = D2 = {TOKENS:,} tokens: Equation 11 with its printed exponents, "
            f"{_words(CONFIGURATION_EXPONENTS)}. Ours: {_words(ours)}; A is chosen (nothing printed tells it from E), "
            "F and E follow by least squares against Equation 12 at the four models of 8 experts, top-2, that both "
            "describe. The paper's own numbers do not agree there: Equation 11 less Equation 12 is "
            f"{misfit} nats at 15M, 44M, 0.1B and 0.2B.",
            *(self._mixture_statement(mixture) for mixture in self.mixtures),
            "Table 8's exponents of (8,2) are not used: at 0.1B Table 2 says otherwise, and one world has one loss.",
            "Ablations (schedule, learning rate, balance loss, repetition, data set) have no effect in this world.",
        ]

    def _mixture_statement(self, mixture: tuple[int, int]) -> str:
        values, exponents = self.mixtures[mixture], MIXTURE_EXPONENTS[mixture]
        fall = "it falls over the grid by as much as Equation 12's"
        if values["E"] <= self.joint["E"] * (1 + 1e-9):
            fall = "E is Table 2's (to fall over the grid by as much as Equation 12's it would have to be lower)"
        return (
            f"Other budgets of ({mixture[0]},{mixture[1]}) at 0.1B: Equation 8 with Table 8's printed exponents, "
            f"{_words(exponents)}. Ours: A = {values['A']:.6g} and E = {values['E']:.6g}, such that the loss at D1 = "
            f"D2 = 2.3 B is Equation 11's, and that {fall}."
        )

    def _joint_at(self, N1: Array) -> Array:
        return get_law("joint").predict(
            self.joint, {"D1": np.full_like(N1, TOKENS), "D2": np.full_like(N1, TOKENS), "N1": N1}
        )

    def _configuration_at(self, mixture: tuple[int, int], N2: Array) -> Array:
        P = np.full_like(N2, sparsity(mixture))
        return get_law("configuration").predict(self.configuration, {"P": P, "N2": N2})


def paper_world() -> World:
    """The world of the paper's printed constants."""
    three = published(draws=0)
    return World(three.need("dense").values, three.need("moe").values, three.upcycled.values)


def choose_world(laws: Sequence[str]) -> World:
    """The paper's world with a user's choices: a law of `PRINTED` for upcycled models, or paths of fits.

    Raises `UserError` for a name that is neither, and for a fit whose losses it does not know.
    """
    world = paper_world()
    for each in laws:
        if each == WITHOUT_INTERACTION["joint"]:
            world = replace(world, joint={**world.joint, "alpha3": 0.0})
        elif each not in PRINTED:
            world = replace(world, chosen=(*world.chosen, *_chosen(each)))
    return world


def _chosen(path: str) -> list[ChosenLaw]:
    """The law of a fit's file, or those of its groups by lineage."""
    if not Path(path).exists():
        raise UserError(f"--law {path}: neither a law with printed constants ({', '.join(PRINTED)}) nor a fit's file")
    whole = read_fit(Path(path))
    fits = list(whole.group_fits.values()) if whole.by == "lineage" else [whole]
    for fit in fits:
        decides = get_law(fit.law).decides
        if decides is None or fit.by is not None:
            raise UserError(
                f"--law {path}: law `{whole.law}`{f' by {whole.by}' if whole.by else ''} gives no loss of a model from "
                "its tokens; take a fit of chinchilla, power_in_tokens, joint, multiplicative or additive"
            )
        if decides == "scratch" and fit.lineage not in ("dense", "moe"):
            raise UserError(f"--law {path}: the fit does not tell whether its losses are of dense models or of MoEs")
    sha256 = sha256_file(Path(path))
    return [ChosenLaw(path, sha256, fit) for fit in fits]


def sparsity(mixture: tuple[int, int]) -> float:
    """P = N_total / N2 of (experts, active experts): (4 + 12 E) / (4 + 12 K)."""
    n_expert, top_k = mixture
    return (4 + 12 * n_expert) / (4 + 12 * top_k)


def simulate_losses(rows: pd.DataFrame, world: World, *, noise: float, seed: int) -> pd.DataFrame:
    """Rows of a losses.csv with simulated losses: by law, plus Gaussian noise of standard deviation `noise` nats.

    The noise of a run depends on its id and `seed` alone, so that a study may grow without changing other losses.
    Raises `UserError` for a negative noise.
    """
    if not (noise >= 0 and math.isfinite(noise)):
        raise UserError(f"noise = {noise}: a standard deviation in nats, 0 or more")
    deviates = np.array([_deviate(run_id, seed) for run_id in rows["id"]])
    return rows.assign(loss=world.losses(rows) + noise * deviates, simulated=1)


def _deviate(run_id: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed} {run_id}".encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:16], "big")).standard_normal())


def _sizes(shapes: tuple[tuple[int, int], ...], mixture: tuple[int, int]) -> tuple[Array, Array]:
    """N1 and N2 (Equations 4 and 5) of shapes as one mixture."""
    unit = np.array([n_layer * d_model**2 for n_layer, d_model in shapes], dtype=np.float64)
    return 16 * unit, (4 + 12 * mixture[1]) * unit


def _words(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in values.items())
