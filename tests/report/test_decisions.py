"""The section that says what to do shows the thresholds of the study's own laws, in words and in a table."""

import dataclasses

import pytest
import table_two

from upcycle.decisions.allocation import upcycled_bands
from upcycle.decisions.thresholds import NEAR, d_star, threshold_d2
from upcycle.paper.three_laws import three_laws
from upcycle.report.decisions import decisions
from upcycle.report.page import environment
from upcycle.study.spec import short_count


@pytest.fixture(scope="module")
def study():
    return table_two.inputs()


@pytest.fixture(scope="module")
def section(study):
    return decisions(study)


def html(content, *, simulated=False):
    template = environment().get_template("decisions.html.j2")
    return template.render(decisions=content, study="small", simulated=simulated)


def test_the_page_with_sliders_is_named_where_losses_were_measured(section):
    command = "upcycle page --study small --out advisor.html"
    assert command in html(section)
    assert command not in html(section, simulated=True)


def test_the_table_holds_the_thresholds_of_every_size_fitted(study, section):
    three = three_laws(study)
    assert [row["N1"] for row in section["rows"]] == [short_count(size) for size in table_two.SIZES]
    for cells, size, d1 in zip(section["rows"], table_two.SIZES, table_two.LONGEST, strict=True):
        equal, sunk = d_star(three, size), threshold_d2(three, size, d1)
        if equal.roots:
            assert cells["D* (D1 = D2)"].startswith(f"{short_count(equal.roots[0])} [")
            assert cells["D* beyond the data"] == "within"
        else:
            assert (cells["D* (D1 = D2)"], cells["D* beyond the data"]) == ("none: upcycling", "–")
        assert cells["D1"] == short_count(d1)
        low, high = sunk.band
        assert cells["D2, dense cost sunk"] == (
            f"{short_count(sunk.roots[0])} [{short_count(low)}, {short_count(high)}]"
        )
        assert (
            cells["D2, dense cost paid"] == "none: training from scratch"
        )  # the roots lie at a thousand times the data
        assert cells["compute-optimal D2"].startswith(short_count(upcycled_bands(three, d1, size).d2))
    assert [not d_star(three, size).roots for size in table_two.SIZES] == [True, True, True, False, False]


def test_the_sentences_are_of_the_largest_size(study, section):
    three = three_laws(study)
    sunk = threshold_d2(three, table_two.SIZES[-1], table_two.LONGEST[-1])
    words = " ".join(section["sentences"])
    assert f"upcycling is ahead below D2 = {short_count(sunk.roots[0])} [" in section["sentences"][0]
    assert "73.8B tokens" in section["sentences"][0]
    assert (
        "Dense cost paid: if training from scratch also gets the dense model's FLOPs, training from scratch is" in words
    )
    none = d_star(three, table_two.SIZES[-1]).shares["none"]
    assert none > 0
    assert f"{100 * none:.0f} % of the draws have no crossing" in section["sentences"][2]
    assert "These crossings lie within the range of the data." in words


def test_the_page_shows_table_sentences_and_caveats(section):
    page = html(section)
    assert page.count("<tr>") == 1 + len(table_two.SIZES)
    assert "also gets the dense model&#39;s FLOPs" in page
    assert f"more than {NEAR:g} times" in page
    assert "<li>Laws used: upcycled of fit <code>joint</code>, from scratch of fit <code>scratch</code>.</li>" in page


def test_a_missing_fit_is_named_in_one_sentence(study):
    without = {name: fit for name, fit in study.fits.items() if name != "scratch"}
    content = decisions(dataclasses.replace(study, fits=without))
    assert "no law of MoEs trained from scratch: add a fit of law `chinchilla`" in content["missing"]
    page = html(content)
    assert page.count("<p>") == 1
    assert "<table" not in page
    assert decisions(dataclasses.replace(study, fits={})) is None


def test_one_size_has_no_compute_optimum_and_says_how_far_it_is():
    content = decisions(table_two.one_size())
    assert "compute-optimal D2" not in content["rows"][0]
    words = " ".join(content["sentences"])
    assert "D* lies 1.4 times beyond the data; " in words
    assert "trust it less than its interval suggests" in words
    assert "[" not in words  # no draws, no intervals


def test_crossings_far_from_the_data_decide_nothing(study):
    """Who is ahead is said of the data's surroundings, even where a crossing lies below them."""
    fit, scratch = study.fits["joint"], study.fits["scratch"]
    far = [1e15, 2e15]
    groups = [{**group, "box": {**group["box"], "D": far}} for group in scratch.groups]
    moved = {
        **study.fits,
        "joint": dataclasses.replace(fit, box={**fit.box, "D1": far, "D2": far}),
        "scratch": dataclasses.replace(scratch, groups=groups),
    }
    row = decisions(dataclasses.replace(study, fits=moved))["rows"][-1]
    assert d_star(three_laws(study).without_draws(), table_two.SIZES[-1]).roots[0] < far[0] / NEAR
    assert row["D* (D1 = D2)"] == "none: upcycling"  # beyond the second root
