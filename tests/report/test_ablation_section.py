"""The report's section on ablations, the captions and summary.txt give one and the same sentence."""

import dataclasses

import pytest
from page_structure import Structure, text_of

from upcycle.paper.draw import draw
from upcycle.paper.observations import observe
from upcycle.report.background import Background
from upcycle.report.page import render, summary_text

pytestmark = pytest.mark.slow
FIGURES = {"figure9": {}, "figure10": {"sweeps": ["repetition_same", "repetition_disjoint"]}}


def test_each_ablation_has_a_sentence_in_its_section_its_caption_and_the_summary(ablations, tmp_path):
    for name, options in FIGURES.items():
        draw(name, ablations, tmp_path / "figures" / name, **options)
    tokens = ablations.runs.with_name("tokens")
    background = Background(study="ablations", out=tmp_path, tokens=tokens, figures=FIGURES)
    html = render(ablations, background)
    text, structure = text_of(html), Structure()
    structure.feed(html)
    summary = summary_text(ablations, background).splitlines()
    for name, label, line in zip(FIGURES, ("Figure 9", "Figure 10"), summary[1:], strict=True):
        observation = observe(ablations, FIGURES)[name]
        sentence = f"{label}: {observation.finding.sentence}"
        assert line == sentence
        assert text.count(observation.finding.sentence) == 2  # the section and the caption
        assert text.count(observation.claim) == 2
    assert "ablations" in structure.ids
    assert all(f"#figure-{name}" in structure.addresses for name in FIGURES)
    without = render(ablations, dataclasses.replace(background, figures={}))
    assert 'id="ablations"' not in without
