"""What the documents promise exists: commands, links, the example study."""

import re
from pathlib import Path

import pytest

from upcycle.study.check import check_names
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    """Every relative link, and every path in backquotes that begins with a folder of the repository."""
    text = page.read_text()
    targets = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:src|docs|tests|workflow|profiles|benchmarks|config)/[\w./-]+)`", text)
    missing = [link for link in targets if not (page.parent / link).exists()]
    # config/mine.yaml is the reader's own
    missing += [path for path in paths if path != "config/mine.yaml" and not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
