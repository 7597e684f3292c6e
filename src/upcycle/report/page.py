"""report.html: one self-contained page on what was run, what was found and what was not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from upcycle.files import write_atomic
from upcycle.paper.comparisons import Verdict
from upcycle.paper.inputs import Inputs
from upcycle.paper.method_findings import method_findings
from upcycle.paper.observations import observe
from upcycle.paper.render import number, plural, to_html
from upcycle.report import first_screen, laws, losses, pictures, sections
from upcycle.report.background import Background, read_csv
from upcycle.report.decisions import decisions
from upcycle.report.findings import findings, headline
from upcycle.report.limits import limits
from upcycle.report.paper_items import not_run, paper_items
from upcycle.report.trained_on import trained_on
from upcycle.study import catalogue
from upcycle.study.spec import short_count
from upcycle.study.values import duration

__all__ = ["Background", "summary_text", "write_report"]


METHODS = "methods"
"""The figure that has a section of its own."""
LONG = 60
"""Characters of a cell from which a table is one of words: folded, its cells wrapped."""

MARKS: dict[Verdict, str] = {
    "clear": "● settled by these losses",
    "part": "◐ settled at some points",
    "open": "○ not settled",
    "against": "◆ settled, and unlike the paper",
}
"""What the marks of findings mean; page.css draws them."""


def write_report(inputs: Inputs, background: Background, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises `UserError` naming a figure, table or record that is missing.
    """
    write_atomic(path, render(inputs, background))


def summary_text(inputs: Inputs, background: Background) -> str:
    """What was found as plain text: the headline, then a line for each ablation."""
    seen = observe(inputs, background.figures)
    lines = [f"{_name(catalogue.find_item(name))}: {each.finding.sentence}" for name, each in seen.items()]
    return "\n".join([headline(inputs), *lines]) + "\n"


def _name(item: catalogue.CatalogueItem) -> str:
    return item.label or item.title.rstrip(".")


def environment() -> jinja2.Environment:
    """The templates and their filters."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "plural": plural, "words": words, "greek": greek, "symbols": laws.symbols}
    found.filters |= {"duration": duration, "count": short_count, "not_run": not_run}
    return found


def greek(text: str) -> str:
    """Names of parameters as the paper writes them: alpha1 becomes α1."""
    return re.sub(r"\b(alpha|beta)(\d?)\b", lambda match: laws.GREEK[match[1]] + match[2], text)


def words(sentence: str) -> Markup:
    """A message as a sentence of HTML: capital and full stop, Greek letters, and code where it has backticks."""
    parts = sentence.split("`")
    parts[::2] = map(greek, parts[::2])  # what stands in backticks is typed as it is
    if parts[0][:1].isascii():  # a capital α would look like an A
        parts[0] = parts[0][:1].upper() + parts[0][1:]
    parts[-1] += "" if sentence.endswith((".", "?", "!")) else "."
    marked = (Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts))
    return Markup("").join(marked)


def render(inputs: Inputs, background: Background) -> str:
    """The page's HTML; the same inputs give the same text."""
    grid, seen = inputs.grid(), observe(inputs, background.figures)
    shown = pictures.pictures(background, seen)
    front = pictures.front(shown)
    overview = "overview" in background.figures
    items = paper_items(inputs, background)
    texts: list[dict[str, Any]] = []
    if not inputs.mark:  # else we tokenised nothing
        fingerprints = {inputs.record(run_id, "metrics")["tokens_fingerprint"] for run_id in inputs.losses["id"]}
        texts = background.manifests(fingerprints)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=background.title or "Upcycling dense models into mixtures of experts",
            simulated=inputs.simulated,
            sources=inputs.sources,
            measured=not inputs.mark,
            answer=first_screen.answer(inputs, grid, seen, overview=overview),
            facts=first_screen.facts(inputs, grid, seen, overview=overview),
            front=front,
            figures=[each for each in shown if each is not front],
            dark=pictures.dark_colours(shown),
            findings=findings(inputs),
            marks=MARKS,
            scope=sections.scope(inputs, background, grid),
            run=sections.what_was_run(inputs, background),
            losses=losses.grid_tables(inputs, grid),
            models=inputs.losses.sort_values(["model", "lineage", "D1", "D", "seed"]).to_dict("records"),
            kinds=sections.KINDS,
            evaluations=losses.evaluations(inputs, background),
            ablations=[
                (name, _name(catalogue.find_item(name)), each) for name, each in seen.items() if name != "methods"
            ],
            methods=method_findings(inputs, **background.figures["methods"]) if "methods" in background.figures else [],
            tables=[_table(name, background) for name in background.tables],
            laws=laws.cards(inputs, grid),
            rivals=trained_on(inputs, grid),
            decisions=decisions(inputs),
            receipts=sections.receipts(inputs),
            texts=texts,
            items=items,
            item_counts=Counter(item.state for item in items),
            limits=limits(inputs, grid, texts),
            command=background.command,
            study=background.study,
        )
    )


def _table(name: str, background: Background) -> dict[str, Any]:
    """A table of the study as HTML, title, caption."""
    item = catalogue.find_item(name, "table")
    frame = read_csv(background.out / "tables" / f"{name}.csv")
    frame = frame.set_index(frame.columns[0])
    return {
        "name": name,
        "item": item,
        "html": to_html(frame),
        "rows": len(frame),
        "words": any(isinstance(cell, str) and len(cell) > LONG for cell in frame.to_numpy().ravel()),
    }
