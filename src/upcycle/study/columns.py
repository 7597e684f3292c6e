"""The columns of losses.csv as data, and those of them that follow from a run's specification.

Planning knows them, to check a study's `where`. Two finished runs with different ids differ in at least one column
beside the id: every field of `RunSpec.identity` has a column of its own or is in `settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from upcycle.study.counting import count_parameters, n1, n2, n_total
from upcycle.study.expressions import Kind
from upcycle.study.spec import RunSpec, canonical_json


@dataclass(frozen=True)
class Column:
    """A column of losses.csv."""

    name: str
    kind: Literal["text", "int", "float"]
    meaning: str
    field: str = ""
    """Dotted path of the field of RunSpec that it shows, if it shows one."""
    unit: str = ""


NAMED = (
    Column("id", "text", "id of the run that finished the model"),
    Column("sweeps", "text", "sweeps that the run belongs to, joined by `;`"),
    Column("model", "text", "the study's name of the dense shape"),
    Column("moe", "text", "the study's name of the mixture; empty for dense models"),
)
"""What a run is called, by us and by the study."""

SPECIFIED = (
    Column("lineage", "text", "`dense` or `moe` (both from scratch) or `up` (upcycled)"),
    Column(
        "role",
        "text",
        "`decay` (finished by cooling a trunk down), `full` (one schedule), `trunk` (not cooled down)",
        "role",
    ),
    Column("n_layer", "int", "layers", "model.n_layer"),
    Column("d_model", "int", "width", "model.d_model"),
    Column("n_head", "int", "attention heads", "model.n_head"),
    Column("n_expert", "int", "experts in each layer; 1 for dense models", "moe.n_expert"),
    Column("top_k", "int", "experts that a token uses; 1 for dense models", "moe.top_k"),
    Column("gate", "text", "order of softmax and top-k; empty for dense models", "moe.gate"),
    Column(
        "aux_coef", "float", "coefficient of the load-balancing loss (Table 6); empty for dense models", "moe.aux_coef"
    ),
    Column("N1", "int", "non-embedding size of the dense shape, 16 L d^2 (Equation 4)", unit="parameters"),
    Column(
        "N2",
        "int",
        "non-embedding parameters that a token uses, (4 + 12 K) L d^2 (Equation 5); N1 for dense models",
        unit="parameters",
    ),
    Column(
        "N_total",
        "int",
        "all non-embedding parameters, (4 + 12 E) L d^2 (Equation 6); N1 for dense models",
        unit="parameters",
    ),
    Column(
        "N_dense_exact",
        "int",
        "exact non-embedding count of the dense shape, norms included (Table 3)",
        unit="parameters",
    ),
    Column("D", "int", "tokens of this stage, from scratch or from upcycling to the end of the decay", unit="tokens"),
    Column("D1", "int", "tokens of the dense parent; 0 without one", "dense_tokens", unit="tokens"),
    Column("D2", "int", "tokens after upcycling (= D); 0 unless upcycled", unit="tokens"),
    Column(
        "flops_6nd",
        "float",
        "6 N D of this stage, trunk included; N the exact non-embedding parameters that a token uses",
        unit="FLOPs",
    ),
    Column(
        "steps", "int", "updates of this stage, decay included: D = steps x batch x context", "end_step", unit="steps"
    ),
    Column("batch", "int", "sequences of a step", "optim.batch", unit="sequences"),
    Column("context", "int", "tokens of a training sequence", "model.context", unit="tokens"),
    Column("dataset", "text", "data set", "data.dataset"),
    Column("data_version", "text", "version of the data set", "data.version"),
    Column("data_start", "float", "where the slice of the training tokens begins, as a fraction", "data.start"),
    Column("data_stop", "float", "where that slice ends, as a fraction", "data.stop"),
    Column(
        "tokenizer", "text", "`bpe` (trained on the training part) or the path of a tokenizer.json", "data.tokenizer"
    ),
    Column("tokenizer_vocab", "int", "pieces of the tokenizer", "data.vocab_size"),
    Column("vocab_size", "int", "rows of the model's embedding and head", "model.vocab_size"),
    Column("lr", "float", "largest learning rate", "optim.lr"),
    Column("schedule", "text", "learning-rate schedule", "schedule.kind"),
    Column("warmup_steps", "int", "steps of warm-up", "schedule.warmup_steps", unit="steps"),
    Column(
        "decay_fraction",
        "float",
        "share of the steps that the decay of a WSD schedule takes, in whole steps; 0 for one schedule",
        "start_step",
    ),
    Column(
        "floor",
        "float",
        "last learning rate as a share of the largest; empty for a trunk, which is not cooled down",
        "schedule.floor",
    ),
    Column("dtype", "text", "precision of the matrix products", "dtype"),
    Column("method", "text", "upcycling method; `scratch` otherwise", "origin"),
    Column(
        "settings",
        "text",
        "every other field of the run's specification that is not at its default, as `path=value`, joined by `;`",
    ),
    Column("seed", "int", "seed of the initial weights (of the router, when upcycled)", "seed"),
    Column("data_seed", "int", "seed of the order of sequences", "data.seed"),
    Column("dense_parent", "text", "id of the dense run that was upcycled; empty without one", "dense_parent"),
)
"""What a run is: each follows from its specification."""

MEASURED = (
    Column("loss", "float", "held-out cross-entropy; empty for a trunk that was not evaluated", unit="nats per token"),
    Column("loss_se", "float", "standard error of the loss over the held-out sequences", unit="nats per token"),
    Column("wall_seconds", "float", "wall time of the run's own segment", unit="s"),
    Column("tokens_per_second", "float", "training speed of the run's own segment", unit="tokens/s"),
    Column("device", "text", "device that it was trained on"),
    Column(
        "kernels",
        "text",
        "kernel of each op and version of each library that computed the run's own segment, as `op=kernel`; "
        "empty for a simulated loss",
    ),
    Column("simulated", "int", "1 for a loss drawn from a law, 0 for a measured one"),
)
"""What training gave."""

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

LINEAGES = ("dense", "moe", "up")
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
    row = {column.name: fields.get(column.field) for column in SPECIFIED if column.field}
    size = n1(run.model)
    row |= {
        "lineage": run.lineage,
        "n_expert": run.moe.n_expert if run.moe else 1,
        "top_k": run.moe.top_k if run.moe else 1,
        "N1": size,
        "N2": n2(run.model, run.moe) if run.moe else size,
        "N_total": n_total(run.model, run.moe) if run.moe else size,
        "N_dense_exact": count_parameters(run.model).non_embedding,
        "D": run.tokens,
        "D2": run.tokens if run.lineage == "up" else 0,
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
