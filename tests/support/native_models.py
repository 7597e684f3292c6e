"""The same small model by the C kernels and composed of torch's, to be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

SHAPES: dict[str, dict[str, Any]] = {
    "whole vectors": {"d_model": 64, "n_head": 2, "vocab_size": 256, "context": 64},
    "odd lengths, narrow heads": {"d_model": 48, "n_head": 6, "vocab_size": 97, "context": 33, "d_mlp": 112},
    "more positions than a block": {"d_model": 32, "n_head": 1, "vocab_size": 1000, "context": 200},
    "a hidden layer deeper than a product's block": {
        "d_model": 64,
        "n_head": 2,
        "vocab_size": 64,
        "context": 40,
        "d_mlp": 512,
    },
    "more rows than pass by a block at once": {
        "d_model": 256,
        "n_head": 8,
        "vocab_size": 64,
        "context": 520,
        "d_mlp": 128,
    },
    "queries that share keys, tied": {
        "d_model": 96,
        "n_head": 6,
        "n_kv_head": 2,
        "vocab_size": 97,
        "context": 65,
        "d_mlp": 80,
        "tied": True,
        "rope_scaling": {"kind": "linear", "factor": 3},
    },
    "heads wider than the model": {
        "d_model": 32,
        "n_head": 8,
        "n_kv_head": 1,
        "d_head": 16,
        "vocab_size": 64,
        "context": 40,
        "d_mlp": 48,
    },
    "heads narrower than the model": {
        "d_model": 112,
        "n_head": 4,
        "n_kv_head": 2,
        "d_head": 8,
        "vocab_size": 64,
        "context": 300,
        "d_mlp": 48,
    },
    "heads of 70": {"d_model": 560, "n_head": 8, "vocab_size": 50, "context": 17, "d_mlp": 16},
}
MOE = MoESpec(n_expert=8, top_k=2, balance_group=1)
ROUNDING = 2.0**-24


def pair(shape: str, moe: MoESpec | None, n_layer: int = 2) -> tuple[Transformer, Transformer]:
    """The same model by the C kernels and composed; norm weights differ from 1, so that they matter."""
    spec = ModelSpec(n_layer=n_layer, **SHAPES[shape])
    models = []
    for name in ("native", "composed"):
        model = Transformer(spec, moe, choose_kernels(spec, {"layers": name}))
        init_weights(model, seed=1)
        for mixture in model.mixtures if moe and moe.bias_rate else []:
            mixture.router.bias += torch.linspace(-0.1, 0.1, moe.n_expert)
        for index, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(index))
        models.append(model)
    return models[0], models[1]


def batch(model: Transformer, sequences: int = 3) -> tuple[Tensor, Tensor]:
    size = (sequences, model.model.context + 1)
    ids = torch.randint(0, model.model.vocab_size, size, generator=torch.Generator().manual_seed(2))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: Transformer, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and every gradient of `scale` x (loss + router losses)."""
    model.zero_grad()
    out = model(*batch(model))
    ((out.loss + 0.01 * out.balance + 0.01 * out.z) * scale).backward()
    return out.loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_native_is_composed(shape: str, moe: MoESpec | None) -> None:
    """Each gradient within 128 float32 roundings of its largest element: sums of 50 to 600 terms in another order,
    through two layers."""
    native, composed = pair(shape, moe)
    (loss, found), (expected_loss, expected) = gradients(native), gradients(composed)
    assert abs(loss - expected_loss) <= 8 * ROUNDING * expected_loss
    for name, gradient in expected.items():
        gap = (found[name] - gradient).abs().max()
        assert gap <= 128 * ROUNDING * gradient.abs().max(), name
