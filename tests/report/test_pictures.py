"""Figures are inline, share no ids, and have colours for a dark page."""

import colorsys
import dataclasses
import re

import pytest

from upcycle.errors import UserError
from upcycle.paper import style
from upcycle.paper.draw import draw
from upcycle.report.page import render
from upcycle.report.pictures import dark, dark_colours, front, pictures


@pytest.fixture(scope="module")
def drawn(study, tmp_path_factory):
    """The background with two figures of one grid and one of words."""
    inputs, background = study
    out = tmp_path_factory.mktemp("drawn")
    for name in ("overview", "residuals"):
        draw(name, inputs, out / "figures" / name)
    with style.context():
        words = style.encode(style.in_words("Nothing lies within the data.", mark=""), "svg")
    (out / "figures" / "thresholds.svg").write_bytes(words)
    figures = {name: {} for name in ("residuals", "thresholds", "overview")}
    return dataclasses.replace(background, out=out, figures=figures, tables=())


def light(colour):
    return colorsys.rgb_to_hls(*(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)))[1]


def test_figures_share_no_id_and_every_reference_has_one(drawn):
    svgs = [each.svg for each in pictures(drawn, {}) if each.svg]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
    assert not set(ids[0]) & set(ids[1])
    for own, svg in zip(ids, svgs, strict=True):
        assert len(own) == len(set(own))
        assert set(re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', svg)) <= set(own)
        assert "<style" not in svg  # its rules would be the page's


def test_every_colour_has_one_for_a_dark_page(study, drawn):
    shown = pictures(drawn, {})
    assert not re.search(r"[:\s]#[0-9a-f]{6}\b(?!\))", " ".join(each.svg for each in shown))
    used = set(re.findall(r"var\((--f[0-9a-f]{6}),", " ".join(each.svg for each in shown)))
    values = dict(dark_colours(shown))
    assert used <= set(values)
    page = render(study[0], drawn)
    (block,) = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{ :root \{ (--f.*?)\} \}", page)
    assert dict(re.findall(r"(--f\w+): ([^;]+);", block)) == values


def test_dark_colours_can_be_read_and_keep_their_order():
    assert light(dark(style.DENSE)) > 0.85
    assert light(dark("#e4e4e4")) < 0.3  # lines of the grid
    assert light(dark("#fbebdd")) < 0.3  # a region
    ordered = ["#" + "".join(f"{round(255 * part):02x}" for part in rgba[:3]) for rgba in style.sequence(6)]
    lights = [light(dark(colour)) for colour in ordered]
    assert lights == sorted(lights, reverse=True) or min(lights) > 0.5
    assert all(light(dark(each)) > 0.5 for each in (*ordered, style.SCRATCH.lower(), style.FIT.lower(), style.MARK))


def test_a_figure_of_words_is_a_paragraph(study, drawn):
    page = render(study[0], drawn)
    assert '<p class="words-only">Nothing lies within the data.</p>' in page
    assert page.count("<svg") == 2
    assert front([each for each in pictures(drawn, {}) if each.words]) is None


def test_a_damaged_figure_is_named(drawn, tmp_path):
    (tmp_path / "figures").mkdir()
    whole = (drawn.out / "figures" / "overview.svg").read_bytes()
    active = (b"<script>x</script>", b'<g onload="x"/>', b'<a xlink:href="javascript:x"/>', b"<foreignObject/>")
    for content in (
        b"<svg ",
        b"\xff\xfe",
        whole[:-20],
        *(whole.replace(b"<defs>", b"<defs>" + each) for each in active),
    ):
        (tmp_path / "figures" / "overview.svg").write_bytes(content)
        with pytest.raises(UserError, match=r"overview\.svg is damaged: it is no whole SVG"):
            pictures(dataclasses.replace(drawn, out=tmp_path, figures={"overview": {}}), {})
