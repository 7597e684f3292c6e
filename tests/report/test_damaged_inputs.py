"""A file that the report reads and that is damaged, missing or a folder is one line that names it."""

import dataclasses
import shutil

import pytest

from upcycle.errors import UserError
from upcycle.report.page import render

pytestmark = pytest.mark.slow

RECORDS = ("runs/{run}/metrics.json", "runs/{run}/spec.json", "tokens/english-1-bpe1024/manifest.json", "timing.json")
TABLES = ("evaluations.csv", "tables/table1.csv")
DAMAGES = [
    *((name, content) for name in RECORDS for content in ("{", "[]", "{}", "folder")),
    ("timing.json", '{"invocations": 3}'),
    ("timing.json", '{"invocations": [{}]}'),
    *((name, content) for name in TABLES for content in ("", '"', "\xff", "folder")),
    ("evaluations.csv", "id,loss\na,1\n"),
    *((name, None) for name in (*RECORDS[:3], TABLES[1], "figures/figure3.svg")),
    ("figures/figure3.svg", "folder"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_damage_is_named(study, tmp_path, name, content):
    inputs, background = study
    results = tmp_path / "results"
    shutil.copytree(background.out, results)
    path = results / name.format(run=inputs.losses["id"].iloc[-1])
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content, encoding="latin-1")
    inputs = dataclasses.replace(inputs, runs=results / "runs")
    background = dataclasses.replace(background, out=results, tokens=results / "tokens")
    if path.name == "manifest.json" and content is None:
        path = results / "tokens"
    with pytest.raises(UserError, match=str(path)) as error:
        render(inputs, background)
    assert "\n" not in str(error.value).strip()
