"""docs/own-model.md in order, as a newcomer types it: a checkpoint and a text in, a mixture that generates text out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkouts import REPOSITORY, make_checkout
from hf_folders import PIECES, write_folder

from upcycle.study.strict_yaml import read_yaml

pytestmark = pytest.mark.workflow

PAGE = (REPOSITORY / "docs" / "own-model.md").read_text(encoding="utf-8")
ROUND_TRIP = PAGE.partition("## The round trip")[2].partition("\n## ")[0]
BUDGETS = [640, 1280, 2560]
"""Tokens, in place of the template's: the longest for the dense model alone, as the template has it."""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the code of the round trip, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", ROUND_TRIP, re.MULTILINE | re.DOTALL)


def edited(study: Path, snippet: str) -> str:
    """The template's study with the page's keys, made small: a random checkpoint of two layers, seconds of training."""
    content = read_yaml(study) | yaml.safe_load(snippet)
    content["data"]["vocab_size"], content["context"] = PIECES, 32
    content["models"]["mine"] |= {"lr": 3e-3, "lr_moe": 3e-3, "tokens": 2_000_000_000_000}
    content["execution"] = {"device": "cpu", "fork_server": True, "save_seconds": 3600}
    for sweep in content["sweeps"].values():
        several = BUDGETS if sweep["kind"] == "continued" else BUDGETS[:2]
        sweep["tokens"] = several if isinstance(sweep["tokens"], list) else BUDGETS[0]
    return json.dumps(content, indent=1)


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """The folder after all commands, and (command, what it printed) of each block."""
    checkout = make_checkout(tmp_path_factory.mktemp("own-model-page"))
    root = checkout.root
    write_folder(root / "checkpoint", num_key_value_heads=1)
    (root / "texts").mkdir()
    (root / "words.jsonl").rename(root / "texts" / "words.jsonl")
    (root / "config").mkdir(exist_ok=True)
    (root / "config" / "own-model.yaml").write_bytes((REPOSITORY / "config" / "own-model.yaml").read_bytes())
    environment = checkout.environment()
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    printed = []
    for language, text in blocks():
        if language == "yaml":
            path = root / "config" / "mine.yaml"
            path.write_text(edited(path, text))
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        printed.append((text, done.stdout))
    return root, printed


def output(typed, word: str) -> str:
    return next(out for text, out in typed[1] if word in text)


def test_the_page_goes_from_a_checkpoint_to_generated_text(typed):
    languages = [language for language, _ in blocks()]
    assert languages == ["bash", "yaml", "bash", "bash", "bash", "python"]
    assert output(typed, "model.generate").strip()
    config = json.loads((typed[0] / "exported" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]


def test_advise_recommends_and_tells_where_nothing_was_measured(typed):
    answers = output(typed, "advise").split("Recommendation: ")
    assert len(answers) == 3
    assert "at each of 2 budgets, D2 = 640 to 1.28k" in " ".join(answers[1].split()) or "depends" in answers[1]
    assert answers[2].startswith("No answer: the measured range does not reach D2 = 10k")
    assert "Not measured here: the paper's Table 2" in answers[1]


def test_the_report_shows_figure_and_section_of_the_answer(typed):
    page = (typed[0] / "results" / "mine" / "report.html").read_text()
    assert 'id="trained-on"' in page
    assert 'id="figure-continued"' in page
    assert 'id="decisions"' not in page
    recommendation = " ".join(output(typed, "advise").split()).partition("Recommendation: ")[2]
    summary = (typed[0] / "results" / "mine" / "summary.txt").read_text()
    assert recommendation.startswith(summary.partition(". ")[0])
