"""Every sentence of the report is right for the smallest grids too, and where a sweep, seeds or fits are missing."""

import re

import pytest
import simulated_sweep
from page_structure import MISSPELT, Structure, text_of

from upcycle.laws.fit import run_fit
from upcycle.report.background import Background
from upcycle.report.findings import headline
from upcycle.report.page import render

B = simulated_sweep.BUDGETS
LAWS = {
    "multiplicative": {"law": "multiplicative"},
    "multiplicative_no_interaction": {"law": "multiplicative_no_interaction"},
    "power_by_D1": {"law": "power", "by": "D1"},
}


def upcycled(D1, D2, **more):
    return {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_tokens": D1, "tokens": D2, **more}


def sweeps(D1, D2, *, dense=True, moe=True, seeds=False):
    budgets = sorted({*D1, *D2})
    found = {
        "dense": {"kind": "dense", "model": "tiny", "tokens": budgets} if dense else None,
        "moe": {"kind": "moe", "model": "tiny", "moe": "8x2", "tokens": budgets} if moe else None,
        "upcycled": upcycled(D1, D2),
        "seeds": upcycled(D1[:1], D2[:1], seed=[0, 1]) if seeds else None,
    }
    return {name: sweep for name, sweep in found.items() if sweep is not None}


STUDIES = {
    "one point": (sweeps(B[:1], B[:1]), True),
    "one point, seeds": (sweeps(B[:1], B[:1], seeds=True), False),
    "one D1": (sweeps(B[:1], B[:3], seeds=True), False),
    "one D2": (sweeps(B[:3], B[:1]), False),
    "two by two": (sweeps(B[:2], B[:2], seeds=True), True),
    "no dense sweep": (sweeps(B[:2], B[:2], dense=False), False),
    "no mixtures from scratch": (sweeps(B[:2], B[:2], moe=False, seeds=True), True),
    "upcycled alone": (sweeps(B[:2], B[:2], dense=False, moe=False), False),
}


@pytest.fixture(scope="module", params=STUDIES)
def small(request, tmp_path_factory):
    """(name, inputs, text of the page, its structure) of a study, with fits or without."""
    planned, fitted = STUDIES[request.param]
    results = tmp_path_factory.mktemp("small")
    plan = simulated_sweep.write_results(results, fits=(), sweeps=planned)
    selections = {name: (spec, ["upcycled"]) for name, spec in LAWS.items()} if fitted else {}
    if fitted and "moe" in planned:
        selections["scratch"] = ({"law": "power_in_tokens", "by": "lineage", "shared": ["E"]}, ["dense", "moe"])
    for name, (spec, sweep) in selections.items():
        run_fit(results / "losses.csv", select={"sweep": sweep}, out=results / "fits" / f"{name}.json", **spec)
    inputs = simulated_sweep.read_inputs(results, plan)
    html = render(inputs, Background(study="default", out=results, tokens=results / "tokens", title="Small"))
    structure = Structure()
    structure.feed(html)
    return request.param, inputs, text_of(html), structure


def test_no_sentence_is_of_another_number(small):
    _, inputs, text, _ = small
    for pattern in MISSPELT:
        assert not (found := re.search(pattern, text)), text[max(found.start() - 80, 0) : found.end() + 80]
    assert not re.search(r"\.\.|`", headline(inputs))


def test_ids_are_unique_and_links_resolve(small):
    _, _, _, structure = small
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)
    assert {link[1:] for link in structure.addresses if link.startswith("#")} <= set(structure.ids)


def test_what_was_compared_is_said_and_nothing_else(small):
    name, _, text, structure = small
    scratch = name not in ("no mixtures from scratch", "upcycled alone")
    assert ("Against the same mixture trained from scratch" in text) == scratch
    assert ("tokens D of training from scratch" in text) == (scratch or name == "no mixtures from scratch")
    assert ("the noise between seeds is unknown" in text.lower()) == ("seeds" not in STUDIES[name][0])
    assert "show the mean" not in text  # seeds are a sweep of their own
    assert ("decisions" in structure.ids) == STUDIES[name][1]
    if name == "one point":
        assert "upcycling wins at the one point" in text
        assert "The lead of upcycling over training from scratch on D2 tokens is +" in text
        assert "There are too few losses for a threshold." in text
        assert "not identifiable: 1 point for 5 parameters" in text
    if name == "two by two":
        assert re.search(r"on all tokens \(D1 \+ D2\), it .* at the one point", text)
        assert re.search(r"on D1 \+ D2 tokens is [+−][\d.]+ nats at D1 = 262k, D2 = 262k\.", text)
    if name == "no mixtures from scratch":
        assert "These fits do not give a threshold" in text
