"""The columns of losses.csv as data, and those of them that follow from a run's specification.

Planning knows them, to check a study's `where`. Two finished runs with different ids differ in at least one column
beside the id: every field of `RunSpec.identity` has a column of its own or is in `settings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from upcycle.study.counting import count_parameters, n1, n2, n_total
from upcycle.study.expressions import Kind
from upcycle.study.spec import RunSpec, canonical_json


@dataclass(frozen=True)
class Column:
    """A column of losses.csv."""

    name: str
    kind: str
    """`text`, `int` or `float`."""
    field: str
    """Dotted path of the field of RunSpec that it shows; empty if it shows none."""
    unit: str
    meaning: str


def _columns(table: str) -> tuple[Column, ...]:
    """Columns from a table: a line each, `name | kind | field | unit | meaning`; an indented line continues another."""
    lines = re.sub(r"\n +", " ", table.strip()).splitlines()
    return tuple(Column(*map(str.strip, line.split("|", 4))) for line in lines)


NAMED = _columns(
    """
id | text | | | id of the run that finished the model
sweeps | text | | | sweeps that the run belongs to, joined by `;`
model | text | | | the study's name of the dense shape
moe | text | | | the study's name of the mixture; empty for dense models
"""
)
"""What a run is called, by us and by the study."""

SPECIFIED = _columns(
    """
lineage | text | | | `dense` or `moe` (both from scratch), `up` (upcycled) or `cont` (a dense model trained on)
role | text | role | | `decay` (finished by cooling a trunk down), `full` (one schedule), `trunk` (not cooled down),
    `imported` (a checkpoint: columns of its training are 0 or empty)
n_layer | int | model.n_layer | | layers
d_model | int | model.d_model | | width
n_head | int | model.n_head | | attention heads
n_expert | int | moe.n_expert | | routed experts in each layer; 1 for dense models
top_k | int | moe.top_k | | routed experts that a token uses; 1 for dense models
granularity | int | moe.granularity | | experts that are together as wide as the dense MLP; 1 for dense models
shared_expert | int | moe.shared_expert | | experts that every token uses beside its top_k; 0 for dense models
gate | text | moe.gate | | order of softmax and top-k; empty for dense models
aux_coef | float | moe.aux_coef | | coefficient of the load-balancing loss (Table 6); empty for dense models
N1 | int | | parameters | size of the dense shape: attention's and MLPs' matrices, 16 L d^2 of the paper's (Equation 4)
N2 | int | | parameters | non-embedding parameters that a token uses, (4 + 12 K) L d^2 (Equation 5; (K + s) / G for K
    with granularity G and s shared experts); N1 for dense models
N_total | int | | parameters | all non-embedding parameters, (4 + 12 E) L d^2 (Equation 6; (E + s) / G for E); N1 for
    dense models
N_dense_exact | int | | parameters | exact non-embedding count of the dense shape, norms included (Table 3)
D | int | | tokens | tokens of this stage, from scratch or from the dense parent to the end of the decay; of an
    imported checkpoint those that its owner states
D1 | int | dense_tokens | tokens | tokens of the dense parent; 0 without one
D2 | int | | tokens | tokens after the dense parent (= D), upcycled or trained on; 0 without one
flops_6nd | float | | FLOPs | 6 N D of this stage, trunk included; N the exact non-embedding parameters that a token
    uses
steps | int | end_step | steps | updates of this stage, decay included: D = steps x batch x context
batch | int | optim.batch | sequences | sequences of a step
context | int | model.context | tokens | tokens of a training sequence
dataset | text | data.dataset | | data set
data_version | text | data.version | | version of the data set
data_start | float | data.start | | where the slice of the training tokens begins, as a fraction
data_stop | float | data.stop | | where that slice ends, as a fraction
tokenizer | text | data.tokenizer | | `bpe` (trained on the training part) or the path of a tokenizer.json
tokenizer_vocab | int | data.vocab_size | | pieces of the tokenizer
vocab_size | int | model.vocab_size | | rows of the model's embedding and head
lr | float | optim.lr | | largest learning rate
schedule | text | schedule.kind | | learning-rate schedule
warmup_steps | int | schedule.warmup_steps | steps | steps of warm-up
decay_fraction | float | start_step | | share of the steps that the decay of a WSD schedule takes, in whole steps; 0
    for one schedule
floor | float | schedule.floor | | last learning rate as a share of the largest; empty for a trunk, which is not
    cooled down
dtype | text | dtype | | precision of the matrix products
method | text | origin | | upcycling method; else `scratch`, `continued` (trained on) or `checkpoint` (imported)
settings | text | | | every other field of the run's specification that is not at its default, as `path=value`, joined
    by `;`
seed | int | seed | | seed of the initial weights (of the router, when upcycled)
data_seed | int | data.seed | | seed of the order of sequences
dense_parent | text | dense_parent | | id of the dense run that was upcycled or trained on; empty without one
"""
)
"""What a run is: each follows from its specification."""

MEASURED = _columns(
    """
loss | float | | nats per token | held-out cross-entropy; empty for a trunk that was not evaluated
loss_se | float | | nats per token | standard error of the loss over the held-out sequences
wall_seconds | float | | s | wall time of the run's own segment
tokens_per_second | float | | tokens/s | training speed of the run's own segment
device | text | | | device that it was trained on
kernels | text | | | kernel of each op and version of each library that computed the run's own segment, as
    `op=kernel`; empty for a simulated loss
simulated | int | | | 1 for a loss drawn from a law, 0 for a measured one
source | text | | | of an imported loss: file, SHA-256 of the file, and where it is from, joined by `;`; empty for a run
    of ours
"""
)
"""What training gave, or a table that was imported."""

COLUMNS = (*NAMED, *SPECIFIED, *MEASURED)
"""Columns of losses.csv, in order."""

KINDS: dict[str, Kind] = {column.name: "words" if column.kind == "text" else "number" for column in COLUMNS}
"""What each column holds, for expressions over them."""

_SEEDS = ("seed", "data_seed", "dense_parent")

EQUAL_SETTINGS = tuple(column.name for column in SPECIFIED if column.name not in _SEEDS)
"""Columns in which runs that differ only in their seed are equal. (An upcycled run's parent has its seed too.)"""

_BUDGETS = ("D", "D1", "D2", "steps", "decay_fraction", "flops_6nd")

GRID_SETTINGS = tuple(name for name in EQUAL_SETTINGS if name not in _BUDGETS)
"""Columns in which the runs of one grid, which differ in their budgets and seed, are equal."""

LINEAGES = ("dense", "moe", "up", "cont")
_FIRST = ("lineage", "N1", "n_expert", "top_k", "D1", "D")
ORDER = (*_FIRST, *(name for name in EQUAL_SETTINGS if name not in _FIRST), *_SEEDS, "id")
"""Rows are sorted by these columns, one after the other; lineages as `LINEAGES`, others by value, empty cells last."""


def columns_markdown() -> str:
    """The columns as a Markdown table, for results/README.md."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{c.name}` | {c.unit} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines) + "\n"


def described(run: RunSpec) -> dict[str, Any]:
    """The columns that follow from a run's specification, `SPECIFIED`; None where there is no number."""
    fields = dotted_fields(run.model_dump(mode="json"))
    if run.role == "trunk":
        del fields["schedule.floor"]  # as in RunSpec.identity
    if run.role == "imported":
        fields |= {"optim.lr": None, "optim.batch": 0, "schedule.kind": None, "schedule.floor": None, "dense_tokens": 0}
    row = {column.name: fields.get(column.field) for column in SPECIFIED if column.field}
    size = n1(run.model)
    row |= {
        "lineage": run.lineage,
        "n_expert": run.moe.n_expert if run.moe else 1,
        "top_k": run.moe.top_k if run.moe else 1,
        "granularity": run.moe.granularity if run.moe else 1,
        "shared_expert": run.moe.shared_expert if run.moe else 0,
        "N1": size,
        "N2": n2(run.model, run.moe) if run.moe else size,
        "N_total": n_total(run.model, run.moe) if run.moe else size,
        "N_dense_exact": count_parameters(run.model).non_embedding,
        "D": run.tokens,
        "D2": run.tokens if run.dense_parent else 0,
        "decay_fraction": (run.end_step - run.start_step) / run.end_step if run.role == "decay" else 0.0,
        "method": run.origin.removeprefix("upcycle:"),
        "settings": _other_settings(run),
        "flops_6nd": 6.0 * count_parameters(run.model, run.moe).active * run.tokens,
    }
    return {column.name: row[column.name] for column in SPECIFIED}


def _other_settings(run: RunSpec) -> str:
    """Fields of a run's identity without a column of their own, as `optim.beta1=0.8;optim.clip=2`."""
    own = {column.field for column in SPECIFIED}
    others = {path: value for path, value in dotted_fields(run.identity()).items() if path not in own}
    return ";".join(f"{path}={value_text(others[path])}" for path in sorted(others))


def dotted_fields(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted path: `{"optim": {"lr": 1}}` as `{"optim.lr": 1}`."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= dotted_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def value_text(value: Any) -> str:
    """A field's value as people write it: words as they are, other values as JSON."""
    return value if isinstance(value, str) else canonical_json(value)
