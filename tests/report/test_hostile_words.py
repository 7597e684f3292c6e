"""Whoever wrote a title, a file's name or a record: the report shows it as text, never as markup."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from upcycle.report.page import render


def hostile(place: str) -> str:
    return f"\"'><script>{place}</script>&"


def mark(value: Any, place: str, keys: tuple[str, ...]) -> Any:
    """A record with the hostile words in place of every text under these keys."""
    if isinstance(value, list):
        return [mark(item, place, keys) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: hostile(f"{place}-{key}") if key in keys and isinstance(item, str) else mark(item, place, keys)
        for key, item in value.items()
    }


def edit(path: Path, place: str, *keys: str) -> None:
    path.write_text(json.dumps(mark(json.loads(path.read_text()), place, keys)))


@pytest.fixture
def page(study, tmp_path) -> str:
    """The report of a study in which every text that somebody else wrote is hostile."""
    inputs, background = study
    results = tmp_path / "results"
    shutil.copytree(background.out, results)
    edit(results / "tokens/english-1-bpe1024/manifest.json", "manifest", "dataset", "description", "licence", "origin")
    for path in results.glob("runs/*/metrics.json"):
        edit(path, "metrics", "cpu", "capability", "system")
    for path in results.glob("runs/*/receipt.json"):
        edit(path, "receipt", "method", "statement", "gate")
    table = results / "tables/table1.csv"
    rows = pd.read_csv(table, dtype=str)
    rows.iloc[0, 0] = hostile("cell")
    rows.to_csv(table, index=False)
    rows = pd.read_csv(results / "evaluations.csv").assign(evaluation=hostile("evaluation"))
    rows.to_csv(results / "evaluations.csv", index=False)
    names = {name: inputs.losses[name].map(lambda text, name=name: text and hostile(name)) for name in ("model", "moe")}
    own = {"label": hostile("label"), "selection": hostile("selection"), "warnings": {"hostile": hostile("warning")}}
    fits = {name: dataclasses.replace(fit, **own) for name, fit in inputs.fits.items()}
    changed = dataclasses.replace(inputs, losses=inputs.losses.assign(**names), fits=fits, runs=results / "runs")
    where = {"out": results, "tokens": results / "tokens", "title": hostile("title"), "command": hostile("command")}
    return render(changed, dataclasses.replace(background, **where))


def test_the_page_escapes_what_it_shows(page):
    """All of it is on the page, and none of it as markup."""
    assert "<script" not in page
    shown = ["title", "command", "cell", "evaluation", "model", "moe", "label", "selection", "warning"]
    shown += [f"manifest-{key}" for key in ("dataset", "description", "licence", "origin")]
    shown += ["metrics-cpu", "metrics-system", "receipt-method", "receipt-statement", "receipt-gate"]
    assert not [place for place in shown if f"&lt;script&gt;{place}&lt;/script&gt;" not in page]
