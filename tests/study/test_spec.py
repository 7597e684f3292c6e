"""Identity: equal specs are one run, a changed setting is a new one, execution and chains rename nothing."""

import json

import pytest
from pydantic import ValidationError

from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import DataSpec, OptimSpec, RunSpec, ScheduleSpec, canonical_json
from upcycle.study.values import parse_number

MODEL = {"n_layer": 2, "d_model": 64, "n_head": 2, "vocab_size": 1024, "context": 256}


def run(**changes: object) -> RunSpec:
    fields: dict[str, object] = {
        "model": ModelSpec(**MODEL),
        "data": DataSpec(dataset="english", vocab_size=1024),
        "optim": OptimSpec(lr=8e-3, batch=8),
        "schedule": ScheduleSpec(warmup_steps=20),
        "end_step": 100,
    }
    return RunSpec(**(fields | changes))  # type: ignore[arg-type]


def test_id_is_stable():
    """The id of a spec never changes by accident: this one is written down."""
    assert run().id == "dense-l2d64-205k-s0-c143b7fefc"


def test_defaults_written_out_are_the_same_run():
    """A default, a derived default and a number in another notation change no id."""
    spelled = ModelSpec(**MODEL, d_mlp=256, init_std=(2 / (5 * 64)) ** 0.5, norm_eps="1e-5")
    assert run(model=spelled).id == run().id
    assert run(optim=OptimSpec(lr="8e-3", batch=8.0, beta1=0.9, clip=1)).id == run().id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"end_step": 101},
        {"dtype": "bfloat16"},
        {"model": ModelSpec(**MODEL, rope_base=5e5)},
        {"optim": OptimSpec(lr=8e-3, batch=8, weight_decay=0.0)},
        {"optim": OptimSpec(lr=8e-3, batch=16)},
        {"data": DataSpec(dataset="english", vocab_size=1024, seed=1)},
        {"data": DataSpec(dataset="english", vocab_size=1024, stop=0.5)},
        {"data": DataSpec(dataset="english", vocab_size=1024, decontaminate=False)},
        {"schedule": ScheduleSpec(warmup_steps=21)},
        {"moe": MoESpec(n_expert=8, top_k=2)},
        {"moe": MoESpec(n_expert=8, top_k=2, balance_group=4)},
        {"moe": MoESpec(n_expert=8, top_k=2, gate="softmax_topk")},
        {"engine": {"model": 2}},
    ],
)
def test_whatever_changes_the_loss_changes_the_id(change):
    """The digest, not only the readable words before it: a slug shows few settings, and rounded."""
    like = [run()]
    if change.get("moe") not in (None, MoESpec(n_expert=8, top_k=2)):
        like.append(run(moe=MoESpec(n_expert=8, top_k=2)))
    digests = {spec.id.rpartition("-")[2] for spec in like}
    assert run(**change).id.rpartition("-")[2] not in digests


def test_a_trunk_point_is_named_by_recipe_and_end_alone():
    """Predecessor and branch step are not part of a trunk point's id; a decay's branch step is part of its own."""
    alone, chained = run(), run(start_step=50, parent="dense-l2d64-102k-s0-0000000000")
    assert alone.id == chained.id
    early = run(role="decay", start_step=80, parent=alone.id)
    late = run(role="decay", start_step=90, parent=alone.id)
    assert early.id != late.id
    assert early.id.startswith("decay-dense-")


def test_a_run_counts_all_its_tokens_and_a_segment_its_own():
    decay = run(role="decay", start_step=80, parent="trunk")
    assert (decay.tokens, decay.segment_tokens) == (100 * 8 * 256, 20 * 8 * 256)


def test_token_sets_of_different_text_have_different_folders():
    recipe = {"dataset": "english", "vocab_size": 1024}
    assert DataSpec(**recipe, decontaminate=True).tokens_id == DataSpec(**recipe).tokens_id == "english-1-bpe1024"
    changes = [{"dataset": "web"}, {"version": "2"}, {"tokenizer": "a.json"}, {"vocab_size": 300}, {"decontaminate": 0}]
    assert len({DataSpec(**recipe | change).tokens_id for change in [{}, *changes]}) == 6


def test_floor_cools_no_trunk():
    other = ScheduleSpec(warmup_steps=20, floor=0.0)
    assert run(schedule=other).id == run().id
    decay = {"role": "decay", "start_step": 90, "parent": run().id}
    assert run(schedule=other, **decay).id != run(**decay).id


def test_gate_of_top_1_must_be_named():
    with pytest.raises(ValidationError, match="must name its gate"):
        MoESpec(n_expert=8, top_k=1)
    assert MoESpec(n_expert=8, top_k=2).gate == "topk_softmax"


def test_biases_that_could_choose_nothing_are_refused():
    with pytest.raises(ValidationError, match="with top_k 4 a token uses every expert"):
        MoESpec(n_expert=4, top_k=4, bias_rate=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_head 3 does not divide d_model 64"),
        ({"n_head": 64}, "odd"),
        ({"n_layer": 0}, "greater than or equal to 1"),
        ({"n_layer": True}, "not a number"),
        ({"d_model": "64.5"}, "not a whole number"),
        ({"dmodel": 64}, "Extra inputs"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        ModelSpec(**(MODEL | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_step": 100, "parent": "x"}, "not below end_step"),
        ({"moe": MoESpec(n_expert=8, top_k=2, balance_group=16)}, "not a whole number of moe.balance_group"),
        ({"data": DataSpec(dataset="english", vocab_size=2048)}, "exceeds model.vocab_size"),
        ({"origin": "upcycle:copy"}, "dense_parent"),
        ({"parent": "x"}, "only a start from scratch has no parent"),
        ({"role": "decay"}, "branches off a trunk point"),
        ({"role": "decay", "start_step": 19, "parent": "x"}, "branches off at step 19, inside the warm-up of 20 steps"),
        ({"role": "full", "end_step": 20}, "20 steps end inside the warm-up of 20 steps"),
        ({"dense_parent": "../x"}, "should match pattern"),
        ({"start_step": 50, "parent": "../../tokens"}, "should match pattern"),
        ({"start_step": 50, "parent": "x" * 256}, "at most 255 characters"),
        ({"origin": "upcycle:$(touch X)"}, "should match pattern"),
        ({"data": {"dataset": "../x", "vocab_size": 1024}}, "should match pattern"),
        ({"data": {"dataset": "english", "version": "a b", "vocab_size": 1024}}, "should match pattern"),
        ({"optim": {"lr": 1, "batch": 8, "weight_decay": 1}}, "is not below 1: each step would turn the sign"),
    ],
)
def test_impossible_runs_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        run(**change)


def test_a_spec_survives_json():
    spec = run(moe=MoESpec(n_expert=8, top_k=2))
    again = RunSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec
    assert again.id == spec.id


def test_canonical_json_knows_one_notation():
    assert (
        canonical_json({"b": 1.0, "a": [1, 2.5]}) == canonical_json({"a": [1.0, 2.5], "b": 1}) == '{"a":[1,2.5],"b":1}'
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8e-3", 8e-3),
        ("2.3E9", 2.3e9),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("0", 0),
        ("0.10", 0.1),
        ("1_000_000", 1_000_000),
        ("010", None),
        ("00", None),
        ("60:00", None),
        ("0x10", None),
        ("1__0", None),
        ("1e", None),
        (".", None),
        ("", None),
        ("nan", None),
        ("1" * 41, None),
        ("١", None),
    ],
)
def test_numbers_are_decimal(text, number):
    assert parse_number(text) == number
    assert type(parse_number(text)) is type(number)


def test_the_longest_names_make_file_names():
    """A token set of the longest names, as an evaluation names it, is a file name of a file system's 255 bytes."""
    data = DataSpec(dataset="d" * 64, version="v" * 32, tokenizer="t" * 1000, vocab_size=2**24)
    assert len(f"{'d' * 64}-{'v' * 32}-as-{data.tokens_id}") < 255


def test_a_constant_schedule_has_no_floor():
    """It never cools: a study's floor, set for its other sweeps, renames no constant run."""
    full = {"role": "full", "schedule": ScheduleSpec(kind="constant", floor=0.5)}
    assert run(**full) == run(role="full", schedule=ScheduleSpec(kind="constant"))
    cosine = [run(role="full", schedule=ScheduleSpec(kind="cosine", floor=floor)) for floor in (0.1, 0.5)]
    assert cosine[0].id != cosine[1].id
