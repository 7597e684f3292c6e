"""Grids to points: budgets in tokens, what `set` reaches, and settings that would be ignored."""

from pathlib import Path

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.study.plan import build_plan
from upcycle.study.shape import RopeScaling
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, load_study
from upcycle.study.sweep import SETTABLE, expand_sweep

REPOSITORY = Path(__file__).parents[2]
TOKENS = 204_800
DENSE = {"kind": "dense", "model": "tiny"}
MOE = {"kind": "moe", "model": "tiny", "moe": "8x2"}
UPCYCLED = {"kind": "upcycled", "model": "tiny", "moe": "8x2"}


def one(sweep: dict, **changes: object) -> StudyConfig:
    return small_study({"s": sweep}, **changes)


def runs(sweep: dict, **changes: object) -> list[RunSpec]:
    return [point.run for point in expand_sweep(one(sweep, **changes), "s", {})]


@pytest.mark.parametrize(
    "overrides",
    [
        {"optim.batch": [8, 16, 32]},
        {"model.context": [64, 128, 512]},
        {"optim.batch": [8, 16], "model.context": [64, 256]},
    ],
    ids=["batch", "context", "both"],
)
@pytest.mark.parametrize("unit", ["tokens", "points", "halvings"])
def test_a_budget_in_tokens_trains_as_many_whatever_is_overridden(overrides, unit):
    """Of a grid, of single points and of the model's own halvings; the parents keep theirs."""
    budget = {
        "tokens": {"dense_tokens": TOKENS, "tokens": TOKENS},
        "points": {"points": [[TOKENS, TOKENS]]},
        "halvings": {},
    }[unit]
    tiny = one(DENSE | {"steps": 100}).models["tiny"].model_dump()
    config = one(UPCYCLED | budget | {"set": overrides}, models={"tiny": tiny | {"max_steps": 100, "n_budget": 1}})
    points = expand_sweep(config, "s", {})
    assert len({point.run.end_step for point in points}) > 1
    assert {point.run.tokens for point in points} == {TOKENS}
    assert {point.dense.run.tokens for point in points if point.dense} == {TOKENS}


def test_the_parents_budget_follows_their_own_overrides():
    points = expand_sweep(
        one(UPCYCLED | {"dense_tokens": TOKENS, "steps": 100, "dense_set": {"optim.batch": [4, 16]}}), "s", {}
    )
    assert [point.dense.run.optim.batch for point in points if point.dense] == [4, 16]
    assert {point.run.dense_tokens for point in points} == {TOKENS}
    assert {point.run.end_step for point in points} == {100}


def test_a_budget_in_steps_is_a_number_of_steps():
    assert {run.end_step for run in runs(DENSE | {"steps": 100, "set": {"optim.batch": [8, 16]}})} == {100}


def test_tokens_are_rounded_to_the_nearest_whole_step():
    """204,800 tokens are 88.9 steps of 9 x 256 and 29.6 of 27 x 256."""
    assert [run.end_step for run in runs(DENSE | {"tokens": TOKENS, "set": {"optim.batch": [9, 27]}})] == [89, 30]


def test_set_reaches_what_contributing_promises():
    """`dtype` and every field of model, moe, data, optim and schedule; a value other than the study's is in the run."""
    other = {
        "model.n_layer": 3,
        "model.d_model": 96,
        "model.n_head": 4,
        "model.vocab_size": 2048,
        "model.context": 128,
        "model.d_mlp": 128,
        "model.init_std": 0.01,
        "model.output_init": "plain",
        "model.norm_eps": 1e-6,
        "model.rope_base": 5e5,
        "model.n_kv_head": 1,
        "model.d_head": 16,
        "model.rope_scaling": RopeScaling(kind="linear", factor=2),
        "model.tied": True,
        "model.qkv_bias": True,
        "model.qk_norm": True,
        "moe.n_expert": 4,
        "moe.top_k": 3,
        "moe.gate": "softmax_topk",
        "moe.aux_coef": 0,
        "moe.balance_group": 4,
        "moe.router_std": 0.01,
        "moe.granularity": 2,
        "moe.shared_expert": 1,
        "moe.bias_rate": 1e-3,
        "moe.z_coef": 1e-3,
        "data.dataset": "other",
        "data.version": "2",
        "data.tokenizer": "a folder/tokenizer.json",
        "data.vocab_size": 512,
        "data.start": 0.5,
        "data.stop": 0.5,
        "data.repeat": True,
        "data.seed": 7,
        "data.decontaminate": False,
        "optim.lr": 1e-3,
        "optim.batch": 16,
        "optim.beta1": 0.8,
        "optim.beta2": 0.99,
        "optim.eps": 1e-6,
        "optim.weight_decay": 0,
        "optim.clip": 2,
        "optim.skip_above": 6,
        "schedule.kind": "cosine",
        "schedule.warmup_steps": 9,
        "schedule.floor": 0,
        "dtype": "bfloat16",
    }
    assert set(other) == {path for path in SETTABLE if not path.startswith("upcycling.")}
    plain = runs(MOE | {"steps": 100})[0]
    for path, value in other.items():
        run = runs(MOE | {"steps": 100, "set": {path: value}})[0]
        assert run.id != plain.id, path
        found = run
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


def test_a_parent_may_have_a_schedule_of_its_own():
    """`schedule` is that of the finished models; their parents' is wsd unless `dense_set` says otherwise."""
    sweep = UPCYCLED | {"dense_steps": 100, "steps": 100}
    plain, cosine = expand_sweep(
        one(sweep | {"schedule": "cosine", "dense_set": {"schedule.kind": ["wsd", "cosine"]}}), "s", {}
    )
    assert plain.run.schedule.kind == cosine.run.schedule.kind == "cosine"
    assert plain.dense is not None
    assert cosine.dense is not None
    assert (plain.dense.run.role, cosine.dense.run.role) == ("decay", "full")
    assert cosine.run.parent == cosine.run.dense_parent == cosine.dense.run.id


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            DENSE | {"set": {"moe.aux_coef": 1}},
            "s.set: `moe.aux_coef` would have no effect: a dense model has no mixture",
        ),
        (UPCYCLED | {"dense_set": {"moe.aux_coef": 1}}, "s.dense_set: `moe.aux_coef` would have no effect"),
        (DENSE | {"schedule": "constant", "set": {"schedule.floor": 0}}, "`schedule.floor` would have no effect"),
        (DENSE | {"schedule": "wsd", "set": {"schedule.kind": "cosine"}}, "are one setting"),
        (DENSE | {"method": "copy"}, "`method` belongs to kind upcycled: kind dense would ignore it"),
        (MOE | {"method": "copy"}, "`method` belongs to kind upcycled: kind moe would ignore it"),
        (MOE | {"dense_set": {"optim.lr": 1}}, "`dense_set` belongs to kinds upcycled"),
        (MOE | {"points": [[TOKENS, TOKENS]]}, "`points` belongs to kinds upcycled"),
        (UPCYCLED | {"set": {"model.init_std": 0.02}}, "`model.init_std` would have no effect: the weights are the"),
        (DENSE | {"set": {"seed": [0, 1]}}, "`seed` is a key of the sweep itself"),
        (DENSE | {"set": {"engine.model": 2}}, "unknown setting `engine.model`"),
        (DENSE | {"set": {"optim": {"lr": 1}}}, "unknown setting `optim`"),
        (DENSE | {"set": {"model.d_model.x": 1}}, "unknown setting `model.d_model.x`"),
        (DENSE | {"set": {"optim.batch": [8, "many"]}}, "s.set: `optim.batch`: 'many' is not a number"),
        (UPCYCLED | {"set": {"model.d_model": 96}}, "model.d_model is 96, but 64 in the parent"),
        (UPCYCLED | {"set": {"data.dataset": "other"}}, "cut by another tokenizer"),
        (UPCYCLED | {"dense_set": {"data.tokenizer": "t.json"}}, "cut by another tokenizer"),
        (DENSE | {"seed": list(range(6000))}, "more than 5,000"),
    ],
)
def test_settings_that_would_be_ignored_or_cannot_work_are_refused(sweep, message):
    budget = {} if "points" in sweep else {"steps": 100} | ({"dense_steps": 100} if sweep["kind"] == "upcycled" else {})
    with pytest.raises((UserError, ValueError), match=message):
        runs(sweep | budget)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_a_run_that_ends_inside_its_warm_up_is_refused(schedule):
    """The model's warm-up is 4 steps. A decay branches off after it, any other run ends after it."""
    assert runs(DENSE | {"schedule": schedule, "steps": 5})[0].end_step == 5
    with pytest.raises(UserError, match=r"sweeps.s: .* inside the warm-up of 4 steps; raise the budget or lower"):
        runs(DENSE | {"schedule": schedule, "steps": 4})


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        (
            "config.yaml",
            {
                "dense": "decay-dense-l2d32-123k-s0-efad7ea8fd",
                "upcycled": "decay-up-l2d32-e8k2-d1_123k-123k-s0-74d49a39f1",
            },
        ),
        (
            "config/paper.yaml",
            {
                "dense": "decay-dense-l9d320-144M-s0-907598b540",
                "upcycled": "decay-up-l9d320-e8k2-d1_144M-144M-s0-b663ee2a03",
                "upcycling_lr_constant": "up-l15d640-e8k2-d1_2.1B-2.1B-s0-f9453c046d",
                "schedule_moe": "decay-moe-l12d480-e8k2-2.1B-s0-f00bf7b8b8",
                "auxiliary": "decay-up-l15d640-e8k2-d1_2.1B-2.1B-s0-3383fcde30",
                "japanese": "decay-up-l15d640-e8k2-d1_577M-577M-s0-230f13889a",
            },
        ),
    ],
)
def test_ids_of_the_committed_studies_stay(path, ids, tmp_path):
    """The first model of a sweep of every kind: finished runs of these names are not trained anew."""
    plan = build_plan(load_study(REPOSITORY / path), tmp_path)
    assert {name: plan.sweeps[name][0] for name in ids} == ids


def test_a_decay_takes_the_nearest_number_of_whole_steps():
    """A tenth of 96 steps is 9.6, of 94 is 9.4."""
    spans = [(run.start_step, run.end_step) for run in runs(DENSE | {"steps": [94, 96]})]
    assert spans == [(85, 94), (86, 96)]


def test_a_seed_draws_weights_and_the_order_of_the_data():
    found = runs(DENSE | {"steps": 100, "seed": [0, 3]}, data={"dataset": "english", "vocab_size": 1024, "seed": 5})
    assert [(run.seed, run.data.seed) for run in found] == [(0, 5), (3, 8)]


def test_equal_points_are_one():
    """Two axes that meet: 25,600 tokens are 100 steps of one sequence of 256, given twice."""
    assert len(runs(DENSE | {"tokens": [TOKENS, TOKENS + 1]})) == 1


NOISE = UPCYCLED | {"dense_steps": 50, "steps": 100, "method": "noise"}


def test_a_methods_parameters_are_axes_and_a_default_written_out_is_the_same_run():
    plain = runs(NOISE)
    given = runs(NOISE | {"set": {"upcycling.std": [0.1, "2e-1"]}})
    assert [run.upcycling.std for run in given] == [0.1, 0.2]
    assert [run.id for run in plain] == [given[0].id] != [given[1].id]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            NOISE | {"method": ["noise", "copy"], "set": {"upcycling.std": 0.2}},
            r"sweeps\.s\.set: upcycling\.std 0\.2 would have no effect: .*`copy`.*own: none",
        ),
        (
            MOE | {"steps": 100, "set": {"upcycling.std": 0.2}},
            "`upcycling.std` would have no effect: only runs of kind",
        ),
        (NOISE | {"dense_set": {"upcycling.std": 0.2}}, r"dense_set: `upcycling\.std` would have no effect: only"),
        (NOISE | {"set": {"upcycling.sdt": 0.2}}, r"unknown setting `upcycling\.sdt`; did you mean `upcycling\.std`"),
        (NOISE | {"set": {"upcycling.std": 0}}, r"sweeps\.s\.set: `upcycling\.std`: Input should be greater"),
        (
            NOISE | {"set": {"upcycling.optimizer": "copied"}},
            "upcycling.optimizer copied: method `noise` makes weights .* can have it: copy, permuted, expand",
        ),
        (
            NOISE
            | {"method": "copy", "set": {"upcycling.optimizer": "copied"}, "dense_set": {"schedule.kind": "cosine"}},
            "`upcycling.optimizer: copied` takes AdamW's moments .* a parent of schedule cosine has none; give `fresh`",
        ),
    ],
    ids=["ignored", "scratch", "parent", "unknown", "range", "redrawn", "one schedule"],
)
def test_a_parameter_that_a_method_would_ignore_is_refused(sweep, message):
    with pytest.raises(UserError, match=message):
        runs(sweep)
