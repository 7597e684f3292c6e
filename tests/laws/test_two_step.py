"""Section 5: E from dense models and MoEs from scratch together, then held for upcycled models."""

import numpy as np
import pandas as pd
import pytest

from upcycle.errors import UserError
from upcycle.laws.fit import fit, fit_floor
from upcycle.laws.forms import LAWS
from upcycle.laws.result import FitResult

TOKENS = 0.577e9 * 2.0 ** np.arange(5)
SIZES = np.array([1.5e7, 4.4e7, 9.8e7, 2.3e8, 5.2e8, 1.1e9])
DENSE = {"A": 1800.0, "alpha": 0.34, "B": 400.0, "beta": 0.30, "E": 1.5}
MOE = {"A": 3000.0, "alpha": 0.37, "B": 300.0, "beta": 0.29, "E": 1.5}
UPCYCLED = {"A": 900.0, "alpha1": 0.2, "alpha2": 0.3, "alpha3": 0.008, "B": 330.0, "beta": 0.3, "E": 1.5}


def scratch(noise: float = 1e-3) -> pd.DataFrame:
    """Dense models and MoEs of six sizes and five budgets."""
    rng = np.random.default_rng(3)
    D, N = (column.ravel() for column in np.meshgrid(TOKENS, SIZES))
    tables = []
    for lineage, values in (("dense", DENSE), ("moe", MOE)):
        loss = LAWS["chinchilla"].predict(values, {"D": D, "N": N}) * np.exp(noise * rng.standard_normal(len(D)))
        tables.append(pd.DataFrame({"lineage": lineage, "D": D, "N": N, "loss": loss}))
    return pd.concat(tables, ignore_index=True)


def upcycled(noise: float = 1e-3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    columns = np.meshgrid(TOKENS, TOKENS, SIZES, indexing="ij")
    data = dict(zip(("D1", "D2", "N1"), (column.ravel() for column in columns), strict=True))
    return data | {"loss": LAWS["joint"].predict(UPCYCLED, data) * np.exp(noise * rng.standard_normal(150))}


@pytest.fixture(scope="module")
def floor() -> FitResult:
    return fit_floor({name: column.to_numpy() for name, column in scratch().items()})


def test_both_laws_share_one_floor_and_keep_their_own_other_parameters(floor: FitResult) -> None:
    assert floor.by == "lineage"
    assert [group["lineage"] for group in floor.groups or []] == ["dense", "moe"]
    groups = {group["lineage"]: group for group in floor.groups or []}
    assert groups["dense"]["parameters"]["E"]["value"] == groups["moe"]["parameters"]["E"]["value"] == floor.values["E"]
    low, high = floor.intervals["E"]
    assert low is not None
    assert high is not None
    assert low < 1.5 < high
    assert groups["dense"]["parameters"]["alpha"]["value"] == pytest.approx(0.34, abs=0.05)
    assert groups["moe"]["parameters"]["alpha"]["value"] == pytest.approx(0.37, abs=0.05)


def test_noiseless_losses_give_back_both_laws() -> None:
    result = fit_floor({name: column.to_numpy() for name, column in scratch(0.0).items()})
    for group, truth in zip(result.groups or [], (DENSE, MOE), strict=True):
        values = {name: entry["value"] for name, entry in group["parameters"].items()}
        assert values == pytest.approx(truth, rel=1e-5)


@pytest.mark.slow
def test_the_second_step_holds_the_first_ones_floor_in_the_fit_and_in_every_draw(floor: FitResult) -> None:
    result = fit(LAWS["joint"], upcycled(), floor=floor)
    assert result.fixed == {"E": floor.values["E"]}
    assert result.values["E"] == floor.values["E"]
    assert result.draws is not None
    assert floor.draws is not None
    assert result.draws["E"] == floor.draws["E"]
    assert result.floor is not None
    assert result.floor["data_sha256"] == floor.data_sha256
    # Each draw was refitted with its own E: where E is high, the terms above it are low.
    levels = [
        LAWS["joint"].predict({name: column[b] for name, column in result.draws.items()}, upcycled(0.0)).mean()
        for b in range(50)
    ]
    assert np.std(levels) < 0.1 * np.std(result.draws["E"])


def test_the_draws_of_the_first_step_are_the_same_whenever_it_is_made(floor: FitResult) -> None:
    """So that a fit by lineage and the first step inside another fit pair draw by draw."""
    again = fit_floor({name: column.to_numpy() for name, column in scratch().items()})
    assert again.draws == floor.draws
    assert again.data_sha256 == floor.data_sha256


def test_a_floor_comes_from_both_kinds() -> None:
    rows = scratch()
    with pytest.raises(UserError, match="of dense"):
        fit_floor({name: column.to_numpy() for name, column in rows[rows["lineage"] == "dense"].items()})


def test_the_first_steps_groups_are_lineages(floor: FitResult) -> None:
    for lineage, values in (("dense", DENSE), ("moe", MOE)):
        at = {"D": 1e9, "N": 1e8}
        found = LAWS["chinchilla"].predict(floor.group_fits[lineage].values, at)
        np.testing.assert_allclose(found, LAWS["chinchilla"].predict(values, at), rtol=2e-2)
