"""The report of a study that begins with an imported checkpoint: one section more, none that is empty."""

import re
from dataclasses import replace

import own_model_sweep as own
import pytest
from page_structure import MISSPELT, Structure, text_of

from upcycle.decisions.advice.measured import advise_measured, find_rivals
from upcycle.decisions.advice.measured_words import recommendation
from upcycle.paper.draw import draw
from upcycle.report.background import Background
from upcycle.report.findings import findings, headline
from upcycle.report.page import render
from upcycle.study.spec import short_count

STUDIES = {
    "whole": {},
    "one budget": {"steps": (8,), "fits": {}},
    "one seed, no law": {"seeds": (0,), "fits": {}},
    "not trained on": {"continued": False, "fits": {"in_d2": {"law": "power", "select": {"sweep": "upcycled"}}}},
}


@pytest.fixture(scope="module", params=STUDIES)
def page(request, tmp_path_factory):
    """(name, inputs, the page, its structure)."""
    options = dict(STUDIES[request.param])
    fits = options.pop("fits", own.FITS)
    results = tmp_path_factory.mktemp("own-model")
    inputs = own.read_inputs(results, own.write_results(results, plan=own.plan_of(**options), fits=fits))
    figures = {"continued": {}} if inputs.rivals(inputs.grid()) else {}
    for name in figures:
        draw(name, inputs, results / "figures" / name)
    background = Background(study="mine", out=results, tokens=results / "tokens", figures=figures)
    html = render(inputs, background)
    structure = Structure()
    structure.feed(html)
    return request.param, inputs, text_of(html), structure


def test_the_page_is_whole_and_its_words_are_right(page):
    _, inputs, text, structure = page
    assert structure.open == []
    assert {link[1:] for link in structure.addresses if link.startswith("#")} <= set(structure.ids)
    for pattern in MISSPELT:
        assert not (found := re.search(pattern, text)), text[max(found.start() - 80, 0) : found.end() + 80]
    assert all(run_id in text for run_id in inputs.losses["id"])


def test_there_is_no_empty_section_and_nothing_of_the_dense_model_s_training(page):
    """No threshold against training from scratch, which was not run, and no token of a text that nobody has."""
    name, _, text, structure = page
    assert "decisions" not in structure.ids
    assert "These fits do not give a threshold" not in text
    assert "from scratch | " not in text.partition("The losses")[2].partition("Limits")[0]
    assert "repeats text that its dense parent has seen" not in text
    assert "D1 as stated by its owner" in text
    assert text.count("not identifiable") <= 3
    assert ("trained-on" in structure.ids) == (name != "not trained on")


def test_the_first_finding_is_the_recommendation_of_advise(page):
    name, inputs, text, _ = page
    if name == "not trained on":
        return
    (rivals,) = find_rivals(inputs.losses, inputs.fits)
    says = recommendation(advise_measured(rivals))
    assert findings(inputs)[0].sentence == says
    assert headline(inputs).startswith(says)
    assert text.count(says) >= 2
    assert "The dense model as it was imported has 2.950." in text
    assert ("By the laws in D2" in text) == (name == "whole")
    assert "Not measured here: the paper's Table 2" in text


def test_a_finding_without_seeds_is_open(page):
    name, inputs, _, _ = page
    verdicts = {"whole": "clear", "one budget": "clear", "one seed, no law": "open"}
    if name in verdicts:
        assert findings(inputs)[0].verdict == verdicts[name]


def test_sentences_of_several_dense_models_tell_their_d1(page, monkeypatch):
    name, inputs, _, _ = page
    found = inputs.rivals(inputs.grid())
    several = [replace(each, d1=factor * each.d1) for each in found for factor in (1, 2)]
    monkeypatch.setattr(type(inputs), "rivals", lambda self, grid: several)
    sentences = [finding.sentence for finding in findings(inputs) if finding.sentence.startswith("D1 = ")]
    assert [sentence.partition(": ")[0] for sentence in sentences] == [
        f"D1 = {short_count(each.d1)}" for each in several
    ]
    assert len(sentences) == (0 if name == "not trained on" else 2)
