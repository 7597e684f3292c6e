"""The shape of a model: a dense decoder, and the mixture of experts that replaces its MLPs.

Layer 0: standard library and pydantic only. Every field is part of a run's identity (`spec.RunSpec.identity`), and one
that equals its default is left out of it, so a field that is added renames no run.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from upcycle.study.values import Depth, Deviation, Epsilon, Number, Positive, Sequences, Vocabulary, Whole, Width

Gate = Literal["topk_softmax", "softmax_topk", "softmax_topk_renormalised", "sigmoid_topk_renormalised"]


class Frozen(BaseModel):
    """Immutable, strict about unknown keys; every specification and config section derives from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def default_init_std(d_model: int) -> float:
    """Standard deviation sqrt(2 / (5 d_model)) of every row of Table 5 and of the router (A.6)."""
    return math.sqrt(2 / (5 * d_model))


class RopeScaling(Frozen):
    """Rotary frequencies stretched for longer contexts, as Hugging Face's config.json states them."""

    kind: Literal["linear", "llama3"]
    """`linear`: all frequencies over `factor`. `llama3`: low ones over `factor`, high ones as they are, and between
    the two a blend (Llama 3.1)."""
    factor: Annotated[Positive, Field(ge=1)]
    """How many times longer the context is."""
    low_freq_factor: Positive | None = None
    """llama3: waves longer than original_context / low_freq_factor tokens are stretched in full."""
    high_freq_factor: Positive | None = None
    """llama3: waves shorter than original_context / high_freq_factor tokens are not stretched."""
    original_context: Sequences | None = None
    """llama3: the context, in tokens, before it was stretched."""

    @model_validator(mode="after")
    def _check_kind(self) -> RopeScaling:
        own = (self.low_freq_factor, self.high_freq_factor, self.original_context)
        if self.kind == "linear" and any(value is not None for value in own):
            raise ValueError("rope_scaling linear has a factor and nothing else")
        if self.kind == "llama3":
            low, high, context = own
            if low is None or high is None or context is None:
                raise ValueError("rope_scaling llama3 needs low_freq_factor, high_freq_factor and original_context")
            if low >= high:
                raise ValueError(f"rope_scaling: low_freq_factor {low:g} is not below high_freq_factor {high:g}")
        return self


class ModelShape(Frozen):
    """Shape and initialisation of a dense model, as a study gives them under `models`."""

    n_layer: Depth
    """Number of layers."""
    d_model: Width
    """Width of the residual stream."""
    n_head: Width
    """Attention heads (of queries); divides `d_model` unless `d_head` is given."""
    n_kv_head: Width | None = None
    """Heads of keys and values, each shared by n_head / n_kv_head queries (grouped-query attention); None: n_head."""
    d_head: Width | None = None
    """Width of a head, even (RoPE rotates pairs); None means d_model / n_head."""
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
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched; None: not."""
    tied: bool = False
    """Whether embedding and head are one matrix."""
    qkv_bias: bool = False
    """Whether the projections of queries, keys and values have biases (Qwen2)."""
    qk_norm: bool = False
    """Whether each head's queries and keys are RMS-normed before they are rotated (Qwen3)."""


class ModelSpec(ModelShape):
    """Shape of a decoder: RMSNorm, SwiGLU, RoPE. The paper's (Table 3) has as many heads of keys and values as of
    queries, no biases, and embedding and head apart."""

    vocab_size: Vocabulary
    """Rows of the embedding and of the head; at least the tokenizer's pieces."""
    context: Sequences
    """Training sequence length in tokens (Table 4: 1,024)."""

    @model_validator(mode="after")
    def _check_shape(self) -> ModelSpec:
        if self.d_head is None and self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}; change one, or give d_head")
        if self.head_dim % 2:
            raise ValueError(
                f"the head dimension, d_head or d_model / n_head, is odd ({self.head_dim}): RoPE rotates pairs"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}")
        # Equal specs are one run: a derived value written out is stored as the derived default. (The model is frozen,
        # so its own validators assign by `object.__setattr__`.)
        if self.d_mlp == 4 * self.d_model:
            object.__setattr__(self, "d_mlp", None)
        if self.n_kv_head == self.n_head:
            object.__setattr__(self, "n_kv_head", None)
        if self.d_head is not None and self.d_head * self.n_head == self.d_model:
            object.__setattr__(self, "d_head", None)
        if self.init_std is not None and math.isclose(self.init_std, default_init_std(self.d_model), rel_tol=1e-12):
            object.__setattr__(self, "init_std", None)
        return self

    @property
    def head_dim(self) -> int:
        """Width of a head: d_head, or d_model / n_head."""
        return self.d_head if self.d_head is not None else self.d_model // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: n_kv_head, or n_head."""
        return self.n_kv_head if self.n_kv_head is not None else self.n_head

    @property
    def sharing(self) -> int:
        """Heads of queries that use the same head of keys and values; the paper's 1."""
        return self.n_head // self.kv_heads

    @property
    def attention_width(self) -> int:
        """Width of all heads of queries together: n_head x head_dim; the paper's is d_model."""
        return self.n_head * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all heads of keys together: kv_heads x head_dim; the paper's is d_model."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Rows of the stacked projections of queries, keys and values; the paper's 3 d_model."""
        return self.attention_width + 2 * self.kv_width

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
    """Number of routed experts E, each d_mlp / granularity wide."""
    top_k: Width
    """Routed experts K that each token uses."""
    granularity: Width = 1
    """Experts that are together as wide as the dense MLP (fine-grained experts; Krajewski et al., arXiv 2402.07871).
    `n_expert` and `top_k` count the experts as they are: with granularity 4, 32 and 8 have the parameters and the cost
    of 8 and 2 without."""
    shared_expert: Annotated[Whole, Field(le=2**20)] = 0
    """Experts that every token uses beside its top_k, each as wide as a routed one. They are one MLP of their joint
    width, whose output is added with weight 1 (DeepSeekMoE, arXiv 2401.06066)."""
    gate: Gate | None = None
    """Order of softmax (or sigmoid) and top-k. None means Eq. 15's `topk_softmax`; top_k = 1 must name one."""
    aux_coef: Annotated[Number, Field(ge=0, le=1e6)] = 1e-3
    """Coefficient of the load-balancing loss (Table 6)."""
    z_coef: Annotated[Number, Field(ge=0, le=1e6)] = 0.0
    """Coefficient of the router z-loss, which keeps router logits small (ST-MoE, arXiv 2202.08906: 1e-3). An addition.
    """
    bias_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Balancing without a loss (arXiv 2408.15664, DeepSeek-V3: 1e-3): each update moves a bias of each expert by this
    much, up where its load was below the mean and down where above; biases are added to the router's probabilities
    (sigmoid gate: its sigmoids) where experts are chosen, nowhere else. 0: no biases. An addition."""
    balance_group: Sequences = 8
    """Sequences over which the balance loss is taken, averaged over groups. Inferred (Megatron: a micro-batch)."""
    router_std: Deviation | None = None
    """Standard deviation of router weights; None means sqrt(2 / (5 d_model)) (A.6)."""

    @model_validator(mode="after")
    def _check_gate(self) -> MoESpec:
        if self.top_k > self.n_expert:
            raise ValueError(f"top_k {self.top_k} is more than n_expert {self.n_expert}")
        if self.bias_rate and self.top_k == self.n_expert:
            raise ValueError(
                f"bias_rate balances nothing: with top_k {self.top_k} a token uses every expert; leave it out"
            )
        if self.gate is None:
            if self.top_k == 1:
                raise ValueError(
                    "top_k = 1 must name its gate: `topk_softmax` (Eq. 15) and the renormalised ones keep "
                    "the function, but the router gets no cross-entropy gradient; with `softmax_topk` the router "
                    "learns, but a copy does not preserve the function"
                )
            object.__setattr__(self, "gate", "topk_softmax")
        return self

    @property
    def slug(self) -> str:
        """For ids and names: `e8k2`, with granularity 4 and one shared expert `e32k8g4s1`."""
        fine = f"g{self.granularity}" if self.granularity > 1 else ""
        return f"e{self.n_expert}k{self.top_k}{fine}" + (f"s{self.shared_expert}" if self.shared_expert else "")

    def check_width(self, model: ModelSpec) -> None:
        """Raise ValueError where `granularity` does not divide the MLP's width."""
        if model.mlp_width % self.granularity:
            raise ValueError(
                f"moe.granularity {self.granularity} does not divide the width of the MLP, d_mlp {model.mlp_width}"
            )

    def expert_width(self, model: ModelSpec) -> int:
        """Width of an expert's hidden layer."""
        return model.mlp_width // self.granularity

    def shared_width(self, model: ModelSpec) -> int:
        """Width of the shared experts' hidden layer, all together."""
        return self.shared_expert * self.expert_width(model)


def check_expansion(parent: MoESpec, child: MoESpec) -> None:
    """Raise ValueError for a mixture whose experts cannot be m >= 2 copies of each of the parent's."""
    if child.n_expert % parent.n_expert or child.n_expert == parent.n_expert:
        raise ValueError(
            f"n_expert {child.n_expert} is not two or more times the parent's {parent.n_expert}: `expand` makes as "
            "many copies of each expert"
        )
    if (child.granularity, child.shared_expert) != (parent.granularity, parent.shared_expert):
        raise ValueError("granularity and shared_expert are not the parent's: `expand` copies experts as they are")
