"""Grids to runs: chains, sharing, insertion, recorded parents, freezing."""

import hashlib
import json
from pathlib import Path

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.study.check import CHECKOUT, find_study
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study

REPOSITORY = Path(__file__).parents[2]
PER_STEP = 8 * 256


def upcycled(d1: list[int], d2: list[int], **more) -> dict:
    return {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": d1, "steps": d2, **more}


def finish(results: Path, plan, run_id: str) -> None:
    """Leave a run folder as training does: spec.json and metrics.json."""
    folder = results / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("spec.json").write_text(json.dumps(plan.runs[run_id].model_dump(mode="json") | {"id": run_id}))
    folder.joinpath("metrics.json").write_text("{}")


def test_a_grid_becomes_trunk_chains_with_decays(tmp_path):
    """2 x 3 upcycled models: 2 dense trunk points and decays, and for each a chain of 3 trunk points and 3 decays."""
    plan = build_plan(small_study({"grid": upcycled([100, 200], [100, 200, 400])}), tmp_path)
    kinds = [(run.lineage, run.role) for run in plan.runs.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("dense", "trunk"): 2,
        ("dense", "decay"): 2,
        ("up", "trunk"): 6,
        ("up", "decay"): 6,
    }
    for run_id, run in plan.runs.items():
        if run.role == "decay":
            assert plan.runs[run.parent].end_step == run.start_step == round(0.9 * run.end_step)
        if run.init.startswith("upcycle"):
            assert plan.runs[run.parent].tokens == run.dense_tokens
            assert run.parent == run.dense_parent
        assert list(plan.runs).index(run_id) > (list(plan.runs).index(run.parent) if run.parent else -1)
    assert len(plan.sweeps["grid"]) == 6


def test_sweeps_share_runs(tmp_path):
    """The parents of an upcycled grid are the dense sweep's models; an equal point of two sweeps is one run."""
    alone = build_plan(small_study({"grid": upcycled([100, 200], [100])}), tmp_path)
    dense = {"kind": "dense", "model": "tiny", "steps": [100, 200]}
    both = build_plan(
        small_study({"dense": dense, "grid": upcycled([100, 200], [100]), "again": upcycled([100], [100])}), tmp_path
    )
    assert set(both.runs) == set(alone.runs)
    assert both.sweeps["again"][0] in both.sweeps["grid"]
    assert both.membership()[both.sweeps["again"][0]] == ["grid", "again"]


def test_each_trunk_token_is_trained_once(tmp_path):
    """Trunk segments of a chain follow each other without gap or overlap."""
    plan = build_plan(small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [100, 150, 400]}}), tmp_path)
    trunk = sorted((run for run in plan.runs.values() if run.role == "trunk"), key=lambda run: run.end_step)
    assert [(run.start_step, run.end_step) for run in trunk] == [(0, 90), (90, 135), (135, 360)]


@pytest.mark.parametrize("axis", ["appended", "inserted"])
def test_a_new_point_adds_its_own_runs_only(tmp_path, axis):
    """Whatever was planned before is planned again under the same id."""
    before = build_plan(small_study({"grid": upcycled([100, 400], [100, 400])}), tmp_path)
    points = {"appended": [100, 400, 800], "inserted": [100, 200, 400]}[axis]
    after_d2 = build_plan(small_study({"grid": upcycled([100, 400], points)}), tmp_path)
    assert set(before.runs) <= set(after_d2.runs)
    assert len(set(after_d2.runs) - set(before.runs)) == 2 * 2
    after_d1 = build_plan(small_study({"grid": upcycled(points, [100, 400])}), tmp_path)
    assert set(before.runs) <= set(after_d1.runs)
    assert len(set(after_d1.runs) - set(before.runs)) == 2 + 2 * 2


def test_a_finished_segment_keeps_its_recorded_parent(tmp_path):
    """An inserted point hangs on the nearest earlier one; the later one, trained before, stays on its own."""
    before = build_plan(small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [100, 400]}}), tmp_path)
    for run_id in before.runs:
        finish(tmp_path, before, run_id)
    after = build_plan(small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [100, 200, 400]}}), tmp_path)
    by_end = {run.end_step: run for run in after.runs.values() if run.role == "trunk"}
    assert by_end[360].parent == by_end[180].parent == by_end[90].id
    fresh = build_plan(
        small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [100, 200, 400]}}), tmp_path / "empty"
    )
    assert {run.end_step: run.parent for run in fresh.runs.values() if run.role == "trunk"}[360] == by_end[180].id


def test_a_recorded_ancestor_outside_the_grid_stays_in_the_plan(tmp_path):
    """Shrinking a grid does not cut a finished run from the parent it was trained on."""
    before = build_plan(small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [100, 400]}}), tmp_path)
    for run_id in before.runs:
        finish(tmp_path, before, run_id)
    after = build_plan(small_study({"dense": {"kind": "dense", "model": "tiny", "steps": [400]}}), tmp_path)
    by_end = {run.end_step: run for run in after.runs.values() if run.role == "trunk"}
    assert by_end[360].parent == by_end[90].id


def test_seeds_change_weights_and_data_order_of_parent_and_child(tmp_path):
    plan = build_plan(small_study({"grid": upcycled([100], [100], seed=[0, 3])}), tmp_path)
    for run in plan.runs.values():
        assert run.data.seed == run.seed
        if run.dense_parent:
            assert plan.runs[run.dense_parent].seed == run.seed


def test_overrides_are_axes(tmp_path):
    """`set` varies any field of a run; `dense_set` its parent's."""
    sweeps = {"lr": upcycled([100], [100], set={"optim.lr": [1e-3, 2e-3]}, dense_set={"data.stop": 0.5})}
    plan = build_plan(small_study(sweeps), tmp_path)
    finished = [plan.runs[run_id] for run_id in plan.sweeps["lr"]]
    assert [run.optim.lr for run in finished] == [1e-3, 2e-3]
    assert {run.data.stop for run in finished} == {1.0}
    assert {plan.runs[run.dense_parent].data.stop for run in finished} == {0.5}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            upcycled([100], [100], set={"optim.lrr": 1}),
            r"sweeps.s.set: unknown setting `optim.lrr`; did you mean `optim.lr`\?",
        ),
        (upcycled([100], [100], set={"optim.lr": -1}), "sweeps.s.set: `optim.lr`: Input should be greater than 0"),
        ({"kind": "dense", "model": "tiny", "steps": [4]}, "inside the warm-up"),
        ({"kind": "dense", "model": "tiny", "tokens": [2048]}, "under two steps"),
        ({"kind": "dense", "model": "tiny"}, "give `tokens` or `steps`"),
    ],
)
def test_impossible_sweeps_are_refused(tmp_path, sweep, message):
    with pytest.raises(UserError, match=message):
        build_plan(small_study({"s": sweep}), tmp_path)


def test_a_trunk_is_not_cut_to_pieces(tmp_path):
    """A rate or a limit that would make more than 500 segments of a trunk is a mistake: refused in no time."""
    slow = {"device": "cpu", "flops_per_second": 1e6, "max_segment_hours": 0.01}
    sweeps = {"dense": {"kind": "dense", "model": "tiny", "steps": [10**9]}}
    with pytest.raises(UserError, match=r"max_segment_hours would cut the trunk to .* into 900,000,000 segments"):
        build_plan(small_study(sweeps, execution=slow), tmp_path)


def test_the_papers_study_is_planned(tmp_path):
    """Table 3's twelve counts hold (checked on loading); 30 dense, 30 MoE, 150 upcycled models; 48 configurations."""
    paper = load_study(REPOSITORY / "config" / "paper.yaml")
    plan = build_plan(paper, tmp_path)
    sizes = {name: len(ids) for name, ids in plan.sweeps.items()}
    assert (sizes["dense"], sizes["moe"], sizes["upcycled"]) == (30, 30, 150)
    assert (sizes["architectures"], sizes["configuration"]) == (100, 48)
    assert {plan.runs[run_id].tokens for run_id in plan.sweeps["configuration"]} == {2306867200}
    largest = max((plan.runs[run_id] for run_id in plan.sweeps["dense"]), key=lambda run: run.tokens)
    assert largest.tokens == 73_819_750_400  # 70,400 iterations x 1,024 sequences x 1,024 tokens
    assert all(entry.n_dense and entry.n_total_8 for entry in paper.models.values())


def test_decays_to_other_floors_branch_off_one_trunk(tmp_path):
    """A trunk runs at constant learning rate, so the later branch point continues from the earlier one."""
    sweeps = {
        "low": {"kind": "dense", "model": "tiny", "steps": 100, "set": {"schedule.floor": 0.0}},
        "high": {"kind": "dense", "model": "tiny", "steps": 200, "set": {"schedule.floor": 0.2}},
    }
    plan = build_plan(small_study(sweeps), tmp_path)
    trunks = sorted((run for run in plan.runs.values() if run.role == "trunk"), key=lambda run: run.end_step)
    assert [run.end_step for run in trunks] == [90, 180]
    assert trunks[1].parent == trunks[0].id


@pytest.mark.parametrize(("name", "runs", "digest"), [("default", 102, "bdf265c5c468"), ("paper", 963, "d7b01c1a5bd2")])
def test_no_run_of_the_studies_here_is_renamed(name, runs, digest, tmp_path):
    """What is trained is found by its id: a field that is added must leave the ids of all before as they are."""
    ids = sorted(build_plan(find_study(name, CHECKOUT), tmp_path).runs)
    assert (len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]) == (runs, digest)
