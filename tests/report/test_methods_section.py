"""The report of a study of several upcycling methods has a section on them."""

import pytest
import simulated_methods

from upcycle.errors import UserError
from upcycle.paper.draw import draw, write_table
from upcycle.paper.method_findings import method_findings
from upcycle.report.background import Background
from upcycle.report.page import render

pytestmark = pytest.mark.slow


def test_each_question_has_a_sentence(tmp_path):
    """What was found of losses, interaction and routers; the figure's caption shows the first and the paper's claim."""
    simulated_methods.write_results(tmp_path)
    inputs = simulated_methods.read_inputs(tmp_path)
    draw("methods", inputs, tmp_path / "figures" / "methods")
    write_table("methods_compared", inputs, tmp_path / "tables" / "methods_compared")
    shown = {"figures": {"methods": {}}, "tables": ("methods_compared",)}
    page = render(inputs, Background(study="methods", out=tmp_path, tokens=tmp_path / "tokens", **shown))
    section = page.partition('<section id="methods">')[2].partition("</section>")[0]
    assert "<h2>Upcycling methods</h2>" in section
    found = method_findings(inputs)
    assert len(found) == 3
    for finding in found:
        assert finding.sentence.replace("'", "&#39;") in section
    caption = page.partition('<p class="caption">')[2].partition("</p>")[0]
    assert found[0].sentence.replace("'", "&#39;") in caption
    assert "The paper: noise on the experts" in caption
    assert '<section id="ablations">' not in page


def test_a_study_of_one_method_has_nothing_to_compare(study, tmp_path):
    with pytest.raises(UserError, match=r"all upcycled runs are of one method \(copy\), there is nothing to compare"):
        draw("methods", study[0], tmp_path / "methods")
