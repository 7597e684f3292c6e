"""The command line: help is enough, bad input is one line and exit code 2, `plan` is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from upcycle import __version__
from upcycle.arguments import parser
from upcycle.cli import main
from upcycle.laws.tables.losses import COLUMNS

VERBS = list(next(action for action in parser()._actions if action.dest == "verb").choices)
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
    """A folder with the smallest study, one without upcycled sweeps, and files that nothing can read."""
    text = REPOSITORY.joinpath("tests/workflow/config.yaml").read_text().replace("study: test", "study: default")
    tmp_path.joinpath("config.yaml").write_text(text)
    study = yaml.safe_load(text) | {"study": "bare", "evaluations": {}, "fits": {}, "figures": {}, "tables": {}}
    del study["sweeps"]["upcycled"]
    for folder in ("config", "folder.json", "damaged"):
        tmp_path.joinpath(folder).mkdir()
    tmp_path.joinpath("config/bare.yaml").write_text(yaml.safe_dump(study))
    tmp_path.joinpath("config/paper.yaml").write_text(REPOSITORY.joinpath("config/paper.yaml").read_text())
    tmp_path.joinpath("list.json").write_text("[1]")
    tmp_path.joinpath("empty.json").write_text("{}")
    tmp_path.joinpath("binary.json").write_bytes(b"\xff\xfe")
    tmp_path.joinpath("damaged/additive.json").write_text("[]")
    for name in ("words", "heldout", "other"):
        tmp_path.joinpath(f"{name}.jsonl").touch()
    return tmp_path


def test_plan_is_data_too(here):
    """`upcycle plan --json`: every run with its cost and state, totals by sweep; nothing is written."""
    before = sorted(path.name for path in here.iterdir())
    done = upcycle("plan", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["total"]["runs"] == len(plan["runs"]) == plan["total"]["to_train"]
    assert plan["total"]["segment_tokens"] == sum(run["segment_tokens"] for run in plan["runs"])
    assert {"id", "parent", "flops_6nd", "bytes", "seconds", "finished"} <= set(plan["runs"][0])
    assert sorted(path.name for path in here.iterdir()) == before


def test_plan_for_a_person_names_every_sweep(here):
    done = upcycle("plan", "--all", cwd=here)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "upcycled", "to train", "all (runs shared)"):
        assert word in done.stdout


BAD = [
    ("", "the following arguments are required: VERB"),
    ("plann", "no verb `plann`; did you mean `plan`?"),
    ("xyz", "no verb `xyz`; valid: `adopt`, `advise`, "),
    ("plan --jsn", "upcycle plan: unknown argument `--jsn`; did you mean `--json`?"),
    ("status extra", "upcycle status: unknown argument `extra`"),
    ("audit --study paper", "upcycle audit: unknown argument `--study`"),
    *((f"{verb} --study papper", "did you mean `paper`?")
      for verb in ("plan", "status", "losses", "evaluations", "report", "fit", "design", "rehearse")),
    *((f"{verb} x --study papper", "did you mean `paper`?")
      for verb in ("tokenize", "train", "figure", "table")),
    ("plan --study ../config", "../config"),
    ("tokenize", "arguments are required: name"),
    ("tokenize englisch", "reads no token set `englisch`; valid: `other-1-as-words-1-bpe300`"),
    ("train", "arguments are required: run"),
    ("train dense-l1d16-nothing", "plans no run `dense-l1d16-nothing`"),
    ("train nosuch.json", "nosuch.json: No such file"),
    ("train list.json", "list.json is damaged: it holds no JSON object"),
    ("train empty.json", "empty.json: key `model` is missing"),
    ("train binary.json", "binary.json is damaged"),
    ("train folder.json", "folder.json: Is a directory"),
    ("evaluate", "arguments are required: run"),
    ("evaluate x", "plans no run `x`"),
    ("evaluate x nosuch", "no evaluation `nosuch`"),
    ("evaluate x other", "plans no run `x`"),
    ("losses", "the run is not finished, train it first"),
    ("losses --out folder.json", "--out folder.json is a folder: name a file"),
    ("evaluations", "run `upcycle evaluate "),
    ("evaluations --study bare", "has no `evaluations`"),
    ("fit", "name one of the fits of study `default` (valid: `additive`, "),
    ("fit multiplicativ", "did you mean `multiplicative`?"),
    ("fit multiplicative", "losses.csv: No such file"),
    ("fit multiplicative --csv x.csv", "`multiplicative` is for a fit of a study"),
    ("fit multiplicative --draws 3", "`multiplicative` is for a fit of a study"),
    ("fit --law joint --csv x.csv --study paper", "`--study` is for a fit of a study"),
    ("fit --law joint --csv x.csv --out y", "`--out` is for a fit of a study"),
    ("fit --law joint", "needs both --law NAME and --csv FILE"),
    ("fit --law joint --csv nosuch.csv", "nosuch.csv: No such file"),
    ("figure", "arguments are required: name"),
    ("figure figure33", "no figure `figure33` under `figures`; did you mean `figure3`?"),
    ("figure figure3", "losses.csv: No such file"),
    ("table table2", "no table `table2` under `tables`; did you mean `table1`?"),
    ("table table1", "losses.csv: No such file"),
    ("report", "losses.csv: No such file"),
    ("report --study bare", "has no upcycled sweep"),
    ("advise", "one of the arguments --n1 --study is required"),
    ("advise --n1 1e9", "--d1 is missing: the tokens that the dense model of --n1 was trained on"),
    ("advise --n1 1e9 --study default", "argument --study: not allowed with argument --n1"),
    ("advise --study default --d1 1e9", "--d1 is of the advice by laws"),
    ("advise --study default", "losses.csv: No such file"),
    ("advise --n1 -1 --d1 1e9", "--n1: `-1`"),
    ("advise --n1 1e9 --d1 1e9 --fits nosuch", "nosuch holds no fits"),
    ("advise --n1 1e9 --d1 1e9 --fits damaged", "damaged/additive.json"),
    ("design", "no noise measured: results/losses.csv: No such file"),
    ("design --d1 1e9 --d2 1e9 --n1 1e9", "no noise measured"),
    ("design --d1 1e9 --d2 1e9 --n1 1e9 --noise 0.003 --seed -1", "`-1` is not a whole number of 0 or more"),
    ("design --sweep nosuch --noise 0.003", "no sweep `nosuch`"),
    ("audit --out empty.json", "empty.json: File exists"),
    ("audit --out /proc/nosuch/x", "/proc/nosuch: No such file"),
    ("rehearse --noise loud", "`loud` is not a standard deviation in nats"),
    ("rehearse --noise -0.1", "`-0.1` is not a standard deviation in nats"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: value.replace(" ", "_")[:50])
def test_bad_input_is_one_line_and_exit_code_2(here, monkeypatch, capsys, words, message):
    monkeypatch.chdir(here)
    before = sorted(here.rglob("*"))
    assert main(words.split()) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("upcycle")
    assert output.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_fits_that_are_missing_are_named(here, monkeypatch, capsys):
    """`upcycle figure` of losses that nothing was fitted to."""
    results = here / "results"
    results.mkdir()
    results.joinpath("losses.csv").write_text(",".join(column.name for column in COLUMNS) + "\n")
    monkeypatch.chdir(here)
    for words in (["figure", "figure3"], ["table", "table1"], ["report"]):
        assert main(words) == 2
        assert (
            "fits/multiplicative.json: no such file; `upcycle fit multiplicative` makes it" in capsys.readouterr().err
        )


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_version_are_no_failure(capsys, verb):
    for words, text in (([verb, "--help"], f"usage: upcycle {verb}"), (["--version"], f"upcycle {__version__}\n")):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith(text)


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        ("| true", 0, ""),
        (">&-", 0, ""),
        ("> /dev/full", 3, "upcycle plan: the output cannot be written: No space left on device\n"),
    ],
)
@pytest.mark.parametrize("words", ["plan --json", "plan"])
def test_an_output_that_nobody_takes_is_no_traceback(here, words, redirection, code, error):
    """A reader that has left is no failure; a full disk is."""
    line = f"set -o pipefail; {sys.executable} -m upcycle.cli {words} {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.replace("upcycle:", "upcycle plan:") == error


@pytest.mark.slow
def test_a_terminal_without_greek_letters_shows_the_rest():
    done = subprocess.run(
        [sys.executable, "-m", "upcycle.cli", "fit", "--law", "list"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
