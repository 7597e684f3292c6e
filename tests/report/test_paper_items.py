"""The page says of every numbered item of the paper whether this study has it, and of what losses."""

import dataclasses
import re
from pathlib import Path

import pytest

from upcycle.report.page import render
from upcycle.report.paper_items import DRAWING, not_run, paper_items

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def items(study):
    return {item.label: item for item in paper_items(*study)}


def test_the_items_are_those_of_the_index(items):
    """docs/paper.md lists the paper's items; of its sections the page has those that name a law."""
    index = re.findall(
        r"^\| ((?:Equation|Figure|Table|Requirement) \d+) \|", (ROOT / "docs/paper.md").read_text(), re.M
    )
    assert [each for each in items if not each.startswith("Section")] == sorted(
        index,
        key=lambda each: (("Figure", "Table", "Equation", "Requirement").index(each.split()[0]), int(each.split()[1])),
    )
    assert {each for each in items if each.startswith("Section")} == {"Section C.3", "Section E.3"}


def test_what_the_study_has_is_real_and_the_rest_is_not_run(study, items):
    inputs, background = study
    have = {"Figure 3", "Table 1", "Equation 4", "Equation 5", "Equation 6", "Equation 15"}
    have |= {fit.label for fit in inputs.fits.values()} & set(items)
    assert all(items[label].state == "real" for label in have)
    for label in (DRAWING, "Figure 7", "Table 7", "Equation 11", "Requirement 4"):
        assert (items[label].state, items[label].link) == ("not run", "")
    fewer = dataclasses.replace(background, figures={}, tables=())
    without = {item.label: item.state for item in paper_items(dataclasses.replace(inputs, fits={}), fewer)}
    assert without["Figure 3"] == without["Table 1"] == without["Equation 8"] == without["Equation 13"] == "not run"
    assert without["Equation 4"] == "real"


@pytest.mark.parametrize(
    ("change", "state"), [({"simulated": 1}, "rehearsed"), ({"source": "a table"}, "real, imported")]
)
def test_losses_of_a_law_are_a_rehearsal_and_those_of_others_are_imported(study, change, state):
    inputs, background = study
    found = paper_items(dataclasses.replace(inputs, losses=inputs.losses.assign(**change)), background)
    assert {item.state for item in found} == {state, "not run"}


def test_every_item_is_named_once_and_leads_to_its_place(study, items):
    page = render(*study)
    (table,) = re.findall(r'<table class="items">.*?</table>', page, re.DOTALL)
    for label, item in items.items():
        assert (f'<th scope="row">{label}</th>' in table) == bool(item.link)
    rows = dict(re.findall(r'<tr class="no"><th scope="row">(\w+)</th><td class="text">([^<]*)</td>', table))
    assert rows == dict(not_run(list(items.values())))
    assert "2" in rows["Figures"].split(", ")
    assert all(f'id="{link}"' in page for link in re.findall(r'href="#([^"]+)"', table))
