"""The report says what the losses and fits say, in one file that needs nothing else."""

import dataclasses
import re

import numpy as np
import pytest
from page_structure import Structure

from upcycle.errors import UserError
from upcycle.paper.comparisons import clear_difference, leads
from upcycle.report import laws, losses, sections
from upcycle.report.findings import findings, headline
from upcycle.report.page import render, words, write_report


@pytest.fixture(scope="session")
def page(study):
    return render(*study)


@pytest.fixture
def without_evaluations(study, tmp_path):
    """The study's background with neither evaluations nor products."""
    return dataclasses.replace(study[1], out=tmp_path, figures={}, tables=())


def with_losses(inputs, change):
    """The inputs with the losses of rows changed by `change(row) -> loss`."""
    changed = inputs.losses.assign(loss=[change(row) for row in inputs.losses.itertuples()])
    return dataclasses.replace(inputs, losses=changed)


def with_errors_of(fit, other, order=1):
    """A fit with the leave-one-out errors of another, in their order or in the opposite one."""
    return dataclasses.replace(fit, loo_rms=other.loo_rms, loo_residuals_log=other.loo_residuals_log[::order])


def test_the_page_is_well_formed_and_needs_no_other_file(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)
    for address in structure.addresses:
        assert address.startswith("data:") or address[1:] in structure.ids
    assert {"laws", "table-laws"} <= set(structure.ids)  # a section and a table of one name
    assert "<script" not in page
    assert "`" not in page
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_same_inputs_give_the_same_page(study, page):
    assert render(*study) == page


def test_the_page_holds_every_finished_model_and_law(study, page):
    inputs, _ = study
    assert all(run_id in page for run_id in inputs.losses["id"])
    assert all(name.replace("_", " ") in page for name in inputs.fits)
    assert page.count("±") >= len(inputs.grid().rows)


def test_time_accounts_are_those_of_the_invocations(page):
    assert "had 26 min of core time." in page
    assert "in 20 min of it." in page
    assert "The other 23 %" in page


def test_without_recorded_times_the_page_says_so(study, without_evaluations):
    assert "wall time of the whole sweep is unknown" in render(study[0], without_evaluations)


def test_an_evaluation_of_an_unknown_run_stops_the_report(study):
    inputs, background = study
    fewer = dataclasses.replace(inputs, losses=inputs.losses.iloc[1:])
    with pytest.raises(UserError, match=r"evaluations\.csv holds run .*, which losses\.csv does not"):
        render(fewer, background)


def test_a_missing_figure_stops_the_report_and_is_named(study, tmp_path):
    inputs, background = study
    with pytest.raises(UserError, match=r"figure4\.svg: No such file"):
        write_report(inputs, dataclasses.replace(background, figures={"figure4": {}}), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_text_of_another_fingerprint_stops_the_report(study, tmp_path):
    inputs, background = study
    with pytest.raises(UserError, match="no token set has fingerprint 0123456789abcdef"):
        render(inputs, dataclasses.replace(background, tokens=tmp_path))


def test_simulated_losses_are_marked_on_the_page_and_in_the_headline(study):
    inputs, background = study
    marked = dataclasses.replace(inputs, losses=inputs.losses.assign(simulated=1))
    assert render(marked, background).count("SIMULATED") == 2
    assert headline(marked).startswith("SIMULATED LOSSES. ")


@pytest.mark.parametrize("seeds", [True, False])
def test_nothing_is_told_of_a_text_that_simulated_losses_were_not_measured_on(study, seeds, tmp_path):
    """Neither its errors nor its size; captions and the paper's numbers are the same on any page."""
    inputs, background = study
    told = (
        "standard error",
        "std. error",
        "measured",
        "held-out loss",
        "nats per token depend",
        "fewer than 250 steps",
    )
    losses = inputs.losses if seeds else inputs.losses[inputs.losses["seed"] == 0]

    def words(**changes: int) -> str:
        marked = dataclasses.replace(inputs, losses=losses.assign(**changes))
        page = render(marked, dataclasses.replace(background, out=tmp_path, figures={}, tables=())).lower()
        return page.replace("nothing on this page was measured", "")

    assert [each for each in told if each in words(simulated=1)] == []
    assert {"standard error", "std. error", "held-out loss", "nats per token depend"} <= {
        each for each in told if each in words()
    }


def test_the_headline_is_one_line_with_the_winner_of_table_1(study):
    text = headline(study[0])
    assert "\n" not in text
    assert text.startswith("Of the paper's four laws the multiplicative law with interaction fits best")
    assert "Against the same mixture trained from scratch on the upcycling tokens (D2), upcycling wins" in text


def test_the_headline_follows_the_fits_not_the_paper(study):
    inputs, _ = study
    best, worst = inputs.fits["multiplicative"], inputs.fits["additive_no_interaction"]
    swapped = {"multiplicative": with_errors_of(best, worst), "additive": with_errors_of(inputs.fits["additive"], best)}
    finding = findings(dataclasses.replace(inputs, fits={**inputs.fits, **swapped}))[0]
    assert "the additive law with interaction fits best" in finding.sentence
    ratio = "the ratio of the error without it to that with it is"
    assert f"Interaction worsens the multiplicative law: {ratio} 0." in finding.detail
    assert f"Interaction improves the additive law: {ratio} " in finding.detail
    assert finding.verdict == "against"


def test_laws_of_equal_error_are_not_told_apart(study):
    inputs, _ = study
    best = inputs.fits["multiplicative"]
    even = with_errors_of(inputs.fits["additive"], dataclasses.replace(best, loo_rms=1.2 * best.loo_rms), order=-1)
    finding = findings(dataclasses.replace(inputs, fits={**inputs.fits, "additive": even}))[0]
    assert finding.sentence.startswith(
        "The losses do not separate the multiplicative law with interaction from the additive"
    )
    assert re.search(r"is \S+ \(95 % interval 0\.\d+ to \S+ over points, \S+ to \S+ over rows of D1\)", finding.detail)
    assert finding.verdict == "open"


def test_a_ratio_of_errors_that_so_few_points_do_not_settle_is_open(study):
    """The best law by 1.4 times, all of it from one point: another draw of points need not hold it."""
    inputs, _ = study
    best = dataclasses.replace(inputs.fits["multiplicative"], loo_rms=0.010, loo_residuals_log=[0.01] * 25)
    other = dataclasses.replace(best, loo_rms=0.014, loo_residuals_log=[0.01] * 24 + [0.05])
    fits = {name: with_errors_of(fit, other) for name, fit in inputs.fits.items() if fit.by is None}
    finding = findings(dataclasses.replace(inputs, fits={**inputs.fits, **fits, "multiplicative": best}))[0]
    assert finding.verdict == "open"
    assert finding.sentence.startswith("The losses do not separate the multiplicative law with interaction from")
    assert "(95 % interval 1 to" in finding.detail
    assert "F = " in finding.detail


def test_what_a_law_misses_is_judged_by_the_noise_of_seeds(study):
    """A law that misses more than seeds explain is rejected, and the sign of its interaction settles nothing."""
    inputs, _ = study
    fine = findings(inputs)
    assert (
        "The noise between seeds does not reject the multiplicative law with interaction (lack of fit: F = "
        in fine[0].detail
    )
    assert next(f for f in fine if "more slowly its upcycled" in f.sentence).verdict == "clear"
    fit = inputs.fits["multiplicative"]
    worse = dataclasses.replace(fit, residuals_log=[20 * value for value in fit.residuals_log])
    found = findings(dataclasses.replace(inputs, fits={**inputs.fits, "multiplicative": worse}))
    assert "The noise between seeds rejects the multiplicative law with interaction" in found[0].detail
    interaction = next(f for f in found if "more slowly its upcycled" in f.sentence)
    assert interaction.sentence.startswith("By the multiplicative law, the longer")
    assert interaction.verdict == "open"


def test_laws_with_too_few_points_do_not_win(study):
    """A law without a leave-one-out error is not compared; with one law left no winner is named."""
    inputs, _ = study
    blind = {name: dataclasses.replace(inputs.fits[name], loo_rms=None) for name in ("additive", "multiplicative")}
    finding = findings(dataclasses.replace(inputs, fits={**inputs.fits, **blind}))[0]
    assert "without interaction fits best" in finding.sentence or finding.sentence.startswith(
        "The losses do not separate"
    )
    assert finding.sentence.count("without interaction") == 2
    last = "additive_no_interaction"
    blind[last] = dataclasses.replace(inputs.fits[last], loo_rms=None)
    assert "fits best" not in findings(dataclasses.replace(inputs, fits={**inputs.fits, **blind}))[0].sentence


def counts(text):
    """Points at which upcycling wins, loses and is undecided, and all of them, of one comparison in words."""
    total = int(re.search(r"(?:of|each of the) (\d+) points", text)[1])
    if "each of" in text:
        return {re.search(r"(wins|loses|is undecided) at each", text)[1]: total}, total
    return {kind: int(n) for kind, n in re.findall(r"(wins|loses|is undecided) at (\d+)", text)}, total


def test_ahead_behind_and_undecided_exclude_each_other(study):
    """The three kinds sum to the number of points; a lead within the noise is not counted as one."""
    inputs, _ = study
    worse = with_losses(inputs, lambda row: row.loss - 0.3 if row.lineage == "moe" and row.D >= 2_000_000 else row.loss)
    bound = clear_difference(inputs.noise)
    for each in (inputs, worse):
        found = next(f for f in findings(each) if "upcycling tokens (D2)" in f.sentence)
        for part, both in zip(found.sentence.split("; against"), (False, True), strict=True):
            kinds, total = counts(part)
            nats = [lead.nats for lead in leads(each, each.grid(), dense_tokens_count=both)]
            assert total == len(nats) == sum(kinds.values())
            assert kinds.get("wins", 0) == sum(value > bound for value in nats)
            assert kinds.get("loses", 0) == sum(value < -bound for value in nats)
        assert found.verdict == ("part" if "is undecided" in found.sentence else "clear")


def test_both_accounts_in_tokens_are_one_sentence(study):
    """Upcycling may win on the tokens that it adds and lose on all tokens: one sentence says both."""
    inputs, _ = study
    (found,) = (f for f in findings(inputs) if "from scratch on" in f.sentence)
    assert re.match(
        r"Against the same mixture .* \(D2\), upcycling .*; against one .* \(D1 \+ D2\), it .*\.$", found.sentence
    )
    assert "a comparison at equal FLOPs, dense model included, lies between these two" in found.detail


def test_losing_to_scratch_is_said_with_the_budget_where_it_flips(study):
    inputs, _ = study
    worse = with_losses(inputs, lambda row: row.loss - 0.3 if row.lineage == "moe" and row.D >= 2_000_000 else row.loss)
    found = next(f for f in findings(worse) if "upcycling tokens (D2)" in f.sentence)
    assert re.search(r"wins at \d+ of 25 points[, ].* loses at \d+", found.sentence)
    assert "Training from scratch overtakes between D2 = 1.05M and 2.1M at D1 = 262k" in found.detail


def test_a_difference_within_the_noise_settles_nothing(study):
    inputs, _ = study
    scratch = inputs.baseline(inputs.grid(), "moe").groupby("D")["loss"].mean()
    even = with_losses(inputs, lambda row: scratch[row.D] + 0.001 * row.seed if row.lineage == "up" else row.loss)
    (found,) = (f for f in findings(even) if "from scratch on" in f.sentence)
    assert "upcycling is undecided at each of the 25 points" in found.sentence
    assert "caught up" not in found.detail
    assert "overtakes" not in found.detail


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([0.03, 0.05], "the more slowly"),
        ([-0.05, -0.03], "the faster"),
        ([-0.01, 0.03], "do not settle"),
        ([None, None], "do not settle"),
    ],
)
def test_the_sign_of_the_interaction_is_what_its_interval_says(study, interval, words):
    inputs, _ = study
    fit = inputs.fits["multiplicative"]
    changed = dataclasses.replace(fit, intervals={**fit.intervals, "alpha3": interval})
    found = findings(dataclasses.replace(inputs, fits={**inputs.fits, "multiplicative": changed}))
    assert sum(words in f.sentence for f in found) == 1


def test_a_warning_of_a_fit_is_on_its_card_and_among_the_limits(study, without_evaluations):
    """In full, once for all fits that have it."""
    inputs, _ = study
    sentence = "losses of different kernels are mixed (layers: composed in 5, native in 20)"
    names = ("multiplicative", "additive")
    fits = {
        n: dataclasses.replace(f, warnings={"mixed kernels": sentence}) if n in names else f
        for n, f in inputs.fits.items()
    }
    page = render(dataclasses.replace(inputs, fits=fits), without_evaluations)
    assert page.count(f"<b>Warning:</b> L{sentence[1:]}.") == 2
    assert re.search(rf"<li>Fits (multiplicative, additive|additive, multiplicative): {re.escape(sentence)}\.", page)


def test_without_repeated_seeds_noise_is_called_unknown(study, without_evaluations):
    inputs, background = study[0], without_evaluations
    single = dataclasses.replace(inputs, losses=inputs.losses[inputs.losses["seed"] == 0])
    assert any("noise between seeds is unknown" in f.sentence for f in findings(single))
    assert next(f for f in findings(single) if "from scratch on" in f.sentence).verdict == "open"
    assert "small differences may be chance" in render(single, background)


def test_without_training_from_scratch_nothing_is_compared(study, without_evaluations):
    inputs, background = study[0], without_evaluations
    alone = dataclasses.replace(inputs, losses=inputs.losses[inputs.losses["lineage"] == "up"])
    assert not any("from scratch" in f.sentence for f in findings(alone))
    assert "The lead of upcycling" not in render(alone, background)


def test_a_report_without_fits_still_shows_the_losses(study):
    inputs, background = study
    assert "upcycling wins at" in headline(dataclasses.replace(inputs, fits={}))
    assert "3.0" in render(dataclasses.replace(inputs, fits={}), background)


def test_leads_within_the_noise_are_bracketed(study):
    inputs, _ = study
    table = losses.grid_tables(inputs, inputs.grid())["lead"]
    cells = [cell for _, row in table for cell in row]
    assert any(cell.text.startswith("(") for cell in cells)
    assert all((cell.heat == 0) == cell.text.startswith("(") for cell in cells)


def test_other_texts_are_compared_with_the_own_one(study):
    (table,) = losses.evaluations(*study)
    assert table["gap"] == "+0.500"
    assert np.isclose(table["correlation"], 1.0)


def test_every_run_behind_the_finished_models_is_counted(study):
    inputs, background = study
    assert sections.what_was_run(inputs, background)["runs"] == 94


def test_parameters_have_their_greek_names_in_sentences(page):
    assert str(words("alpha3 = 0.01 by `alpha3`: alphabetical")) == "α3 = 0.01 by <code>alpha3</code>: alphabetical."
    assert str(words("no fit: α3 is −1")) == "No fit: α3 is −1."
    assert "interval of α3 by profile likelihood" in page
    assert not re.search(r"\b(alpha|beta)\d?\b", re.sub(r"<code>.*?</code>", "", page))


def test_formulas_become_subscripts_and_superscripts():
    shown = laws.symbols("L = A D1^-alpha1 (1 + D2)^(-alpha2 + alpha3 ln D1) + E")
    assert "<i>D</i><sub>1</sub><sup>−<i>α</i><sub>1</sub></sup>" in shown
    assert "<sup>−<i>α</i><sub>2</sub> + <i>α</i><sub>3</sub> ln <i>D</i><sub>1</sub></sup>" in shown
    assert laws.symbols("-alpha(D1) = gamma ln D1 + E'").startswith("−<i>α</i>(<i>D</i><sub>1</sub>)")
