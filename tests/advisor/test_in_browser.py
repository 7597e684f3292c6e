"""The advisor page in Chromium: its sliders move, and its numbers are those of Python's advice to 1e-9."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from advisor_sources import UPCYCLED, losses, source, three_laws
from built_once import built_once

from upcycle.advisor.page import MAP_DRAWS, write_advisor_page
from upcycle.advisor.sources import Constants, paper_source
from upcycle.decisions.advice.advice import Advice, advise
from upcycle.decisions.advice.expectations import expected
from upcycle.decisions.advice.recommendation import recommend
from upcycle.decisions.curves import ThreeLaws, central_95
from upcycle.decisions.thresholds import Threshold

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 300_000
"""Milliseconds after which a page that never settles fails the test."""
PAPER = "the paper's Table 2"
OPTIONS = {
    "upcycled": "upcycle",
    "MoE from scratch, same FLOPs": "scratch",
    "dense model trained on, same FLOPs": "dense",
}


def small_sources() -> list[Constants]:
    """Every law of upcycled models; no dense law, no draws, no error; several mixtures; losses."""
    two = [three_laws("joint"), three_laws("joint", draws=60)]
    return [
        *(source(law, three_laws(law)) for law in UPCYCLED),
        source("no dense law", three_laws("multiplicative", dense=False)),
        source("no draws", three_laws("multiplicative", draws=0), error=None),
        source("two mixtures", two[0], replace(two[1], n_expert=16, top_k=1)),
        source("measured", three_laws("multiplicative_offset", notes=("A note with <b>.",)), losses=losses()),
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (`apt-get install chromium`): the advisor page is not opened")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not run for root, as in a container.
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        write_advisor_page([paper_source()], folder / "paper.html")
        write_advisor_page([paper_source(), *small_sources()], folder / "small.html")

    return built_once(tmp_path_factory, "advisor", build)


class Opened:
    """A page in a tab without a network."""

    def __init__(self, browser: Any, path: Path, options: dict[str, Any], setting: dict[str, Any]) -> None:
        context = browser.new_context(**options)
        context.set_offline(True)
        self.tab = context.new_page()
        self.tab.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url.partition(":")[0]))
        self.tab.goto(f"{path.as_uri()}#{urlencode(setting)}")
        self.settle()

    def settle(self) -> dict[str, Any]:
        self.tab.wait_for_selector("body[data-settled=true]")
        return self.tab.evaluate("advisor.answer")

    def choose(self, control: str, label: str) -> dict[str, Any]:
        """An entry of a list, and the answer after it."""
        self.tab.select_option(f"#{control}", label=label)
        return self.settle()

    def press(self, control: str, key: str, times: int = 1) -> dict[str, Any]:
        self.tab.focus(f"#{control}")
        for _ in range(times):
            self.tab.keyboard.press(key)
        return self.settle()

    def text(self, place: str) -> str:
        return self.tab.inner_text(f"#{place}")


@pytest.fixture
def visit(browser, pages) -> Iterator[Any]:
    opened: list[Opened] = []

    def go(name: str, options: dict[str, Any] | None = None, **setting: Any) -> Opened:
        opened.append(Opened(browser, pages / f"{name}.html", options or {}, setting))
        return opened[-1]

    yield go
    for each in opened:
        assert each.errors == []
        assert set(each.requests) <= {"file", "data", "blob"}
        each.tab.context.close()


def near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9, abs=0)


def check_threshold(found: dict[str, Any], wanted: Threshold) -> None:
    assert found["roots"] == near(list(wanted.roots))
    assert found["root"] == (wanted.root if wanted.root is None else near(wanted.root))
    assert found["band"] == (None if wanted.band is None else near(list(wanted.band)))
    assert found["shares"] == near(dict(wanted.shares))


def check_answer(answer: dict[str, Any], three: ThreeLaws, error: float | None, rate: float = 400e12) -> Advice:
    """All that the page holds against `upcycle advise` at the page's own inputs."""
    n1, d1, d2 = (answer[name] for name in ("n1", "d1", "d2"))
    advice = advise(three, n1, d1, tokens=d2, law_error=error, flops_per_second=rate)
    assert (answer["flops"], answer["gpu_hours"]) == near((advice.question.flops, advice.question.gpu_hours))
    options = {OPTIONS[each.what]: each for each in advice.losses if each.what in OPTIONS}
    assert set(answer["losses"]) == set(options)
    for option, each in options.items():
        found = answer["losses"][option]
        assert (found["loss"], found["tokens"]) == near((each.loss, each.tokens))
        assert found["band"] == (None if each.band is None else near(list(each.band)))
    wanted = advice.recommendation
    assert (answer["option"], answer["over"], answer["sure"]) == (wanted.option, wanted.over, wanted.sure)
    assert (answer["lead"], answer["share"]) == near((wanted.lead, wanted.share))
    assert [each["option"] for each in answer["stretches"]] == [each.option for each in wanted.stretches]
    assert [each["high"] for each in answer["stretches"]] == near([each.high for each in wanted.stretches])
    check_threshold(answer["threshold"], advice.thresholds[0])
    check_threshold(answer["d_star"], advice.thresholds[2])
    overtakes = advice.overtakes_dense
    assert answer["overtakes_dense"] == (near(overtakes.tokens) if overtakes and overtakes.tokens else None)
    assert [each["input"] for each in answer["distances"]] == [each.input for each in advice.distances]
    assert [each["factor"] for each in answer["distances"]] == near([each.factor for each in advice.distances])
    few = replace(three, **{name: law and law.first_draws(MAP_DRAWS) for name, law in curves(three).items()})
    for cell in answer["map"][::211]:
        d1, d2 = cell["d1"], cell["d2"]
        options = {
            "upcycle": expected("", few.upcycled, d2, 0, 1, D1=d1, D2=d2, N1=n1),
            "scratch": expected("", few.need("moe"), d2, 0, 1, D=d2, N1=n1),
        }
        if few.dense is not None:
            options["dense"] = expected("", few.dense, d2, 0, 1, D=d1 + three.active_ratio * d2, N1=n1)
        there = recommend(few, n1, d1, options, error)
        assert (cell["option"], cell["lead"], cell["share"]) == (there.option, near(there.lead), near(there.share))
    return advice


def check_charts(page: Opened, answer: dict[str, Any], three: ThreeLaws) -> None:
    """What is drawn: curves and bands at a budget, the budget, the flip, the frame of the data, D*."""
    drawn = page.tab.evaluate(
        "Object.fromEntries(['curves-lines', 'map-dstar'].map((name) => [name, models[name].data]))"
    )
    lines, n1, d1 = drawn["curves-lines"], answer["n1"], answer["d1"]
    d2 = lines["x"][17]
    for option, rows in (
        ("upcycle", three.upcycled.loss_rows(D1=d1, D2=d2, N1=n1)),
        ("scratch", three.need("moe").loss_rows(D=d2, N1=n1)),
        ("dense", three.need("dense").loss_rows(D=d1 + three.active_ratio * d2, N1=n1)),
    ):
        ends = [lines[f"{option}_{end}"][17] for end in ("low", "high")]
        assert [lines[option][17], *ends] == near([rows[0], *central_95(rows[1:])])
    assert drawn["map-dstar"]["x"] == drawn["map-dstar"]["y"] == [answer["d_star"]["root"]]
    places = page.tab.evaluate("['curves-budget', 'curves-flip'].map((name) => models[name].location)")
    assert places == [near(answer["d2"]), answer["threshold"]["root"]]
    frame = page.tab.evaluate("['left', 'right', 'bottom', 'top'].map((side) => models['map-frame'][side])")
    assert frame == [*three.upcycled.box["D1"], *three.upcycled.box["D2"]]


def curves(three: ThreeLaws) -> dict[str, Any]:
    return {"dense": three.dense, "moe": three.moe, "upcycled": three.upcycled}


def test_the_readmes_example(visit):
    """7B, 2T, 100B: the words are those of `upcycle advise`."""
    page = visit("paper", n1="7B", d1="2T", budget="100B")
    paper = paper_source()
    advice = check_answer(page.tab.evaluate("advisor.answer"), paper.mixtures[0], paper.law_error[0])
    recommendation, _, flips, confidence, warning = (line.partition(": ")[2] for line in advice.statement.splitlines())
    sentence = page.text("sentence")
    assert sentence.lower().startswith(recommendation.rstrip("."))
    assert confidence.partition(";")[0] in sentence
    assert sentence.count(". ") == 0  # one sentence
    flips = flips.replace(", more flips far", "; the best option changes again far")
    assert page.text("flips") == f"Over the budget: {flips}"
    assert page.text("decisive") == warning
    assert "D1 27 times above" in page.text("warning")
    assert "D2 = 383B tokens (95 % of draws: 86.8B to far above the data)" in page.text("flip")
    assert "D* = 880M" in page.text("dstar")


def test_sliders_move_and_the_numbers_are_pythons(visit):
    """By keyboard, as a reader without a mouse does; then the unit, the rate, and a number typed in."""
    paper, page = paper_source(), visit("paper")
    three, error = paper.mixtures[0], paper.law_error[0]
    before = page.text("sentence")
    first = page.tab.evaluate("advisor.answer")
    answer = page.press("n1", "ArrowLeft", 40)
    assert answer["n1"] == near(10 ** float(page.tab.input_value("#n1")))
    assert answer["n1"] < first["n1"]
    answer = page.press("d1", "ArrowRight", 25)
    assert answer["d1"] > first["d1"]
    answer = page.press("budget", "PageUp", 2)
    assert answer["d2"] > first["d2"]
    assert page.text("sentence") != before
    check_answer(answer, three, error)
    check_charts(page, answer, three)
    page.choose("unit", "FLOPs")
    held = page.choose("unit", "GPU-hours")
    assert held["d2"] == near(answer["d2"])
    page.tab.fill("#rate", "989")
    answer = page.press("rate", "Tab")
    answer = page.press("budget", "ArrowRight", 3)
    assert answer["gpu_hours"] == near(10 ** float(page.tab.input_value("#budget")))
    check_answer(answer, three, error, rate=989e12)
    page.tab.fill("#n1-value", "70B")
    answer = page.press("n1-value", "Enter")
    assert answer["n1"] == 7e10


def test_the_address_holds_the_setting(visit):
    page = visit("small", source="two mixtures", n1=3e4, d1="1M", unit="flops", budget=2e11, rate=3e14, e=16)
    answer = page.settle()
    again = visit("small", **dict(parse_qsl(page.tab.evaluate("location.hash.slice(1)"))))
    assert again.settle() == answer
    assert (answer["source"], answer["n1"], answer["d1"], answer["flops"]) == ("two mixtures", 3e4, 1e6, near(2e11))
    assert (answer["n_expert"], answer["top_k"]) == (16, 1)


def test_every_source_answers_as_python_does(visit):
    """Each law that decisions may use; sources without bands or a dense law; a setting far from the data."""
    page = visit("small")
    for each in small_sources():
        answer = page.choose("source", each.name)
        assert answer["source"] == each.name
        if each.name not in ("measured", "two mixtures"):
            answer = page.press("d1", "PageUp")
        check_answer(answer, each.mixtures[0], each.law_error[0])
    page.press("d1", "End")
    check_answer(page.press("budget", "Home"), each.mixtures[0], each.law_error[0])
    page.choose("source", "no draws")
    assert "how sure is not known" in page.text("sentence")
    page.choose("source", "no dense law")
    assert "no law in this source" in page.text("losses")
    assert "no law of dense models" in page.text("decisive")


def test_a_slider_that_a_source_cannot_answer_is_disabled_with_the_reason(visit):
    page = visit("small", source=PAPER)
    assert [page.tab.is_disabled(f"#{name}") for name in ("n1", "d1", "budget", "experts", "top_k")] == [
        False, False, False, True, True,
    ]  # fmt: skip
    assert "8 experts, top-2 alone" in page.text("experts-why")
    assert page.text("n1-why") == ""
    answer = page.choose("source", "measured")
    assert answer["n1"] == 32768
    assert page.tab.is_disabled("#n1")
    assert page.tab.is_disabled("#n1-value")
    assert "fitted at one size, N1 = 32.8k" in page.text("n1-why")


def test_experts_move_where_a_source_has_several_mixtures(visit):
    each = next(each for each in small_sources() if each.name == "two mixtures")
    page = visit("small", source=each.name)
    assert (page.text("experts-value"), page.text("top_k-value")) == ("8", "2")
    answer = page.press("experts", "ArrowRight")
    assert (answer["n_expert"], answer["top_k"]) == (16, 1)
    check_answer(answer, each.mixtures[1], each.law_error[1])
    answer = page.press("top_k", "ArrowRight")
    assert (answer["n_expert"], answer["top_k"]) == (8, 2)
    check_answer(answer, each.mixtures[0], each.law_error[0])


def test_a_source_keeps_its_setting(visit):
    """Coming back finds it as it was left; a source first seen takes over what lies within its data."""
    page = visit("small", source="no draws", n1="40k", d1="600k", budget="2M")
    answer = page.choose("source", "no dense law")
    assert (answer["d1"], answer["d2"]) == (6e5, 2e6)
    answer = page.choose("source", PAPER)
    assert answer["d1"] > 1e9
    page.tab.fill("#d1-value", "30B")
    page.press("d1-value", "Enter")
    page.choose("source", "no draws")
    assert page.choose("source", PAPER)["d1"] == 3e10


def test_the_warning_grows_with_the_distance(visit):
    page = visit("paper", n1="1B", d1="20B", budget="10B")
    levels, lengths = [], []
    for d1 in ("20B", "100B", "500B", "5T", "100T"):
        page.tab.fill("#d1-value", d1)
        page.press("d1-value", "Enter")
        levels.append(page.tab.get_attribute("#warning", "data-level"))
        lengths.append(page.tab.evaluate("document.getElementById('warning-bar').getBoundingClientRect().width"))
    assert levels == ["inside", "edge", "outside", "far", "beyond"]
    assert lengths == sorted(set(lengths))
    page.tab.fill("#d1-value", "7X")
    page.press("d1-value", "Enter")
    assert "is not a number above 0" in page.text("d1-wrong")
    page.tab.fill("#d1-value", "7")
    page.tab.press("#d1-value", "Enter")
    page.tab.wait_for_function("document.getElementById('d1-wrong').textContent != ''")
    assert "D1 is 7; the laws are evaluated from 1000" in page.text("d1-wrong")
    assert page.text("sentence") == "No answer: D1 is out of range. All below is of the setting before."


def test_every_measured_loss_is_shown_with_its_run(visit):
    """In the table with what its law says, in the list by keyboard, and under the pointer; markup of others is text."""
    each = small_sources()[-1]
    page, three = visit("small", source="measured"), each.mixtures[0]
    points = {point["run"]: point for point in page.settle()["points"]}
    rows = losses()
    assert list(points) == rows["id"].tolist()
    for run, curve, inputs in (
        ("dense-a", three.dense, {"D": 4e5}),
        ("cont-a", three.dense, {"D": 1.2e6}),
        ("moe-a", three.moe, {"D": 5e5}),
        ("up-a", three.upcycled, {"D1": 2.5e5, "D2": 5e5}),
    ):
        assert points[run]["law"] == near(float(curve.loss(**inputs)))
    other = {run: point["why"] for run, point in points.items() if point["law"] is None}
    assert other == {"dense-b": "other size", "up-other": "other mixture", "up-grown": "other parent"}
    assert [points[run]["fitted"] for run in ("up-a", "up-b", "up-</script><b>", "moe-a")] == [True, True, False, False]
    page.tab.click("text=All measured losses as a table")
    assert page.text("points").count("up-</script><b>") == 1
    assert "A note with <b>." in page.text("notes")
    fitted = [point for point in points.values() if point["fitted"] and point["kind"] == "upcycled"]
    rms = float(np.sqrt(np.mean([(point["loss"] - point["law"]) ** 2 for point in fitted])))
    assert page.tab.evaluate("laws.residuals.upcycled.rms") == near(rms)
    assert f"upcycled {rms:.3f} (at most" in page.text("warning")
    page.tab.select_option("#run", label="up-b")
    assert page.text("run-text").startswith("3.5000 nats, ")
    place = page.tab.evaluate(WHERE, [2.5e5, 5e5])
    page.tab.mouse.move(*place)
    page.tab.wait_for_function(f"({TOOLTIPS})().includes('up-a')")
    assert page.tab.evaluate(TOOLTIPS).count("least loss") == 0  # of the cell below
    assert page.tab.evaluate(CHOSEN) == "up-a"


CHOSEN = "document.getElementById('run').selectedOptions[0].textContent"
"""Name of the run that the line below the charts is about."""
WHERE = """([x, y]) => {
  const view = drawn.map, box = view.el.getBoundingClientRect()
  window.scrollTo(0, window.scrollY + box.top - 100)
  const top = view.el.getBoundingClientRect()
  return [top.left + view.frame.x_scale.compute(x), top.top + view.frame.y_scale.compute(y)]
}"""
"""Where a point of the map is in the window."""
TOOLTIPS = """() => {
  const texts = []
  const walk = (root) => root.querySelectorAll("*").forEach((each) => {
    if (String(each.className).includes("ooltip")) texts.push(each.textContent)
    if (each.shadowRoot) texts.push(each.shadowRoot.textContent), walk(each.shadowRoot)
  })
  walk(document)
  return texts.join(" ")
}"""
"""Text of Bokeh's tooltips."""


def test_on_a_phone_nothing_is_wider_than_the_screen(visit):
    page = visit(
        "small", {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}, source="measured"
    )
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
    controls = "[...document.querySelectorAll('input, select, .screen, #losses')]"
    widest = page.tab.evaluate(f"Math.max(...{controls}.map((each) => each.getBoundingClientRect().right))")
    assert widest <= 360
    place = page.tab.evaluate(WHERE, [2.5e5, 5e5])
    page.tab.touchscreen.tap(*place)
    page.tab.wait_for_function(f"{CHOSEN} === 'up-a'")
    assert page.tab.is_visible("#verdict")  # the sentence is off the screen
    page.tab.evaluate("window.scrollTo(0, 0)")
    page.tab.wait_for_selector("#verdict", state="hidden")


def luminance(color: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", color)[:3]) / 765


def test_dark_where_the_reader_wants_it_and_light_on_paper(visit):
    page = visit("small", {"color_scheme": "dark"}, source="measured")
    background = "getComputedStyle(document.body).backgroundColor"
    assert luminance(page.tab.evaluate(background)) < 0.2
    page.tab.emulate_media(media="print")
    assert luminance(page.tab.evaluate(background)) > 0.9
    for control in ("source", "n1", "d1", "budget", "unit", "rate", "experts", "top_k"):
        assert page.tab.is_visible(f"#{control}"), control
    for chart in ("curves", "map", "residuals"):
        assert page.tab.is_visible(f"#{chart}-print")
        assert page.tab.evaluate(INKED, f"{chart}-print")
    assert len(page.tab.pdf(format="A4")) > 20_000
    assert page.tab.evaluate("[...document.querySelectorAll('details')].every((each) => each.open)")


INKED = """(id) => {
  const canvas = document.getElementById(id)
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0)
}"""
"""Whether a canvas has anything on it."""
