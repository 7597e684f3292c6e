"""Upcycled against the dense model trained on: numbers by hand, every outcome, and where nothing was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import own_model_sweep as own
import pandas as pd
import pytest
import simulated_sweep
from scipy.stats import t as student_t

from upcycle.cli import main
from upcycle.decisions.advice.measured import REACH, MeasuredAdvice, advise_measured, find_rivals
from upcycle.decisions.advice.measured_words import at_same_tokens, caveats, measured_in_words, recommendation
from upcycle.decisions.curves import published
from upcycle.decisions.published import TABLE_2
from upcycle.errors import UserError
from upcycle.laws.fit import run_fit
from upcycle.laws.result import read_fit
from upcycle.laws.tables.losses import read_losses, write_losses
from upcycle.study.shape import MoESpec
from upcycle.workflow import make

BUDGETS = [count * own.TOKENS_A_STEP for count in own.STEPS]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(losses, fits) of a study whose dense model ends lower when it is trained on."""
    results = tmp_path_factory.mktemp("own-model")
    inputs = own.read_inputs(results, own.write_results(results))
    return inputs.losses, inputs.fits


@pytest.fixture(scope="module")
def rivals(study):
    (found,) = find_rivals(*study)
    return found


def changed(study, loss, fits=None):
    """The rivals of the same study with losses by `loss(row)`; without laws unless given."""
    losses = study[0].assign(loss=[loss(row) for row in study[0].itertuples()])
    (found,) = find_rivals(losses, fits or {})
    return found


def exactly(row, up=own.UPCYCLED, cont=own.CONTINUED, spread=1e-4):
    """A loss of a row by laws, with seeds apart by a little."""
    if row.role == "imported":
        return own.PARENT_LOSS
    return own.law(up if row.lineage == "up" else cont, row.D) + spread * (row.seed - 0.5)


def test_a_study_s_rivals_are_told_by_its_losses(rivals):
    assert (rivals.model, rivals.moe, rivals.n_expert, rivals.top_k) == ("mine", "8x2", 8, 2)
    assert (rivals.d1, rivals.imported, rivals.parent_loss) == (own.D1, True, own.PARENT_LOSS)
    assert rivals.upcycled.budgets == tuple(BUDGETS)
    assert rivals.continued.budgets == (*BUDGETS, 2 * BUDGETS[-1])
    assert (rivals.upcycled.fit, rivals.continued.fit) == ("in_d2", "in_d2")
    assert rivals.noise.freedom == 9


def test_measured_differences_are_means_over_seeds_with_the_noise_between_them(study, rivals):
    rows = study[0]

    def mean(lineage, tokens):
        return rows.loc[(rows["lineage"] == lineage) & (rows["D"] == tokens), "loss"].mean()

    first = advise_measured(rivals).budgets[0]
    same = first.measured.same_tokens
    assert (same.upcycled, same.continued) == (mean("up", BUDGETS[0]), mean("cont", BUDGETS[0]))
    half = student_t.ppf(0.975, 9) * rivals.noise.deviation  # of the difference of two means of two seeds
    difference = same.upcycled - same.continued
    assert same.comparison.band == pytest.approx((difference - half, difference + half), rel=1e-12)
    assert same.how == "measured"
    # 1.75 times the tokens for the same FLOPs, between the first and the second budget
    flops, share = first.measured.same_flops, math.log2(rivals.n2 / rivals.n1)
    between = (1 - share) * mean("cont", BUDGETS[0]) + share * mean("cont", BUDGETS[1])
    assert flops.how == "interpolated"
    assert flops.comparison.tokens == BUDGETS[0] * rivals.n2 / rivals.n1
    assert flops.continued == pytest.approx(between, rel=1e-12)
    spread = rivals.noise.deviation * math.sqrt((1 + (1 - share) ** 2 + share**2) / 2)
    assert flops.comparison.band[1] - flops.comparison.difference == pytest.approx(student_t.ppf(0.975, 9) * spread)
    assert first.flops == 6 * rivals.n2 * BUDGETS[0]


def test_a_budget_is_one_however_it_is_given(rivals):
    d2 = 3 * BUDGETS[0]
    by_tokens = advise_measured(rivals, tokens=d2)
    by_flops = advise_measured(rivals, flops=6 * rivals.n2 * d2)
    by_hours = advise_measured(rivals, gpu_hours=6 * rivals.n2 * d2 / 3600 / 1e12, flops_per_second=1e12)
    for other in (by_flops, by_hours):
        assert other.asked.tokens == pytest.approx(d2, rel=1e-12)
        assert other.asked.measured.same_flops.upcycled == pytest.approx(by_tokens.asked.measured.same_flops.upcycled)
    assert [each.tokens for each in by_tokens.budgets] == sorted([d2, *BUDGETS])
    asked = [each for each in advise_measured(rivals, tokens=BUDGETS[1]).budgets if each.asked]
    assert [each.measured.same_tokens.how for each in asked] == ["measured"]


@pytest.mark.parametrize(
    ("up", "cont", "says"),
    [
        ({"A": 1.0}, {"A": 1.2}, "Upcycle; for the same FLOPs the mixture ends "),
        ({"A": 1.2}, {"A": 1.0}, "Train the dense model on; for the same FLOPs it ends "),
        ({"A": 4.0}, {"A": 4.0}, "Leave the dense model as it is; both end above its loss at each of 4 budgets"),
        ({"A": 8.6, "alpha": 0.3, "E": 2.45}, {"A": 1.0, "E": 2.58}, "It depends on the budget: train the dense model"),
    ],
)
def test_each_outcome_has_its_sentence(study, up, cont, says):
    found = changed(study, lambda row: exactly(row, own.UPCYCLED | up, own.CONTINUED | cont))
    assert recommendation(advise_measured(found)).startswith(says)


def test_what_seeds_could_explain_is_not_called(study):
    found = changed(study, lambda row: exactly(row, cont=own.UPCYCLED, spread=0.05))
    advice = advise_measured(found)
    assert {each.outcome for each in advice.budgets} == {"too close to call"}
    assert recommendation(advice).startswith("Too close to call; for the same FLOPs the two differ by 0.0")
    assert at_same_tokens(advice) == "For the same tokens, neither is clearly ahead at each of 4 budgets."


def test_laws_answer_near_the_measured_budgets_and_nothing_answers_beyond(rivals):
    near = advise_measured(rivals, tokens=2 * BUDGETS[-1])
    assert near.asked.measured.same_flops is None
    assert near.asked.decisive is near.asked.by_law.same_flops
    assert recommendation(near).endswith("by laws in D2 2 times outside the measured budgets.")
    low, high = near.asked.by_law.same_flops.comparison.band
    assert low < near.asked.by_law.same_flops.comparison.difference < high
    assert high - low > 0.001
    far = advise_measured(rivals, tokens=1.01 * REACH * BUDGETS[-1])
    assert far.asked.outcome == "unknown"
    words = recommendation(far)
    assert words.startswith("No answer: the measured range does not reach D2 = 530k (")
    assert "the dense model on 16.4k to 262k tokens, and laws in D2 answer up to 4 times outside" in words


def test_without_laws_the_measured_range_ends_where_the_sweeps_end(study):
    found = changed(study, exactly)
    advice = advise_measured(found, tokens=2 * BUDGETS[-1])
    assert advice.asked.decisive is None
    assert "and no law was fitted" in recommendation(advice)
    shorter = study[0][(study[0]["lineage"] != "cont") | (study[0]["D"] <= BUDGETS[0])]
    (found,) = find_rivals(shorter, {})
    assert recommendation(advise_measured(found)).startswith("No answer: the measured range does not reach it.")


def test_losses_by_the_laws_are_those_of_the_fit(study, rivals):
    fit = study[1]["in_d2"]
    found = advise_measured(rivals).budgets[2].by_law.same_flops
    values = {name: group.values for name, group in fit.group_fits.items()}
    assert found.upcycled == pytest.approx(own.law(values["up"], BUDGETS[2]), rel=1e-12)
    assert found.continued == pytest.approx(own.law(values["cont"], BUDGETS[2] * rivals.n2 / rivals.n1), rel=1e-12)


def test_one_seed_leaves_the_noise_unknown_and_says_so(study):
    losses, _ = study
    (found,) = find_rivals(losses[losses["seed"] == 0], {})
    advice = advise_measured(found)
    assert found.noise is None
    assert all(each.measured.same_tokens.comparison.band is None for each in advice.budgets)
    assert "No point was trained with two seeds: small differences may be chance." in caveats(advice)


def test_of_several_settings_the_best_is_compared(study, tmp_path):
    losses, fits = study
    worse = losses[losses["lineage"] == "up"].assign(lr=1.0, loss=9.0)
    worse["id"] = worse["id"] + "-other"
    (found,) = find_rivals(pd.concat([worse, losses], ignore_index=True), fits)
    assert (found.upcycled.others, found.continued.others) == (1, 0)
    assert found.upcycled.rows["loss"].max() < 9
    assert any("The study varied settings of the runs upcycled" in each for each in caveats(advise_measured(found)))


def test_each_mixture_is_compared_and_text_of_another_kind_is_not(tmp_path):
    mixtures = {"8x2": own.MIXTURE, "4x2": MoESpec(n_expert=4, top_k=2)}
    inputs = own.read_inputs(tmp_path, own.write_results(tmp_path, plan=own.plan_of(mixtures)))
    found = find_rivals(inputs.losses, {})
    assert sorted(each.moe for each in found) == ["4x2", "8x2"]
    scratch = {each.moe: advise_measured(each).scratch.same_mixture for each in found}
    assert scratch == {"8x2": True, "4x2": False}
    other = inputs.losses.copy()
    other.loc[other["lineage"] == "cont", "dataset"] = "other"
    assert find_rivals(other, {}) == []


def test_training_from_scratch_is_by_the_published_law_and_marked(rivals):
    advice = advise_measured(rivals, tokens=1e9)
    moe = {name: float(value) for name, value in TABLE_2["moe"].items()}
    by_hand = moe["A"] * 1e9 ** -moe["alpha"] + moe["B"] * rivals.n1 ** -moe["beta"] + 0.165
    assert advice.scratch.scratch.loss == pytest.approx(by_hand, rel=1e-12)
    text = measured_in_words(advice)
    assert "Not measured here: the paper's Table 2, of other data, another tokenizer and other sizes." in text
    assert "N1 is 80 times below the smallest fitted" in " ".join(text.split())
    # Never in a measured column: its level is of another text.
    assert f"{by_hand:.3f}" not in text.partition("From scratch, by the published law")[0]
    reached = advice.scratch.catch_up.tokens
    assert published().need("moe").loss(D=reached, N1=rivals.n1) == pytest.approx(advice.scratch.upcycled.loss)


FITS_AT_ONE_D1 = {
    "joint": {"alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "B": 8.53, "beta": 0.112},
    "multiplicative": {"alpha1": 0.18, "alpha3": 0.008},
}


@pytest.mark.parametrize("law", FITS_AT_ONE_D1)
def test_the_paper_s_laws_with_published_values_held_answer_too(study, tmp_path, law):
    """With one D1 a law of D1 and D2 is one of D2: its other parameters are held."""
    write_losses(study[0], tmp_path / "losses.csv")
    for name, settings in {
        "paper": {"law": law, "fixed": FITS_AT_ONE_D1[law], "select": {"sweep": "upcycled"}},
        "on": {"law": "power", "select": {"sweep": "continued"}},
    }.items():
        run_fit(tmp_path / "losses.csv", out=tmp_path / f"{name}.json", **settings)
    own_fits = {name: read_fit(tmp_path / f"{name}.json") for name in ("paper", "on")}
    (found,) = find_rivals(read_losses(tmp_path / "losses.csv"), own_fits)
    assert (found.upcycled.fit, found.continued.fit) == ("paper", "on")
    row = advise_measured(found).budgets[1]
    assert row.by_law.same_tokens.upcycled == pytest.approx(row.measured.same_tokens.upcycled, abs=0.01)


def test_the_answer_as_data_is_strict_and_whole(rivals):
    advice = advise_measured(rivals, tokens=2 * BUDGETS[-1])
    data = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert set(data) == {"question", "budgets", "scratch_by_published_law"}
    assert data["question"]["upcycled"] == {"budgets": BUDGETS, "fit": "in_d2"}
    assert [row["asked"] for row in data["budgets"]] == [False] * 4 + [True]
    assert data["budgets"][-1]["measured"] == {"same_tokens": None, "same_flops": None}
    assert data["budgets"][0]["outcome"] == "dense"


def test_the_page_lists_every_key_of_the_data(rivals):
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text().partition("With `--json`")[2]
    data = advise_measured(rivals, tokens=BUDGETS[0]).to_json()
    budget = data["budgets"][0]
    keys = {*data, *data["question"], *data["question"]["noise"], *data["question"]["upcycled"], *budget}
    keys |= {*budget["measured"], *budget["measured"]["same_tokens"], *data["scratch_by_published_law"]}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_a_law_that_is_not_identifiable_is_named_once(rivals):
    arms = {name: replace(getattr(rivals, name), doubt="not identifiable: E") for name in ("upcycled", "continued")}
    notes = caveats(advise_measured(replace(rivals, **arms)))
    assert notes.count("Fit in_d2 is not identifiable: E.") == 1


def test_simulated_losses_are_marked(study):
    losses, fits = study
    (found,) = find_rivals(losses.assign(simulated=1), fits)
    assert "SIMULATED LOSSES" in measured_in_words(advise_measured(found))


def test_lines_fit_a_page(rivals):
    advice: MeasuredAdvice = advise_measured(replace(rivals, model="m" * 20), tokens=2 * BUDGETS[-1])
    assert max(map(len, measured_in_words(advice).splitlines())) <= 120


@pytest.mark.parametrize(
    ("budget", "words"), [({"tokens": 1e6, "flops": 1e12}, "one budget"), ({"tokens": 10}, "give at least 1000")]
)
def test_budgets_that_cannot_be_are_refused(rivals, budget, words):
    with pytest.raises(UserError, match=words):
        advise_measured(rivals, **budget)


def test_a_study_that_did_not_train_both_is_refused_with_what_to_do(tmp_path, monkeypatch, capsys):
    plan = simulated_sweep.write_results(tmp_path, fits=())
    monkeypatch.setattr(make, "paper_inputs", lambda workflow: simulated_sweep.read_inputs(tmp_path, plan))
    assert main(["advise", "--study", "default"]) == 2
    assert "has no dense model that was both upcycled and trained on" in capsys.readouterr().err
