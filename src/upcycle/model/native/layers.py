"""Autograd functions over the C kernels: whole layers forward and backward, float32, on the CPU.

Shapes: B sequences, S positions, T = B S tokens, D d_model, H heads of queries, G of keys and values, C their width,
M width of the MLP, E experts, K = top_k, V vocabulary. Each computes what the composed layer of `transformer.py` does,
in another order of sums.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upcycle.model.native.build import library
from upcycle.model.rope import rope_tables
from upcycle.study.shape import Gate, ModelSpec, RopeScaling

DTYPES = (torch.float32, torch.int32, torch.int64)


def _call(name: str, *arguments: Tensor | Sequence[Tensor] | float | None) -> int:
    """Call `upcycle_<name>`: tensors by address, sequences of them as an array of addresses, numbers as they are, None
    as a null pointer.

    Raises TypeError for a tensor that C would read as something else, ValueError for one without elements.
    """
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            values.append(_address(name, argument))
        elif isinstance(argument, Sequence):
            values.append((ctypes.c_void_p * len(argument))(*[_address(name, part) for part in argument]))
        else:
            values.append(argument)
    return _function(name)(*values)


def _address(name: str, tensor: Tensor) -> int:
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or not tensor.is_contiguous():
        found = f"{tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
        raise TypeError(f"{name}: a dense CPU tensor of float32, int32 or int64 is wanted, not {found}")
    if not tensor.numel():
        raise ValueError(f"{name}: a tensor of shape {tuple(tensor.shape)} has nothing to compute")
    return tensor.data_ptr()


@functools.cache
def _function(name: str) -> Any:
    return getattr(library(), f"upcycle_{name}")


@functools.lru_cache(maxsize=8)
def _half_tables(positions: int, head_dim: int, base: float, scaling: RopeScaling | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, C / 2), the same numbers as the composed layer's."""
    cos, sin = rope_tables(positions, head_dim, base, torch.device("cpu"), scaling)
    half = head_dim // 2
    return cos[:, 0, :half].contiguous(), sin[:, 0, half:].contiguous()


def _hidden(x: Tensor, rows: int, D: int, M: int) -> list[Tensor]:
    """Room for gate and up projections of `rows` rows, a block of units each: (rows, 2 units)."""
    units = _call("hidden_units", D, M)
    return [x.new_empty(rows, 2 * min(units, M - first)) for first in range(0, M, units)]


class _Norm(torch.autograd.Function):
    """x (..., D), weight (D) -> RMSNorm(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        D = x.shape[-1]
        y, rstd = torch.empty_like(x), x.new_empty(x.numel() // D)
        _call("norm_forward", len(rstd), D, eps, x, weight, y, rstd)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        _call("norm_backward", len(rstd), x.shape[-1], x, weight, rstd, dy.contiguous(), dx, dweight)
        return dx, dweight, None


class _Narrow(torch.autograd.Function):
    """x (T, D), weight (E, D) -> x weight^T, (T, E)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.sizes = (*x.shape, len(weight))
        y = x.new_empty(len(x), len(weight))
        _call("narrow_forward", *ctx.sizes, x, weight, y)
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        _call("narrow_backward", *ctx.sizes, x, weight, dy.contiguous(), dx, dweight)
        return dx, dweight


class _Route(torch.autograd.Function):
    """logits (T, E) -> ids and gates (T, K), probabilities over all experts and their logarithms (T, E)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, top_k: int, gate: Gate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = logits.contiguous()
        T, E = logits.shape
        ctx.sizes = (T, E, top_k, int(gate == "softmax_topk"))
        ids, gates = torch.empty(T, top_k, dtype=torch.int64), logits.new_empty(T, top_k)
        probs, logs = torch.empty_like(logits), torch.empty_like(logits)
        _call("route_forward", *ctx.sizes, logits, ids, gates, probs, logs)
        ctx.mark_non_differentiable(ids, logs)
        ctx.save_for_backward(ids, gates, probs)
        return ids, gates, probs, logs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, dgates: Tensor, dprobs: Tensor, __: None) -> tuple[Tensor, None, None]:
        ids, gates, probs = ctx.saved_tensors
        dlogits = torch.empty_like(probs)
        _call("route_backward", *ctx.sizes, ids, gates, probs, dgates.contiguous(), dprobs.contiguous(), dlogits)
        return dlogits, None, None


class _Attention(torch.autograd.Function):
    """x (B, S, D), norm (D), wqkv ((H + 2 G) C, D), wo (D, H C) -> x + attention(RMSNorm(x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, wqkv: Tensor, wo: Tensor, model: ModelSpec) -> Tensor:
        x = x.contiguous()
        B, S, D = x.shape
        ctx.sizes = (B, S, D, model.n_head, model.kv_heads, model.head_dim)
        ctx.tables = _half_tables(S, model.head_dim, model.rope_base, model.rope_scaling)
        out, y = torch.empty_like(x), x.new_empty(B, S, model.attention_width)
        qkv = x.new_empty(B, S, model.qkv_width)
        lse, rstd = x.new_empty(B, model.n_head, S), x.new_empty(B, S)
        _call("attention_forward", *ctx.sizes, model.norm_eps, x, norm, wqkv, wo, *ctx.tables, out, qkv, y, lse, rstd)
        ctx.save_for_backward(x, norm, wqkv, wo, qkv, y, lse, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, wqkv, wo, qkv, y, lse, rstd = ctx.saved_tensors
        inputs = (x, norm, wqkv, wo, *ctx.tables, qkv, y, lse, rstd, dout.contiguous())
        gradients = (torch.empty_like(x), torch.zeros_like(norm), torch.empty_like(wqkv), torch.empty_like(wo))
        _call("attention_backward", *ctx.sizes, *inputs, *gradients)
        return *gradients, None


class _MLP(torch.autograd.Function):
    """x (B, S, D), norm (D), w_in (2 M, D), w_out (D, M) -> x + MLP(RMSNorm(x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, w_in: Tensor, w_out: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        D, M = w_out.shape
        ctx.sizes = (x.numel() // D, D, M)
        out, h, rstd = torch.empty_like(x), _hidden(x, *ctx.sizes), x.new_empty(ctx.sizes[0])
        _call("mlp_forward", *ctx.sizes, eps, x, norm, w_in, w_out, out, h, rstd)
        ctx.save_for_backward(x, norm, w_in, w_out, rstd, *h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, w_in, w_out, rstd, *h = ctx.saved_tensors
        gradients = (torch.empty_like(x), torch.zeros_like(norm), torch.empty_like(w_in), torch.empty_like(w_out))
        _call("mlp_backward", *ctx.sizes, x, norm, w_in, w_out, h, rstd, dout.contiguous(), *gradients)
        return *gradients, None


class _Experts(torch.autograd.Function):
    """x, xn (T, D), gates and ids (T, K), w_in (E, 2 M, D), w_out (E, D, M) -> x + sum of gate * expert(xn)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, xn: Tensor, gates: Tensor, ids: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        x, xn, gates = x.contiguous(), xn.contiguous(), gates.contiguous()
        (E, D, M), (T, K) = w_out.shape, ids.shape
        ctx.sizes = (T, K, E, D, M)
        slots, ends = torch.empty(T * K, dtype=torch.int32), torch.empty(E, dtype=torch.int32)
        _call("sort_slots", T, K, E, ids.to(torch.int64).contiguous(), slots, ends)
        out, h = torch.empty_like(x), _hidden(x, T * K, D, M)
        _call("experts_forward", *ctx.sizes, xn, x, gates, w_in, w_out, slots, ends, out, h)
        ctx.save_for_backward(xn, gates, w_in, w_out, slots, ends, *h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        xn, gates, w_in, w_out, slots, ends, *h = ctx.saved_tensors
        dout = dout.contiguous()
        dxn, dgates = torch.empty_like(xn), torch.empty_like(gates)
        dw_in, dw_out = torch.empty_like(w_in), torch.empty_like(w_out)
        inputs = (xn, gates, w_in, w_out, slots, ends, h, dout)
        _call("experts_backward", *ctx.sizes, *inputs, dxn, dgates, dw_in, dw_out)
        return dout, dxn, dgates, None, dw_in, dw_out


class _Loss(torch.autograd.Function):
    """x (B, S, D), norm (D), head (V, D), targets (B, S) -> mean cross-entropy; gradients are taken on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, head: Tensor, targets: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        gradients = (torch.empty_like(x), torch.zeros_like(norm), torch.empty_like(head))
        losses = _token_losses(x, norm, head, targets, eps, *gradients)
        ctx.save_for_backward(*gradients)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if upstream.item() != 1.0:
            gradients = tuple(gradient * upstream for gradient in gradients)
        return *gradients, None, None


def _token_losses(x: Tensor, norm: Tensor, head: Tensor, targets: Tensor, eps: float, *gradients: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, shaped as `targets`; `gradients` (x, norm, head) of the mean, if given."""
    V, D = head.shape
    losses = x.new_empty(targets.shape)
    share = 1 / targets.numel()
    wanted = gradients or (None, None, None)
    ids = targets.to(torch.int64).contiguous()
    bad = _call("loss", ids.numel(), D, V, eps, share, x, norm, head, ids, losses, *wanted)
    if bad:
        raise IndexError(f"target {targets.flatten()[bad - 1].item()} is no token of a vocabulary of {V}")
    return losses


def _rows(stack: Tensor) -> Tensor:
    """A stacked matrix as rows, however its stack is held (`model/stacks.py`)."""
    return stack.flatten(0, -2)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return _Norm.apply(x, weight, eps)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """A router's logits, (T, E)."""
    return _Narrow.apply(x_TD, weight_ED)


def route(logits_TE: Tensor, top_k: int, gate: Gate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and gates of each token's experts (T, K); probabilities over all experts and their logarithms (T, E).

    The logarithms carry no gradient: they are for the entropy that is logged.
    """
    return _Route.apply(logits_TE, top_k, gate)


def attention_layer(x_BSD: Tensor, norm_D: Tensor, wqkv: Tensor, wo: Tensor, model: ModelSpec) -> Tensor:
    """x + attention of the normed x, (B, S, D)."""
    return _Attention.apply(x_BSD, norm_D, _rows(wqkv), wo.flatten(1), model)


def mlp_layer(x_BSD: Tensor, norm_D: Tensor, w_in: Tensor, w_out: Tensor, model: ModelSpec) -> Tensor:
    """x + SwiGLU MLP of the normed x, (B, S, D)."""
    return _MLP.apply(x_BSD, norm_D, _rows(w_in), w_out, model.norm_eps)


def experts(x_TD: Tensor, xn_TD: Tensor, gates_TK: Tensor, ids_TK: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """x + gate-weighted sum of each token's experts on xn, (T, D). No token is dropped."""
    return _Experts.apply(x_TD, xn_TD, gates_TK, ids_TK, w_in.flatten(1, -2), w_out)


def added_mlp(x_TD: Tensor, xn_TD: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """x + SwiGLU MLP of xn, (T, D): one expert for every token, with weight 1."""
    gates_T1, ids_T1 = x_TD.new_ones(len(x_TD), 1), torch.zeros(len(x_TD), 1, dtype=torch.int64)
    return experts(x_TD, xn_TD, gates_T1, ids_T1, w_in[None], w_out[None])


def loss(x_BSD: Tensor, norm_D: Tensor, head_VD: Tensor, targets_BS: Tensor, model: ModelSpec) -> Tensor:
    """Mean cross-entropy in nats of the last residual stream, a scalar."""
    if not torch.is_grad_enabled():
        return token_losses(x_BSD, norm_D, head_VD, targets_BS, model).mean()
    return _Loss.apply(x_BSD, norm_D, head_VD, targets_BS, model.norm_eps)


def token_losses(x_BSD: Tensor, norm_D: Tensor, head_VD: Tensor, targets_BS: Tensor, model: ModelSpec) -> Tensor:
    """Cross-entropy of each token in nats, (B, S); for evaluation: it has no gradient."""
    if torch.is_grad_enabled():
        raise RuntimeError("token_losses has no gradient: call it under torch.no_grad()")
    return _token_losses(x_BSD.contiguous(), norm_D, head_VD, targets_BS, model.norm_eps)
