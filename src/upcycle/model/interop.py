"""Our state dict and configuration under Hugging Face's names, and theirs under ours. Pure functions.

Both compute the same: they rotate halves of a head, norm in float32, and Mixtral's gate (softmax over all experts, the
top-k renormalised) is Eq. 15's function. What differs is the order of query heads where several share a head of keys
(`model/stacks.py`): Hugging Face has those beside each other that share one.

| ours                                        | Hugging Face's class                                       |
|---------------------------------------------|------------------------------------------------------------|
| dense                                       | Llama; Mistral where n_head does not divide d_model        |
| dense, `qkv_bias`                           | Qwen2                                                      |
| dense, `qk_norm`                            | Qwen3                                                      |
| mixture whose gate weights of a token sum to 1 | Mixtral                                                 |
| mixture, `qkv_bias`, another gate, or shared experts | Qwen2Moe; without shared experts one of width 0    |
| mixture, `qk_norm`                          | Qwen3Moe, any gate; it has no shared expert                |

Qwen2Moe multiplies its shared expert by a sigmoid of the token. With a gate of zeros that is 1/2, so the exported
expert's `down_proj` is twice ours: exact, as doubling rounds nothing. Trained further, that gate would learn.

Shapes: D d_model, M width of the MLP, C head dimension, G heads of keys and values, R queries for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model.transformer import Transformer
from upcycle.study.shape import ModelSpec, MoESpec

RENAMED = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn.q_norm.weight": "self_attn.q_norm.weight",
    "attn.k_norm.weight": "self_attn.k_norm.weight",
    "attn.wo": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.w_out": "mlp.down_proj.weight",
    "moe.router.weight": "mlp.gate.weight",
    "moe.shared.w_out": "mlp.shared_expert.down_proj.weight",
    "moe.w_in": "mlp.experts.gate_up_proj",
    "moe.w_out": "mlp.experts.down_proj",
}
SPLIT = {
    "attn.wqkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.bqkv": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "mlp.w_in": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "moe.shared.w_in": ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
}
"""Ours stacks these along the first dimension, gate before up; the fused experts of Hugging Face have our layout."""


def to_hugging_face(state: Mapping[str, Tensor], model: ModelSpec, moe: MoESpec | None = None) -> dict[str, Tensor]:
    """A state, dense or of a mixture, under the names of the class of `hugging_face_config` (transformers 5).

    Raises UserError for what none of the classes holds.
    """
    config = hugging_face_config(model, moe)
    renamed: dict[str, Tensor] = {}
    for name, weight in state.items():
        prefix, ours = _prefix(name)
        if ours == "attn.wo":
            weight = _reordered(weight.mT, model, to_ours=False).mT
        targets = SPLIT.get(ours) or (RENAMED[ours],)
        if ours == "moe.shared.w_out":
            weight = 2 * weight
        parts = list(weight.split(_rows(ours, weight.shape[0], model))) if ours in SPLIT else [weight]
        if ours in ("attn.wqkv", "attn.bqkv"):
            parts[0] = _reordered(parts[0], model, to_ours=False)
        renamed |= {prefix + target: part.contiguous() for target, part in zip(targets, parts, strict=True)}
    if config["model_type"] == "qwen2_moe":
        renamed |= _shared_expert_zeros(model, with_expert=not (moe and moe.shared_expert))
    return renamed


def _shared_expert_zeros(model: ModelSpec, *, with_expert: bool) -> dict[str, Tensor]:
    """The gate of Qwen2Moe's expert for all tokens; with the expert itself, of width 0, so that it adds nothing."""
    width = model.d_model
    shapes = {"shared_expert_gate": (1, width)}
    if with_expert:
        shapes |= {
            "shared_expert.gate_proj": (0, width),
            "shared_expert.up_proj": (0, width),
            "shared_expert.down_proj": (width, 0),
        }
    layers = range(model.n_layer)
    return {
        f"model.layers.{layer}.mlp.{name}.weight": torch.zeros(shape)
        for layer in layers
        for name, shape in shapes.items()
    }


def from_hugging_face(tensors: Mapping[str, Tensor], model: ModelSpec) -> dict[str, Tensor]:
    """The inverse for a dense model: a new tensor each, in the dtype that it comes in.

    Raises UserError for one that is missing or of another shape; what no name of ours asks for is not looked at.
    """
    state: dict[str, Tensor] = {}
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Transformer(model).named_parameters()}
    for name, shape in shapes.items():
        prefix, ours = _prefix(name)
        wanted = [prefix + target for target in SPLIT.get(ours) or (RENAMED[ours],)]
        rows = _rows(ours, shape[0], model) if len(wanted) > 1 else [shape[0]]
        parts = [_of_shape(tensors, target, (n, *shape[1:])) for target, n in zip(wanted, rows, strict=True)]
        if ours in ("attn.wqkv", "attn.bqkv"):
            parts[0] = _reordered(parts[0], model, to_ours=True)
        if ours == "attn.wo":
            parts = [_reordered(parts[0].mT, model, to_ours=True).mT]
        state[name] = torch.cat(parts)
    return state


def _of_shape(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape:
        found = "missing" if tensor is None else tuple(tensor.shape)
        raise UserError(f"the checkpoint does not fit its config.json: tensor {name} is {found}, wanted {shape}")
    return tensor


def _prefix(name: str) -> tuple[str, str]:
    """Hugging Face's prefix of a parameter of ours, and what is left of its name."""
    if not name.startswith("blocks."):
        return "", name
    _, layer, ours = name.split(".", 2)
    return f"model.layers.{layer}.", ours


def _rows(ours: str, whole: int, model: ModelSpec) -> list[int]:
    """Rows of the parts of a stacked matrix of `whole` rows."""
    if ours.endswith("w_in"):
        return [whole // 2] * 2
    return [model.attention_width, model.kv_width, model.kv_width]


def _reordered(rows: Tensor, model: ModelSpec, *, to_ours: bool) -> Tensor:
    """Rows (R G C, ...) of query heads from Hugging Face's order (G, R) to ours (R, G), or back."""
    order = (model.kv_heads, model.sharing) if to_ours else (model.sharing, model.kv_heads)
    return rows.unflatten(0, (*order, model.head_dim)).transpose(0, 1).flatten(0, 2)


def hugging_face_config(model: ModelSpec, moe: MoESpec | None = None) -> dict[str, Any]:
    """What config.json of the class in the module's table states, `architectures` and `model_type` with it.

    Raises UserError for what none of the classes holds.
    """
    if model.qkv_bias and model.qk_norm:
        raise UserError("qkv_bias with qk_norm has no Hugging Face form: Qwen2 has biases alone, Qwen3 norms alone")
    config: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": _rope_parameters(model),
        "tie_word_embeddings": model.tied,
    }
    if moe is None:
        if model.qkv_bias or model.qk_norm:
            return _of_class("Qwen2" if model.qkv_bias else "Qwen3", config)
        if model.d_model % model.n_head:  # Llama refuses it
            return _of_class("Mistral", config | {"sliding_window": None})
        return _of_class("Llama", config)
    if moe.gate == "sigmoid_topk_renormalised" or moe.bias_rate:
        what = "bias_rate" if moe.bias_rate else f"gate {moe.gate}"
        raise UserError(f"moe.{what} has no Hugging Face form: Mixtral, Qwen2Moe and Qwen3Moe have softmax gates alone")
    renormalised = moe.gate != "softmax_topk" or moe.top_k == moe.n_expert
    experts = {"num_experts_per_tok": moe.top_k, "router_aux_loss_coef": moe.aux_coef, "sliding_window": None}
    width, shared = moe.expert_width(model), moe.shared_width(model)
    own = {"num_experts": moe.n_expert, "moe_intermediate_size": width, "norm_topk_prob": renormalised}
    if model.qk_norm:
        if shared:
            raise UserError(
                "shared experts with qk_norm have no Hugging Face form: Qwen2Moe has no norms of queries and keys, "
                "Qwen3Moe no shared expert"
            )
        return _of_class("Qwen3Moe", config | experts | own)
    if model.qkv_bias or shared or not renormalised:
        own |= {"qkv_bias": model.qkv_bias, "shared_expert_intermediate_size": shared}
        return _of_class("Qwen2Moe", config | experts | own)
    return _of_class("Mixtral", config | experts | {"num_local_experts": moe.n_expert, "intermediate_size": width})


def _of_class(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    model_type = kind.removesuffix("Moe").lower() + ("_moe" if kind.endswith("Moe") else "")
    return {"architectures": [f"{kind}ForCausalLM"], "model_type": model_type, **config}


def _rope_parameters(model: ModelSpec) -> dict[str, Any]:
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": model.rope_base}
    stated: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": model.rope_base, "factor": scaling.factor}
    if scaling.kind == "llama3":
        stated |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return stated
