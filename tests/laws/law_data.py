"""Data for the tests of the laws: a measured 5 x 5 grid, and losses simulated from known parameters."""

import numpy as np

from upcycle.laws.forms import LAWS

BUDGETS = 0.262144e6 * 2.0 ** np.arange(5)
"""Tokens of the first trial sweep: 131 k-parameter dense model, 8 experts top-2, English essays."""
TRIAL_LOSSES = np.array(
    [
        [4.1168, 3.9459, 3.5960, 3.2552, 3.0442],
        [3.9065, 3.7362, 3.4615, 3.2197, 3.0398],
        [3.5706, 3.4551, 3.3105, 3.1496, 3.0098],
        [3.3384, 3.2805, 3.2009, 3.0979, 2.9888],
        [3.2218, 3.1821, 3.1261, 3.0503, 2.9733],
    ]
)
"""Measured held-out losses of the upcycled models; rows D1, columns D2."""

TRUTH = {
    "chinchilla": {"A": 900.0, "alpha": 0.3, "B": 60.0, "beta": 0.25, "E": 1.2},
    "power": {"A": 30.0, "alpha": 0.15, "E": 1.5},
    "multiplicative": {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4},
    "multiplicative_no_interaction": {"A": 60.0, "alpha1": 0.08, "alpha2": 0.09, "E": 1.4},
    "additive": {"A": 200.0, "alpha1": 0.3, "F": 80.0, "alpha2": 0.3, "alpha3": 0.005, "E": 1.5},
    "additive_no_interaction": {"A": 200.0, "alpha1": 0.3, "F": 40.0, "alpha2": 0.2, "E": 1.5},
    "exponent_vs_d1": {"gamma": 0.03, "E_prime": -0.5},
    "scale_vs_d1": {"C": 7000.0, "eta": 0.45},
}
"""Parameters like those of the paper's and the trial's fits."""


def inputs_of(name: str) -> dict[str, np.ndarray]:
    """A grid of the paper's budgets (Table 5) over a law's inputs; every law in the registry has one."""
    tokens = 0.577e9 * 2.0 ** np.arange(5)
    axes = {"D": tokens, "D1": tokens, "D2": tokens * 1.1, "N1": np.array([1.5e7, 4.4e7, 9.8e7, 2.3e8, 5.2e8])}
    grid = np.meshgrid(*(axes[column] for column in LAWS[name].inputs), indexing="ij")
    columns = dict(zip(LAWS[name].inputs, (column.ravel() for column in grid), strict=True))
    if name == "power":
        return {"D2": tokens[0] * 2.0 ** np.arange(0, 6, 0.5)}
    return columns


def simulated(name: str, noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs and a response from `TRUTH`, with relative Gaussian noise."""
    law, data = LAWS[name], inputs_of(name)
    response = law.predict(TRUTH[name], data)
    factor = np.exp(noise * np.random.default_rng(seed).standard_normal(len(response)))
    return {**data, law.response: response * factor}


def trial() -> dict[str, np.ndarray]:
    """The first trial's 25 upcycled losses, D1 and D2 in tokens."""
    D1, D2 = np.meshgrid(BUDGETS, BUDGETS, indexing="ij")
    return {"D1": D1.ravel(), "D2": D2.ravel(), "loss": TRIAL_LOSSES.ravel()}
