"""Our state dict and configuration under Hugging Face's names (Llama for dense, Mixtral for MoE). Pure functions.

Both models rotate halves of a head and compute what ours computes; Mixtral's gate (softmax over all experts, the
top-k renormalised) is Eq. 15's function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from upcycle.errors import UserError
from upcycle.study.shape import ModelSpec, MoESpec

RENAMED = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn.wo": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.w_out": "mlp.down_proj.weight",
    "moe.router.weight": "mlp.gate.weight",
    "moe.w_in": "mlp.experts.gate_up_proj",
    "moe.w_out": "mlp.experts.down_proj",
}
SPLIT = {
    "attn.wqkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.w_in": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
"""Ours stacks these along the first dimension, gate before up; Mixtral's fused experts have our layout."""


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dense state under LlamaForCausalLM's names, or a MoE's under MixtralForCausalLM's (transformers 5)."""
    renamed: dict[str, Tensor] = {}
    for name, weight in state.items():
        prefix, ours = "", name
        if name.startswith("blocks."):
            _, layer, ours = name.split(".", 2)
            prefix = f"model.layers.{layer}."
        targets = SPLIT.get(ours) or (RENAMED[ours],)
        renamed |= {prefix + target: part for target, part in zip(targets, weight.chunk(len(targets)), strict=True)}
    return renamed


def hugging_face_config(model: ModelSpec, moe: MoESpec | None = None) -> dict[str, Any]:
    """Keyword arguments of LlamaConfig, or of MixtralConfig; UserError for a gate that Mixtral does not have."""
    config = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_head,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "tie_word_embeddings": False,
    }
    if moe is None:
        return config
    if moe.gate == "softmax_topk" and moe.top_k < moe.n_expert:
        raise UserError("gate softmax_topk has no Hugging Face form: Mixtral's gate weights sum to 1")
    return config | {
        "num_local_experts": moe.n_expert,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.aux_coef,
        "sliding_window": None,
    }
