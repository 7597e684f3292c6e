"""Noise between seeds, errors and intervals."""

import numpy as np
import pandas as pd
import pytest
from law_data import simulated

from upcycle.laws.certificate.validate import seed_noise
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS
from upcycle.study.columns import EQUAL_SETTINGS


def losses_with_seeds(rows: list[tuple[int, int, float]]) -> pd.DataFrame:
    """Rows of (D, seed, loss), equal in all else."""
    table = pd.DataFrame(rows, columns=["D", "seed", "loss"])
    return table.assign(**{name: 0 for name in EQUAL_SETTINGS if name != "D"})


def test_seed_noise_pools_the_variance_of_repeated_settings() -> None:
    rows = [(1, 0, 3.0), (1, 1, 3.2), (1, 2, 3.1), (2, 0, 2.0), (2, 1, 2.1), (3, 0, 1.0)]
    noise = seed_noise(losses_with_seeds(rows))
    assert noise is not None
    pooled = (2 * np.var([3.0, 3.2, 3.1], ddof=1) + np.var([2.0, 2.1], ddof=1)) / 3
    assert noise.deviation == pytest.approx(np.sqrt(pooled))
    assert (noise.freedom, noise.points) == (3, 2)


def test_settings_that_hold_a_seed_twice_are_no_repetition() -> None:
    """They differ in something else, as an ablation does."""
    assert seed_noise(losses_with_seeds([(1, 0, 3.0), (1, 0, 3.2)])) is None
    assert seed_noise(losses_with_seeds([(1, 0, 3.0), (2, 0, 3.2)])) is None


def test_an_ablation_is_no_noise() -> None:
    """Two learning rates, each with a seed of its own: what lies between their losses is not the seed's."""
    rows = losses_with_seeds([(1, 0, 3.0), (1, 1, 3.2), (1, 2, 3.9)]).assign(lr=[1e-3, 1e-3, 4e-3])
    noise = seed_noise(rows)
    assert noise is not None
    assert noise.deviation == pytest.approx(0.2 / np.sqrt(2))
    assert noise.freedom == 1


def test_intervals_widen_with_the_noise() -> None:
    """Ten times the noise, about ten times the width of alpha's interval (floor fixed)."""
    widths = []
    for noise in (1e-3, 1e-2):
        low, high = fit(LAWS["power"], simulated("power", noise), fixed={"E": 1.5}).intervals["alpha"]
        widths.append(high - low)
    assert 5 < widths[1] / widths[0] < 20


def test_intervals_are_a_function_of_the_seed() -> None:
    data = simulated("power", 1e-2)
    one, same, other = (fit(LAWS["power"], data, draws=30, seed=s).intervals for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """30 noisy power laws: the 95 % interval of the exponent holds the truth in at least 25 of them."""
    law, hits = LAWS["power"], 0
    for seed in range(30):
        low, high = fit(law, simulated("power", 5e-3, seed), fixed={"E": 1.5}, draws=80).intervals["alpha"]
        hits += low <= 0.15 <= high
    assert hits >= 25
