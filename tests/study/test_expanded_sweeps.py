"""Method `expand` in a study: a mixture is the parent, D1 is all its tokens, and what cannot be is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.manifest import WEIGHTS
from upcycle.study.columns import described
from upcycle.study.keep import KeepConfig
from upcycle.study.plan import Plan, build_plan
from upcycle.study.retention import children_of, files_let_go
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, describe_error
from upcycle.study.varying import run_labels, varying

MOES = {
    "2x1": {"n_expert": 2, "top_k": 1, "gate": "softmax_topk"},
    "4x2": {"n_expert": 4, "top_k": 2},
    "8x2": {"n_expert": 8, "top_k": 2},
}
MOE = {"kind": "moe", "model": "tiny", "moe": "4x2", "steps": [20, 40]}
COPIED = {"kind": "upcycled", "model": "tiny", "moe": "4x2", "dense_steps": 30, "steps": 20}
EXPANDED = {"kind": "upcycled", "model": "tiny", "moe": "8x2", "method": "expand", "steps": [10, 20]}
STEP = 8 * 256


def study(**sweeps: dict) -> StudyConfig:
    return small_study(sweeps, moes=MOES)


def plan_of(tmp_path: Path, **sweeps: dict) -> Plan:
    return build_plan(study(**sweeps), tmp_path)


def models(plan: Plan, sweep: str) -> list[RunSpec]:
    return [plan.runs[run_id] for run_id in plan.sweeps[sweep]]


def test_each_finished_mixture_of_the_sweep_is_a_parent(tmp_path):
    plan = plan_of(tmp_path, small=MOE, large=EXPANDED | {"parents": "small"})
    large = models(plan, "large")
    assert [(run.dense_tokens, run.tokens) for run in large] == [
        (d1 * STEP, d2 * STEP) for d1 in (20, 40) for d2 in (10, 20)
    ]
    assert {run.dense_parent for run in large} == set(plan.sweeps["small"])
    assert {run.kind for run in large} == {"decay"}
    starts = [run for run in plan.runs.values() if run.init == "upcycle:expand"]
    assert {run.kind for run in starts} == {"up"}  # the workflow's rule `upcycle` trains it
    assert {run.parent for run in starts} == set(plan.sweeps["small"])
    for run in large:
        before = plan.members("large")
        assert before.index(run.dense_parent) < before.index(run.id)


def test_d1_counts_the_tokens_of_all_parents(tmp_path):
    """An upcycled mixture is expanded, and the result again; the dense stage counts each time."""
    plan = plan_of(
        tmp_path,
        copied=COPIED | {"moe": "2x1"},
        once=EXPANDED | {"moe": "4x2", "parents": "copied", "steps": 10},
        twice=EXPANDED | {"parents": "once", "steps": 5},
    )
    [copied], [once], [twice] = (models(plan, name) for name in ("copied", "once", "twice"))
    assert (copied.dense_tokens, once.dense_tokens, twice.dense_tokens) == (30 * STEP, 50 * STEP, 60 * STEP)
    assert (once.dense_parent, twice.dense_parent) == (copied.id, once.id)
    assert twice.all_tokens == 65 * STEP
    assert len(plan.members("twice")) == 8  # four trainings, each a trunk and a decay


def test_the_mixture_that_was_expanded_is_told_in_id_and_row(tmp_path):
    """Two parents of one D1 give two runs; rows differ in more than the parent's id."""
    sweeps = {name: MOE | {"moe": name, "steps": 20} for name in ("2x1", "4x2")}
    plan = plan_of(tmp_path, two=sweeps["2x1"], four=sweeps["4x2"], a=EXPANDED | {"parents": "two", "steps": 10},
                   b=EXPANDED | {"parents": "four", "steps": 10})  # fmt: skip
    [a], [b] = models(plan, "a"), models(plan, "b")
    assert a.dense_tokens == b.dense_tokens
    assert a.id != b.id
    rows = [described(run) for run in (a, b)]
    mixture = "parent_moe.gate=softmax_topk;parent_moe.n_expert=2;parent_moe.top_k=1"
    assert rows[0]["settings"] == f"{mixture};upcycling.router_noise=0.01"
    assert {row["method"] for row in rows} == {"expand"}
    assert "-up-l2d64-e8k2-d1_" in a.id
    labels = run_labels(plan)
    assert len(set(labels.values())) == len(labels)


def test_settings_of_the_parents_are_shown_under_the_key_that_names_them(tmp_path):
    small = MOE | {"steps": 20, "set": {"optim.lr": [1e-3, 2e-3]}}
    plan = plan_of(tmp_path, small=small, large=EXPANDED | {"parents": "small", "steps": 10})
    assert varying(plan, "large") == {"parents.optim.lr": [1e-3, 2e-3]}


def test_seeds_meet_their_own_parents(tmp_path):
    plan = plan_of(
        tmp_path, small=MOE | {"steps": 20, "seed": [0, 1, 2]}, large=EXPANDED | {"parents": "small", "seed": [1, 2]}
    )
    assert {(run.seed, plan.runs[str(run.dense_parent)].seed) for run in models(plan, "large")} == {(1, 1), (2, 2)}


def test_a_mixture_stays_until_the_runs_that_begin_with_it_are_done(tmp_path):
    plan = plan_of(tmp_path, small=MOE | {"steps": 20}, large=EXPANDED | {"parents": "small"})
    [parent] = plan.sweeps["small"]
    assert files_let_go(KeepConfig(weights="none"), plan)[parent] == {WEIGHTS: "keep.weights: none"}
    assert {plan.runs[child].init for child in children_of(plan)[parent]} == {"upcycle:expand"}


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        ({"s": EXPANDED}, "method `expand` and `parents`, a sweep of mixtures to begin with, belong together"),
        ({"s": COPIED | {"parents": "small"}, "small": MOE}, "belong together"),
        (
            {"s": EXPANDED | {"parents": "small", "method": ["copy", "expand"]}, "small": MOE},
            "give it a sweep of its own",
        ),
        ({"s": EXPANDED | {"parents": "small", "dense_steps": 30}, "small": MOE}, "`dense_steps` is of dense parents"),
        ({"s": EXPANDED | {"parents": "smal"}, "small": MOE}, "sweeps.s.parents: `smal` is not under `sweeps`"),
        ({"s": EXPANDED | {"parents": "d"}, "d": {"kind": "dense", "model": "tiny", "steps": 20}}, "is of kind dense"),
        ({"s": EXPANDED | {"parents": "t"}, "t": EXPANDED | {"parents": "s"}}, "sweeps s, t, s begin with each other"),
        ({"s": EXPANDED | {"parents": "small", "seed": 3}, "small": MOE}, "no mixture of model `tiny` with seed 3"),
        ({"s": EXPANDED | {"parents": "small", "moe": "4x2"}, "small": MOE}, "n_expert 4 is not two or more times"),
        (
            {"s": EXPANDED | {"parents": "small", "set": {"model.d_mlp": 128}}, "small": MOE},
            "give it in `set` and in that of its parents' sweep alike",
        ),
    ],
)
def test_what_cannot_be_expanded_is_refused(tmp_path, sweeps, message):
    with pytest.raises((UserError, ValidationError)) as caught:
        plan_of(tmp_path, **sweeps)
    assert message in describe_error(caught.value)
