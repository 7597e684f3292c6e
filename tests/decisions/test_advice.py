"""Advice: numbers by hand, one answer however the budget is given, honest verdicts, strict JSON, the page's example."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from upcycle.cli import main
from upcycle.decisions.advice.advice import (
    DENSE,
    DENSE_ON,
    OPTION_OF,
    SCRATCH,
    SCRATCH_D1,
    SCRATCH_PAID,
    SHARES_OF_D1,
    UPCYCLED,
    advise,
)
from upcycle.decisions.advice.answer import Advice
from upcycle.decisions.advice.expectations import Expected, compare_options, distances, tokens_to_reach, verdict_of
from upcycle.decisions.advice.recommendation import best_by_budget
from upcycle.decisions.advice.rules import rules_of_thumb
from upcycle.decisions.advice.settling import LEAST_TOKENS_PER_PARAMETER, settling_run
from upcycle.decisions.curves import Curve, ThreeLaws, published
from upcycle.decisions.published import PAPER_ERROR
from upcycle.decisions.quantities import quantity
from upcycle.errors import UserError
from upcycle.laws.fit import fit
from upcycle.laws.forms import get_law
from upcycle.laws.result import write_fit

PAGE = Path(__file__).parents[2] / "docs" / "advice.md"


@pytest.fixture(scope="module")
def laws() -> ThreeLaws:
    return published(draws=200)


@pytest.fixture(scope="module")
def llama(laws: ThreeLaws) -> Advice:
    return advise(laws, 7e9, 2e12, tokens=1e11, law_error=PAPER_ERROR)


# numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e9", 7e9),
        ("7B", 7e9),
        ("7b", 7e9),
        ("2T", 2e12),
        ("1.5M", 1.5e6),
        ("300k", 3e5),
        ("1_000_000", 1e6),
        (" .5 T ", 5e11),
        ("2.5e+3B", 2.5e12),
        ("400e12", 4e14),
        ("12", 12.0),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert quantity(text, "--x") == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["", "B", "7X", "-7B", "0", "0B", "nan", "inf", "1e400", "7BB", "1,5", "1__0", "7e", "0x10", "٣"]
)
def test_other_numbers_are_refused_by_name(text):
    with pytest.raises(UserError, match="--n1") as caught:
        quantity(text, "--n1")
    assert "\n" not in str(caught.value)


def test_a_missing_letter_is_suspected():
    with pytest.raises(UserError, match="a letter missing, as in 7B"):
        quantity("7", "--n1", least=1000, unit="parameters")


# losses, budgets


def test_losses_by_hand(llama: Advice):
    """Table 2 written out: 7B, 2T, 100B."""
    n, d1, d2, floor = 7e9, 2e12, 1e11, 0.165

    def moe(d: float) -> float:
        return 32.0 * d**-0.161 + 7.05 * n**-0.080 + floor

    def dense(d: float) -> float:
        return 8.83 * d**-0.088 + 12.3 * n**-0.116 + floor

    by_hand = {
        UPCYCLED: 16.3 * d1**-0.043 * d2 ** (-0.085 + 7.98e-4 * math.log(d1)) + 8.53 * n**-0.112 + floor,
        SCRATCH: moe(d2),
        SCRATCH_PAID: moe(d2 + d1 / 1.75),
        SCRATCH_D1: moe(d1),
        DENSE: dense(d1),
        DENSE_ON: dense(d1 + 1.75 * d2),
    }
    assert {each.what: each.loss for each in llama.losses} == pytest.approx(by_hand, rel=1e-12)
    flops = {each.what: each.flops for each in llama.losses}
    assert flops[UPCYCLED] == flops[SCRATCH] == pytest.approx(6 * 1.75 * n * d2)
    assert flops[DENSE_ON] == pytest.approx(flops[UPCYCLED])
    assert flops[SCRATCH_PAID] == pytest.approx(6 * 1.75 * n * d2 + 6 * n * d1)
    assert flops[DENSE] == 0
    for each in llama.losses:
        assert each.band is not None
        assert each.band[0] < each.loss < each.band[1]
        assert each.gpu_hours == pytest.approx(each.flops / 400e12 / 3600)


@pytest.mark.parametrize("seed", range(3))
def test_one_answer_however_the_budget_is_given(seed):
    generator = np.random.default_rng(seed)
    n1, d1, d2, rate = 10 ** generator.uniform([8, 9, 9, 13], [10, 12, 11, 15])
    few, top_k = published(draws=20), int(generator.integers(1, 5))
    flops = 6 * (4 + 12 * top_k) / 16 * n1 * d2
    answers = [
        advise(few, n1, d1, n_expert=8, top_k=top_k, flops_per_second=rate, **budget)
        for budget in ({"tokens": d2}, {"flops": flops}, {"gpu_hours": flops / rate / 3600})
    ]
    for answer in answers:
        assert answer.question.tokens == pytest.approx(d2)
        assert answer.question.flops == pytest.approx(flops)
        assert answer.verdict == answers[0].verdict
        assert [each.loss for each in answer.losses] == pytest.approx([each.loss for each in answers[0].losses])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"tokens": 1e9, "flops": 1e20}, "one budget"),
        ({"tokens": 10.0}, "at least 1000"),
        ({"flops": 1e10}, "at least 1000"),
        ({"n_expert": 4, "top_k": 8}, "4 experts cannot use 8"),
        ({"top_k": 0}, "choose 1 to 8"),
    ],
)
def test_questions_without_an_answer_are_refused(laws, budget, message):
    with pytest.raises(UserError, match=message):
        advise(laws, 1e9, 1e10, **budget)


def test_fits_without_a_law_from_scratch_are_refused(laws):
    with pytest.raises(UserError, match="MoEs trained from scratch"):
        advise(replace(laws, moe=None), 1e9, 1e10)


# verdicts


@pytest.mark.parametrize(("tokens", "verdict"), [(3e8, "upcycle"), (7.07e9, "too close to call"), (1e11, "scratch")])
def test_the_verdict_follows_the_budget(laws, tokens, verdict):
    """1B model of 10B tokens: the audit's threshold against D2 is 7.1 B."""
    advice = advise(laws, 1e9, 1e10, tokens=tokens, law_error=PAPER_ERROR)
    assert advice.verdict == verdict
    assert advice.thresholds[0].roots[0] == pytest.approx(7.07e9, rel=0.002)


def sides(laws: ThreeLaws, d2: float) -> tuple[Expected, Expected]:
    """A 1B model of 10B tokens upcycled, and a MoE from scratch, on the same tokens."""
    up = laws.upcycled.loss_rows(D1=1e10, D2=d2, N1=1e9)
    moe = laws.need("moe").loss_rows(D=d2, N1=1e9)
    return Expected("up", d2, 0.0, 0.0, float(up[0]), None, up), Expected("moe", d2, 0.0, 0.0, float(moe[0]), None, moe)


def test_the_laws_own_error_only_makes_less_sure(laws):
    for d2 in 10 ** np.linspace(8, 11, 13):
        plain, with_error = (compare_options(*sides(laws, d2), error) for error in (None, PAPER_ERROR))
        assert plain.share_with_error == plain.share_of_draws == with_error.share_of_draws
        assert with_error.ahead in (plain.ahead, "too close to call")


def test_shares_are_those_of_simulated_errors(laws):
    """The closed form of the share against errors drawn for both losses."""
    generator, error = np.random.default_rng(0), 0.02
    up, moe = sides(laws, 9e9)
    found = compare_options(up, moe, error)
    noise = generator.standard_normal((2, 2000, 200)) * error
    drawn = float(np.mean(up.rows[1:] + noise[0] < moe.rows[1:] + noise[1]))
    assert found.share_with_error == pytest.approx(drawn, abs=0.005)
    assert found.share_of_draws == np.mean(up.rows[1:] < moe.rows[1:])
    assert found.difference == up.loss - moe.loss
    assert verdict_of(found) == "too close to call"


def test_the_table_and_the_thresholds_agree(laws):
    """The sign of every row's central difference is what the crossings say."""
    generator = np.random.default_rng(3)
    for _ in range(10):
        n1, d1 = 10 ** generator.uniform([7.5, 8.5], [11, 13])
        advice = advise(laws.without_draws(), n1, d1)
        assert [row.share_of_d1 for row in advice.table] == list(SHARES_OF_D1)
        for row in advice.table:
            assert (row.comparison.difference < 0) == (advice.thresholds[0].ahead(row.tokens) == "upcycle")
        assert advice.verdict in ("upcycle", "scratch", "depends on the budget")
        assert advice.losses == advice.comparisons == ()
        assert advice.question.tokens is None


def test_a_dense_model_that_should_be_kept_is_said_to_be(laws, llama):
    opening = "Recommendation: train the dense model on, not a mixture (0.054 nats below upcycling)."
    assert llama.statement.startswith(opening)
    assert any("Below D2 = 226B" in note for note in llama.notes)
    assert llama.overtakes_dense is not None
    found = llama.overtakes_dense.tokens
    assert found is not None
    upcycled = laws.upcycled.loss(D1=2e12, D2=found, N1=7e9)
    assert float(upcycled) == pytest.approx(float(laws.need("dense").loss(D=2e12, N1=7e9)), rel=1e-12)
    many = advise(laws, 7e9, 2e12, tokens=2e12, law_error=PAPER_ERROR)
    assert "not a mixture" not in many.statement


# tokens


def test_tokens_to_reach_a_loss_against_the_inverse_of_equation_3(laws):
    target = laws.upcycled.loss_rows(D1=1e11, D2=3e10, N1=1e9)
    moe = laws.need("moe")
    found = tokens_to_reach(moe, "D", target, N1=1e9)
    values = {name: np.array([moe.values[name], *moe.draws[name]]) for name in moe.law.names}
    inverse = ((target - values["B"] * 1e9 ** -values["beta"] - values["E"]) / values["A"]) ** (-1 / values["alpha"])
    assert found.tokens == pytest.approx(inverse[0], rel=1e-9)
    assert found.band == pytest.approx(tuple(np.quantile(inverse[1:], [0.025, 0.975])), rel=0.02)
    assert found.share_never == 0


def test_never_is_an_answer(laws):
    """A loss below the floor of every draw is never reached; below that of some, the band is open above."""
    moe = laws.need("moe")
    floor = moe.loss_rows(D=1e30, N1=1e9)
    never = tokens_to_reach(moe, "D", floor - 0.1, N1=1e9)
    assert (never.tokens, never.band, never.share_never) == (None, (None, None), 1.0)
    some = tokens_to_reach(moe, "D", np.full_like(floor, np.median(floor) + 0.01), N1=1e9)
    assert some.share_never is not None
    assert 0.05 < some.share_never < 0.95
    assert some.band is not None
    assert some.band[1] is None


def test_compute_optimal_tokens_of_the_audit(llama):
    assert llama.compute_optimal is not None
    assert llama.compute_optimal.tokens == pytest.approx(4.267e9, rel=1e-3)
    assert llama.compute_optimal.exponent == pytest.approx(1.7949, abs=1e-4)
    assert llama.compute_optimal.flops == pytest.approx(6 * 1.75 * 7e9 * llama.compute_optimal.tokens)


# distances, mixtures, rules


def test_distances_in_words(laws):
    found = {each.input: each for each in distances(laws, 7e9, 2e12, (1e7,))}
    assert found["D1"].words.startswith("D1 is 27 times the largest fitted (2T")
    assert found["D1"].factor == pytest.approx(2e12 / 73.82e9, rel=1e-3)
    assert found["D2"].words.startswith("D2 is 14 times below the smallest fitted (10M")
    assert found["N1"].factor == pytest.approx(7e9 / 1.0859e9, rel=1e-3)
    assert found["D1 / N1"].low == pytest.approx(4.249, abs=1e-3)
    inside = {each.input: each for each in distances(laws, 1e9, 1e10, (1e9, 1e10))}
    assert {each.factor for each in inside.values()} == {1.0}
    assert "D1 is within the data" in inside["D1"].words


def test_another_mixture_moves_flops_and_not_losses(laws):
    own = advise(laws, 1e9, 1e10, tokens=3e9)
    other = advise(laws, 1e9, 1e10, tokens=3e9, n_expert=16, top_k=4)
    assert own.laws.hold_for_this_mixture
    assert not other.laws.hold_for_this_mixture
    assert "the losses do not" in other.notes[0]
    assert other.question.n2 == 52 / 16 * 1e9
    assert other.question.flops == pytest.approx(6 * 52 / 16 * 1e9 * 3e9)
    losses = [{each.what: each.loss for each in advice.losses} for advice in (own, other)]
    assert losses[0][UPCYCLED] == losses[1][UPCYCLED]
    paid = next(each for each in other.losses if each.what == SCRATCH_PAID)
    assert paid.tokens == pytest.approx(3e9 + 1e10 * 16 / 52)
    assert not advise(laws, 1e9, 1e10, n_expert=16).laws.hold_for_this_mixture


def test_rules_of_thumb():
    turns = {rule.name.split(",")[0]: rule.tokens for rule in rules_of_thumb(2e12, None, 1.75, 5e9)}
    assert turns == pytest.approx(
        {"Komatsuzaki et al.": 2.4e12, "Muennighoff et al.": 2e12, "Wei et al.": 2e12 * 2 / 1.75, "Liew et al.": 5e9}
    )

    def verdicts(d2: float) -> list[str | None]:
        return [rule.verdict for rule in rules_of_thumb(2e12, d2, 1.75, 5e9)]

    assert verdicts(4e11) == ["upcycle", "silent", "upcycle", "scratch"]
    assert verdicts(2.1e12) == ["upcycle", "scratch", "upcycle", "scratch"]
    assert verdicts(2.3e12) == ["upcycle", "scratch", "scratch", "scratch"]
    assert verdicts(2.4e12) == ["scratch"] * 4
    assert verdicts(1e9) == ["upcycle", "silent", "upcycle", "upcycle"]
    assert {rule.verdict for rule in rules_of_thumb(2e12, None, 1.75, 5e9)} == {None}


def test_rules_that_turn_far_outside_the_data_name_no_number():
    rules = rules_of_thumb(2e12, 1e11, 1.75, 5e9, (144e6, 73.8e9))
    assert [rule.says for rule in rules] == [
        "upcycle, as 100B tokens are below its turn (far above the data)",
        "silent, as 100B tokens are below its turn (far above the data)",
        "upcycle, as 100B tokens are below its turn (far above the data)",
        "scratch, as 100B tokens are at or above its turn (5B)",
    ]


# the recommendation


def best_of_three(laws: ThreeLaws, n1: float, d1: float, d2: float) -> str:
    losses = {
        "upcycle": laws.upcycled.loss(D1=d1, D2=d2, N1=n1),
        "scratch": laws.need("moe").loss(D=d2, N1=n1),
        "dense": laws.need("dense").loss(D=d1 + 1.75 * d2, N1=n1),
    }
    return min(losses, key=lambda option: float(losses[option]))


@pytest.mark.parametrize(("n1", "d1"), [(7e9, 2e12), (1e9, 2e10), (1e8, 1e10)])
def test_the_best_option_of_every_budget(laws, n1, d1):
    """Stretches follow each other from 1e4 to 1e18 tokens, and names the option of least loss."""
    stretches = best_by_budget(laws, n1, d1)
    assert (stretches[0].low, stretches[-1].high) == (1e4, 1e18)
    assert [each.high for each in stretches[:-1]] == [each.low for each in stretches[1:]]
    for each in stretches:
        for d2 in (each.low * (1 + 1e-9), (each.low * each.high) ** 0.5, each.high * (1 - 1e-9)):
            assert best_of_three(laws, n1, d1, d2) == each.option


@pytest.mark.parametrize("d2", [3e8, 5e9, 7e9, 1e11])
def test_the_recommendation_is_the_least_loss_and_sure_in_95_percent(laws, d2):
    advice = advise(laws, 1e9, 1e10, tokens=d2, law_error=PAPER_ERROR)
    found = advice.recommendation
    assert found.option == best_of_three(laws, 1e9, 1e10, d2)
    losses = {OPTION_OF[each.what]: each for each in advice.losses if each.what in OPTION_OF}
    ordered = sorted(losses.values(), key=lambda each: each.loss)
    assert found.lead == pytest.approx(ordered[1].loss - ordered[0].loss)
    shares = [compare_options(ordered[0], other, PAPER_ERROR).share_with_error for other in ordered[1:]]
    assert found.share == min(shares)
    assert found.sure == (found.share >= 0.95)
    assert ("too close to call" in advice.statement) == (not found.sure)


def numbers_of_tokens(text: str) -> list[float]:
    """Every number with a letter of thousands in a text."""
    return [quantity(f"{n}{letter}", "x") for n, letter in re.findall(r"\b([0-9.]+)([kMBT])\b", text)]


def test_no_root_or_rule_is_told_far_outside_the_data(laws, llama):
    """Data end at 73.8B tokens: but for what was asked (D1 = 2T), no statement names tokens beyond ten times that."""
    texts = [llama.statement, *(each.statement for each in llama.thresholds), *(r.says for r in llama.rules_of_thumb)]
    told = [tokens for text in texts for tokens in numbers_of_tokens(text) if tokens != 2e12]
    assert told
    assert max(told) <= 738.2e9
    assert any(root > 1e12 for each in llama.thresholds for root in each.roots)  # the data of the answer have them


# the run worth making


@pytest.mark.parametrize(("n1", "d1", "d2"), [(1e9, 1e10, 2e10), (1e9, 1e10, 6e9), (7e9, 2e12, 1e12)])
def test_the_run_tells_what_it_says(laws, n1, d1, d2):
    """Each draw taken for the truth, its run measured with noise, the difference guessed from the measurement."""
    found = settling_run(laws, d1, d2, n1, noise=0.004, flops_per_second=400e12)
    assert found is not None
    run = found.run
    assert run.flops <= 0.1 * 6 * 1.75 * n1 * d2 * (1 + 1e-9)
    assert run.d2 >= LEAST_TOKENS_PER_PARAMETER * run.n1 * (1 - 1e-9)
    trained = 6 * 1.75 * run.n1 * run.d2 + (6 * run.n1 * run.d1 if run.trains_dense else 0)
    assert trained == pytest.approx(run.flops)
    assert found.gpu_hours == pytest.approx(run.flops / 400e12 / 3600)
    if run.kind == "scratch":
        loss = laws.need("moe").loss_draws(D=run.d2, N1=run.n1)
    else:
        loss = laws.upcycled.loss_draws(D1=run.d1, D2=run.d2, N1=run.n1)
    gap = laws.upcycled.loss_draws(D1=d1, D2=d2, N1=n1) - laws.need("moe").loss_draws(D=d2, N1=n1)
    measured = loss + 0.004 * np.random.default_rng(0).standard_normal((500, len(loss)))
    slope, offset = np.polyfit(measured.ravel(), np.tile(gap, 500), 1)
    left = np.tile(gap, 500) - slope * measured.ravel() - offset
    assert found.spread_before == pytest.approx(gap.std())
    assert left.std() == pytest.approx(found.spread_after, rel=0.02)
    assert 1 - left.var() / gap.var() == pytest.approx(found.told, abs=0.02)
    assert found.lower_speaks_for == ("upcycle" if slope > 0 else "scratch")
    if found.turning_loss is not None:
        assert slope * found.turning_loss + offset == pytest.approx(0, abs=0.1 * gap.std())


def test_a_run_at_n1_is_taken_when_it_tells_as_much(laws):
    rich = settling_run(laws, 1e10, 1e12, 1e9, noise=0.015, flops_per_second=4e14)
    assert rich is not None
    assert rich.run.n1 == 1e9
    poor = settling_run(laws, 1e10, 1e9, 1e9, noise=0.015, flops_per_second=4e14)
    assert poor is not None
    assert poor.run.n1 < 1e9


def test_no_draws_no_run(laws):
    assert settling_run(laws.without_draws(), 1e10, 1e10, 1e9, noise=0.004, flops_per_second=4e14) is None


# JSON, words, command line


def small_laws() -> ThreeLaws:
    """Laws of tokens alone, as of a sweep at one size, without a dense law."""
    values = {"A": 16.3, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "E": 1.5}
    box = {"D1": (1e8, 1e9), "D2": (1e8, 1e9), "N1": (1e8, 1e8)}
    moe = Curve(
        get_law("power_in_tokens"), {"A": 32.0, "alpha": 0.161, "E": 1.7}, None, {"D": (1e8, 2e9), "N1": (1e8, 1e8)}
    )
    upcycled = Curve(get_law("multiplicative"), values, None, box)
    return ThreeLaws(None, moe, upcycled, 4, 1, "a sweep at one size", rounded=False, paired=False)


def test_json_is_strict_whatever_is_missing(laws):
    cases = [
        advise(laws, 1e8, 1e9),  # D* does not exist
        advise(laws, 7e10, 1e13, gpu_hours=1e6, law_error=PAPER_ERROR),
        advise(laws.without_draws(), 1e9, 1e10, tokens=1e10),
        advise(small_laws(), 1e8, 1e9, tokens=1e9),
        advise(small_laws(), 1e8, 1e9),
    ]
    documented = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    for advice in cases:
        data = json.loads(json.dumps(advice.to_json(), allow_nan=False))
        assert set(data) == documented
        assert data["verdict"] in ("upcycle", "scratch", "too close to call", "depends on the budget")
        assert "rows" not in str(data["losses"])


def test_laws_of_one_size_without_a_dense_law(laws):
    advice = advise(small_laws(), 1e8, 1e9, tokens=1e9)
    assert {each.what for each in advice.losses} == {UPCYCLED, SCRATCH, SCRATCH_PAID, SCRATCH_D1}
    assert advice.overtakes_dense is None
    assert advice.compute_optimal is None
    assert any("No compute-optimal D2" in note for note in advice.notes)
    assert any("no bands" in note for note in advice.notes)
    assert advice.laws.hold_for_this_mixture


@pytest.mark.slow
def test_the_pages_examples_are_what_the_commands_print(capsys):
    """docs/advice.md is renewed by pasting the commands' output."""
    examples = re.findall(r"^```\n\$ upcycle (advise .*?)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert ["--full" in command for command, _ in examples] == [False, False, True]
    for command, output in examples:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out == output


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--n1 1B --d1 10B",
        "--n1 7B --d1 2T --flops 1e22 --n-expert 16 --top-k 1",
        "--n1 15M --d1 200M --gpu-hours 2e-4 --flops-per-second 200T",
        "--n1 70B --d1 15T",
        "--n1 70B --d1 15T --gpu-hours 1e6 --n-expert 64 --top-k 4",
        "--n1 1B --d1 73B --tokens 400B",
    ],
)
def test_the_command_answers_in_words_and_as_json(words, capsys):
    """Five lines that fit a page, unless asked for all; the same five lead the full answer and are in the JSON."""
    assert main(["advise", *words.split()]) == 0
    short = capsys.readouterr().out
    starts = [line.split(":")[0].split(",")[0] for line in short.splitlines()]
    assert starts == ["Recommendation", "Expected loss", "Flips", "Confidence", "Warning"]
    assert max(len(line) for line in short.splitlines()) <= 118
    assert "..." not in short
    assert main(["advise", *words.split(), "--full"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(short)
    for title in (
        "By budget",
        "Where the answer flips",
        "How far outside the data",
        "What run would tell most",
        "Rules of",
    ):
        assert title in text
    assert max(len(line) for line in text.splitlines()) <= 118
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert main(["advise", *words.split(), "--json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["statement"] + "\n" == short


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--n1 7X --d1 2T", "--n1: `7X`"),
        ("--n1 7 --d1 2T", "is a letter missing"),
        ("--n1 7B --d1 nan", "--d1: `nan`"),
        ("--n1 7B --d1 2T --tokens 0", "--tokens: `0`"),
        ("--n1 7B --d1 2T --gpu-hours 1e-9", "at least 1000"),
        ("--n1 7B --d1 2T --top-k 9", "8 experts cannot use 9"),
        ("--n1 7B --d1 2T --fits nowhere", "nowhere holds no fits"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["advise", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> Path:
    """A folder of fits to losses of Table 2 with noise, at two sizes."""
    folder, truth, noise = tmp_path_factory.mktemp("fits"), published(draws=0), np.random.default_rng(0)
    tokens = 0.577e9 * 2.0 ** np.arange(4)
    D, N = (grid.ravel() for grid in np.meshgrid(tokens, [1.5e7, 9.8e7, 5e8]))
    for lineage in ("dense", "moe"):
        losses = truth.need(lineage).loss(D=D, N1=N) + 0.001 * noise.standard_normal(len(D))
        found = fit(get_law("chinchilla"), {"D": D, "N": N, "loss": losses}, fixed={"E": 0.165}, draws=20)
        write_fit(replace(found, lineage=lineage), folder / f"{lineage}.json")
    D1, D2, N1 = (grid.ravel() for grid in np.meshgrid(tokens, tokens, [1.5e7, 9.8e7, 5e8]))
    losses = truth.upcycled.loss(D1=D1, D2=D2, N1=N1) + 0.001 * noise.standard_normal(len(D1))
    found = fit(get_law("joint"), {"D1": D1, "D2": D2, "N1": N1, "loss": losses}, fixed={"E": 0.165}, draws=20)
    write_fit(replace(found, lineage="up", n_expert=8, top_k=2), folder / "joint.json")
    return folder


def test_advice_from_fits(fits, capsys):
    """From fits: their draws, their leave-one-out error, near the answer of the laws that the losses came from."""
    assert main(["advise", "--n1", "100M", "--d1", "4B", "--tokens", "1B", "--fits", str(fits), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["laws"]["draws"] == 20
    assert not data["laws"]["rounded"]
    assert data["laws"]["error"] == pytest.approx(json.loads((fits / "joint.json").read_text())["loo_rms"])
    truth = published(draws=0)
    assert data["losses"][0]["loss"] == pytest.approx(float(truth.upcycled.loss(D1=4e9, D2=1e9, N1=1e8)), abs=0.002)
    assert data["verdict"] == "upcycle"
