"""Small models with weights that hide nothing: every parameter random, norms included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from upcycle.model.kernels import Kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

SMALL = ModelSpec(n_layer=2, d_model=32, n_head=2, vocab_size=64, context=32)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small() -> ModelSpec:
    return SMALL


@pytest.fixture
def build() -> Callable[..., Transformer]:
    def build(model: ModelSpec = SMALL, moe: MoESpec | None = None, kernels: Kernels | None = None) -> Transformer:
        transformer = Transformer(model, moe, kernels)
        init_weights(transformer, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in transformer.named_parameters():
                if "norm" in name:
                    weight.uniform_(0.5, 1.5, generator=generator)
        return transformer

    return build


@pytest.fixture
def batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def batch(model: ModelSpec = SMALL, sequences: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, model.vocab_size, (sequences, model.context + 1), generator=generator)
        return ids[:, :-1], ids[:, 1:]

    return batch
