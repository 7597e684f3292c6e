"""What a run is: frozen, validated specifications and the ids made from them.

Layer 0: standard library and pydantic only. A `RunSpec` is one segment of training, the only
unit of training there is. Its id is a readable slug plus a hash of everything in it that changes
the expected loss (`RunSpec.identity`), so that equal specs are one run and a changed setting is a
new one. Settings that affect only rounding (ranks, micro-batch, threads, kernels) belong to
`Execution` and are not in the id. Docstrings of fields are the descriptions in the editor schema.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from upcycle.study.values import (
    Beta,
    Count,
    Depth,
    Deviation,
    Epsilon,
    LearningRate,
    Name,
    Number,
    PathText,
    Positive,
    RunId,
    Sequences,
    Share,
    Version,
    Vocabulary,
    WeightDecay,
    Whole,
    Width,
)

Gate = Literal["topk_softmax", "softmax_topk", "softmax_topk_renormalised"]
Role = Literal["trunk", "decay", "full"]
ScheduleKind = Literal["wsd", "cosine", "constant"]


class Frozen(BaseModel):
    """Immutable, strict about unknown keys; every specification and config section derives from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def default_init_std(d_model: int) -> float:
    """Standard deviation sqrt(2 / (5 d_model)) of every row of Table 5 and of the router (A.6)."""
    return math.sqrt(2 / (5 * d_model))


class ModelShape(Frozen):
    """Shape and initialisation of a dense model, as a study gives them under `models`."""

    n_layer: Depth
    """Number of layers."""
    d_model: Width
    """Width of the residual stream."""
    n_head: Width
    """Attention heads; divides `d_model`, and d_model / n_head is even (RoPE rotates pairs)."""
    d_mlp: Width | None = None
    """Width of the SwiGLU MLP; None means 4 d_model (A.2)."""
    init_std: Deviation | None = None
    """Standard deviation of weight matrices; None means sqrt(2 / (5 d_model)) (Table 5)."""
    output_init: Literal["scaled", "plain"] = "scaled"
    """Output projections (wo, w_out): init_std / sqrt(2 n_layer), or init_std. Inferred: Megatron's default."""
    norm_eps: Epsilon = 1e-5
    """RMSNorm epsilon. Inferred."""
    rope_base: Annotated[Positive, Field(ge=1)] = 10_000.0
    """Base of the rotary frequencies. Inferred."""


class ModelSpec(ModelShape):
    """Shape of a decoder (Table 3): RMSNorm, SwiGLU, RoPE, no biases, untied embedding and head."""

    vocab_size: Vocabulary
    """Rows of the embedding and of the head; at least the tokenizer's pieces."""
    context: Sequences
    """Training sequence length in tokens (Table 4: 1,024)."""

    @model_validator(mode="after")
    def _check_shape(self) -> ModelSpec:
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        if self.head_dim % 2:
            raise ValueError(f"head dimension d_model / n_head = {self.head_dim} is odd: RoPE rotates pairs")
        # Equal specs are one run: a derived value written out is stored as the derived default. (The model is frozen,
        # so its own validators assign by `object.__setattr__`.)
        if self.d_mlp == 4 * self.d_model:
            object.__setattr__(self, "d_mlp", None)
        if self.init_std is not None and math.isclose(self.init_std, default_init_std(self.d_model), rel_tol=1e-12):
            object.__setattr__(self, "init_std", None)
        return self

    @property
    def head_dim(self) -> int:
        """d_model / n_head."""
        return self.d_model // self.n_head

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer: d_mlp, or 4 d_model."""
        return self.d_mlp if self.d_mlp is not None else 4 * self.d_model

    @property
    def weight_std(self) -> float:
        """Standard deviation of weight matrices at initialisation."""
        return self.init_std if self.init_std is not None else default_init_std(self.d_model)

    @property
    def output_std(self) -> float:
        """Standard deviation of the output projections at initialisation."""
        scale = 1 / math.sqrt(2 * self.n_layer) if self.output_init == "scaled" else 1.0
        return self.weight_std * scale


class MoESpec(Frozen):
    """The mixture of experts that replaces every MLP (A.3)."""

    n_expert: Width
    """Number of experts E."""
    top_k: Width
    """Experts K that each token uses."""
    gate: Gate | None = None
    """Order of softmax and top-k. None means Eq. 15's `topk_softmax`; top_k = 1 must name one."""
    aux_coef: Annotated[Number, Field(ge=0, le=1e6)] = 1e-3
    """Coefficient of the load-balancing loss (Table 6)."""
    balance_group: Sequences = 8
    """Sequences over which the balance loss is taken, averaged over groups. Inferred (Megatron: a micro-batch)."""
    router_std: Deviation | None = None
    """Standard deviation of router weights; None means sqrt(2 / (5 d_model)) (A.6)."""

    @model_validator(mode="after")
    def _check_gate(self) -> MoESpec:
        if self.top_k > self.n_expert:
            raise ValueError(f"top_k {self.top_k} is more than n_expert {self.n_expert}")
        if self.gate is None:
            if self.top_k == 1:
                raise ValueError(
                    "top_k = 1 must name its gate: `topk_softmax` (Eq. 15) and `softmax_topk_renormalised` keep "
                    "the function, but the router gets no cross-entropy gradient; with `softmax_topk` the router "
                    "learns, but a copy does not preserve the function"
                )
            object.__setattr__(self, "gate", "topk_softmax")
        return self


class DataConfig(Frozen):
    """The tokens of every run of a study, unless a sweep sets `data.<field>`."""

    dataset: Name
    """A built-in data set (`english`, `python-stdlib`), or a name under `datasets`."""
    version: Version = "1"
    """Version of the text; another version is another token set and another run."""
    tokenizer: PathText = "bpe"
    """`bpe`: byte-level BPE trained on the training part with `vocab_size` pieces; else a tokenizer.json's path."""
    vocab_size: Vocabulary
    """Pieces of the tokenizer."""
    seed: Whole = 0
    """Seed of the order of sequences."""
    repeat: bool = False
    """Whether a run may see more tokens than the data, or the slice of them that it uses, hold."""
    decontaminate: bool = True
    """Whether training passages that share a 13-word window with the held-out text are removed, from a user's own text
    too. Ours: the paper reports no such step."""


class DataSpec(DataConfig):
    """The recipe of the tokens; their fingerprint is checked when training starts.

    Inferred, as the paper states neither: each document ends with the tokenizer's end token, none begins with a start
    token, and a sequence may span documents; an upcycled run reads the batches of its dense parent again, from the
    first and in the same order, unless its `seed`, `start` or `stop` differ.
    """

    start: Share = 0.0
    """Where the slice of the training tokens that is used begins, as a fraction."""
    stop: Share = 1.0
    """Where that slice ends, as a fraction (Figure 10 uses halves)."""

    @model_validator(mode="after")
    def _check_slice(self) -> DataSpec:
        if self.start >= self.stop:
            raise ValueError(f"slice start {self.start} is not below stop {self.stop}")
        return self

    @property
    def tokens_id(self) -> str:
        """Folder name of the token set this recipe reads: `english-1-bpe1024`, or `english-1-bpe1024-with-shared`."""
        stem = (
            self.tokenizer if self.tokenizer == "bpe" else hashlib.sha256(self.tokenizer.encode()).hexdigest()[:8] + "-"
        )
        shared = "" if self.decontaminate else "-with-shared"
        return f"{self.dataset}-{self.version}-{stem}{self.vocab_size}{shared}"


class OptimConfig(Frozen):
    """AdamW (Table 4), for every run of a study unless a sweep sets `optim.<field>`."""

    beta1: Beta = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Beta = 0.95
    """AdamW's decay rate of the second moment."""
    eps: Epsilon = 1e-8
    """AdamW's epsilon."""
    weight_decay: WeightDecay = 0.1
    """Decoupled weight decay; of matrices only, not of norm weights (inferred)."""
    clip: Positive = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""
    skip_above: Positive | None = None
    """An update is skipped if its loss or gradient norm is this many standard deviations above the mean of the last 128
    updates, or not finite (try 6). None: none is skipped, and a run stops at one that is not finite. An addition."""


class OptimSpec(OptimConfig):
    """AdamW, learning rate and batch (Table 4)."""

    lr: LearningRate
    """Largest learning rate."""
    batch: Sequences
    """Sequences of a step."""

    @model_validator(mode="after")
    def _check_decay(self) -> OptimSpec:
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"lr {self.lr:g} x weight_decay {self.weight_decay:g} is not below 1: each step would turn the sign of "
                "every weight; lower one of them"
            )
        return self


class ScheduleSpec(Frozen):
    """Learning rate as a pure function of the step (3.1, A.5)."""

    kind: ScheduleKind = "wsd"
    warmup_steps: Whole = 0
    """Steps of linear warm-up."""
    floor: Share = 0.1
    """Final learning rate as a share of the maximum; a constant schedule keeps the default."""

    @model_validator(mode="after")
    def _check_floor(self) -> ScheduleSpec:
        if self.kind == "constant":  # never cools: runs that differ in `floor` alone are one run
            object.__setattr__(self, "floor", ScheduleSpec.model_fields["floor"].default)
        return self


class EngineSpec(Frozen):
    """One integer a component, raised when its numerics are meant to change."""

    model: Count = 1
    data: Count = 1
    train: Count = 1


class Recipe(Frozen):
    """What all segments of one training have in common, whatever its budget."""

    model: ModelSpec
    moe: MoESpec | None = None
    data: DataSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    seed: Whole = 0
    """Seed of the initial weights (and of the router when upcycling)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: EngineSpec = EngineSpec()
    origin: Annotated[str, Field(pattern=r"^(scratch|upcycle:[A-Za-z_][A-Za-z0-9_]*)$", max_length=80)] = "scratch"
    """Where this training's weights began: `scratch`, or `upcycle:<method>`."""
    dense_parent: RunId | None = None
    """Id of the finished dense run that was upcycled."""
    dense_tokens: Whole = 0
    """D1: tokens of that dense run."""

    @model_validator(mode="after")
    def _check_recipe(self) -> Recipe:
        if self.moe is not None and self.optim.batch % self.moe.balance_group:
            raise ValueError(
                f"optim.batch {self.optim.batch} is not a whole number of moe.balance_group {self.moe.balance_group}"
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise ValueError(f"data.vocab_size {self.data.vocab_size} exceeds model.vocab_size {self.model.vocab_size}")
        if self.origin.startswith("upcycle:") != (self.dense_parent is not None) or (
            self.dense_parent and not self.moe
        ):
            raise ValueError(
                "an upcycled run has origin `upcycle:<method>`, a dense_parent and a moe; any other has none of the "
                "first two"
            )
        return self

    @property
    def lineage(self) -> str:
        """`dense`, `moe` or `up`: what is trained, whatever the segment."""
        if self.dense_parent is not None:
            return "up"
        return "moe" if self.moe is not None else "dense"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step: batch x context."""
        return self.optim.batch * self.model.context


class RunSpec(Recipe):
    """One segment of training, from `start_step` to `end_step` (update counts since scratch or upcycling)."""

    role: Role = "trunk"
    """`trunk`: constant-LR segment; `decay`: the branch that cools it; `full`: a whole cosine or constant run."""
    start_step: Whole = 0
    end_step: Count
    parent: RunId | None = None
    """Id of the run whose checkpoint this segment starts from (a trunk's predecessor, a decay's trunk point,
    an upcycled start's dense parent); None for a start from scratch."""

    @model_validator(mode="after")
    def _check_run(self) -> RunSpec:
        if self.start_step >= self.end_step:
            raise ValueError(f"start_step {self.start_step} is not below end_step {self.end_step}")
        if (self.init == "scratch") != (self.parent is None):
            raise ValueError(f"init {self.init} with parent {self.parent}: only a start from scratch has no parent")
        if self.role == "full" and self.start_step:
            raise ValueError("role `full` starts at step 0")
        if self.role == "decay" and self.start_step == 0:
            raise ValueError("role `decay` branches off a trunk point: start_step is at least 1")
        warmup = self.schedule.warmup_steps
        if self.role == "decay" and warmup > self.start_step:
            raise ValueError(
                f"the decay branches off at step {self.start_step}, inside the warm-up of {warmup} steps; raise the "
                "budget or lower warmup_steps"
            )
        if self.role == "full" and warmup >= self.end_step:
            raise ValueError(
                f"{self.end_step} steps end inside the warm-up of {warmup} steps; raise the budget or lower "
                "warmup_steps"
            )
        return self

    @property
    def init(self) -> str:
        """How this segment's first weights come about: `scratch`, `continue` or `upcycle:<method>`."""
        return "continue" if self.start_step else self.origin

    @property
    def kind(self) -> str:
        """The id's first word, which chooses the workflow rule: `dense`, `moe`, `up` or `decay`."""
        return "decay" if self.role == "decay" else self.lineage

    @property
    def tokens(self) -> int:
        """Tokens seen since scratch or upcycling when this segment ends: D, D1 or D2 of a finished model."""
        return self.end_step * self.tokens_per_step

    @property
    def segment_tokens(self) -> int:
        """Tokens that this segment itself trains."""
        return (self.end_step - self.start_step) * self.tokens_per_step

    def identity(self) -> dict[str, Any]:
        """Everything that changes the expected loss, in canonical form.

        A trunk point is its recipe and its end step, whatever chain led there: `start_step` and `parent` are left
        out, so a point inserted in a grid renames nothing. Trunks run at constant LR, so `floor` is left out too.
        A decay keeps its branch step. Fields equal to their default are left out, so new fields rename nothing.
        """
        spec = self.model_dump(mode="json", exclude_defaults=True)
        spec.pop("parent", None)
        if self.role != "decay":
            spec.pop("start_step", None)
        if self.role == "trunk":
            spec["schedule"].pop("floor", None)
        return spec

    def model_copy(self, **options: Any) -> Self:
        """As pydantic's; the copy makes an id of its own."""
        copy = super().model_copy(**options)
        copy.__dict__.pop("id", None)
        return copy

    @cached_property
    def id(self) -> str:
        """Readable slug and ten hexadecimal digits of the identity's SHA-256."""
        moe = f"-e{self.moe.n_expert}k{self.moe.top_k}" if self.moe else ""
        d1 = f"-d1_{short_count(self.dense_tokens)}" if self.dense_parent else ""
        digest = hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:10]
        branch = "decay-" if self.role == "decay" else ""
        shape = f"l{self.model.n_layer}d{self.model.d_model}"
        return f"{branch}{self.lineage}-{shape}{moe}{d1}-{short_count(self.tokens)}-s{self.seed}-{digest}"


def short_count(count: float) -> str:
    """Three significant digits and a letter: 2.31B, 524k. For slugs and tables."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= scale * 0.9995:
            return f"{count / scale:.3g}{letter}"
    return f"{count:.3g}"


_CANONICAL = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=True, allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value  # 1 and 1.0 are one number
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks and 1.0 written as 1: equal values give equal bytes."""
    return _CANONICAL.encode(_canonical(value))
