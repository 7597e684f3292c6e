"""The device that is asked for, or none; deterministic on CUDA, where only a stand-in was at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from upcycle.errors import UserError
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.execution import Execution
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.train.device import use_device


@pytest.fixture
def settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_a_cuda_run_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA device here"):
        use_device(Execution(device="cuda"))


@pytest.mark.usefixtures("settings_restored")
def test_cuda_is_held_to_deterministic_algorithms_which_the_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU at least, every op of forward and backward; whether on CUDA too, tests/gpu ask."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert use_device(Execution(device="cuda")) == torch.device("cuda")
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    spec = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
    model = Transformer(spec, MoESpec(n_expert=2, top_k=1, gate="softmax_topk", balance_group=1))
    init_weights(model, seed=0)
    ids = torch.zeros(1, 9, dtype=torch.long)
    output = model(ids[:, :-1], ids[:, 1:])
    (output.loss + output.balance).backward()


@pytest.mark.usefixtures("settings_restored")
def test_the_cpu_is_left_as_it_is() -> None:
    assert use_device(Execution(device="cpu")) == torch.device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
