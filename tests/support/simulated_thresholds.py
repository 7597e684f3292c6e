"""D* of simulated studies of one size, by the rule in use and by the first root, from one and the same draws.

Losses follow Table 2 with normal noise; dense models and MoEs from scratch share one free floor, which the upcycled law
takes over. `python tests/support/simulated_thresholds.py --studies 200 --draws 100` prints coverage and width.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np

from upcycle.decisions.curves import ThreeLaws, from_fits, published
from upcycle.decisions.thresholds import Threshold, d_star
from upcycle.laws.fit import fit
from upcycle.laws.forms import get_law
from upcycle.laws.grouped import fit_by

N1 = 5.2189e8
BUDGETS = np.geomspace(1e8, 1.28e10, 5)
NOISE = 0.01
"""Nats: enough for draws with an accidental root far below the data."""
TRUTH = published(draws=0)


@dataclass(frozen=True)
class Study:
    """D* of one simulated study."""

    three: ThreeLaws
    reported: Threshold
    first: Threshold
    """The same draws where every root from 1e4 to 1e18 tokens counts and the first is taken."""


def true_d_star() -> float:
    """Tokens: the only root of Table 2 at this size within the data."""
    return d_star(TRUTH, N1).roots[0]


def simulated(seed: int, *, draws: int, noise: float = NOISE) -> Study:
    """One study: five budgets from scratch of each lineage, five by five upcycled, fitted and bootstrapped."""
    generator = np.random.default_rng(seed)
    scratch = [TRUTH.need(lineage).loss(D=BUDGETS, N1=N1) for lineage in ("dense", "moe")]
    loss = np.concatenate(scratch) + generator.normal(scale=noise, size=2 * len(BUDGETS))
    columns = {"D": np.tile(BUDGETS, 2), "loss": loss, "lineage": np.repeat(["dense", "moe"], len(BUDGETS))}
    D1, D2 = (axis.ravel() for axis in np.meshgrid(BUDGETS, BUDGETS, indexing="ij"))
    upcycled = TRUTH.upcycled.loss(D1=D1, D2=D2, N1=N1) + generator.normal(scale=noise, size=len(D1))
    floor = fit_by(get_law("power_in_tokens"), columns, by="lineage", shared=["E"], draws=draws)
    up = fit(get_law("multiplicative"), {"D1": D1, "D2": D2, "loss": upcycled}, floor=floor, draws=draws)
    three = from_fits({"scratch": floor, "upcycled": replace(up, lineage="up")}, "a simulated study")
    return Study(three, d_star(three, N1), d_star(replace(three, rounded=True), N1))


@dataclass(frozen=True)
class Bands:
    """The 95 % bands of many studies: how often they cover the truth, and how wide they are."""

    low_K: np.ndarray
    high_K: np.ndarray

    @classmethod
    def of(cls, thresholds: list[Threshold]) -> Bands:
        """Bands of the studies that have one."""
        low, high = np.array([each.band for each in thresholds if each.band is not None]).T
        return cls(low, high)

    @property
    def covered(self) -> float:
        """Share that contain the true D*."""
        return float(((self.low_K <= true_d_star()) & (true_d_star() <= self.high_K)).mean())

    @property
    def factor_K(self) -> np.ndarray:
        """Upper end over lower end [K]."""
        return self.high_K / self.low_K


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--noise", type=float, default=NOISE)
    asked = parser.parse_args()
    studies = [simulated(seed, draws=asked.draws, noise=asked.noise) for seed in range(asked.studies)]
    print(
        f"{asked.studies} studies, {asked.draws} draws, noise {asked.noise:g} nats, true D* {true_d_star():.3g} tokens"
    )
    for name, thresholds in {
        "first root": [study.first for study in studies],
        "reported root": [study.reported for study in studies],
    }.items():
        bands = Bands.of(thresholds)
        central = [each.root for each in thresholds if each.root is not None]
        low, middle, high = np.quantile(central, [0.025, 0.5, 0.975])
        print(
            f"{name}: {len(bands.low_K)} bands, {bands.covered:.1%} cover; lowest end {bands.low_K.min():.3g}, median "
            f"{np.median(bands.low_K):.3g} to {np.median(bands.high_K):.3g}; upper / lower end: median "
            f"{np.median(bands.factor_K):.3g}, 90 % {np.quantile(bands.factor_K, 0.9):.3g}, most "
            f"{bands.factor_K.max():.3g}, over 1,000 in {(bands.factor_K > 1000).mean():.1%}; estimates of "
            f"{len(central)}: 2.5 % {low:.3g}, median {middle:.3g}, 97.5 % {high:.3g}"
        )
    low, high = WINDOW
    roots = [root for study in studies for draw in study.first.draws for root in draw]
    print(f"{np.mean([root < low for root in roots]):.1%} of all roots lie below {low:.3g}, ", end="")
    print(f"{np.mean([root > high for root in roots]):.1%} above {high:.3g} tokens")


WINDOW = (BUDGETS[0] / 10, BUDGETS[-1] * 10)
"""Tokens between which roots count: ten times outside the frame of the data on both sides."""


if __name__ == "__main__":
    main()
