"""The kernels that need torch alone, with the reference of each op: what runs on any machine.

Shapes: B sequences, S positions, H heads, C head dimension, D d_model, M width of the MLP, E experts,
N slots (tokens x top_k) sorted by expert, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CHUNK_ELEMENTS = 1 << 23
"""Logits that the chunked cross-entropy holds at a time on a CPU: 32 MB in float32, 262 tokens of 32,000 pieces."""
CUDA_CHUNK = 8192
"""Tokens at a time on CUDA, where a smaller product of 32,000 columns would leave the device idle."""

# --- attention: q (B, H, S, C), k, v (B, G, S, C) -> (B, H, S, C), causal, scores over sqrt(C)
# --- With fewer heads of keys than of queries, those follow each other that share one: query h uses key h // (H / G).


def sdpa(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor) -> Tensor:
    """Causal softmax attention by torch's fused kernels, whichever torch prefers for the shape."""
    grouped = q_BHSC.shape[1] != k_BGSC.shape[1]
    if grouped and q_BHSC.is_cuda and q_BHSC.dtype == torch.float32:  # else all scores: no fused kernel shares keys
        k_BGSC, v_BGSC, grouped = _for_each_query(k_BGSC, q_BHSC), _for_each_query(v_BGSC, q_BHSC), False
    return F.scaled_dot_product_attention(q_BHSC, k_BGSC, v_BGSC, is_causal=True, enable_gqa=grouped)


def sdpa_flash(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor) -> Tensor:
    """The same, by torch's own flash attention and no other.

    Left free, torch on an H100 takes cuDNN's for head dimensions that are multiples of 8 and flash for the others:
    two kernels across the paper's sizes (80 and 104 against 60, 70, 94).
    """
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return sdpa(q_BHSC, k_BGSC, v_BGSC)


def plain_attention(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor) -> Tensor:
    """Causal softmax attention written out, scores and softmax in float32: the reference."""
    positions, head_dim = q_BHSC.shape[-2:]
    k_BHSC, v_BHSC = _for_each_query(k_BGSC, q_BHSC), _for_each_query(v_BGSC, q_BHSC)
    scores_BHSS = q_BHSC.float() @ k_BHSC.float().mT * head_dim**-0.5
    future_SS = torch.ones(positions, positions, dtype=torch.bool, device=q_BHSC.device).triu(1)
    return (scores_BHSS.masked_fill(future_SS, -torch.inf).softmax(-1) @ v_BHSC.float()).type_as(q_BHSC)


def tree_attention(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor, seen_BSS: Tensor) -> Tensor:
    """Softmax attention in which query s sees the keys t with `seen_BSS[b, s, t]`, in place of all up to itself."""
    k_BHSC, v_BHSC = _for_each_query(k_BGSC, q_BHSC), _for_each_query(v_BGSC, q_BHSC)
    return F.scaled_dot_product_attention(q_BHSC, k_BHSC, v_BHSC, attn_mask=seen_BSS.unsqueeze(1))


def _for_each_query(x_BGSC: Tensor, q_BHSC: Tensor) -> Tensor:
    """Heads of keys or values, each as often as queries share it."""
    sharing = q_BHSC.shape[1] // x_BGSC.shape[1]
    return x_BGSC if sharing == 1 else x_BGSC.repeat_interleave(sharing, dim=1)  # of 1 would be a copy


# --- SwiGLU and the experts: x (N, D) sorted by expert, ends (E,) int32 the running counts of slots -> (N, D)


def swiglu(h_N2M: Tensor) -> Tensor:
    """SiLU(gate) * up, of a hidden layer whose first M columns are the gate and last M the up projection."""
    gate_NM, up_NM = h_N2M.chunk(2, dim=-1)
    return F.silu(gate_NM) * up_NM


def grouped_mm(x_ND: Tensor, ends_E: Tensor, w_in_E2MD: Tensor, w_out_EDM: Tensor) -> Tensor:
    """Every expert's SwiGLU MLP on its own rows, as two grouped matrix products."""
    x_ND = x_ND.type_as(w_in_E2MD)  # autocast does not know grouped_mm, and the weights' dtype says what is meant
    h_N2M = F.grouped_mm(x_ND, w_in_E2MD.mT, offs=ends_E)
    return F.grouped_mm(swiglu(h_N2M), w_out_EDM.mT, offs=ends_E)


def loop(x_ND: Tensor, ends_E: Tensor, w_in_E2MD: Tensor, w_out_EDM: Tensor) -> Tensor:
    """Every expert's SwiGLU MLP on its own rows, one expert after another: the reference."""
    sizes = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    rows = x_ND.type_as(w_in_E2MD).split(sizes)
    experts = zip(rows, w_in_E2MD.unbind(), w_out_EDM.unbind(), strict=True)
    return torch.cat([F.linear(swiglu(F.linear(x, w_in)), w_out) for x, w_in, w_out in experts])


# --- RMSNorm


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x^2) + eps) * weight, computed in float32."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


# --- cross-entropy: last hidden state (B, S, D), output matrix (V, D), targets (B, S) -> nats in float32


def token_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Cross-entropy of every token, (B, S)."""
    logits_TV = F.linear(hidden_BSD, head_VD).float().flatten(0, -2)
    return F.cross_entropy(logits_TV, targets_BS.flatten(), reduction="none").view_as(targets_BS)


def cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens, a scalar."""
    return F.cross_entropy(F.linear(hidden_BSD, head_VD).float().flatten(0, -2), targets_BS.flatten())


def _chunk(head_VD: Tensor) -> int:
    """Tokens at a time."""
    return CUDA_CHUNK if head_VD.is_cuda else max(CHUNK_ELEMENTS // len(head_VD), 1)


def _loss_and_gradient(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a chunk's cross-entropies, and its gradient with respect to the logits, in their dtype."""
    log_probs_TV = logits_TV.float().log_softmax(-1)
    loss = -log_probs_TV.gather(1, targets_T[:, None]).sum()
    gradient_TV = log_probs_TV.exp_()
    gradient_TV.scatter_add_(1, targets_T[:, None], gradient_TV.new_full((len(targets_T), 1), -1.0))
    return loss, gradient_TV.to(logits_TV.dtype)


@functools.cache
def _fused_loss_and_gradient() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same compiled, written so that one kernel reads the logits and writes their gradient."""

    def fused(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        log_probs_TV = logits_TV.float().log_softmax(-1)
        hit_TV = torch.arange(logits_TV.shape[1], device=logits_TV.device) == targets_T[:, None]
        loss = -torch.where(hit_TV, log_probs_TV, 0.0).sum()
        return loss, (log_probs_TV.exp() - hit_TV.float()).to(logits_TV.dtype)

    return torch.compile(fused, dynamic=False)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the tokens' cross-entropy, a chunk of tokens at a time: no (T, V) matrix is ever held.

    The forward pass also computes the gradients, while it holds a chunk's logits, so nothing is computed twice.
    torch's own chunked `F.linear_cross_entropy` does the same, but in bfloat16 it returns a bfloat16 loss (three
    decimal digits). Products are in the given dtype; softmax, loss and the sum of weight gradients in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, dtype: torch.dtype, compiled: bool
    ) -> Tensor:
        loss_and_gradient = _fused_loss_and_gradient() if compiled else _loss_and_gradient
        with torch.autocast(hidden_TD.device.type, enabled=False):
            head = head_VD.to(dtype)
            d_hidden = torch.empty_like(hidden_TD) if ctx.needs_input_grad[0] else None
            d_head = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            losses = []
            start = 0
            for x_TD, targets in zip(
                hidden_TD.to(dtype).split(_chunk(head)), targets_T.split(_chunk(head)), strict=True
            ):
                loss, d_logits = loss_and_gradient(F.linear(x_TD, head), targets)
                losses.append(loss)
                if d_hidden is not None:
                    d_hidden[start : start + len(targets)] = d_logits @ head
                if d_head is not None:
                    d_head += d_logits.mT @ x_TD
                start += len(targets)
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head_VD.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return _scaled(d_hidden, grad), _scaled(d_head, grad), None, None, None


def _scaled(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if gradient is None else (gradient.float() * factor).to(gradient.dtype)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def chunked_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean cross-entropy over all tokens, a scalar, without holding all logits; differentiable once."""
    dtype = _product_dtype(hidden_BSD)
    total = _ChunkedCrossEntropy.apply(hidden_BSD.flatten(0, -2), head_VD, targets_BS.flatten(), dtype, compiled)
    return total / targets_BS.numel()


compiled_chunked_cross_entropy = functools.partial(chunked_cross_entropy, compiled=True)


def chunked_token_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Cross-entropy of every token, (B, S), a chunk at a time; saves memory where no gradient is wanted."""
    rows = _chunk(head_VD)
    chunks = zip(hidden_BSD.flatten(0, -2).split(rows), targets_BS.flatten().split(rows), strict=True)
    return torch.cat([token_cross_entropy(x_TD, head_VD, targets) for x_TD, targets in chunks]).view_as(targets_BS)
