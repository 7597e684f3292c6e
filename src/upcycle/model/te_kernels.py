"""NVIDIA's Transformer Engine: attention, RMSNorm and experts in bfloat16. **Not run by us: there was no GPU.**

Opt-in by name. The model keeps its own parameters under its own names, experts stacked as (E, ., .); the modules of
Transformer Engine are lent them for a call. So a run may change kernels between two segments, and its files, FSDP and
the optimizer do not know.

Shapes: B sequences, S positions, H heads (of keys and values G), C head dimension, D d_model, M width of an expert,
E experts, N slots.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.torch_kernels import swiglu
from upcycle.study.kernel_fit import HEAD_DIM_MULTIPLE

DETERMINISTIC = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"


def _padded(x_BSHC: Tensor) -> Tensor:
    """Heads filled up with zeros to the next multiple of 8. Exact: zeros add nothing to scores, and are cut off."""
    missing = -x_BSHC.shape[-1] % HEAD_DIM_MULTIPLE
    return F.pad(x_BSHC, (0, missing)) if missing else x_BSHC  # a pad of nothing would copy


def te_attention(te: Any) -> Any:
    """Attention by `DotProductAttention`: cuDNN's fused kernel or flash-attn, as Transformer Engine sees fit.

    Head dimensions are padded here: TE 2.20.2 sends other than multiples of 8 to the unfused kernel. The module reads
    the environment for determinism when it is made.
    """
    os.environ[DETERMINISTIC] = "0"
    modules: dict[tuple[int, int, int], Any] = {}

    def te_(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor) -> Tensor:
        n_head, n_kv_head, head_dim = key = q_BHSC.shape[1], k_BGSC.shape[1], q_BHSC.shape[-1]
        q, k, v = (_padded(x.transpose(1, 2)) for x in (q_BHSC, k_BGSC, v_BGSC))
        if key not in modules:
            modules[key] = te.DotProductAttention(
                num_attention_heads=n_head,
                num_gqa_groups=n_kv_head,
                kv_channels=q.shape[-1],
                attention_dropout=0.0,
                qkv_format="bshd",
                attn_mask_type="causal",
                softmax_scale=head_dim**-0.5,
            )
        y_BSD = modules[key](query_layer=q, key_layer=k, value_layer=v)
        return y_BSD.reshape(q.shape)[..., :head_dim].transpose(1, 2)

    te_.__name__ = "te"
    return te_


def te_rms_norm(te: Any) -> Any:
    """RMSNorm by TE's module, in float32 inside.

    A module is made for each call (without storage: on the meta device) and holds the model's own weight, because its
    backward pass reads the weight from the module again.
    """

    def te_(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        module = te.RMSNorm(normalized_shape=weight_D.shape[0], eps=eps, device="meta", dtype=weight_D.dtype)
        module.weight = weight_D
        return module(x)

    te_.__name__ = "te"
    return te_


def te_experts(te: Any) -> Any:
    """The experts' SwiGLU MLPs by two `GroupedLinear`, one matrix an expert, cut from the stacked ones.

    The sizes of the groups are read back to the CPU once a call, as TE wants them there.
    """
    modules: dict[tuple[int, ...], Any] = {}

    def grouped(x_NK: Tensor, sizes: list[int], weights_EJK: Tensor) -> Tensor:
        n_expert, rows, columns = weights_EJK.shape
        key = (n_expert, rows, columns, x_NK.device.index or 0)
        if key not in modules:
            modules[key] = _empty_grouped_linear(te, weights_EJK)
        lent = {f"weight{expert}": weight for expert, weight in enumerate(weights_EJK.unbind())}
        return torch.func.functional_call(modules[key], lent, (), {"inp": x_NK, "m_splits": sizes})

    def te_(x_ND: Tensor, ends_E: Tensor, w_in_E2MD: Tensor, w_out_EDM: Tensor) -> Tensor:
        sizes = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        h_N2M = grouped(x_ND.type_as(w_in_E2MD), sizes, w_in_E2MD)
        return grouped(swiglu(h_N2M), sizes, w_out_EDM)

    te_.__name__ = "te"
    return te_


def _empty_grouped_linear(te: Any, weights_EJK: Tensor) -> nn.Module:
    """A GroupedLinear of this shape whose own weights are let go: each call lends it the model's."""
    n_expert, rows, columns = weights_EJK.shape
    module = te.GroupedLinear(
        num_gemms=n_expert,
        in_features=columns,
        out_features=rows,
        bias=False,
        params_dtype=weights_EJK.dtype,
        device=weights_EJK.device,
        use_grouped_tensor=False,  # whatever the environment says: sizes are on the CPU
    )
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)
    return module
