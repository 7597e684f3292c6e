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

SWEEP_BUDGETS = 122_880 * 2.0 ** np.arange(5)
"""Tokens of the default sweep: 33 k-parameter dense model, 8 experts top-2."""
SWEEP_LOSSES = np.array(
    [
        [4.3445, 4.1534, 3.9421, 3.7326, 3.4603],
        [4.1739, 4.0538, 3.8712, 3.6598, 3.4149],
        [4.0164, 3.9185, 3.7733, 3.5841, 3.3828],
        [3.8698, 3.7787, 3.6524, 3.5085, 3.3443],
        [3.7205, 3.6417, 3.5281, 3.4148, 3.2897],
    ]
)
"""Measured held-out losses of its upcycled models (results/reference), four digits; rows D1, columns D2."""

TRUTH = {
    "chinchilla": {"A": 900.0, "alpha": 0.3, "B": 60.0, "beta": 0.25, "E": 1.2},
    "power": {"A": 30.0, "alpha": 0.15, "E": 1.5},
    "multiplicative": {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4},
    "multiplicative_no_interaction": {"A": 60.0, "alpha1": 0.08, "alpha2": 0.09, "E": 1.4},
    "additive": {"A": 200.0, "alpha1": 0.3, "F": 80.0, "alpha2": 0.3, "alpha3": 0.005, "E": 1.5},
    "additive_no_interaction": {"A": 200.0, "alpha1": 0.3, "F": 40.0, "alpha2": 0.2, "E": 1.5},
    "power_in_tokens": {"A": 30.0, "alpha": 0.15, "E": 1.5},
    "power_in_size": {"B": 60.0, "beta": 0.25, "E": 1.5},
    "multiplicative_limit": {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4},
    "bilinear": {"c": 6.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4},
    "multiplicative_offset": {"A": 60.0, "alpha1": 0.18, "alpha2": 0.3, "alpha3": 0.01, "D0": 8e8, "E": 1.4},
    "multiplicative_offset_no_interaction": {"A": 60.0, "alpha1": 0.18, "alpha2": 0.2, "D0": 8e8, "E": 1.4},
    "configuration": {"A": 1.5, "beta1": 1.2, "F": 160.0, "beta2": 0.34, "E": 2.3},
    "configuration_multiplicative": {"A": 100.0, "beta1": 0.3, "beta2": 0.3, "beta3": 0.01, "E": 2.3},
    "configuration_multiplicative_no_interaction": {"A": 100.0, "beta1": 0.1, "beta2": 0.3, "E": 2.3},
    "configuration_additive": {"A": 1.5, "beta1": 1.2, "F": 160.0, "beta2": 0.34, "beta3": 0.01, "E": 2.3},
    "configuration_additive_no_interaction": {"A": 1.5, "beta1": 1.2, "F": 160.0, "beta2": 0.34, "E": 2.3},
    "joint": {"A": 200.0, "alpha1": 0.15, "alpha2": 0.17, "alpha3": 0.006, "B": 40.0, "beta": 0.25, "E": 1.4},
    "joint_no_interaction": {"A": 30.0, "alpha1": 0.05, "alpha2": 0.06, "B": 40.0, "beta": 0.25, "E": 1.4},
    "joint_offset": {
        "A": 60.0,
        "alpha1": 0.18,
        "alpha2": 0.3,
        "alpha3": 0.01,
        "D0": 8e8,
        "B": 40.0,
        "beta": 0.25,
        "E": 1.4,
    },
    "joint_rejected": {
        "A": 200.0,
        "alpha1": 0.3,
        "B": 100.0,
        "alpha2": 0.1,
        "beta": 0.15,
        "alpha3": 0.002,
        "E": 1.4,
    },
    "unified": {"A": 100.0, "alpha1": 0.13, "alpha2": 0.14, "alpha3": 0.004, "B": 40.0, "beta": 0.25, "E": 1.4},
    "joint_configuration": {
        "A": 200.0,
        "alpha1": 0.15,
        "alpha2": 0.17,
        "alpha3": 0.006,
        "B": 40.0,
        "beta": 0.25,
        "F": 1.5,
        "beta1": 1.2,
        "E": 1.2,
    },
    "exponent_vs_d1": {"gamma": 0.03, "E_prime": -0.5},
    "scale_vs_d1": {"C": 7000.0, "eta": 0.45},
}
"""Parameters like those of the paper's and the trial's fits."""


def inputs_of(name: str) -> dict[str, np.ndarray]:
    """A grid of the paper's budgets (Table 5) over a law's inputs; every law in the registry has one."""
    tokens = 0.577e9 * 2.0 ** np.arange(5)
    sizes = np.array([1.5e7, 4.4e7, 9.8e7, 2.3e8, 5.2e8])
    axes = {"D": tokens, "D1": tokens, "D2": tokens * 1.1, "T1": tokens, "T2": tokens * 1.1, "N": sizes, "N1": sizes}
    axes |= {"N2": 1.75 * sizes, "P": np.array([1.5, 2.3, 3.7, 6.0, 14.0])}
    inputs = LAWS[name].inputs
    if len(inputs) == 1 and LAWS[name].response == "loss":
        return {inputs[0]: axes[inputs[0]][0] * 2.0 ** np.arange(0, 6, 0.5)}
    grid = np.meshgrid(*(axes[column][: 5 if len(inputs) < 4 else 3] for column in inputs), indexing="ij")
    columns = dict(zip(inputs, (column.ravel() for column in grid), strict=True))
    if name == "unified":  # dense models, MoEs from scratch and upcycled models
        kind = np.resize(["dense", "moe", "up"], len(columns["T1"]))
        columns["T1"] = np.where(kind == "moe", 0.0, columns["T1"])
        columns["T2"] = np.where(kind == "dense", 0.0, columns["T2"])
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


def sweep() -> dict[str, np.ndarray]:
    """The default sweep's 25 upcycled losses, D1 and D2 in tokens."""
    D1, D2 = np.meshgrid(SWEEP_BUDGETS, SWEEP_BUDGETS, indexing="ij")
    return {"D1": D1.ravel(), "D2": D2.ravel(), "loss": SWEEP_LOSSES.ravel()}
