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
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from upcycle.study.methods import UpcyclingSpec, check_experts, full_upcycling
from upcycle.study.shape import Frozen, ModelSpec, MoESpec, check_expansion
from upcycle.study.values import (
    Beta,
    Count,
    Epsilon,
    LearningRate,
    Name,
    PathText,
    Positive,
    RunId,
    Sequences,
    Sha256,
    Share,
    Version,
    Vocabulary,
    WeightDecay,
    Whole,
)

Role = Literal["trunk", "decay", "full", "imported"]
ScheduleKind = Literal["wsd", "cosine", "constant"]
EXPAND = "expand"
"""The upcycling method that begins with a mixture; all others begin with a dense model."""


class DataConfig(Frozen):
    """The tokens of every run of a study, unless a sweep sets `data.<field>`."""

    dataset: Name
    """A built-in data set (`english`, `python-stdlib`, `japanese-man`), or a name under `datasets`."""
    version: Version = "1"
    """Version of the text; another version is another token set and another run. That of Python or of
    Debian's package is added when the study is planned: `1` of `python-stdlib` becomes `1_py3.11.7`."""
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
    origin: Annotated[
        str, Field(pattern=r"^(scratch|checkpoint|continued|upcycle:[A-Za-z_][A-Za-z0-9_]*)$", max_length=80)
    ] = "scratch"
    """Where this training's weights began: `scratch`; `upcycle:<method>` or `continued`, from a finished run that
    becomes a mixture or is trained on; `checkpoint`, someone else's weights as they are."""
    upcycling: UpcyclingSpec = UpcyclingSpec()
    """Parameters of the upcycling method; of upcycled runs only."""
    dense_parent: RunId | None = None
    """Id of the finished run that was upcycled or continued: a dense one, or of method `expand` a mixture."""
    dense_tokens: Whole = 0
    """D1: all tokens of that run, its own parent's included; of an imported checkpoint those that its owner states."""
    parent_moe: MoESpec | None = None
    """The parent's mixture, of method `expand`."""
    checkpoint: Sha256 | None = None
    """Fingerprint of an imported checkpoint (`parent.fingerprint`)."""

    @model_validator(mode="after")
    def _check_recipe(self) -> Recipe:
        if self.moe is not None and self.optim.batch % self.moe.balance_group:
            raise ValueError(
                f"optim.batch {self.optim.batch} is not a whole number of moe.balance_group {self.moe.balance_group}"
            )
        if self.moe is not None:
            self.moe.check_width(self.model)
        if self.data.vocab_size > self.model.vocab_size:
            raise ValueError(f"data.vocab_size {self.data.vocab_size} exceeds model.vocab_size {self.model.vocab_size}")
        upcycled = self.origin.startswith("upcycle:")
        if (upcycled or self.origin == "continued") != (self.dense_parent is not None):
            raise ValueError("a run of origin `upcycle:<method>` or `continued` has a dense_parent, and no other has")
        if (upcycled and self.moe is None) or (self.origin in ("continued", "checkpoint") and self.moe is not None):
            raise ValueError(f"a run of origin {self.origin} is {'a mixture' if upcycled else 'dense'}: see `moe`")
        if (self.origin == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("a run of origin `checkpoint` has the fingerprint of one, and no other has")
        if upcycled:
            object.__setattr__(self, "upcycling", full_upcycling(self.method, self.upcycling))
            if self.moe is not None and self.method != EXPAND:
                check_experts(self.method, self.moe)
        elif self.upcycling != UpcyclingSpec():
            raise ValueError(f"`upcycling` has the parameters of an upcycling method: origin {self.origin} has none")
        if (self.origin == f"upcycle:{EXPAND}") != (self.parent_moe is not None):
            raise ValueError("a run of origin `upcycle:expand` has a parent_moe, and no other has")
        if self.moe is not None and self.parent_moe is not None:
            check_expansion(self.parent_moe, self.moe)
        return self

    @property
    def copies_moments(self) -> bool:
        """Whether its optimizer began with AdamW's moments of the parent."""
        return self.upcycling.optimizer == "copied"

    @property
    def method(self) -> str:
        """The upcycling method; empty for a run that is not upcycled."""
        return self.origin.partition(":")[2]

    @property
    def lineage(self) -> str:
        """`dense`, `moe`, `up` or `cont` (a dense model trained on): what is trained, whatever the segment."""
        if self.dense_parent is not None:
            return "up" if self.moe is not None else "cont"
        return "moe" if self.moe is not None else "dense"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step: batch x context."""
        return self.optim.batch * self.model.context


class RunSpec(Recipe):
    """One segment of training, from `start_step` to `end_step` (update counts since scratch or upcycling)."""

    role: Role = "trunk"
    """`trunk`: constant-LR segment; `decay`: the branch that cools it; `full`: a whole cosine or constant run;
    `imported`: a checkpoint, which trains no step."""
    start_step: Whole = 0
    end_step: Whole
    parent: RunId | None = None
    """Id of the run whose checkpoint this segment starts from (a trunk's predecessor, a decay's trunk point,
    an upcycled start's dense parent); None for a start from scratch."""

    @model_validator(mode="after")
    def _check_run(self) -> RunSpec:
        if (self.role == "imported") != (self.origin == "checkpoint"):
            raise ValueError(f"role {self.role} with origin {self.origin}: a checkpoint is imported, and nothing else")
        if self.role == "imported":
            if self.end_step or self.parent:
                raise ValueError("an imported checkpoint trains no step and has no parent")
            return self
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
        """How this segment's first weights come about: `continue`, where the parent stopped, or as its `origin`."""
        return "continue" if self.start_step else self.origin

    @property
    def kind(self) -> str:
        """The id's first word, which chooses the workflow rule: `dense`, `moe`, `up`, `cont`, `decay` or `import`."""
        if self.role == "imported":
            return "import"
        return "decay" if self.role == "decay" else self.lineage

    @property
    def tokens(self) -> int:
        """D, D1 or D2 of a finished model: tokens seen since scratch, or since the dense parent, at this segment's end;
        of an imported checkpoint those that its owner states.
        """
        return self.dense_tokens if self.role == "imported" else self.end_step * self.tokens_per_step

    @property
    def all_tokens(self) -> int:
        """Tokens that its weights have seen at this segment's end, its parents' included."""
        return self.tokens + (self.dense_tokens if self.dense_parent else 0)

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
        moe = f"-{self.moe.slug}" if self.moe else ""
        d1 = f"-d1_{short_count(self.dense_tokens)}" if self.dense_parent else ""
        digest = hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:10]
        branch = {"decay": "decay-", "imported": "import-"}.get(self.role, "")
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
