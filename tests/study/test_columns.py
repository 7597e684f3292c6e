"""losses.csv tells runs apart: whatever differs between two specifications differs in a column beside the id."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel

from upcycle.study.columns import COLUMNS, EQUAL_SETTINGS, NAMED, ORDER, SPECIFIED, described, dotted_fields
from upcycle.study.spec import RunSpec

DENSE: dict[str, Any] = {
    "model": {"n_layer": 2, "d_model": 64, "n_head": 2, "vocab_size": 1024, "context": 256},
    "data": {"dataset": "english", "vocab_size": 1024},
    "optim": {"lr": 8e-3, "batch": 16},
    "schedule": {"warmup_steps": 20},
    "role": "decay",
    "start_step": 90,
    "end_step": 100,
    "parent": "trunk",
}
MIXTURE = {"moe": {"n_expert": 8, "top_k": 2}}
UPCYCLED = {**MIXTURE, "origin": "upcycle:copy", "dense_parent": "decay-dense-a", "dense_tokens": 4096}
EXPANDED = {
    **MIXTURE,
    **{"origin": "upcycle:expand", "dense_parent": "decay-moe-a", "dense_tokens": 4096},
    "parent_moe": {"n_expert": 4, "top_k": 2},
}
FULL = {"role": "full", "start_step": 0, "parent": None, "schedule": {"kind": "cosine", "warmup_steps": 20}}
TRUNK = {"role": "trunk", "start_step": 0, "parent": None}
CONTINUED = {"origin": "continued", "dense_parent": "decay-dense-a", "dense_tokens": 4096}
IMPORTED = {
    **{"role": "imported", "start_step": 0, "end_step": 0, "parent": None},
    **{"origin": "checkpoint", "dense_tokens": 4096, "checkpoint": "0" * 64},
}
BASES = {
    "dense decay": DENSE,
    "dense trunk": DENSE | TRUNK,
    "dense full": DENSE | FULL,
    "moe decay": DENSE | MIXTURE,
    "moe full": DENSE | MIXTURE | FULL,
    "upcycled decay": DENSE | UPCYCLED,
    "upcycled trunk": DENSE | UPCYCLED | TRUNK | {"parent": "decay-dense-a"},
    "noisy decay": DENSE | UPCYCLED | {"origin": "upcycle:noise"},
    "expanded decay": DENSE | EXPANDED,
    "dropped decay": DENSE | UPCYCLED | {"origin": "upcycle:drop"},
    "low-rank decay": DENSE | UPCYCLED | {"origin": "upcycle:low_rank"},
    "continued decay": DENSE | CONTINUED,
    "continued trunk": DENSE | CONTINUED | TRUNK | {"parent": "decay-dense-a"},
    "imported": DENSE | IMPORTED,
}
OTHERS: dict[str, Any] = {
    "model.n_layer": 3,
    "model.d_model": 128,
    "model.n_head": 4,
    "model.vocab_size": 2048,
    "model.context": 512,
    "model.d_mlp": 100,
    "model.init_std": 0.1,
    "model.output_init": "plain",
    "model.norm_eps": 1e-6,
    "model.rope_base": 5e5,
    "model.n_kv_head": 1,
    "model.d_head": 16,
    "model.rope_scaling": {"kind": "linear", "factor": 2},
    "model.tied": True,
    "model.qkv_bias": True,
    "model.qk_norm": True,
    "moe.n_expert": 16,
    "moe.top_k": 3,
    "moe.granularity": 2,
    "moe.shared_expert": 1,
    "moe.gate": "softmax_topk",
    "moe.aux_coef": 1e-2,
    "moe.z_coef": 1e-3,
    "moe.bias_rate": 1e-3,
    "moe.balance_group": 4,
    "moe.router_std": 0.1,
    "data.dataset": "code",
    "data.version": "2",
    "data.tokenizer": "data/tokenizer.json",
    "data.vocab_size": 512,
    "data.start": 0.25,
    "data.stop": 0.5,
    "data.repeat": True,
    "data.decontaminate": False,
    "data.seed": 1,
    "optim.lr": 4e-3,
    "optim.batch": 32,
    "optim.beta1": 0.8,
    "optim.beta2": 0.99,
    "optim.eps": 1e-9,
    "optim.weight_decay": 0.0,
    "optim.clip": 2.0,
    "optim.skip_above": 6.0,
    "schedule.kind": "constant",
    "schedule.warmup_steps": 10,
    "schedule.floor": 0.0,
    "seed": 1,
    "dtype": "bfloat16",
    "engine.model": 2,
    "engine.data": 2,
    "engine.train": 2,
    "origin": "upcycle:permuted",
    "upcycling.std": 0.5,
    "upcycling.share": 0.25,
    "upcycling.rank": 0.25,
    "upcycling.shared_indices": False,
    "upcycling.router_noise": 0.5,
    "upcycling.optimizer": "copied",
    "dense_parent": "decay-dense-b",
    "dense_tokens": 8192,
    "parent_moe": {"n_expert": 2, "top_k": 1, "gate": "softmax_topk"},
    "checkpoint": "1" * 64,
    "role": "full",
    "start_step": 91,
    "end_step": 101,
}
"""For every field of a specification another valid value than the bases'."""


def fields_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted paths of all fields, those of sections included."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        whole = name in ("rope_scaling", "parent_moe")
        section = None if whole else next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        found |= fields_of(section, f"{prefix}{name}.") if section else {f"{prefix}{name}"}
    return found


def changed(base: dict[str, Any], path: str, value: Any) -> RunSpec | None:
    """The base with one field changed; None where such a run cannot be."""
    section, _, field = path.rpartition(".")
    if section == "moe" and "moe" not in base:
        return None
    spec = base | ({section: base.get(section, {}) | {field: value}} if section else {field: value})
    try:
        return RunSpec.model_validate(spec)
    except ValueError:
        return None


def test_every_field_of_a_specification_is_varied_here():
    """A new field of RunSpec needs a value in `OTHERS`. `parent` is a chain's, not a run's."""
    assert set(OTHERS) == fields_of(RunSpec) - {"parent"}


@pytest.mark.parametrize("path", OTHERS)
def test_runs_that_differ_in_one_field_have_rows_that_differ(path):
    """Beside the id, and in every kind of run in which the field can differ; equal runs have equal rows."""
    differing = 0
    for name, base in BASES.items():
        if name == "imported" and path.startswith(("optim.", "schedule.")):
            continue  # it trains nothing: a plan has these at fixed values
        one, other = RunSpec.model_validate(base), changed(base, path, OTHERS[path])
        if other is None:
            continue
        assert (described(one) == described(other)) == (one.id == other.id)
        differing += one.id != other.id
    # A run's role is bound to its steps and parent: no two runs differ in it alone.
    assert differing or path == "role"


def test_roles_have_rows_of_their_own():
    rows = [described(RunSpec.model_validate(base)) for base in BASES.values()]
    assert all(a != b for k, a in enumerate(rows) for b in rows[:k])


@pytest.mark.parametrize(
    "name",
    [name for name in BASES if BASES[name].get("origin", "upcycle:copy") == "upcycle:copy" or name.startswith("cont")],
)
def test_what_is_at_its_default_is_in_no_list_of_settings(name):
    assert described(RunSpec.model_validate(BASES[name]))["settings"] == ""


def test_the_parameters_of_a_method_are_listed_at_their_defaults_too():
    assert described(RunSpec.model_validate(BASES["noisy decay"]))["settings"] == "upcycling.std=0.1"


def test_the_mixture_that_was_expanded_is_listed_with_the_settings():
    """D1 and the parent have columns of their own; N1 is of the dense shape."""
    row = described(RunSpec.model_validate(DENSE | EXPANDED))
    mixture = "parent_moe.gate=topk_softmax;parent_moe.n_expert=4;parent_moe.top_k=2"
    assert row["settings"] == f"{mixture};upcycling.router_noise=0.01"
    assert (row["method"], row["lineage"], row["n_expert"], row["D1"]) == ("expand", "up", 8, 4096)
    assert row["dense_parent"] == "decay-moe-a"
    assert row["N1"] == described(RunSpec.model_validate(DENSE))["N1"]


def test_rare_settings_are_listed_in_one_column():
    rare = DENSE | {
        "optim": DENSE["optim"] | {"clip": 2.0, "beta1": 0.8},
        "model": DENSE["model"] | {"output_init": "plain"},
    }
    row = described(RunSpec.model_validate(rare))
    assert row["settings"] == "model.output_init=plain;optim.beta1=0.8;optim.clip=2"


def test_a_row_states_the_recipe():
    """Each of these by its own column, in the unit that the column says."""
    spec = (
        DENSE
        | UPCYCLED
        | {
            "moe": {"n_expert": 8, "top_k": 2, "aux_coef": 0.1},
            "data": {
                "dataset": "code",
                "version": "3",
                "tokenizer": "t.json",
                "vocab_size": 900,
                "stop": 0.5,
                "seed": 7,
            },
            "dtype": "bfloat16",
            "start_step": 85,
        }
    )
    row = described(RunSpec.model_validate(spec))
    expected = {
        "aux_coef": 0.1, "steps": 100, "batch": 16, "context": 256, "D": 100 * 16 * 256, "dataset": "code",
        "data_version": "3", "data_start": 0.0, "data_stop": 0.5, "tokenizer": "t.json", "tokenizer_vocab": 900,
        "vocab_size": 1024, "lr": 8e-3, "schedule": "wsd", "warmup_steps": 20, "decay_fraction": 0.15, "floor": 0.1,
        "dtype": "bfloat16", "method": "copy", "seed": 0, "data_seed": 7, "dense_parent": "decay-dense-a", "n_head": 2,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_the_columns_are_one_list():
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert set(ORDER) == {column.name for column in SPECIFIED} | {"id"}
    assert list(described(RunSpec.model_validate(DENSE))) == [column.name for column in SPECIFIED]
    assert {column.name for column in NAMED} == {"id", "sweeps", "model", "moe"}
    assert set(EQUAL_SETTINGS) == set(ORDER) - {"seed", "data_seed", "dense_parent", "id"}
    assert {column.field for column in SPECIFIED} - {""} <= set(
        dotted_fields(RunSpec.model_validate(BASES["moe decay"]).model_dump())
    )
