"""What `keep` lets go of each run of a small plan."""

import pytest
from small_studies import small_study

from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.keep import KeepConfig
from upcycle.study.plan import Plan, build_plan
from upcycle.study.retention import children_of, files_let_go

SWEEPS = {
    "dense": {"kind": "dense", "model": "tiny", "steps": [40, 80]},
    "upcycled": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": [80], "steps": [20, 40]},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    return build_plan(small_study(SWEEPS), tmp_path_factory.mktemp("results"))


def let_go(plan: Plan, **keep: str) -> dict[str, set[str]]:
    """What goes, by lineage, role and last step of the run."""
    found = files_let_go(KeepConfig(**keep), plan)
    names = {run_id: f"{run.lineage} {run.role} {run.end_step}" for run_id, run in plan.runs.items()}
    return {names[run_id]: {name.partition(".")[0] for name in files} for run_id, files in found.items()}


TRUNKS = {"dense trunk 36", "dense trunk 72", "up trunk 18", "up trunk 36"}
MODELS = {"dense decay 40", "dense decay 80", "up decay 20", "up decay 40"}


def test_everything_stays_by_default(plan):
    assert let_go(plan) == {}
    assert {f"{run.lineage} {run.role} {run.end_step}" for run in plan.runs.values()} == TRUNKS | MODELS


def test_trunk_points_that_stay_keep_their_weights_too(plan):
    """Weights of a trunk point go only with its state: a continuation reads both."""
    assert let_go(plan, weights="finished") == {}
    assert let_go(plan, state="last") == {"dense trunk 36": {"state"}, "up trunk 18": {"state"}}
    both = {"state", "weights"}
    assert let_go(plan, state="last", weights="finished") == {"dense trunk 36": both, "up trunk 18": both}
    assert let_go(plan, state="none", weights="finished") == dict.fromkeys(TRUNKS, both)


def test_finished_models_go_only_if_no_weights_stay(plan):
    assert let_go(plan, weights="none") == {name: {"weights"} for name in MODELS}
    everything = {name: {"state", "weights"} for name in TRUNKS} | {name: {"weights"} for name in MODELS}
    assert let_go(plan, state="none", weights="none") == everything


def test_children_and_what_they_read(plan):
    children = children_of(plan)
    for run_id, ids in children.items():
        for child in ids:
            run = plan.runs[child]
            assert run.parent == run_id
            assert plan.reads(run) == {run_id: (WEIGHTS, STATE) if run.start_step else (WEIGHTS,)}
    assert sum(map(len, children.values())) == len(plan.runs) - 1


def test_copied_moments_are_read_of_the_trunk_point_off_which_the_parents_decay_branched(tmp_path):
    """Only by the segment that starts with them: the trunk point is needed, and stays until then."""
    copied = {"s": SWEEPS["upcycled"] | {"set": {"upcycling.optimizer": "copied"}}}
    plan = build_plan(small_study(copied), tmp_path)
    starts = [run for run in plan.runs.values() if run.lineage == "up" and not run.start_step]
    later = [run for run in plan.runs.values() if run.lineage == "up" and run.start_step]
    (trunk,) = [run for run in plan.runs.values() if run.lineage == "dense" and run.role == "trunk"]
    assert len(starts) == 1
    for run in starts:
        assert plan.reads(run) == {run.parent: (WEIGHTS,), trunk.id: (STATE,)}
        assert plan.needs(run.id) == [run.parent, trunk.id]
        assert run.id in children_of(plan)[trunk.id]
    assert all(plan.reads(run) == {run.parent: (WEIGHTS, STATE)} for run in later)
