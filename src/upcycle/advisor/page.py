"""`upcycle page`: one self-contained HTML file that answers what `upcycle advise` answers, with sliders.

laws.js computes as upcycle.decisions does, words.js writes, drawing.js draws, advisor.js listens. They, Bokeh's
JavaScript, the constants and the measured losses are inlined, so the file opens without a network.
docs/advisor-page.md says how to read it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bokeh
import jinja2
from bokeh.resources import Resources
from markupsafe import Markup

from upcycle import __version__
from upcycle.advisor.charts import COLORS, FULL, MARKERS, PALE, charts
from upcycle.advisor.sources import Constants, source_data
from upcycle.decisions.advice.advice import LEAST_TOKENS
from upcycle.decisions.advice.expectations import TOKENS_PER_PARAMETER
from upcycle.decisions.advice.words import ACTIONS, DOINGS, RESULTS
from upcycle.decisions.thresholds import HIGH, LOW, NEAR
from upcycle.errors import UserError
from upcycle.files import write_atomic

SCRIPTS = ("laws.js", "words.js", "drawing.js", "advisor.js")
LARGEST = 2_000_000
"""Bytes of the file: a page that is sent by mail and opened on a phone."""
MAP_DRAWS = 200
"""Draws that shade the map, at most: it has a thousand cells."""
FLOPS_PER_SECOND = 400e12
"""Of one GPU, as `upcycle advise` assumes (A.10)."""


def write_advisor_page(sources: Sequence[Constants], path: Path) -> int:
    """Write the page of these sources, whole or not at all; returns its size in bytes.

    Raises `UserError` for a page above `LARGEST`.
    """
    content = advisor_page(sources).encode()
    if len(content) >= LARGEST:
        raise UserError(
            f"{path}: the page would have {len(content) / 1e6:.2f} MB, above {LARGEST / 1e6:g} MB: name fewer studies, "
            "or fits with fewer draws"
        )
    write_atomic(path, content)
    return len(content)


def advisor_page(sources: Sequence[Constants]) -> str:
    """The page's HTML; the same sources give the same text."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("advisor.html.j2").render(
        version=__version__,
        bokeh_version=bokeh.__version__,
        bokeh=Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)),
        scripts=[Markup((here / name).read_text(encoding="utf-8")) for name in SCRIPTS],
        css=Markup((here / "advisor.css").read_text(encoding="utf-8")),
        data=embedded_json(page_data(sources)),
        charts=embedded_json(charts()),
        sources=sources,
        rate=FLOPS_PER_SECOND / 1e12,
        colors=COLORS,
        full=FULL,
        pale=PALE,
    )


def page_data(sources: Sequence[Constants]) -> dict[str, Any]:
    """All that the page computes with."""
    return {
        "sources": [source_data(source) for source in sources],
        "limits": {"low": LOW, "high": HIGH, "near": NEAR, "least": LEAST_TOKENS},
        "tokens_per_parameter": TOKENS_PER_PARAMETER,
        "map_draws": MAP_DRAWS,
        "words": {"actions": ACTIONS, "doings": DOINGS, "results": RESULTS},
        "looks": {"colors": COLORS, "full": FULL, "pale": PALE, "markers": MARKERS},
    }


def embedded_json(value: Any) -> Markup:
    """JSON that no HTML parser takes for markup, numbers as their shortest exact form."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
