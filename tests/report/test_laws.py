"""Cards of the laws: the best one is open, and what a decision does not use is not called unidentifiable."""

import dataclasses
import re

import pytest
import table_two

from upcycle.paper.render import reasons
from upcycle.report.laws import RELIABLE, best_fit, cards, deciding, predicts_inside
from upcycle.report.page import render

OPEN = "not identifiable: E = 1 could be anything from 0 to 3"


def unidentifiable(inputs):
    """With laws from scratch, so that there are thresholds; all fits say that they are not identifiable."""
    own = {
        lineage: table_two.fit_result(
            "power_in_tokens", {"A": 21.0, "alpha": 0.15, "E": 1.0}, inputs.losses[inputs.losses["lineage"] == lineage]
        )
        for lineage in ("dense", "moe")
    }
    inputs = dataclasses.replace(inputs, fits={**inputs.fits, **own})
    fits = {name: dataclasses.replace(fit, identifiable=False, statement=OPEN) for name, fit in inputs.fits.items()}
    return dataclasses.replace(inputs, fits=fits)


def opened(page):
    return re.findall(r'<details class="law" open>\n<summary><b>([^<]+)</b>', page)


def test_the_law_of_the_smallest_leave_one_out_error_is_open_and_no_other(study):
    inputs, background = study
    errors = {name: fit.loo_rms for name, fit in inputs.fits.items() if fit.by is None and fit.lineage == "up"}
    best = min(errors, key=errors.get)
    assert best_fit(inputs, inputs.grid()) == best
    assert opened(render(inputs, background)) == [best.replace("_", " ")]
    other = max(errors, key=errors.get)
    changed = {**inputs.fits, other: dataclasses.replace(inputs.fits[other], loo_rms=errors[best] / 2)}
    assert best_fit(dataclasses.replace(inputs, fits=changed), inputs.grid()) == other
    blind = {name: dataclasses.replace(fit, loo_rms=None) for name, fit in inputs.fits.items()}
    assert best_fit(dataclasses.replace(inputs, fits=blind), inputs.grid()) is None


def test_only_laws_that_decide_are_called_not_identifiable(study):
    inputs = unidentifiable(study[0])
    used = deciding(inputs)
    assert used
    assert set(used) < set(inputs.fits)
    for name, card in zip(inputs.fits, cards(inputs, inputs.grid()), strict=True):
        assert (card["badge"] == "not identifiable") == (name in used)
        assert ("not identifiable" in card["statement"]) == (name in used)
        assert "E = 1 could be anything from 0 to 3" in card["statement"]
    without = {name: fit for name, fit in inputs.fits.items() if name not in ("dense", "moe")}
    alone = dataclasses.replace(inputs, fits=without)
    assert deciding(alone) == ()
    assert "not identifiable" not in render(alone, study[1])


def test_predictions_are_reliable_where_the_error_is_near_the_noise(study):
    inputs, background = study
    fit = inputs.fits["multiplicative"]
    noise = inputs.noise.deviation
    near, far = (dataclasses.replace(fit, loo_rms=factor * RELIABLE * noise) for factor in (0.99, 1.01))
    assert predicts_inside(inputs, near).startswith("Predictions inside the grid are reliable: the leave-one-out error")
    assert predicts_inside(inputs, far) == ""
    single = dataclasses.replace(inputs, losses=inputs.losses[inputs.losses["seed"] == 0])
    assert single.noise is None
    assert predicts_inside(single, near) == ""
    doubted = unidentifiable(dataclasses.replace(inputs, fits={**inputs.fits, "multiplicative": near}))
    (upcycled, *_) = deciding(doubted)
    better = {**doubted.fits, upcycled: dataclasses.replace(doubted.fits[upcycled], loo_rms=near.loo_rms)}
    page = render(dataclasses.replace(doubted, fits=better), background)
    assert f"Law of fit <code>{upcycled}</code>: predictions inside the grid are reliable" in page


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (OPEN, "E = 1 could be anything from 0 to 3"),
        ("identifiable: 25 points", "identifiable: 25 points"),
        (
            "not identifiable: 2 of 5 separate fits are not; group 1 is not identifiable: E = 0 (nothing shared)",
            "2 of 5 separate fits leave parameters open; group 1: E = 0 (nothing shared)",
        ),
        (
            "not identifiable: its points are parameters of fits that are not",
            "its points are parameters that the losses leave open",
        ),
    ],
)
def test_what_losses_leave_open_is_said_without_the_word(statement, words):
    assert reasons(statement) == words
