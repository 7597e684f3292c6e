"""What the documents promise exists: commands, links, the example study. Their lines and words follow one style."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from upcycle import __version__
from upcycle.arguments import parser
from upcycle.study.check import check_names
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "results" / "README.md",
    REPOSITORY / "results" / "reference" / "README.md",
]
TYPED = [page for page in PAGES if page.stem != "audit"]
"""Pages that people write. audit.md is printed by `upcycle audit`."""

AVOIDED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"to be had\b|\bat hand\b": "available",
    r"falls? short": "limits",
    r"may take over": "replaces",
    r"\bserves\b": "is used",
    r"\bis said\b|\bsays so\b|\bsay so\b": "reports, states",
    r"\bgo(es)? on\b": "continues",
    r"\bgoes (most closely )?with\b": "correlates with",
    r"\blikewise\b": "the same; repeat the noun",
    r"\bstands? (behind|in|beside|anywhere)\b": "is in",
    r"\b(is|are|was) (no|not) part of\b|\b(is|are) no part\b": "excludes",
    r"\bis no (fault|noise)\b": "is not a fault",
    r"\bfor want of\b|\bby lot\b|\bof its own accord\b": "common words",
}
"""Expressions of a riddling style, and what to write in their place."""

VERBS = set(next(action.choices for action in parser()._actions if action.dest == "verb"))


def prose(page):
    """Numbered lines of a page outside code blocks, with what is in backquotes blanked at its length."""
    in_code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line)


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_lines_have_at_most_100_characters(page):
    """Tables and lines with a link or an address may be longer."""
    long = [n for n, line in prose(page) if len(line) > 100 and not re.match(r"\||!?\[|.*(\]\(|://)", line.lstrip())]
    assert not long


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_words_are_plain(page):
    text = "\n".join(line for _, line in prose(page))
    found = {match[0]: better for words, better in AVOIDED.items() for match in re.finditer(words, text, re.IGNORECASE)}
    assert not found, f"{page.name}: {found}"


def printed(command):
    """Standard output of `upcycle` with these arguments."""
    line = [sys.executable, "-m", "upcycle.cli", *shlex.split(command)]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_readme_shows_what_advise_prints():
    """The sample on the README's first screen: the five lines, all of them."""
    sample = re.search(r"```bash\nupcycle (advise .*)\n```\n```text\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    assert printed(sample[1]) == sample[2]
    assert len(sample[2].splitlines()) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_are_accepted(page):
    """Verbs and options of every `upcycle ...` in a code block or in backquotes. A line with [ is a synopsis."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^(?:\$ )?upcycle (.+)$", blocks, re.MULTILINE) + re.findall(r"`upcycle ([^`]+)`", text)
    for line in lines:
        words = shlex.split(line, comments=True)
        if len(words) == 1 and words != ["..."]:
            assert words[0] in VERBS
        elif "[" not in line and words != ["..."]:
            parser().parse_args(words)


@pytest.mark.slow
def test_the_design_page_shows_what_design_prints():
    """The first example in full. The two of the paper's study take longer and are excerpts."""
    page = (REPOSITORY / "docs" / "design-a-sweep.md").read_text()
    sample = re.search(r"```\nupcycle (design .*)\n```\n\n```\n(.*?)```", page, re.DOTALL)
    assert printed(sample[1]) == sample[2]


def test_one_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", __version__)
    newest = re.search(r"^## (\S+) \((\S+)\)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.groups() == (__version__, str(citation["date-released"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_lead_somewhere(page):
    """Every relative link, and every path in backquotes that begins with a folder of the repository."""
    text = page.read_text()
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:src|docs|tests|workflow|profiles|benchmarks|config)/[\w./-]+)`", text)
    missing = [link for link in targets if not (page.parent / link).exists()]
    # config/mine.yaml is the reader's own
    missing += [path for path in paths if path != "config/mine.yaml" and not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_the_example_study_can_be_planned(tmp_path):
    """The YAML of docs/first-sweep.md is a valid study with the runs that it describes."""
    text = re.search(r"```yaml\n(.*?)```", (REPOSITORY / "docs/first-sweep.md").read_text(), re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text[1])
    study = load_study(path)
    check_names(study)
    plan = build_plan(study, tmp_path)
    assert {name: len(ids) for name, ids in plan.sweeps.items()} == {"dense": 3, "upcycled": 18, "lr": 3}


@pytest.mark.parametrize("study", ["config.yaml", "config/paper.yaml"])
def test_committed_studies_name_what_exists(study):
    check_names(load_study(REPOSITORY / study))


def test_the_default_sweep_keeps_its_floor():
    """No run under 100 steps, no decay under 10; a 5 x 5 grid at the smaller size; three seeds at three points."""
    study = load_study(REPOSITORY / "config.yaml")
    plan = build_plan(study, Path("no-results"))
    finished = [plan.runs[run_id] for run_id in plan.finished_models]
    assert min(run.end_step for run in finished) >= 100
    assert min(run.end_step - run.start_step for run in finished if run.role == "decay") >= 10
    grid = [plan.runs[run_id] for run_id in plan.sweeps["upcycled"]]
    assert len({run.dense_tokens for run in grid}) == len({run.tokens for run in grid}) == 5
    assert len(grid) == 25
    sizes = {run.model for run in finished if run.lineage == "dense"}
    assert len(sizes) >= 2
    assert {run.model for run in grid} == {min(sizes, key=lambda model: model.d_model * model.n_layer)}
    assert {run.tokens for run in grid} == {plan.runs[run_id].tokens for run_id in plan.sweeps["moe"]}
    seeds: dict[tuple[int, int], set[int]] = {}
    for run in (plan.runs[run_id] for name in ("upcycled", "seeds") for run_id in plan.sweeps[name]):
        seeds.setdefault((run.dense_tokens, run.tokens), set()).add(run.seed)
    assert sum(len(values) >= 3 for values in seeds.values()) >= 3
