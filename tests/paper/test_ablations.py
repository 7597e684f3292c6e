"""Figures 7 to 11 and the tuning of learning rates: what is said follows from the losses, and turns with them."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
import simulated_ablations
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.paper import style
from upcycle.paper.observations import observe
from upcycle.paper.paired import Ablation
from upcycle.study import catalogue
from upcycle.study.check import check_names

pytestmark = pytest.mark.slow
OF_ABLATIONS = (*(f"figure{n}" for n in range(7, 12)), "learning_rates")


def changed(inputs, nats, **columns):
    """The inputs with the losses raised of the rows that have these values."""
    rows = inputs.losses
    chosen = pd.Series(True, rows.index)
    for name, value in columns.items():
        chosen &= rows["sweeps"].str.contains(value) if name == "sweeps" else rows[name] == value
    assert chosen.any()
    return dataclasses.replace(inputs, losses=rows.assign(loss=rows["loss"] + nats * chosen))


def seen(inputs, name, **options):
    return observe(inputs, {name: options})[name]


def drawn(inputs, name, **options):
    with style.context():
        figure = catalogue.find_item(name).load()(inputs, **options)
        figure.draw_without_rendering()
    return figure


def one_seed(inputs):
    return dataclasses.replace(inputs, losses=inputs.losses[inputs.losses["seed"] == 0])


def ablation_of(losses):
    """An ablation from losses [seeds][arms] of two arms at one point."""
    rows = [
        {"id": f"{seed}{arm}", "lineage": "up", "model": "m", "moe": "8x2", "D1": 1, "D": 1, "seed": seed, "loss": loss}
        for seed, arms in enumerate(losses)
        for arm, loss in enumerate(arms)
    ]
    names = ["ab"[int(row["id"][-1])] for row in rows]
    return Ablation.of(pd.DataFrame(rows), names, "ab", "sweep s")


def test_a_difference_has_the_standard_error_of_its_pairs():
    """With two arms the noise is that of the differences alone, however far seeds are apart."""
    difference = ablation_of([[1.0, 1.1], [5.0, 5.3], [3.0, 3.2]]).difference("b", "a")
    assert difference.nats == pytest.approx(0.2)
    assert difference.error == pytest.approx(0.1 / math.sqrt(3))  # deviation of 0.1, 0.3, 0.2 over root n
    assert difference.freedom == 2
    assert difference.bound == pytest.approx(4.303 * difference.error, rel=1e-3)  # t at 2 degrees
    assert not difference.clear
    assert str(difference) == "+0.200 ± 0.058 nats (within noise)"
    clear = ablation_of([[1.0, 1.2], [5.0, 5.21], [3.0, 3.19]]).difference("b", "a")
    assert clear.clear
    assert str(clear).endswith("(clear)")


def test_with_one_seed_nothing_is_clear():
    difference = ablation_of([[1.0, 9.0]]).difference("b", "a")
    assert (difference.error, difference.clear) == (None, False)
    assert "one seed" in str(difference)


def test_several_comparisons_need_more_for_each_to_be_clear():
    found = ablation_of([[1.0, 1.1], [5.0, 5.3], [3.0, 3.2]])
    assert found.difference("b", "a", among=5).bound > found.difference("b", "a").bound


@pytest.mark.parametrize(
    ("name", "change", "verdict", "words"),
    [
        ("figure7", (0.0, {}), "clear", "within noise) for dense models and by "),
        ("figure7", (0.2, {"schedule": "cosine", "lineage": "moe"}), "against", "nats (clear) for mixtures."),
        ("figure8", (0.0, {}), "open", "does not clearly give the lowest loss"),
        ("figure8", (-0.1, {"lr": 4e-3}), "clear", "the mixture's rate (4e-3) gives the lowest loss"),
        ("figure8", (0.1, {"lr": 4e-3}), "against", "the mixture's rate (4e-3) does not give the lowest loss"),
        ("figure8", (0.1, {"schedule": "constant"}), "part", "a constant rate (8e-4) by +0."),
        ("figure9", (0.0, {}), "open", "no other differs clearly"),
        ("figure9", (0.1, {"aux_coef": 1}), "clear", "from coefficient 0 to 1 the balance loss of a layer falls, from"),
        ("figure9", (-0.1, {"aux_coef": 1}), "against", "A coefficient of 1 changes the cross-entropy by −0."),
        ("figure10", (0.0, {}), "clear", "within noise"),
        ("figure10", (0.3, {"sweeps": "repetition_same"}), "against", "changes the loss by +0."),
        ("learning_rates", (0.0, {}), "open", "within noise"),
        ("learning_rates", (-0.1, {"sweeps": "lr_moe", "lr": 2e-3}), "clear", "mixtures: 2e-3 for tiny (at the edge"),
        ("learning_rates", (-0.1, {"sweeps": "lr_dense", "lr": 8e-3}), "open", "of dense models: 8e-3 for tiny;"),
    ],
)  # fmt: skip
def test_a_sentence_turns_with_the_losses(ablations, name, change, verdict, words):
    nats, columns = change
    observation = seen(changed(ablations, nats, **columns) if columns else ablations, name)
    assert words in str(observation)
    assert observation.finding.verdict == verdict, str(observation)


def test_rates_of_mixtures_below_and_above_those_of_dense_models(ablations):
    both = changed(changed(ablations, -0.1, sweeps="lr_moe", lr=2e-3), -0.1, sweeps="lr_dense", lr=8e-3)
    assert seen(both, "learning_rates").finding.verdict == "clear"
    assert "The mixture's best rate is clearly below its dense model's for tiny." in str(seen(both, "learning_rates"))
    turned = changed(changed(ablations, -0.1, sweeps="lr_moe", lr=8e-3), -0.1, sweeps="lr_dense", lr=4e-3)
    assert seen(turned, "learning_rates").finding.verdict == "against"


def test_other_texts_are_compared_by_law_and_by_what_dense_training_gives(ablations):
    finding = seen(ablations, "figure11").finding
    assert finding.sentence.startswith(
        "Of the fitted laws Equation 8 has the lowest leave-one-out error on japanese-man"
    )
    slower = seen(changed(ablations, 0.05, sweeps="japanese", D1=simulated_ablations.BUDGETS[2]), "figure11").finding
    (japanese, code), (less, same) = (each.detail.split("changes by ")[1].split(", ") for each in (finding, slower))
    assert float(less.split()[0].replace("−", "-")) == pytest.approx(
        float(japanese.split()[0].replace("−", "-")) + 0.05
    )
    assert code == same
    plain = {name: fit for name, fit in ablations.fits.items() if "no_interaction" not in name}
    alone = seen(dataclasses.replace(ablations, fits=plain), "figure11")
    assert alone.finding.verdict == "open"
    assert "without another law" in alone.finding.sentence
    with pytest.raises(UserError, match="no fit of law `multiplicative` to sweep `japanese`"):
        seen(dataclasses.replace(ablations, fits={}), "figure11")


@pytest.mark.parametrize("name", sorted(set(OF_ABLATIONS) - {"figure11"}))  # its fits are of both seeds
def test_one_seed_is_named_as_such(ablations, name):
    observation = seen(one_seed(ablations), name)
    assert "one seed" in str(observation)
    assert "±" not in str(observation)
    assert observation.finding.verdict == "open"
    drawn(one_seed(ablations), name)


@pytest.mark.parametrize("name", OF_ABLATIONS)
def test_a_study_without_the_sweeps_is_refused_before_it_starts(name):
    study = small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [20]}}, figures={name: {}})
    with pytest.raises(UserError, match=rf"figures\.{name}\.sweeps \(as by default\): the study has no sweep `"):
        check_names(study)


def test_a_sweep_without_losses_is_named(ablations):
    with pytest.raises(UserError, match="no finished run of sweep `nosuch`; sweeps in it: `schedule_dense`"):
        drawn(ablations, "figure7", sweeps=["nosuch"])
    with pytest.raises(
        UserError, match=r"sweep auxiliary: all runs are of one kind \(WSD\), there is nothing to compare"
    ):
        drawn(ablations, "figure7", sweeps=["auxiliary"])
    with pytest.raises(UserError, match=r"sweep auxiliary: all runs are of one kind \(the same data\)"):
        drawn(ablations, "figure10", sweeps=["auxiliary"])
    with pytest.raises(UserError, match=r"differ in more than what is compared; name other sweeps"):
        drawn(ablations, "figure9", sweeps=["auxiliary", "upcycling_lr"])


@pytest.mark.parametrize(("name", "panels", "without"), [("figure7", 3, 2), ("figure8", 2, 1), ("figure9", 3, 1)])
def test_simulated_losses_give_the_panels_that_need_no_curve(ablations, tmp_path, name, panels, without):
    assert len(drawn(ablations, name).axes) == panels
    losses = ablations.losses.assign(simulated=1)
    simulated = dataclasses.replace(ablations, losses=losses)
    figure = drawn(simulated, name)
    assert len(figure.axes) == without
    assert figure.get_supxlabel().startswith("Not drawn: ")
    assert all(axes.has_data() for axes in figure.axes)


def test_a_missing_or_damaged_curve_is_named(ablations, tmp_path):
    shutil.copytree(ablations.runs, tmp_path / "runs")
    copied = dataclasses.replace(ablations, runs=tmp_path / "runs")
    run_id = ablations.in_sweep("auxiliary")["id"].iloc[0]
    path = tmp_path / "runs" / run_id / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1})[:-2])
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        drawn(copied, "figure9")
    path.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: No such file"):
        drawn(copied, "figure9")


def test_differences_are_drawn_where_they_are(ablations):
    """The right panel of Figure 10 has each seed's difference and their mean."""
    axes = drawn(ablations, "figure10").axes[-1]
    losses = ablations.losses.set_index("seed")["loss"]
    same, fresh = (losses[ablations.losses["sweeps"].str.contains(kind).to_numpy()] for kind in ("same", "disjoint"))
    shown = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert sorted(shown.get_xdata()) == pytest.approx(sorted((same - fresh).tolist()))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["other data", "the same data"]
