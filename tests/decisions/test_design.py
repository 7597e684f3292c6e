"""`upcycle design`: known intervals, its linear algebra against brute force, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_model_sweep
import pytest

from upcycle.arguments import parser
from upcycle.cli import main
from upcycle.decisions.curves import Curve, published
from upcycle.decisions.design.candidates import linearise, rank, simulated_error
from upcycle.decisions.design.design import as_data, design, from_arguments, parse_fix, with_values
from upcycle.decisions.design.grid import PAPER_BUDGETS, PAPER_N1, from_grids, from_study, parse_numbers
from upcycle.decisions.design.model import extended, set_up
from upcycle.decisions.design.simulation import simulate_sweeps
from upcycle.decisions.design.words import design_in_words
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
BUDGETS = parse_numbers(PAPER_BUDGETS, "--d1")
AT_01B = from_grids(BUDGETS, BUDGETS, np.array([float(PAPER_N1)]))
SMALL = from_grids(BUDGETS[:3], BUDGETS[:3], np.array([5e7, 2e8, 8e8]))
TABLE_2 = published(draws=0)
UPCYCLED = replace(TABLE_2, dense=None, moe=None)
"""What alpha3 takes: quicker to simulate."""


@pytest.fixture(scope="module")
def small():
    """Three sizes with three budgets each: E from dense models and MoEs together, then fixed."""
    return set_up(SMALL, TABLE_2)


# Known at 95 %: found by others with an estimator like this one, from a number of simulations that they do not say. The
# end of an interval from 400 has a standard error of 0.13 standard deviations of alpha3: 0.2e-4 and 0.6e-4 here.
@pytest.mark.parametrize(
    ("noise", "fix", "low", "high", "tolerance"),
    [
        (0.001, {"E": None}, 5.5e-4, 10.4e-4, 0.3e-4),
        (0.003, {"E": None}, -0.5e-4, 16e-4, 0.7e-4),
        (0.001, {}, 4.6e-4, 10.7e-4, 0.3e-4),
        (0.003, {}, -4e-4, 15e-4, 0.7e-4),
    ],
)
def test_alpha3_of_one_5_by_5_sweep_at_01b(noise, fix, low, high, tolerance):
    """The constant B N1^-beta + E is held (E fixed) or fitted as one number (E free), in Equation 1."""
    simulated = simulate_sweeps(set_up(AT_01B, UPCYCLED, fix=fix), noise)
    expected = simulated.parameters["upcycled"]["alpha3"]
    assert expected.interval == pytest.approx((low, high), abs=tolerance)
    assert simulated.converged == 1.0
    assert simulated.interaction().settled is (noise == 0.001)


def test_fixing_b_and_beta_too_is_the_same_question():
    """Equation 12 itself with B, beta and E held gives alpha3 as Equation 1 with its constant held."""
    held = simulate_sweeps(set_up(AT_01B, UPCYCLED, law="joint", fix={"B": None, "beta": None, "E": None}), 0.003)
    reduced = simulate_sweeps(set_up(AT_01B, UPCYCLED, fix={"E": None}), 0.003)
    assert held.estimates["upcycled"]["alpha3"] == pytest.approx(reduced.estimates["upcycled"]["alpha3"], abs=1e-9)
    number = set_up(AT_01B, TABLE_2, fix={"E": 0.165}).up.fixed["E"]
    assert number == pytest.approx(8.53 * PAPER_N1**-0.112 + 0.165, rel=1e-12)


def test_alpha3_has_the_error_of_least_squares_at_small_noise():
    """The textbook covariance of the linearised model, written out: noise^2 (J^T J)^-1."""
    noise = 1e-4
    d1, d2 = np.log(AT_01B.up["D1"]), np.log(AT_01B.up["D2"])
    term = 16.3 * np.exp(-0.043 * d1 - 0.085 * d2 + 7.98e-4 * d1 * d2)
    jacobian = term[:, None] * np.stack([np.ones_like(d1), -d1, -d2, d1 * d2], axis=1)
    textbook = noise * np.sqrt(np.linalg.inv(jacobian.T @ jacobian)[3, 3])
    simulated = simulate_sweeps(set_up(AT_01B, UPCYCLED, fix={"E": None}), noise, simulations=800)
    # The standard deviation of 800 draws is known to 2.5 %.
    assert simulated.parameters["upcycled"]["alpha3"].deviation == pytest.approx(textbook, rel=0.07)


@pytest.mark.parametrize("fix", [{}, {"E": None}], ids=["E from dense and MoE", "E held"])
def test_linearised_error_of_d_star_is_that_of_simulations(fix):
    setting = set_up(SMALL, TABLE_2, fix=fix)
    assert setting.shared_floor is (not fix)
    simulated = simulate_sweeps(setting, 1e-4, simulations=300)
    threshold = simulated.threshold()
    linearised = linearise(setting, 1e-4, threshold)
    assert threshold.roots[0] == pytest.approx(3.0225e9, rel=1e-4)
    # The standard deviation of 300 draws is known to 4 %.
    assert simulated_error(simulated, linearised.target) == pytest.approx(linearised.error(), rel=0.1)
    first = np.log([roots[0] for roots in threshold.draws])
    assert first.std() == pytest.approx(linearised.error(), rel=0.1)


def test_a_candidate_is_the_sweep_with_it_linearised_anew(small):
    """Every kind of further run: the quick update equals setting the extended sweep up again."""
    simulated = simulate_sweeps(small, 0.001, simulations=40)
    threshold = simulated.threshold()
    linearised = linearise(small, 0.001, threshold)
    ranked = rank(linearised)
    gains = [candidate.gain_per_flop for candidate in ranked]
    assert gains == sorted(gains, reverse=True)
    kinds = {tuple(candidate.added): candidate for candidate in ranked}
    assert set(kinds) == {("dense",), ("moe",), ("up",), ("up", "dense")}
    for candidate in kinds.values():
        anew = linearise(extended(small, candidate.added), 0.001, threshold).error()
        assert candidate.error == pytest.approx(anew, rel=1e-6)
    # Fitting E first and then holding it weighs runs otherwise than one fit of all would: a further upcycled run may
    # even do harm, further runs from scratch cannot.
    assert all(candidate.error < linearised.error() for candidate in ranked if "up" not in candidate.added)


def test_costs_of_candidates(small):
    """6 N1 D dense, 6 x 1.75 N1 D for mixtures, both for an upcycled run whose parent is not planned."""
    threshold = simulate_sweeps(small, 0.001, simulations=40).threshold()
    for candidate in rank(linearise(small, 0.001, threshold)):
        flops = sum(6 * run["N1"][0] * run["D"][0] for name, run in candidate.added.items() if name == "dense")
        flops += sum(6 * 1.75 * run["N1"][0] * run["D"][0] for name, run in candidate.added.items() if name == "moe")
        flops += sum(6 * 1.75 * run["N1"][0] * run["D2"][0] for name, run in candidate.added.items() if name == "up")
        assert candidate.flops == pytest.approx(flops, rel=1e-12)


def test_runs_added_meet_the_same_noise_elsewhere(small):
    """A further MoE leaves the dense fits' own noise alone: with E held, their estimates do not move."""
    held = set_up(SMALL, TABLE_2, fix={"E": None})
    grown = extended(held, {"moe": {"D": np.array([5e9]), "N1": np.array([8e8])}})
    before, after = (simulate_sweeps(setting, 0.003, simulations=40) for setting in (held, grown))
    assert np.array_equal(before.estimates["dense"]["A"], after.estimates["dense"]["A"])
    assert not np.array_equal(before.estimates["moe"]["A"], after.estimates["moe"]["A"])


def test_each_fit_takes_the_floor_of_its_own_simulation(small):
    simulated = simulate_sweeps(small, 0.003, simulations=40)
    floors = [simulated.estimates[lineage]["E"] for lineage in ("dense", "moe", "upcycled")]
    assert np.array_equal(floors[0], floors[1])
    assert np.array_equal(floors[0], floors[2])
    assert np.ptp(floors[0]) > 0
    assert simulated.parameters["upcycled"]["E"].held == "from the dense and MoE fits"


def test_one_size_says_nothing_of_another():
    answer = design(AT_01B, TABLE_2, 0.001, at_n1=1e9, simulations=40)
    assert answer.threshold is None
    assert "one size" in answer.setting.no_d_star
    here = design(AT_01B, TABLE_2, 0.001, simulations=40)
    assert here.setting.n1 == PAPER_N1
    assert here.threshold.roots == ()  # Table 2 has none below 2.149e8
    assert here.linearised.target.what == "the smallest gap between the two laws"


def test_what_the_inputs_leave_open_has_no_interval():
    """One D1: A, alpha1 and the interaction cannot be told apart, and D* elsewhere cannot be had."""
    answer = design(from_grids(BUDGETS[:1], BUDGETS, np.array([5e7, 2e8, 8e8])), TABLE_2, 0.001, simulations=40)
    alpha3 = answer.simulated.parameters["upcycled"]["alpha3"]
    assert alpha3.undetermined
    assert "cannot tell" in alpha3.doubt
    assert answer.threshold is None
    assert "do not determine" in answer.setting.no_d_star


def test_an_offset_at_its_wall_leaves_d_star_but_no_ranking():
    """Table 2 has no offset: the offset form fits with D0 at its wall, where the linearised fit is singular."""
    answer = design(AT_01B, TABLE_2, 0.001, law="joint_offset", simulations=40)
    assert answer.simulated.parameters["upcycled"]["D0"].doubt
    assert answer.threshold is not None
    assert answer.ranked == ()
    assert "not ranked" in design_in_words(answer)


def test_more_noise_more_doubt():
    """At 0.02 nats the floor of a one-size sweep runs into its wall, and is said not to be identifiable."""
    quiet, loud = (simulate_sweeps(set_up(AT_01B, UPCYCLED), noise, simulations=100) for noise in (0.0003, 0.02))
    assert quiet.parameters["upcycled"]["E"].doubt == ""
    assert "plausible" in loud.parameters["upcycled"]["E"].doubt


def test_another_law_is_fitted_to_the_truths_losses():
    """Equation 8 is Equation 1 within 1e-9 of D2: its values are found from the losses without noise."""
    setting = set_up(AT_01B, TABLE_2, law="multiplicative")
    assert setting.up.law.name == "multiplicative"
    assert setting.up.values["alpha3"] == pytest.approx(7.98e-4, rel=1e-4)


def test_fits_without_laws_from_scratch_still_tell_of_alpha3():
    """Fits of the user's may hold an upcycled law alone: its parameters are answered, D* says what is missing."""
    at_01b = {"A": 16.3, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "E": 1.25}
    upcycled = Curve(get_law("multiplicative_limit"), at_01b, None, {"D1": (5e8, 1e10), "D2": (5e8, 1e10)})
    alone = replace(UPCYCLED, upcycled=upcycled, source="fits in mine")
    answer = design(AT_01B, alone, 0.001, simulations=40)
    assert set(answer.simulated.parameters) == {"upcycled"}
    assert answer.setting.no_d_star == "fits in mine has no law of MoEs from scratch: D* compares with them"
    with pytest.raises(UserError, match="knows no model size"):
        design(SMALL, alone, 0.001, simulations=40)


def test_values_of_the_truth_can_be_given():
    """Without interaction half of the estimates lie on either side of 0."""
    three = with_values(UPCYCLED, None, {"alpha3": 0.0})
    simulated = simulate_sweeps(set_up(AT_01B, three, fix={"E": None}), 0.001)
    assert (simulated.estimates["upcycled"]["alpha3"] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert simulated.interaction() is None


def test_grid_of_a_study():
    """The paper's study: 6 sizes x 5 D1 x 5 D2, with its 30 dense models and 30 MoEs; ablations are left out."""
    study = load_study(REPOSITORY / "config/paper.yaml")
    plan = build_plan(study, Path("no-results"))
    sweep = from_study(study, plan, "upcycled")
    assert (len(sweep.up["D1"]), len(sweep.dense["D"]), len(sweep.moe["D"])) == (150, 30, 30)
    assert (sweep.n_expert, sweep.top_k, sweep.active_ratio) == (8, 2, 1.75)
    assert sweep.up["D1"].max() == 70_400 * 1024 * 1024
    one = from_study(study, plan, "architectures")
    assert (len(one.up["D1"]), len(one.dense["D"]), one.moe) == (25, 5, None)
    assert set(one.dense["N1"]) == {PAPER_N1}
    with pytest.raises(UserError, match="no upcycled models"):
        from_study(study, plan, "dense")
    with pytest.raises(UserError, match="`upcycled` begins with a checkpoint, so it has one D1"):
        from_study(study, own_model_sweep.plan_of(), "upcycled")
    with pytest.raises(UserError, match="did you mean `upcycled`"):
        from_study(study, plan, "upcycle")


def test_a_sweep_of_narrow_experts_is_refused(tmp_path):
    """Its (E, K) would be taken for experts as wide as the dense MLP."""
    text = (REPOSITORY / "tests/workflow/config.yaml").read_text()
    path = tmp_path / "config.yaml"
    fine = text.replace("top_k: 2", "top_k: 2, granularity: 2")
    path.write_text(fine.replace("kind: upcycled", "kind: upcycled, method: fine_grained"))
    study = load_study(path)
    with pytest.raises(UserError, match="`upcycled` has the mixture e4k2g2: the laws are of experts as wide as the"):
        from_study(study, build_plan(study, Path("no-results")), "upcycled")


def test_grids_in_words():
    assert parse_numbers("0.577e9:9.232e9:5", "--d1") == pytest.approx(0.577e9 * 2.0 ** np.arange(5), rel=1e-9)
    assert parse_numbers("2B,1e9,1e9", "--d1").tolist() == [1e9, 2e9]
    assert parse_fix("E, beta=0.1") == {"E": None, "beta": 0.1}


@pytest.mark.parametrize("text", ["a", "1e9:2e9", "2e9:1e9:5", "1e9:2e9:1", "1e9:2e9:2.5", "-1", "inf", ","])
def test_bad_grids_are_named(text):
    with pytest.raises(UserError, match="--d2"):
        parse_numbers(text, "--d2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--d1", "1e9"], "add --d2, --n1"),
        (["--noise", "0.001", "--law", "jont"], "did you mean `joint`"),
        (["--noise", "0.001", "--law", "chinchilla"], "law of D1, D2"),
        (["--noise", "0.001", "--fix", "e"], "no parameter `e`"),
        (["--noise", "0.001", "--fix", "E=x"], "--fix E=x: `x` is no number"),
        (["--noise", "-1"], "--noise"),
        (["--noise", "5"], "losses below 0"),
        (["--noise", "0.001", "--simulations", "3"], "at least 40"),
        (["--sweep", "upcycled", "--n1", "1e9"], "leave out --n1"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(options, words, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["design", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said


def test_no_noise_measured_says_what_to_do(capsys, monkeypatch, tmp_path):
    tmp_path.joinpath("config.yaml").write_text(REPOSITORY.joinpath("tests/workflow/config.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["design"]) == 2
    assert "give --noise" in capsys.readouterr().err


def test_the_answer_in_words_and_as_data(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    grid = ["--d1", "0.577e9:9.227e9:5", "--d2", "0.577e9:9.227e9:5", "--n1", "98304000"]
    answer = from_arguments(parser().parse_args(["design", *grid, "--noise", "0.003", "--fix", "E"]), pytest.fail)
    words, data = design_in_words(answer), as_data(answer)
    assert "One sweep of this size and noise does not settle the sign of alpha3" in words
    assert "one size cannot tell them apart" in words
    low, high = data["parameters"]["upcycled"]["alpha3"]["interval"]
    assert f"{low:.3g} to {high:.3g}" in words
    assert data["alpha3"]["settled"] is False
    assert data["not_identifiable"][0]["parameters"] == ["B", "beta", "E"]
    assert data["d_star"]["roots"] == []
    assert len(data["further_runs"]["per_flop"]) == 5
    assert data["further_runs"]["simulated"][0]["run"] == data["further_runs"]["per_flop"][0]["run"]


@pytest.mark.parametrize("noise", ["0.001", "0.02"])
def test_the_verb_prints_strict_json(noise, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["design", "--noise", noise, "--simulations", "40", "--json"]) == 0

    def refuse(constant):
        raise ValueError(constant)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["simulations"] == 40
