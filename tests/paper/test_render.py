"""Numbers and tables as people write them."""

import math

import pandas as pd
import pytest

from upcycle.paper.render import number, signed, to_html, to_markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0047619, "0.00476"),
        (14.04, "14.0"),
        (-0.0307, "−0.0307"),
        (3.2e-9, "3.20e−9"),
        (717_345.5, "7.17e5"),
        (8203.4, "8,203"),
        (-2.0, "−2"),
        (math.inf, "infinity"),
        (25, "25"),
        (2.0, "2"),
        (0.9996, "1.000"),
        (math.nan, "–"),
        (None, ""),
        ("tiny", "tiny"),
    ],
)
def test_a_number_has_three_digits(value, text):
    assert number(value) == text


def test_a_difference_has_its_sign():
    assert (signed(0.0144), signed(-0.1644)) == ("+0.014", "−0.164")


def test_a_value_and_its_interval_are_one_cell():
    frame = pd.DataFrame(
        {"x": [0.5], "x low": [0.25], "x high": [0.75], "y low": [1.0]}, index=pd.Index(["a"], name="n")
    )
    assert to_markdown(frame).splitlines() == [
        "| n |                    x | y low |",
        "|---|---------------------:|------:|",
        "| a | 0.500 [0.250, 0.750] |     1 |",
    ]


def test_a_table_too_wide_for_a_page_is_turned_on_its_side():
    frame = pd.DataFrame({f"c{k}": [k, 10 * k] for k in range(9)}, index=pd.Index(["a", "b"], name="n"))
    page = to_html(frame)
    assert '<tr><th scope="col">n</th><th scope="col">a</th><th scope="col">b</th></tr>' in page
    assert '<tr><th scope="row">c2</th><td>2</td><td>20</td></tr>' in page
    assert '<th scope="row">a</th>' in to_html(frame[["c1", "c2"]])


def test_html_escapes_what_it_shows():
    assert '<th scope="row">&lt;a&gt;</th>' in to_html(pd.DataFrame({"x": [1]}, index=pd.Index(["<a>"])))
