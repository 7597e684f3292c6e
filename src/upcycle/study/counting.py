"""Parameters and FLOPs by formula, from the specification alone (tested equal to the built modules).

Layer 0: no torch. Papers differ in which parameters they count, so counts are kept by group and the
convention is chosen where they are used. This paper's N are non-embedding parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import RunSpec


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by group. `mlp` counts all experts, shared ones too; `mlp_active` those that one token uses."""

    embedding: int
    head: int
    """0 where it is the embedding (`tied`)."""
    attention: int
    """Matrices."""
    bias: int
    mlp: int
    mlp_active: int
    router: int
    norm: int

    @property
    def non_embedding(self) -> int:
        """N_dense or N_total of Table 3: all but embedding and head."""
        return self.attention + self.bias + self.mlp + self.router + self.norm

    @property
    def active(self) -> int:
        """N2 counted exactly: non-embedding parameters that one token uses (router, biases and norms included)."""
        return self.attention + self.bias + self.mlp_active + self.router + self.norm

    @property
    def total(self) -> int:
        """Every parameter."""
        return self.non_embedding + self.embedding + self.head


def count_parameters(model: ModelSpec, moe: MoESpec | None = None) -> ParameterCounts:
    """Exact counts, as in Table 3: 16 L d^2 + (2L+1) d dense; (4 + 12 E) L d^2 + (2L+1) d + E L d as MoE.

    Of any shape: 12 d^2 is 3 d d_mlp; 4 d^2 is d for each row of the projections of queries, keys and values, and for
    each column of the output's. With granularity G and s shared experts, 12 E is 12 (E + s) / G, the router's E L d
    as it is.
    """
    layers, width = model.n_layer, model.d_model
    norms_of_heads = 2 * model.head_dim * layers if model.qk_norm else 0
    expert = 3 * width * (moe.expert_width(model) if moe else model.mlp_width) * layers
    n_expert, top_k, shared = (moe.n_expert, moe.top_k, moe.shared_expert) if moe else (1, 1, 0)
    return ParameterCounts(
        embedding=model.vocab_size * width,
        head=0 if model.tied else model.vocab_size * width,
        attention=width * (model.qkv_width + model.attention_width) * layers,
        bias=model.qkv_width * layers if model.qkv_bias else 0,
        mlp=expert * (n_expert + shared),
        mlp_active=expert * (top_k + shared),
        router=moe.n_expert * width * layers if moe else 0,
        norm=(2 * layers + 1) * width + norms_of_heads,
    )


def n1(model: ModelSpec) -> int:
    """Equation 4. N1 = 16 L d^2: the dense model's size in the laws. Other shapes: attention's and MLPs' matrices."""
    counts = count_parameters(model)
    return counts.attention + counts.mlp


def n2(model: ModelSpec, moe: MoESpec) -> int:
    """Equation 5. N2 = (4 + 12 K) L d^2: the MoE's active size in the laws, for any shape as N1.

    With granularity G and s shared experts (the paper has neither), 12 (K + s) / G in place of 12 K.
    """
    counts = count_parameters(model, moe)
    return counts.attention + counts.mlp_active


def n_total(model: ModelSpec, moe: MoESpec) -> int:
    """Equation 6. N_total = (4 + 12 E) L d^2: the MoE's whole size in the laws, for any shape as N1.

    With granularity G and s shared experts, 12 (E + s) / G in place of 12 E.
    """
    counts = count_parameters(model, moe)
    return counts.attention + counts.mlp


def flops_6nd(run: RunSpec) -> float:
    """Section A.10. 6 N D of this segment, N the active non-embedding parameters, D in tokens.

    The paper's printed totals count D in sequences (they are these divided by the context length).
    """
    return 6.0 * count_parameters(run.model, run.moe).active * run.segment_tokens


def flops_per_token(model: ModelSpec, moe: MoESpec | None = None) -> float:
    """Forward and backward FLOPs of a token by every matrix product done: weights, head, causal attention.

    6 FLOPs a weight (2 forward, 4 backward), the head's also where it is the embedding; attention scores and values,
    each 2 FLOPs a key and number of all heads of queries (the paper's: d_model) forward, three times that with
    backward, over on average context / 2 keys (causal).
    """
    counts = count_parameters(model, moe)
    matrices = counts.attention + counts.mlp_active + counts.router + model.vocab_size * model.d_model
    attention = 2 * 2 * model.attention_width * (model.context / 2) * model.n_layer * 3
    return 6.0 * matrices + attention
