"""Studies that begin with a checkpoint, and dense models trained on: one imported run, D1 as stated, the same plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hf_folders import PIECES, write_folder
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.frozen import FrozenPlan, freeze, thaw
from upcycle.study.keep import KeepConfig
from upcycle.study.makespan import PRIORITIES
from upcycle.study.plan import Plan, build_plan
from upcycle.study.retention import children_of, files_let_go
from upcycle.study.schema import schema_text
from upcycle.study.study import StudyConfig, load_study
from upcycle.study.varying import run_labels, varying
from upcycle.workflow.submission import RULE_OF_KIND

D1 = 2_000_000
TUNED = {"batch": 4, "warmup_steps": 2, "lr": 3e-3, "lr_moe": 4e-3}
UPCYCLED = {"kind": "upcycled", "model": "mine", "moe": "4x2", "steps": [10, 20]}
CONTINUED = {"kind": "continued", "model": "mine", "steps": [10, 20]}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "mine", num_key_value_heads=1).parent


def study(here: Path, mine: dict[str, Any] | None = None, **changes: Any) -> StudyConfig:
    content: dict[str, Any] = {
        "study": "default",
        "data": {"dataset": "english", "tokenizer": "mine/tokenizer.json", "vocab_size": PIECES},
        "context": 32,
        "execution": {"device": "cpu"},
        "models": {"mine": {"checkpoint": "mine", "tokens": D1, **TUNED} | (mine or {})},
        "moes": {"4x2": {"n_expert": 4, "top_k": 2, "balance_group": 4}},
        "sweeps": {"upcycled": UPCYCLED, "continued": CONTINUED},
    }
    path = here / "config.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return load_study(path)


def planned(here: Path, mine: dict[str, Any] | None = None, **changes: Any) -> Plan:
    return build_plan(study(here, mine, **changes), here / "results")


def imported(plan: Plan) -> list[str]:
    return [run_id for run_id, run in plan.runs.items() if run.role == "imported"]


def test_one_import_and_no_dense_training(here):
    plan = planned(here)
    kinds = [run.kind for run in plan.runs.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"import": 1, "cont": 2, "up": 2, "decay": 4}
    (parent,) = imported(plan)
    run = plan.runs[parent]
    assert (run.tokens, run.segment_tokens, run.model.vocab_size, run.model.n_kv_head) == (D1, 0, 320, 1)
    for sweep, origin, lr in (("upcycled", "upcycle:copy", 4e-3), ("continued", "continued", 3e-3)):
        for run_id in plan.sweeps[sweep]:
            child = plan.runs[run_id]
            assert (child.origin, child.dense_parent, child.dense_tokens) == (origin, parent, D1)
            assert (child.schedule.kind, child.optim.lr, child.moe is None) == ("wsd", lr, sweep == "continued")
    assert plan.finished_models[0] == parent
    assert plan.membership().keys() == {*plan.sweeps["upcycled"], *plan.sweeps["continued"]}
    assert plan.names[parent] == ("mine", "")


def test_a_checkpoint_as_it_is_is_a_sweep_of_one_run_that_trains_nothing(here):
    plan = planned(here, sweeps={"as_it_is": {"kind": "imported", "model": "mine"}})
    assert plan.sweeps["as_it_is"] == list(plan.runs) == imported(planned(here))
    both = planned(here, sweeps={"as_it_is": {"kind": "imported", "model": "mine"}, "upcycled": UPCYCLED})
    assert len(imported(both)) == 1
    models = {"mine": {"n_layer": 1, "d_model": 16, "n_head": 2, **TUNED}}
    with pytest.raises(UserError, match=r"sweeps\.as_it_is\.model: models\.mine begins with no checkpoint"):
        planned(here, sweeps={"as_it_is": {"kind": "imported", "model": "mine"}}, models=models)
    with pytest.raises(UserError, match=r"`steps`: kind imported trains nothing and has `model` alone"):
        planned(here, sweeps={"as_it_is": {"kind": "imported", "model": "mine", "steps": [10]}})
    with pytest.raises(UserError, match=r"sweeps\.as_it_is: a context of 4,096 tokens exceeds"):
        planned(here, sweeps={"as_it_is": {"kind": "imported", "model": "mine"}}, context=4096)


@pytest.mark.parametrize(
    "changes",
    [
        {"mine": {"lr": 1e-3, "lr_moe": 1e-3, "batch": 8, "warmup_steps": 3}},
        {"optim": {"beta2": 0.99}},
        {"schedule": {"floor": 0.0}},
        {"sweeps": {"continued": CONTINUED | {"seed": [1, 2], "set": {"data.seed": 7, "optim.lr": [1e-3, 1e-4]}}}},
        {"data": {"dataset": "english", "tokenizer": "mine/tokenizer.json", "vocab_size": PIECES, "repeat": True}},
    ],
    ids=["model", "optim", "schedule", "sweep", "repeat"],
)
def test_a_checkpoint_is_one_run_whatever_is_trained_from_it(here, changes):
    assert imported(planned(here, **changes)) == imported(planned(here))


@pytest.mark.parametrize(
    "changes",
    [
        {"mine": {"tokens": D1 + 1}},
        {"context": 64},
        {"dtype": "bfloat16"},
        {"data": {"dataset": "english", "version": "2", "tokenizer": "mine/tokenizer.json", "vocab_size": PIECES}},
    ],
    ids=["tokens", "context", "dtype", "text"],
)
def test_what_its_loss_and_d1_depend_on_makes_another_run(here, changes):
    assert imported(planned(here, **changes)) != imported(planned(here))


def test_d1_may_be_given_where_it_is_the_checkpoints(here):
    plan = planned(here)
    points = {"kind": "upcycled", "model": "mine", "moe": "4x2", "points": [[D1, 1280], [D1, 2560]]}
    both = {"upcycled": UPCYCLED | {"dense_tokens": D1}, "points": points}
    assert planned(here, sweeps=both).sweeps["points"] == plan.sweeps["upcycled"]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (UPCYCLED | {"dense_steps": 10}, "sweeps.s.dense_steps: model mine begins with a checkpoint, whose D1 is"),
        (CONTINUED | {"dense_set": {"optim.lr": 1}}, "sweeps.s.dense_set: model mine begins with a checkpoint"),
        (CONTINUED | {"dense_tokens": 3}, "sweeps.s.dense_tokens: D1 = 3, but model mine begins with"),
        ({**CONTINUED, "steps": None, "points": [[5, 1280]]}, "sweeps.s.points: D1 = 5, but model mine begins with"),
        (CONTINUED | {"method": "copy"}, "`method` belongs to kind upcycled: kind continued would ignore it"),
        (CONTINUED | {"moe": "4x2"}, "`moe` names the mixtures of kinds moe and upcycled, and only of those"),
        (CONTINUED | {"set": {"model.n_kv_head": 2}}, "model.n_kv_head is None, but 1 in the parent"),
        (CONTINUED | {"set": {"model.tied": True}}, "model.tied is True, but False in the parent"),
        (CONTINUED | {"set": {"model.init_std": 0.1}}, "`model.init_std` would have no effect: the weights are the"),
        (CONTINUED | {"set": {"model.context": 128}}, "a context of 128 tokens exceeds the 64 of mine"),
        (CONTINUED | {"set": {"data.tokenizer": "other.json"}}, "cut by another tokenizer"),
        (CONTINUED | {"set": {"moe.top_k": 1}}, "`moe.top_k` would have no effect: a dense model has no mixture"),
    ],
)
def test_impossible_sweeps_are_refused(here, sweep, words):
    with pytest.raises(UserError) as error:
        planned(here, sweeps={"s": {key: value for key, value in sweep.items() if value is not None}})
    assert words in str(error.value)


SHARED = {"device": "cpu", "devices": 3, "tensor_parallel": 3}
TOKENIZER = {"dataset": "english", "vocab_size": PIECES}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mine": {"n_layer": 3}}, "models.mine: the shape is the checkpoint's; leave out `n_layer`"),
        ({"mine": {"init_std": 0.1}}, "models.mine: the shape is the checkpoint's; leave out `init_std`"),
        ({"mine": {"tokens": None}}, "`models.mine`: `tokens` is missing: how many the checkpoint was trained on"),
        ({"mine": {"checkpoint": "nowhere"}}, "config.yaml: models.mine.checkpoint: nowhere: no such folder"),
        ({"mine": {"checkpoint": 7}}, "models.mine.checkpoint: a folder's path is wanted (given: 7)"),
        ({"mine": {"checkpoint": ""}}, "models.mine.checkpoint: a folder's path is wanted (given: '')"),
        ({"mine": {"checkpoint": "a\nb"}}, r"models.mine.checkpoint: a folder's path is wanted (given: 'a\nb')"),
        ({"mine": {"checkpoint": "~nobody0/x"}}, "models.mine.checkpoint: ~nobody0/x: nobody here has this home"),
        ({"mine": {"checkpoint": "x" * 300}}, "File name too long; name another"),
        ({"data": TOKENIZER | {"tokenizer": "~nobody0/x"}}, "~nobody0/x: nobody here has this home folder"),
        ({"models": {"mine": {"n_layer": 1, "d_model": 8, "n_head": 1, "tokens": 5, **TUNED}}}, "which is not given"),
        ({"context": 65}, "a context of 65 tokens exceeds the 64 of mine (max_position_embeddings"),
        ({"data": TOKENIZER}, "data.tokenizer: `bpe` is not mine/tokenizer.json, whose pieces the embedding of"),
        ({"data": TOKENIZER | {"tokenizer": "other.json"}}, "data.tokenizer: `other.json` is not mine/tokenizer.json"),
        ({"data": TOKENIZER | {"tokenizer": "mine/tokenizer.json", "vocab_size": 321}}, "data.vocab_size: 321 pieces"),
    ],
)
def test_impossible_models_are_refused(here, changes, words):
    (here / "other.json").write_text("{}")
    with pytest.raises(UserError) as error:
        planned(here, **changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_dense_models_of_our_own_are_trained_on(tmp_path):
    """Axes as of kind upcycled; learning rate of dense models; the parents are those of the upcycled sweep."""
    axes = {"model": "tiny", "dense_steps": [100, 200], "steps": [50, 100, 200]}
    sweeps = {"on": {"kind": "continued", **axes}, "up": {"kind": "upcycled", "moe": "8x2", **axes}}
    plan = build_plan(small_study(sweeps), tmp_path)
    on = [plan.runs[run_id] for run_id in plan.sweeps["on"]]
    assert [(run.dense_tokens // 2048, run.end_step) for run in on] == [
        (a, b) for a in (100, 200) for b in (50, 100, 200)
    ]
    assert {run.optim.lr for run in on} == {8e-3}
    assert {run.dense_parent for run in on} == {plan.runs[run_id].dense_parent for run_id in plan.sweeps["up"]}
    trunks = [run for run in plan.runs.values() if run.kind == "cont"]
    assert sorted((run.start_step, run.end_step) for run in trunks) == [
        (0, 45),
        (0, 45),
        (45, 90),
        (45, 90),
        (90, 180),
        (90, 180),
    ]
    assert {run.init for run in trunks} == {"continued", "continue"}


def test_a_point_inserted_in_a_continued_grid_trains_the_difference(here):
    """A trunk that has begun is found by its folder, and continued from."""
    before = planned(here)
    for run_id, run in before.runs.items():
        folder = here / "results" / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(run.model_dump(mode="json") | {"id": run_id}))
        (folder / "metrics.json").write_text("{}")
    after = planned(here, sweeps={"upcycled": UPCYCLED, "continued": CONTINUED | {"steps": [10, 15, 20]}})
    new = sorted((run.kind, run.start_step) for run_id, run in after.runs.items() if run_id not in before.runs)
    assert new == [("cont", 9), ("decay", 13)]


def test_jobs_read_the_frozen_plan_alone(here):
    """Neither config.json nor weights are read again; hashes by file are in it for the job that imports."""
    config = study(here)
    frozen = FrozenPlan(config, build_plan(config, here / "results"), {})
    path = freeze(frozen, here / "results")
    shutil.rmtree(here / "mine")
    thawed = thaw(path)
    assert thawed == frozen
    assert thawed.study.model_spec("mine") == config.model_spec("mine")
    (run_id,) = thawed.plan.checkpoints
    assert thawed.plan.checkpoints[run_id].keys() == {"model.safetensors"}


def test_a_checkpoint_is_planned_with_the_standard_library(here):
    """Hashed, and its headers read, by a process that has loaded no library of tensors."""
    study(here)
    code = "import sys; from upcycle.cli import main; code = main(['plan']); print(*sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "upcycle.study.parent" in done.stdout
    assert not {"torch", "safetensors", "numpy", "transformers", "tokenizers"} & set(done.stdout.split())


def test_an_import_is_shared_by_processes_as_its_shape_allows(here):
    """It has no batch; its heads and widths are shared as in training, though only mixtures are trained here."""
    sweeps = {"up": UPCYCLED | {"set": {"moe.balance_group": 1}}}
    assert planned(here, execution={"device": "cpu", "devices": 4}, sweeps=sweeps)
    with pytest.raises(UserError, match=r"import-dense-.* execution.tensor_parallel 3"):
        planned(here, {"execution_moe": {"tensor_parallel": 1}}, sweeps=sweeps, execution=SHARED)


def test_every_kind_has_a_rule_a_priority_and_a_name(here):
    plan = planned(
        here, sweeps={"up": UPCYCLED, "on": CONTINUED, "new": {"kind": "dense", "model": "mine", "steps": 10}}
    )
    assert {run.kind for run in plan.runs.values()} <= RULE_OF_KIND.keys() & PRIORITIES.keys()
    labels = run_labels(plan)
    assert labels[imported(plan)[0]] == "imported D=2M"
    assert [labels[run_id] for run_id in plan.sweeps["on"]] == ["continued D1=2M D2=1.28k", "continued D1=2M D2=2.56k"]
    assert varying(plan, "on") == {}


def test_an_imported_run_keeps_its_weights_until_its_children_are_done(here):
    plan = planned(here)
    (parent,) = imported(plan)
    assert set(children_of(plan)[parent]) == {
        run.id for run in plan.runs.values() if run.init in ("continued", "upcycle:copy")
    }
    assert files_let_go(KeepConfig(state="none", weights="finished"), plan).keys().isdisjoint({parent})
    assert files_let_go(KeepConfig(weights="none"), plan)[parent] == {WEIGHTS: "keep.weights: none"}
    starts = [run for run in plan.runs.values() if run.kind == "cont"]
    assert [list(plan.reads(run).values()) for run in starts] == [[(WEIGHTS,)], [(WEIGHTS, STATE)]]


@pytest.mark.parametrize(
    ("model", "accepted"),
    [
        ({"checkpoint": "mine", "tokens": 5}, True),
        ({"n_layer": 1, "d_model": 8, "n_head": 1}, True),
        ({"checkpoint": "mine"}, False),
        ({"n_layer": 1, "d_model": 8}, False),
        ({}, False),
    ],
)
def test_editors_want_a_shape_or_a_checkpoint(here, model, accepted):
    study(here)
    content = yaml.safe_load((here / "config.yaml").read_text())
    content["models"] = {"mine": TUNED | model}
    found = jsonschema.Draft202012Validator(json.loads(schema_text())).is_valid(content)
    assert found == accepted
