"""Recorded signatures as ones to bind calls to, and stand-ins for the libraries that compute the reference.

A stand-in refuses what the library refuses (unknown keywords, head dimensions, dtypes), computes by the recorded
meaning of its arguments, and gives back what the library does: tuples, slices, flattened heads. It shows that a wrapper
calls the library as it must; of the kernel itself it shows nothing.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from library_sources import RECORDS, SIGNATURES
from torch import Tensor, nn

KINDS = {
    "positional": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


def read(distribution: str) -> dict[str, Any]:
    """Recorded functions of a library."""
    return json.loads((SIGNATURES / RECORDS[distribution][1]).read_text(encoding="utf-8"))


def signature(distribution: str, name: str) -> inspect.Signature:
    """The recorded signature of the function or method that ends in this name, without `self`."""
    (entry,) = [entry for key, entry in read(distribution).items() if key.partition(":")[2] == name]
    made = []
    for parameter in entry["params"]:
        if parameter["name"] == "self":
            continue
        default = inspect.Parameter.empty if parameter["default"] is None else _value(parameter["default"])
        made.append(inspect.Parameter(parameter["name"], KINDS[parameter["kind"]], default=default))
    return inspect.Signature(made)


def _value(source: str) -> Any:
    try:
        return eval(source, {})  # a literal, from a file of tests/signatures
    except NameError:
        return source


class Recorder:
    """A function of this signature: every call must be by keyword and bind to it; then `compute` gives the result."""

    def __init__(self, signature: inspect.Signature, compute: Callable[[dict[str, Any]], Any]) -> None:
        self.__signature__ = signature
        self.compute = compute
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *positional: Any, **keywords: Any) -> Any:
        assert not positional, "third-party functions are called by keyword only"
        bound = self.__signature__.bind(**keywords)
        bound.apply_defaults()
        self.calls.append(bound.arguments)
        return self.compute(bound.arguments)


def attention_BSHC(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Plain attention of (B, S, H, C) in float32, in the libraries' layout; neighbours share a head of keys."""
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16, "only half precision"
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).bfloat16()


def flash_attn_func() -> Recorder:
    """`flash_attn_func` of flash-attn 2; padded heads come back as a slice."""

    def compute(arguments: dict[str, Any]) -> Any:
        q, k, v = (arguments[name] for name in "qkv")
        head_dim = q.shape[-1]
        scale = head_dim**-0.5 if arguments["softmax_scale"] is None else arguments["softmax_scale"]
        assert arguments["deterministic"] is True
        assert not arguments.get("dropout_p")
        q, k, v = (F.pad(x, (0, -head_dim % 8)) for x in (q, k, v))
        return attention_BSHC(q, k, v, scale, arguments["causal"]).contiguous()[..., :head_dim]

    return Recorder(signature("flash-attn", "flash_attn_func"), compute)


# --- transformer_engine.pytorch


def _bind(name: str, keywords: dict[str, Any]) -> dict[str, Any]:
    bound = signature("transformer-engine", name).bind(**keywords)
    bound.apply_defaults()
    return bound.arguments


class DotProductAttention(nn.Module):
    """Attention without parameters; heads come back flattened."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.given = _bind("DotProductAttention", keywords)

    def forward(self, **keywords: Any) -> Tensor:
        call = _bind("DotProductAttention.forward", keywords)
        q = call["query_layer"]
        given = self.given
        assert given["qkv_format"] == "bshd"
        assert (given["num_attention_heads"], given["kv_channels"]) == q.shape[-2:]
        assert given["num_gqa_groups"] in (None, call["key_layer"].shape[-2])
        assert q.shape[-1] % 8 == 0, "no fused kernel"
        assert given["attention_dropout"] == 0
        scale = q.shape[-1] ** -0.5 if given["softmax_scale"] is None else given["softmax_scale"]
        causal = given["attn_mask_type"] == "causal"
        return attention_BSHC(q, call["key_layer"], call["value_layer"], scale, causal).flatten(-2)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return F.rms_norm(x, weight.shape, weight, module.eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():  # TE reads the weight from the module again
            x, weight = x.detach().requires_grad_(), ctx.module.weight.detach().requires_grad_()
            out = F.rms_norm(x, weight.shape, weight, ctx.module.eps)
            return None, *torch.autograd.grad(out, [x, weight], grad)


class RMSNorm(nn.Module):
    """RMSNorm that reads its weight in forward and in backward."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given = _bind("RMSNorm", keywords)
        assert set(given["kwargs"]) <= {"device", "dtype"}  # what TE's ops.RMSNorm takes
        self.eps = given["eps"]
        self.weight = nn.Parameter(torch.ones(given["normalized_shape"], **given["kwargs"]))

    def forward(self, x: Tensor) -> Tensor:
        return _Norm.apply(self, x, self.weight)


class GroupedLinear(nn.Module):
    """One matrix a group, `weight0` to `weight{E-1}`."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.given = given = _bind("GroupedLinear", keywords)
        assert given["bias"] is False
        for group in range(given["num_gemms"]):
            shape = (given["out_features"], given["in_features"])
            weight = torch.randn(shape, device=given["device"], dtype=given["params_dtype"])
            self.register_parameter(f"weight{group}", nn.Parameter(weight))

    def forward(self, **keywords: Any) -> Tensor:
        call = _bind("GroupedLinear.forward", keywords)
        x, sizes = call["inp"], call["m_splits"]
        weights = [getattr(self, f"weight{group}") for group in range(self.given["num_gemms"])]
        assert isinstance(sizes, list)
        assert sum(sizes) == len(x)
        assert {weight.dtype for weight in weights} == {x.dtype}, "Data types for parameters must match"
        return torch.cat([F.linear(rows, weight) for rows, weight in zip(x.split(sizes), weights, strict=True)])


transformer_engine = SimpleNamespace(
    DotProductAttention=DotProductAttention, RMSNorm=RMSNorm, GroupedLinear=GroupedLinear
)
"""Stand-in for the module `transformer_engine.pytorch`."""
