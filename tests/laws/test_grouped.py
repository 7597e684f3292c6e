"""Power laws at each fixed D1, with or without a shared floor, and the relations between them."""

from pathlib import Path

import numpy as np
import pytest

from upcycle.errors import UserError
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS
from upcycle.laws.grouped import fit_by
from upcycle.laws.result import FitResult, read_fit, write_fit

FLOOR, GAMMA, E_PRIME, SCALE, ETA = 1.5, 0.02, -0.55, 3000.0, 0.3
D1 = 1e6 * 4.0 ** np.arange(5)
D2 = 1e6 * 2.0 ** np.arange(6)


def grid(noise: float = 0.0) -> dict[str, np.ndarray]:
    """Losses whose exponents follow Equation 10 and whose factors follow Equation 16, over one floor."""
    d1, d2 = (column.ravel() for column in np.meshgrid(D1, D2, indexing="ij"))
    loss = SCALE * d1**-ETA * d2 ** (GAMMA * np.log(d1) + E_PRIME) + FLOOR
    return {"D1": d1, "D2": d2, "loss": loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))}


@pytest.fixture(scope="module")
def shared() -> FitResult:
    return fit_by(LAWS["power"], grid(1e-3), by="D1", shared=("E",), ids=[f"run{k}" for k in range(30)], draws=50)


@pytest.mark.parametrize("together", [(), ("E",)])
def test_groups_and_relations_come_back_from_noiseless_data(together: tuple[str, ...]) -> None:
    result = fit_by(LAWS["power"], grid(), by="D1", shared=together, draws=0)
    assert result.shared == list(together)
    for group in result.groups:
        values = {name: entry["value"] for name, entry in group["parameters"].items()}
        assert values["alpha"] == pytest.approx(-(GAMMA * np.log(group["D1"]) + E_PRIME), rel=1e-5)
        assert values["A"] == pytest.approx(SCALE * group["D1"] ** -ETA, rel=1e-5)
        assert values["E"] == pytest.approx(FLOOR, rel=1e-5)
    line = result.relations["exponent_vs_d1"]["parameters"]
    assert line["gamma"]["value"] == pytest.approx(GAMMA, rel=1e-4)
    assert line["E_prime"]["value"] == pytest.approx(E_PRIME, rel=1e-4)
    power = result.relations["scale_vs_d1"]["parameters"]
    assert power["C"]["value"] == pytest.approx(SCALE, rel=1e-4)
    assert power["eta"]["value"] == pytest.approx(ETA, rel=1e-4)


def test_a_shared_floor_is_the_best_of_all_floors(shared: FitResult) -> None:
    """The joint objective is the lowest, over the floor, of the sum of separate fits at that floor (a profile)."""

    def profile(floor: float) -> float:
        data = grid(1e-3)
        return sum(
            fit(LAWS["power"], {k: c[data["D1"] == d1] for k, c in data.items()}, fixed={"E": floor}, draws=0).objective
            for d1 in D1
        )

    best = shared.values["E"]
    assert shared.objective == pytest.approx(profile(best), rel=1e-9)
    for nearby in (0.97 * best, 0.999 * best, 1.001 * best, 1.03 * best):
        assert shared.objective <= profile(nearby) * (1 + 1e-9)


def test_the_whole_is_the_sum_of_its_groups(shared: FitResult) -> None:
    groups = shared.groups
    assert [group["D1"] for group in groups] == D1.tolist()
    assert sum(group["objective"] for group in groups) == pytest.approx(shared.objective, rel=1e-9)
    assert sum(group["n"] for group in groups) == shared.n == 30
    assert [run for group in groups for run in group["ids"]] == shared.ids
    assert shared.rms == pytest.approx(np.sqrt(np.mean([group["rms"] ** 2 for group in groups])))
    assert shared.loo_rms == pytest.approx(np.sqrt(np.mean([group["loo_rms"] ** 2 for group in groups])))
    assert [g["parameters"]["E"]["value"] for g in groups] == pytest.approx([shared.values["E"]] * 5, rel=1e-14)
    assert list(shared.parameters) == ["E"]
    assert "E shared by all groups" in shared.statement


def test_a_shared_floor_narrows_the_exponents(shared: FitResult) -> None:
    """The reason for sharing: with six points a group, a floor of its own widens every exponent's interval."""
    apart = fit_by(LAWS["power"], grid(1e-3), by="D1", draws=50)
    assert "nothing shared" in apart.statement

    def widths(result: FitResult) -> np.ndarray:
        return np.array([np.ptp(group["intervals"]["alpha"]) for group in result.groups])

    assert (widths(shared) < widths(apart)).all()


def test_relations_have_intervals_from_the_groups_draws(shared: FitResult) -> None:
    relation = shared.relations["exponent_vs_d1"]
    low, high = relation["intervals"]["gamma"]
    assert low < GAMMA < high
    assert relation["interval_method"].startswith("the groups' bootstrap draws")
    assert relation["label"] == "Equation 10"
    assert relation["delta"] is None


def test_doubtful_groups_make_doubtful_relations() -> None:
    """Three points a group for three parameters: nothing about the relations is called identifiable."""
    data = grid(1e-3)
    few = {name: column[np.tile(np.arange(6) < 3, 5)] for name, column in data.items()}
    result = fit_by(LAWS["power"], few, by="D1", draws=20)
    assert not result.identifiable
    assert "3 points for 3 parameters" in result.statement
    for relation in result.relations.values():
        assert not relation["identifiable"]
        assert relation["statement"] == "not identifiable: its points are parameters of fits that are not"


def test_the_file_of_a_grouped_fit_is_exact_and_of_its_groups(shared: FitResult, tmp_path: Path) -> None:
    path = tmp_path / "power.json"
    write_fit(shared, path)
    again = read_fit(path)
    assert again == shared
    data = grid()
    assert list(again.group_fits) == np.unique(data["D1"]).tolist()
    for value, group in again.group_fits.items():
        here = data["D1"] == value
        predicted = LAWS["power"].predict(group.values, {"D2": data["D2"][here]})
        np.testing.assert_allclose(predicted, data["loss"][here], rtol=5e-3)


def test_groups_must_hold_their_column_constant() -> None:
    with pytest.raises(UserError, match="is an input of law `multiplicative`"):
        fit_by(LAWS["multiplicative"], grid(), by="D1", draws=0)
    with pytest.raises(UserError, match="is not a column"):
        fit_by(LAWS["power"], grid(), by="N1", draws=0)
    with pytest.raises(UserError, match="no parameter `F`"):
        fit_by(LAWS["power"], grid(), by="D1", shared=("F",), draws=0)
