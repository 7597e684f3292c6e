"""Where trunks are cut: only before points that have not begun, so that no estimate of speed trains anything twice."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_studies import dense_study

from upcycle.errors import UserError
from upcycle.study.plan import Plan, build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, load_study

REPOSITORY = Path(__file__).parents[2]
HASH = "0" * 64


class Results:
    """Run folders as training leaves them, by name alone, and how many steps were trained for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trained: list[tuple[int, int]] = []

    def plan(self, *arguments, **sweep) -> Plan:
        return build_plan(dense_study(*arguments, **sweep), self.root)

    def write(self, run: RunSpec) -> Path:
        folder = self.root / "runs" / run.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(run.model_dump(mode="json") | {"id": run.id}))
        return folder

    def state(self, run: RunSpec, step: int) -> None:
        """Train up to a step and stop there."""
        resume = self.write(run) / "resume"
        resume.mkdir(exist_ok=True)
        self.trained.append((self.at(run), step))
        (resume / f"step-{step:09d}-{HASH}.safetensors").touch()

    def at(self, run: RunSpec) -> int:
        """Where a run stands."""
        found = [int(path.name[5:14]) for path in (self.root / "runs" / run.id / "resume").glob("step-*")]
        return max(found, default=run.start_step)

    def finish(self, run: RunSpec) -> None:
        if not self.finished(run.id):
            self.trained.append((self.at(run), run.end_step))
            (self.write(run) / "metrics.json").write_text("{}")

    def finished(self, run_id: str) -> bool:
        return (self.root / "runs" / run_id / "metrics.json").exists()

    def missing(self, plan: Plan) -> dict[str, RunSpec]:
        return {run_id: run for run_id, run in plan.runs.items() if not self.finished(run_id)}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def trunk(plan: Plan) -> list[tuple[int, int]]:
    """Trunk segments by their end."""
    points = [run for run in plan.runs.values() if run.role == "trunk"]
    return sorted(((run.start_step, run.end_step) for run in points), key=lambda segment: segment[1])


def point(plan: Plan, end_step: int) -> RunSpec:
    return next(run for run in plan.runs.values() if run.role == "trunk" and run.end_step == end_step)


@pytest.fixture(scope="module")
def paper() -> StudyConfig:
    return load_study(REPOSITORY / "config" / "paper.yaml")


@pytest.fixture(scope="module")
def finished_paper(paper, tmp_path_factory) -> Results:
    """The paper's study as its own estimates plan it, every run finished."""
    results = Results(tmp_path_factory.mktemp("paper"))
    for run in build_plan(paper, results.root).runs.values():
        results.finish(run)
    return results


@pytest.mark.parametrize(
    "change",
    [
        {"flops_per_second": 450e12},
        {"max_segment_hours": 12},
        {"max_segment_hours": 1},
    ],
    ids=str,
)
def test_another_estimate_plans_nothing_new_of_a_finished_study(paper, finished_paper, change):
    execution = paper.execution.model_copy(update=change)
    plan = build_plan(paper.model_copy(update={"execution": execution}), finished_paper.root)
    assert finished_paper.missing(plan) == {}
    assert len(plan.runs) == len(list((finished_paper.root / "runs").iterdir()))


def test_a_finished_study_keeps_its_runs_and_parents(paper, finished_paper, tmp_path):
    """Also at its own estimates the plan is what was trained, run for run, in the same order."""
    before, after = build_plan(paper, tmp_path), build_plan(paper, finished_paper.root)
    assert list(after.runs.items()) == list(before.runs.items())


def test_no_segment_is_expected_to_take_longer_than_it_may(results):
    """Links of the longest length from each point that decays need; none where a segment is short enough."""
    assert trunk(results.plan([100, 400], 80)) == [(0, 80), (80, 90), (90, 170), (170, 250), (250, 330), (330, 360)]
    assert trunk(results.plan([100, 400], 270)) == [(0, 90), (90, 360)]
    assert trunk(results.plan([100, 400])) == [(0, 90), (90, 360)]
    assert len(trunk(results.plan([100, 400], 1))) == 360


@pytest.mark.parametrize("longest", [30, 70, 360, None])
def test_a_trunk_goes_on_from_its_last_finished_cut(results, longest):
    """Finished cuts of an older estimate stay; the rest is cut as the new one says."""
    before = results.plan([400], 50)
    for end in (50, 100):
        results.finish(point(before, end))
    after = trunk(results.plan([400], longest))
    assert after[:2] == [(0, 50), (50, 100)]
    assert after[2] == (100, min(100 + (longest or 360), 360))
    assert after[-1][1] == 360


@pytest.mark.parametrize("longest", [30, 70, 360, None])
def test_a_segment_with_a_state_is_finished_first(results, longest):
    """Neither cut anew nor abandoned, whether it leads to a needed point or to a cut of an older estimate."""
    before = results.plan([400], 50)
    results.finish(point(before, 50))
    results.state(point(before, 100), 70)
    after = results.plan([400], longest)
    assert trunk(after)[:2] == [(0, 50), (50, 100)]
    assert point(after, 100).id == point(before, 100).id
    long = results.plan([1000])
    results.state(point(long, 900), 400)
    assert (100, 360) not in trunk(results.plan([1000], longest))
    assert trunk(results.plan([1000], longest)) == [(0, 900)]


def test_a_beginning_that_left_no_state_may_be_cut_anew(results):
    """A folder with nothing but spec.json holds no work, so its recorded parent binds nobody."""
    results.write(point(results.plan([400]), 360))
    assert trunk(results.plan([400], 200)) == [(0, 200), (200, 360)]


def test_a_run_whose_metrics_are_gone_is_not_cut_anew(results):
    """Snakemake deletes declared outputs before a rerun; the manifest restores them."""
    run = point(results.plan([400]), 360)
    (results.write(run) / "manifest.json").write_text("{}")
    assert trunk(results.plan([400], 100)) == [(0, 360)]


def test_an_old_cut_between_needed_points_is_the_nearest_earlier_one(results):
    """Of a study that wanted more: the point that is wanted now continues from what is there, and no further."""
    before = results.plan([1000], 100)
    for end in (100, 200, 300, 400):
        results.finish(point(before, end))
    after = results.plan([100, 400])
    assert trunk(after) == [(0, 90), (0, 100), (100, 200), (200, 300), (300, 360)]
    assert {run.end_step for run in results.missing(after).values() if run.role == "trunk"} == {90, 360}


def test_points_of_another_study_are_gone_on_from(results):
    """A trunk point is found by its recipe, whoever needed it; one of another recipe is not."""
    other = results.plan([200], set={"optim.lr": 1e-3})
    results.finish(point(other, 180))
    assert trunk(results.plan([400])) == [(0, 360)]
    results.finish(point(results.plan([200]), 180))
    assert trunk(results.plan([400])) == [(0, 180), (180, 360)]


@pytest.mark.parametrize("steps", [[200, 400], [50, 400], [400, 1000]])
def test_an_extended_grid_trains_the_difference_whatever_the_estimate(results, steps):
    """Inserted or appended after the estimate changed: what was trained stays, the new point goes on from its last."""
    for run in results.plan([400], 100).runs.values():
        results.finish(run)
    new = [step for step in steps if step != 400]
    plan = results.plan(steps, 333)
    branch = round(0.9 * new[0])
    starts = {180: 100, 45: 0, 900: 693}
    assert results.missing(plan).keys() & {point(plan, branch).id} == {point(plan, branch).id}
    assert point(plan, branch).start_step == starts[branch]
    trained = {run.end_step for run in results.missing(plan).values() if run.role == "trunk"}
    assert trained == ({693, 900} if branch == 900 else {branch})


def test_an_ancestor_whose_folder_is_gone_is_not_trained_again(results):
    """Removing what a finished trunk came from, to save disk, plans nothing."""
    before = results.plan([400], 100)
    for run in before.runs.values():
        results.finish(run)
    gone = results.root / "runs" / point(before, 100).id
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    after = results.plan([400], 200)
    assert results.missing(after) == {}
    assert len(after.members("dense")) == len(before.runs) - 1


def test_a_damaged_spec_of_a_needed_run_is_refused_and_of_another_is_named(results, caplog):
    """A cut that no study names can be done without, but not in silence: hours of work may be in it."""
    before = results.plan([400], 100)
    for end in (100, 200):
        results.finish(point(before, end))
    path = results.root / "runs" / point(before, 200).id / "spec.json"
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert trunk(results.plan([400], 300)) == [(0, 100), (100, 360)]
    assert f"{path} is damaged" in caplog.text
    results.finish(point(before, 360))
    (results.root / "runs" / point(before, 360).id / "spec.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        results.plan([400], 300)


def interruptions(rng: random.Random, results: Results) -> Iterator[None]:
    """A trunk trained bit by bit while its estimate changes and points are appended; yields after each invocation."""
    steps = [rng.randrange(20, 200)]
    for _ in range(rng.randrange(3, 12)):
        if rng.random() < 0.3:
            steps.append(max(steps) + rng.randrange(20, 200))
        plan = results.plan(steps, rng.choice([None, 7, 20, 50, 90, 300]))
        for run in list(results.missing(plan).values())[: rng.randrange(4)]:
            if run.role != "trunk":
                continue
            if rng.random() < 0.5 and results.at(run) + 1 < run.end_step:
                results.state(run, rng.randrange(results.at(run) + 1, run.end_step))
                break
            results.finish(run)
        yield
    for run in results.plan(steps, rng.choice([None, 7, 50])).runs.values():
        if run.role == "trunk":
            results.finish(run)
    yield


@pytest.mark.parametrize("seed", range(20))
def test_no_step_is_trained_twice(results, seed):
    """However often a trunk is interrupted, its estimate changed and its grid extended: each step once, in order."""
    for _ in interruptions(random.Random(seed), results):
        ends = [0, *(end for _, end in results.trained)]
        assert [start for start, _ in results.trained] == ends[:-1]
