"""The command line: help is enough, bad input is one line and exit code 2, `plan` is right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from upcycle.cli import parser

REPOSITORY = Path(__file__).parents[2]


def upcycle(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "upcycle.cli", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_verb_explains_itself():
    """Each verb has a description and each argument a help text."""
    verbs = next(action for action in parser()._actions if action.dest == "verb").choices
    for name, verb in verbs.items():
        assert verb.description, name
        assert all(action.help for action in verb._actions), name


@pytest.fixture
def here(tmp_path):
    tmp_path.joinpath("config.yaml").write_text(REPOSITORY.joinpath("tests/workflow/config.yaml").read_text())
    return tmp_path


def test_plan_is_data_too(here):
    """`upcycle plan --json`: every run with its cost and state, totals by sweep; nothing is written."""
    done = upcycle("plan", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["total"]["runs"] == len(plan["runs"]) == plan["total"]["to_train"]
    assert plan["total"]["segment_tokens"] == sum(run["segment_tokens"] for run in plan["runs"])
    assert {"id", "parent", "flops_6nd", "bytes", "seconds", "finished"} <= set(plan["runs"][0])
    assert sorted(path.name for path in here.iterdir()) == ["config.yaml"]


def test_plan_for_a_person_names_every_sweep(here):
    done = upcycle("plan", "--all", cwd=here)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "upcycled", "to train", "all (runs shared)"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "dense-l1d16-nothing"], "plans no run `dense-l1d16-nothing`"),
        (["tokenize", "englisch"], "reads no token set `englisch`"),
        (["fit", "multiplicativ"], "did you mean `multiplicative`?"),
        (["plan", "--study", "papper"], "no study `papper`"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(here, words, message):
    done = upcycle(*words, cwd=here)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (here / "results").exists()
