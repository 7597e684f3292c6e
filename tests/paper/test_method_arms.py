"""Upcycling methods compared on losses whose differences are known: what is there is found, what is not is noise."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from simulated_methods import EFFECTS, NOISE

from upcycle.errors import UserError
from upcycle.paper.method_arms import MethodArms, arm_names, compare_methods, router_curves
from upcycle.paper.method_findings import method_findings, see_methods
from upcycle.paper.tables_methods import methods_compared, methods_law

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(methods_inputs):
    return compare_methods(methods_inputs)


def changed(inputs, **columns):
    """The same inputs with other losses.csv columns."""
    return dataclasses.replace(inputs, losses=inputs.losses.assign(**columns))


def test_it_compares_what_all_methods_have(found):
    """Two D1, three D2, three seeds of four methods; the rest of the grid is of two methods only."""
    assert found.arms == ("copy", "drop", "noise", "reinit")
    assert (len(found.D1), len(found.D2), found.seeds, len(found.rows)) == (2, 3, 3, 4 * 18)
    assert len(found.every) > len(found.rows)
    assert found.losses().shape == (3, 4)


def test_known_differences_are_found_and_no_others(found):
    """Within three standard errors of the truth, though seeds differ by ten times as much."""
    differences = found.differences(found.losses())
    for arm, difference in differences.items():
        assert difference.nats == pytest.approx(EFFECTS.get(arm, 0.0), abs=3 * NOISE * (2 / 18) ** 0.5)
        assert difference.error < 2 * NOISE * (2 / 18) ** 0.5
    assert {arm for arm, difference in differences.items() if difference.clear} == set(EFFECTS)


def test_sentences_and_table_say_what_was_found(methods_inputs):
    losses, interactions, routers = method_findings(methods_inputs)
    assert losses.sentence.startswith("Drop (−0.0")
    assert "ends with a lower loss than copying; reinit (+0.0" in losses.sentence
    assert losses.sentence.endswith(" with a higher one; the other difference is within noise.")
    assert losses.verdict == "part"
    assert (interactions.verdict, "is not shown: every difference" in interactions.sentence) == ("open", True)
    assert "1 method of 4 leaves experts without a token in a batch, at most 6.2 %" in routers.sentence
    assert str(see_methods(methods_inputs)).startswith("The paper: noise on the experts' weights")
    table = methods_compared(methods_inputs)
    assert table["against copying"].to_dict() == {
        "copy": "–", "drop": "lower", "noise": "within noise", "reinit": "higher"
    }  # fmt: skip
    assert (table["minus copy's low"] < table["minus copy's"]).sum() == 3
    assert "active parameters, N2" not in table  # equal for all


def test_equal_methods_are_within_noise(methods_inputs, found):
    losses = methods_inputs.losses["loss"] - [EFFECTS.get(method, 0.0) for method in methods_inputs.losses["method"]]
    first = method_findings(changed(methods_inputs, loss=losses))[0]
    assert first.sentence == (
        "That a method ends with another loss than copying is not shown: all 3 differences are within noise."
    )
    assert first.verdict == "open"


def test_noise_alone_makes_a_difference_clear_in_one_study_of_twenty():
    """Of 400 studies of ten equal methods with three seeds, at most 5 % (and chance) show any."""
    rng, arms = np.random.default_rng(3), [f"m{k}" for k in range(10)]
    rows = pd.DataFrame({"arm": arms, "dense_parent": "decay-dense-a"})
    study = MethodArms(tuple(arms), rows, rows)
    shown = 0
    for _ in range(400):
        table = pd.DataFrame(rng.standard_normal((3, 1)) + 0.1 * rng.standard_normal((3, 10)), columns=arms)
        shown += any(difference.clear for difference in study.differences(table).values())
    assert shown < 0.09 * 400


def test_a_method_with_parents_of_its_own_is_compared_by_its_own_spread():
    """Its differences vary more: they neither widen the others' intervals nor borrow theirs."""
    arms = ["copy", "drop", "noise", "expand"]
    rows = pd.DataFrame({"arm": arms, "dense_parent": ["a", "a", "a", "b"]})
    rng = np.random.default_rng(0)
    table = pd.DataFrame(4 + 0.001 * rng.standard_normal((3, 4)), columns=arms)
    without = MethodArms(tuple(arms), rows, rows).differences(table)
    table["expand"] += [0.1, 0.2, 0.3]
    differences = MethodArms(tuple(arms), rows, rows).differences(table)
    assert differences["drop"].bound == without["drop"].bound < 0.01
    assert differences["expand"].bound == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.05)
    assert not differences["expand"].clear


def test_an_interaction_of_a_known_size_is_found(methods_inputs, found):
    """Added to the slope of drop in ln D2 at the largest D1."""
    rows = methods_inputs.losses
    bent = (rows["method"] == "drop") & (rows["D1"] == found.D1[-1])
    losses = rows["loss"] + 0.03 * np.log(rows["D2"].clip(lower=1)) * bent
    inputs = changed(methods_inputs, loss=losses)
    compared = compare_methods(inputs)
    differences = compared.differences(compared.interactions())
    assert differences["drop"].nats == pytest.approx(0.03, abs=0.006)
    assert {arm for arm, difference in differences.items() if difference.clear} == {"drop"}
    assert "differs from copying's with drop (+0.0" in method_findings(inputs)[1].sentence


def test_one_seed_leaves_it_open(methods_inputs):
    one = dataclasses.replace(methods_inputs, losses=methods_inputs.losses[methods_inputs.losses["seed"] == 0])
    losses, interactions, _ = method_findings(one)
    assert losses.sentence.startswith("Each budget has one seed, so whether a method is better than copying is open")
    assert (losses.verdict, interactions.verdict) == ("open", "open")
    assert set(methods_compared(one)["against copying"]) == {"–", "one seed"}


def test_routers_and_experts_are_described_over_seeds(methods_inputs, found):
    curves = router_curves(methods_inputs, found)
    entropy, dead, distance = curves["reinit"].last()
    assert (round(entropy, 2), dead) == (0.5, pytest.approx(1 / 16))
    assert distance > curves["copy"].last()[2] + 0.9
    assert router_curves(changed(methods_inputs, simulated=1), found) == {}  # a rehearsal has no curves


def test_what_cannot_be_compared_is_refused(methods_inputs):
    rows = methods_inputs.losses

    def refused(chosen, message):
        with pytest.raises(UserError, match=message):
            compare_methods(dataclasses.replace(methods_inputs, losses=chosen))

    refused(rows[rows["method"] == "copy"], r"all upcycled runs are of one method \(copy\)")
    refused(rows[rows["method"] != "copy"], "no run of method `copy`")
    refused(rows.assign(lr=rows["lr"].where(rows["method"] != "drop", 1e-3)), r"differ in lr too \(.*0.001")
    seedless = rows[(rows["method"] != "drop") | (rows["D2"] != rows["D1"])]
    refused(seedless[(seedless["method"] == "drop") == (seedless["D1"] == seedless["D1"].max())], "no D1, D2 and seed")


def test_mixed_kernels_are_refused_by_name(methods_inputs):
    rows = methods_inputs.losses
    other = rows["kernels"].where(rows["method"] != "reinit", "attention=sdpa;layers=composed;torch=2.13.0+cpu")
    with pytest.raises(UserError, match=r"layers: composed in 18, native in \d+\).*--fresh` and 17 more"):
        methods_compared(changed(methods_inputs, kernels=other))


def test_arms_of_one_method_are_told_apart():
    rows = pd.DataFrame(
        [
            ("copy", "8x2", ""),
            ("copy", "8x2", "optimizer_state=copied"),
            ("drop", "8x2", "upcycling.share=0.5;upcycling.shared_indices=true"),
            ("drop", "8x2", "upcycling.share=0.5;upcycling.shared_indices=false"),
            ("fine_grained", "32x8", "moe.granularity=4"),
        ],
        columns=["method", "moe", "settings"],
    )
    assert arm_names(rows) == [
        "copy", "copy (optimizer state copied)", "drop (shared indices)", "drop (separate indices)", "fine grained"
    ]  # fmt: skip


def test_equation_8_by_method(methods_inputs, inputs):
    """Fits to the runs of one method; exponents differ where their intervals do not meet."""
    rows = methods_inputs.losses[methods_inputs.losses["lineage"] == "up"]
    fit = dataclasses.replace(inputs.fits["multiplicative"], identifiable=True)
    low = dataclasses.replace(
        fit,
        ids=rows.loc[rows["method"] == "drop", "id"].tolist(),
        parameters=fit.parameters | {"alpha3": fit.parameters["alpha3"] | {"value": 0.001}},
        intervals=fit.intervals | {"alpha3": [0.0, 0.002]},
    )
    copied = dataclasses.replace(fit, ids=rows.loc[rows["method"] == "copy", "id"].tolist())
    both = dataclasses.replace(methods_inputs, fits={"copy": copied, "drop": low, "all": fit})
    law = method_findings(both)[3]
    assert law.sentence == "By their 95 % intervals exponents of Equation 8 differ: α3 of drop is below that of copy."
    same = dataclasses.replace(both, fits={"copy": copied, "drop": dataclasses.replace(copied, ids=low.ids)})
    assert "is not shown: their 95 % intervals overlap" in method_findings(same)[3].sentence
    table = methods_law(both)
    assert (list(table.index), table.loc["drop", "α3 high"]) == (["copy", "drop"], 0.002)
    with pytest.raises(UserError, match="no fit of law `multiplicative` to the runs of one upcycling method"):
        methods_law(methods_inputs)
