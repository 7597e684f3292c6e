"""The first screen: one sentence, one picture and three numbers, of whatever kind the study is."""

import dataclasses
import re

import pytest
from page_structure import text_of

from upcycle.paper.ablations import Observation
from upcycle.paper.comparisons import Finding, clear_difference, leads, tally
from upcycle.paper.draw import draw
from upcycle.report.findings import findings
from upcycle.report.first_screen import NUMBERS, answer, facts
from upcycle.report.page import render


def seen(*verdicts, sentence="It changes by +0.1 ± 0.2."):
    names = ("figure7", "figure8", "figure9", "figure10", "learning_rates")
    return {
        name: Observation("A claim.", Finding(sentence, "", each)) for name, each in zip(names, verdicts, strict=False)
    }


def first_screen(page):
    return re.search(r'<header class="first.*?</header>', page, re.DOTALL)[0]


def test_the_first_screen_holds_a_sentence_a_picture_and_three_numbers(study, tmp_path):
    inputs, background = study
    draw("overview", inputs, tmp_path / "figures" / "overview")
    draw("figure4", inputs, tmp_path / "figures" / "figure4")
    figures = {"figure4": {}, "overview": {}}
    changed = dataclasses.replace(background, out=tmp_path, figures=figures, tables=())
    page = render(inputs, changed)
    head = first_screen(page)
    assert head.count("<svg") == head.count("<figure") == 1
    assert 'id="figure-overview"' in head  # not the study's first figure
    assert page.count('id="figure-overview"') == page.count('id="figure-figure4"') == 1
    assert head.count("<dt>") == NUMBERS == 3
    lede = re.search(r'<p class="lede">(.*?)</p>', head)[1]
    assert text_of(lede).count(". ") == 0
    assert "<table" not in head
    assert "<nav" not in head


def test_the_answer_counts_the_points_that_upcycling_wins(study):
    inputs, _ = study
    grid = inputs.grid()
    bound = clear_difference(inputs.noise)
    won = [tally(leads(inputs, grid, dense_tokens_count=both), bound)["ahead"] for both in (False, True)]
    sentence = answer(inputs, grid, {}, overview=True)
    assert f"(D2) at {won[0]} of 25 points" in sentence
    assert f"(D1 + D2) at {won[1]} of 4 points." in sentence
    shown = [fact.value for fact in facts(inputs, grid, {}, overview=True)]
    best = min(fit.loo_rms for fit in inputs.fits.values() if fit.by is None and fit.lineage == "up")
    assert shown[:2] == [f"{won[0]} of 25", f"{won[1]} of 4"]
    assert float(shown[2]) == pytest.approx(best, rel=0.05)


def test_a_study_of_ablations_answers_with_what_they_settle(study):
    inputs, grid = study[0], study[0].grid()
    several = seen("clear", "clear", "against", "open", "part")
    sentence = answer(inputs, grid, several, overview=False)
    assert sentence == (
        "Of the claims behind the paper's ablations these losses support Figure 7 and Figure 8; "
        "they contradict Figure 9; they do not settle Figure 10 and learning rates."
    )
    assert facts(inputs, grid, several, overview=False)[0].value == "3 of 5"
    assert answer(inputs, grid, several, overview=True).startswith("Upcycling beats")


def test_one_observation_is_the_answer_without_its_measured_differences(study):
    inputs, grid = study[0], study[0].grid()
    one = seen("clear", sentence="A (−0.01 ± 0.02) wins (as +0.1 ± 0.1 nats (clear) shows), drop (shared) loses. More.")
    assert answer(inputs, grid, one, overview=False) == "A wins, drop (shared) loses."


def test_without_anything_from_scratch_the_first_finding_is_the_answer(study):
    inputs, _ = study
    alone = dataclasses.replace(inputs, losses=inputs.losses[inputs.losses["lineage"] == "up"])
    assert answer(alone, alone.grid(), {}, overview=True) == findings(alone)[0].sentence
    assert len(facts(alone, alone.grid(), {}, overview=True)) == NUMBERS
