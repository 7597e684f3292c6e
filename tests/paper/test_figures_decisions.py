"""Figures of the decisions show the numbers of the decisions' code, with laws that are the paper's Table 2."""

import dataclasses
import math

import numpy as np
import pytest
import table_two

from upcycle.decisions.allocation import three_way
from upcycle.decisions.thresholds import d_star, equation_2, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.paper import figures_summary, style
from upcycle.paper.three_laws import name_region, size_words, sizes_of, three_laws, tokens_to_show
from upcycle.study import catalogue

pytestmark = pytest.mark.slow

NAMES = ("figure1", "figure15", "figure16", "thresholds")


@pytest.fixture(scope="module")
def study():
    return table_two.inputs()


@pytest.fixture(scope="module")
def small():
    return table_two.one_size()


@pytest.fixture(scope="module")
def few_sizes():
    """D* at a few sizes: at each it is solved for every draw, which takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_summary, "SIZES", 17)
        yield


@pytest.fixture(scope="module")
def figures(study, few_sizes):
    """Every figure once."""
    with style.context():
        made = {name: catalogue.find_item(name).load()(study) for name in NAMES}
        for figure in made.values():
            figure.draw_without_rendering()
    return made


def made(name, inputs, **options):
    with style.context():
        return catalogue.find_item(name).load()(inputs, **options)


def marked(axes, gid):
    """Lines and collections of this id."""
    return [artist for artist in [*axes.lines, *axes.collections] if artist.get_gid() == gid]


def without(study, *names):
    return dataclasses.replace(study, fits={name: fit for name, fit in study.fits.items() if name not in names})


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off_and_no_panels_overlap(name, figures):
    figure = figures[name]
    page = figure.bbox.padded(1)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for part in [figure, *figure.subfigs] for legend in part.legends]
    for box in boxes:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
    for k, box in enumerate(boxes):
        for other in boxes[k + 1 :]:
            assert not box.padded(-3).overlaps(other.padded(-3))
    for axes in figure.axes:
        frame = axes.get_window_extent().padded(1)
        for text in axes.texts:  # names of regions
            word = text.get_window_extent()
            assert frame.x0 <= word.x0 <= word.x1 <= frame.x1


@pytest.mark.parametrize("name", NAMES)
def test_equal_fits_give_equal_bytes(name, study, few_sizes):
    options = {} if name in ("figure1", "figure16") else {"sizes": [1e9]}
    with style.context():
        figures = [catalogue.find_item(name).load()(study, **options) for _ in range(2)]
        for form in ("svg", "pdf"):
            first, second = (style.encode(figure, form) for figure in figures)
            assert first == second


def test_every_figure_of_simulated_losses_says_so(study):
    marked = dataclasses.replace(study, losses=study.losses.assign(simulated=1))
    for name in ("figure15", "figure16", "thresholds"):
        assert made(name, marked)._suptitle.get_text() == "SIMULATED LOSSES"


def test_figure_1_draws_d_star_and_no_line_where_there_is_none(figures, study):
    three = three_laws(study)
    top = next(axes for axes in figures["figure1"].axes if marked(axes, "root 1"))
    sizes, first = marked(top, "root 1")[0].get_data()
    second = marked(top, "root 2")[0].get_ydata()
    assert np.isnan(first[sizes < 2.149e8]).all()  # the paper's laws cross nowhere below
    assert np.isfinite(first[sizes > 2.149e8]).all()
    for k in (0, len(sizes) // 2, len(sizes) - 1):
        roots = d_star(three.without_draws(), sizes[k]).roots
        expected = [*roots, math.nan, math.nan][:2]
        assert np.allclose([first[k], second[k]], expected, rtol=1e-9, equal_nan=True)
    published = marked(top, "equation 2")[0]
    assert np.allclose(published.get_ydata(), equation_2(published.get_xdata()))
    assert published.get_xdata().min() >= 1e8


def labels(figure):
    """Texts of all legends."""
    legends = [legend for part in [figure, *figure.subfigs] for legend in part.legends]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_legends_list_what_is_drawn_and_nothing_else(figures, study, small, few_sizes, monkeypatch):
    assert "another root" in labels(figures["figure1"])
    assert {"data", "draws disagree", "$D^*$"} <= set(labels(figures["thresholds"]))
    beyond = made("thresholds", study, sizes=[7e9])  # no data at this size, and nowhere is the dense cost paid back
    assert "data" not in labels(beyond)
    assert "upcycling ahead (dense cost sunk)" in labels(beyond)
    assert "draws disagree" not in labels(made("thresholds", small))
    found = d_star(three_laws(small), 98_304)
    monkeypatch.setattr(figures_summary, "d_star", lambda *_: dataclasses.replace(found, roots=(found.root,)))
    assert labels(made("figure1", small)) == ["$D^*$ (Equation 13)"]


def test_figure_1_shows_the_share_of_draws_without_a_root(figures, study):
    three = three_laws(study)
    bottom = next(axes for axes in figures["figure1"].axes if marked(axes, "none"))
    area = marked(bottom, "none")[0].get_paths()[0].vertices
    sizes = np.unique(area[:, 0])
    for size in (sizes[0], sizes[8], sizes[-1]):
        share = d_star(three, size).shares["none"]
        assert area[area[:, 0] == size, 1].max() == pytest.approx(100 * share, abs=1e-9)
    assert area[:, 1].max() > 50  # most draws have no D* at the smallest sizes


def test_figure_1_shows_the_losses_that_the_configuration_was_fitted_to(figures, study):
    axes = figures["figure1"].axes[0]
    rows = study.rows_of(study.fits["configuration"])
    discs = marked(axes, "measured")[0]
    assert np.allclose(discs.get_offsets(), np.column_stack([rows["N_total"] / rows["N2"], rows["N2"]]))
    assert np.allclose(discs.get_array(), rows["loss"])


def test_figure_1_draws_the_panel_that_it_can(study, few_sizes):
    alone = made("figure1", without(study, "joint"))
    assert alone.axes[0].get_xlabel().startswith("sparsity")
    assert len(alone.axes) == 2  # the surface and its colour bar
    right = made("figure1", without(study, "configuration"))
    assert [bool(marked(axes, "root 1")) for axes in right.axes] == [True, False]
    assert alone.get_figwidth() == right.get_figwidth() == style.COLUMN
    with pytest.raises(UserError, match="Figure 1 shows a fit of law `configuration`, or the three laws"):
        made("figure1", without(study, "configuration", "scratch"))


def test_figure_15_rings_the_thresholds_and_stars_d_star(figures, study):
    three = three_laws(study).without_draws()
    for axes, size in zip(figures["figure15"].axes, (1e9, 7e9, 7e10), strict=True):
        left, right = axes.get_xlim()
        for ring, D1 in zip(marked(axes, "equal"), (1e9, 1e10, 1e11, 1e12), strict=True):
            roots = [root for root in threshold_d2(three, size, D1).roots if left < root < right]
            assert np.allclose(ring.get_xdata(), roots, rtol=1e-9)
            assert np.allclose(ring.get_ydata(), three.upcycled.loss(D1=D1, D2=np.array(roots), N1=size), rtol=1e-9)
        stars = [float(star.get_xdata()[0]) for star in marked(axes, "d_star")]
        assert np.allclose(stars, [root for root in d_star(three, size).roots if left < root < right])
    assert marked(figures["figure15"].axes[0], "d_star")[0].get_xdata()[0] == pytest.approx(3.0225e9, rel=1e-4)


def test_figure_15_is_solid_within_the_data_alone(figures, study):
    within, beyond, _ = figures["figure15"].axes
    low, high = three_laws(study).moe.box["D"]
    solid = [line for line in within.lines if line.get_linestyle() == "-" and np.isfinite(line.get_ydata()).any()]
    assert len(solid) == 1 + 2  # from scratch, and from the two D1 that were fitted
    for line in solid:
        x = line.get_xdata()[np.isfinite(line.get_ydata())]
        assert low <= x.min() <= x.max() <= high
    assert not any(line.get_linestyle() == "-" and np.isfinite(line.get_ydata()).any() for line in beyond.lines)
    assert "6.4 times the largest fitted" in beyond.get_title(loc="left")


def test_sizes_are_asked_for_or_follow_the_data(study, small):
    assert len(made("figure15", study, sizes=[2e8]).axes) == 1
    three = three_laws(study)
    assert sizes_of(three, None, (1e9, 7e9)) == [1e9, 7e9]
    boxes = dataclasses.replace(three.upcycled, box={**three.upcycled.box, "N1": (1e4, 1e6)})
    tiny = dataclasses.replace(three, upcycled=boxes)
    assert sizes_of(tiny, None, (1e9, 7e9, 7e10)) == pytest.approx([1e6, 7e6, 7e7])
    assert size_words(tiny, 7e6).endswith("7 times the largest fitted")
    assert size_words(tiny, 1e3).endswith("1/10 of the smallest fitted")
    assert sizes_of(three_laws(small), None, (1e9, 7e9)) == [98_304]


def test_tokens_to_show_cover_the_data():
    assert tokens_to_show((1.4e8, 7.4e10)) == [1e9, 1e10, 1e11, 1e12]
    assert tokens_to_show((1e6, 1.6e7)) == [1e6, 4e6, 1.6e7, 6.4e7]


def test_figure_16_draws_the_best_plans_and_their_differences(figures, study):
    top, bottom = figures["figure16"].axes
    three = three_laws(study)
    flops = marked(top, "moe")[0].get_xdata()
    table = three_way(three.without_draws(), flops[[0, 24, -1]])
    for plan in ("dense", "moe", "two_stage"):
        drawn = marked(top, plan)[0].get_ydata()[[0, 24, -1]]
        assert np.allclose(drawn, table[f"{plan}_loss"], rtol=1e-9)
        above = marked(bottom, plan)[0].get_ydata()[[0, 24, -1]]
        assert np.allclose(above, table[f"{plan}_loss"] - table["moe_loss"], atol=1e-9)
    assert len(bottom.collections) == 2  # bands of what differs from the mixture from scratch


def test_figure_16_shows_the_losses_at_what_they_cost(figures, study):
    top = figures["figure16"].axes[0]
    rows = study.rows_of(study.fits["joint"])
    dots = next(line for line in top.lines if len(line.get_xdata()) == len(rows))
    assert np.allclose(dots.get_xdata(), 6 * (rows["N1"] * rows["D1"] + rows["N2"] * rows["D2"]))
    assert np.allclose(dots.get_ydata(), rows["loss"])


def test_figure_16_without_sizes_or_laws_says_what_to_fit(study, small):
    with pytest.raises(UserError, match="has no law of dense models: add a fit of law `chinchilla`"):
        made("figure16", without(study, "scratch"))
    with pytest.raises(UserError, match="B, beta"):
        made("figure16", small)


@pytest.mark.parametrize(("panel", "size"), [(0, 1e9), (1, 7e9)])
def test_the_edges_of_the_map_are_the_thresholds(panel, size, figures, study):
    axes = figures["thresholds"].axes[panel]
    three = three_laws(study).without_draws()
    edge = marked(axes, "sunk")[0].get_paths()[0].vertices
    assert len(edge) > 100
    for D1, D2 in edge[edge[:, 0] < 3e11][::20]:
        # Steps of the map are a factor of 1.09 in tokens, between which edges are straight.
        assert min(abs(math.log(D2 / root)) for root in threshold_d2(three, size, D1).roots) < 0.01
    for D1, D2 in marked(axes, "paid")[0].get_paths()[0].vertices[::5]:
        # Where this edge turns back its D1 has no root just beside it, so who is ahead is asked on all sides.
        sides = [(D1 * x, D2 * y) for x in (0.97, 1.03) for y in (0.97, 1.03)]
        assert {threshold_flops(three, size, x).ahead(y) for x, y in sides} == {"upcycle", "scratch"}
    stars = [star.get_xydata()[0] for star in marked(axes, "d_star")]
    assert np.allclose(stars, [[root, root] for root in d_star(three, size).roots][: len(stars)])


def test_the_map_frames_the_data_only_at_sizes_fitted(figures):
    frames = [[patch for patch in axes.patches if not patch.get_fill()] for axes in figures["thresholds"].axes]
    assert [len(each) for each in frames] == [1, 0]


def test_the_map_of_thresholds_ends_at_twice_the_data(figures, study):
    box = three_laws(study).upcycled.box
    for axes in figures["thresholds"].axes:
        assert axes.get_xlim() == pytest.approx((box["D1"][0] / 2, 2 * box["D1"][1]))
        assert axes.get_ylim() == pytest.approx((box["D2"][0] / 2, 2 * box["D2"][1]))


def test_figures_without_a_threshold_are_words(small, few_sizes):
    """From-scratch models that always lose: no edge on the map, no D* at any size."""
    worse = dataclasses.replace(small.fits["moe"], parameters={**small.fits["moe"].parameters})
    worse.parameters["E"] = {**worse.parameters["E"], "value": 9.0}
    ahead = dataclasses.replace(small, fits={**small.fits, "moe": worse})
    for name, words in (
        ("thresholds", "No threshold lies within 2 times the data (D1 = 131k to 8.39M and D2 = 131k to 8.39M)"),
        ("figure1", "No D* lies near the data at N1 = 98.3k: by these laws upcycling is ahead at any number of tokens"),
    ):
        figure = made(name, ahead)
        assert not figure.axes
        assert figure.get_label().startswith(words)
    assert (
        "at N1 = 98.3k upcycling is ahead, also where the dense model's FLOPs count"
        in made("thresholds", ahead).get_label()
    )


def test_a_study_of_one_size_has_points_for_curves(small):
    figure = made("figure1", small)
    found = d_star(three_laws(small), 98_304)
    assert len(found.roots) == 2
    assert figure.axes[1].get_xticks().tolist() == [98_304]
    for k, root in enumerate(sorted(found.roots, key=lambda root: root != found.root), start=1):
        sizes, tokens = marked(figure.axes[0], f"root {k}")[0].get_data()
        assert (sizes.tolist(), tokens.tolist()) == ([98_304], [root])
    for name in ("figure15", "thresholds"):
        assert len(made(name, small).axes) == 1


def test_a_region_without_room_has_no_name():
    with style.context():
        axes = style.new_figure(3, 3, mark="").subplots()
    x = y = np.geomspace(1, 100, 50)
    region = np.zeros((50, 50), dtype=bool)
    region[:, 40:] = True
    name_region(axes, x, y, region, "upcycle", (2.5, 2.5))
    assert not axes.texts
    name_region(axes, x, y, ~region, "upcycle", (2.5, 2.5))
    assert axes.texts[0].get_position()[0] < x[40]
