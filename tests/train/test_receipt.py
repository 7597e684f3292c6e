"""The receipt of an upcycled start: its memory, and its one step of AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from live_tensors import Live
from safetensors.torch import load_file
from small_runs import EXECUTION, MOE, rows_of, small_run, train_in, upcycled_run

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.model.upcycling import upcycle
from upcycle.study.execution import Execution
from upcycle.study.memory import peak_memory
from upcycle.train.processes.preemption import TrainingError
from upcycle.train.receipt import _first_step, measure_upcycling
from upcycle.train.record import Clock
from upcycle.train.trainee import Trainee

SHAPES = {
    "activations": {"n_layer": 3, "d_model": 64, "n_head": 2, "vocab_size": 256, "context": 128},
    "logits": {"n_layer": 2, "d_model": 32, "n_head": 2, "vocab_size": 8192, "context": 128},
    "weights": {"n_layer": 3, "d_model": 128, "n_head": 2, "vocab_size": 256, "context": 32},
}


def upcycling_of(
    shape: dict[str, Any], batch: int, dtype: str, moe: dict[str, int] = MOE, **execution: Any
) -> tuple[Trainee, Transformer]:
    """An upcycled run before its receipt, and its dense parent."""
    data = {"dataset": "walk", "vocab_size": shape["vocab_size"]}
    dense = small_run(model=shape, data=data)
    run = upcycled_run(
        dense, model=shape, data=data, dtype=dtype, optim={"lr": 2e-3, "batch": batch}, moe=moe | {"balance_group": 2}
    )
    settings = Execution(device="cpu", layers="composed").model_copy(update=execution)
    kernels = choose_kernels(run.model, settings.kernels, dtype=dtype)
    parent, mixture = Transformer(run.model), Transformer(run.model, run.moe, kernels)
    init_weights(parent, seed=1)
    mixture.load_state_dict(upcycle("copy", parent.state_dict(), run.model, run.moe, seed=3))
    ids = np.random.default_rng(2).integers(0, shape["vocab_size"], batch * shape["context"] + 1)
    return Trainee(run, Path(), settings, SimpleNamespace(train=ids), mixture, None, Clock()), parent


def peak_of_receipt(trainee: Trainee, dense: Transformer) -> int:
    """Most bytes in tensors while the receipt is measured, the run's own weights among them."""
    weights = sum(parameter.nbytes for parameter in trainee.model.parameters())
    held = [*trainee.model.parameters(), *dense.parameters()]
    with Live(held, weights) as live:
        measure_upcycling(trainee, dense.state_dict(), trainee.model.state_dict())
    return live.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype", "cross_entropy"),
    [
        ("activations", "float32", "plain"),
        ("activations", "bfloat16", "plain"),
        ("logits", "float32", "plain"),
        ("logits", "bfloat16", "plain"),
        ("logits", "bfloat16", "chunked"),
        ("weights", "float32", "plain"),
        ("weights", "bfloat16", "plain"),
    ],
)
def test_a_receipt_needs_no_more_memory_than_an_update(shape: str, dtype: str, cross_entropy: str) -> None:
    """In tensors, against the formula of the run's micro-batch; so it does not grow with the batch."""
    settings = {"micro_batch": 2, "eval_batch": 1, "cross_entropy": cross_entropy}
    trainee, dense = upcycling_of(SHAPES[shape], 8, dtype, **settings)
    allowed = peak_memory(trainee.run, trainee.execution).tensors
    peak = peak_of_receipt(trainee, dense)
    print(f"{shape} {dtype}: {peak / allowed:.2f} of an update")
    assert peak < allowed


def test_it_compares_the_logits_of_a_sequence_though_the_batch_is_taken_whole() -> None:
    """Of every sequence of the batch; never two whole batches of logits."""
    shape = SHAPES["logits"]
    trainee, dense = upcycling_of(shape, 4, "float32")
    sizes: list[int] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.sub_.Tensor:
                sizes.append(output.numel())
            return output

    with Recorder():
        measure_upcycling(trainee, dense.state_dict(), trainee.model.state_dict())
    assert sizes == [shape["context"] * shape["vocab_size"]] * 4


@pytest.mark.parametrize(("own", "layers"), [({}, "native"), ({"qkv_bias": True, "qk_norm": True}, "composed")])
def test_copies_of_another_llama_preserve_its_function(own: dict[str, bool], layers: str) -> None:
    """Shared keys, a tied head, and biases and norms that do something, upcycled to 8 experts: no logit moves."""
    shape = SHAPES["logits"] | {"n_head": 4, "n_kv_head": 2, "d_head": 16, "tied": True, **own}
    trainee, dense = upcycling_of(shape, 8, "float32", moe={"n_expert": 8, "top_k": 2}, layers=layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in dense.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    run = trainee.run
    state = upcycle("copy", dense.state_dict(), run.model, run.moe, seed=3)
    trainee.model.load_state_dict(state)
    receipt = measure_upcycling(trainee, dense.state_dict(), state)
    assert receipt["logit_gap_zero_in_theory"]
    assert receipt["logit_gap"] <= receipt["logit_gap_bound"]
    assert receipt["router_gradient"]["step_0"]["zero"]
    assert not receipt["router_gradient"]["step_1"]["zero"]


def test_its_step_is_adamws_first() -> None:
    """On every weight, as torch's optimizer takes it from empty moments."""
    trainee, _ = upcycling_of(SHAPES["activations"], 4, "float32")
    optim, model = trainee.run.optim, trainee.model
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator).pow_(9)  # from about 0 to 1e4
    twin = [torch.nn.Parameter(weight.detach().clone()) for weight in model.parameters()]
    for weight, own in zip(twin, model.parameters(), strict=True):
        weight.grad = own.grad.clone()
    torch.optim.AdamW(twin, optim.lr, (optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay).step()
    _first_step(trainee)
    for weight, own in zip(twin, model.parameters(), strict=True):
        torch.testing.assert_close(own, weight, rtol=1e-6, atol=1e-6 * optim.lr)


def test_out_of_memory_while_a_run_starts_is_named(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As during training: with the run, the micro-batch, and what to lower."""
    dense = small_run()
    run = upcycled_run(dense)
    train_in(tmp_path, tokens_dir, dense)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("upcycle.train.receipt._router_gradient", full)
    with pytest.raises(
        TrainingError, match=f"{run.id}: out of memory on cpu with 2 sequences .* execution.micro_batch"
    ):
        train_in(tmp_path, tokens_dir, run, EXECUTION.model_copy(update={"micro_batch": 2}))


def test_the_curve_shows_how_far_experts_move_apart(tokens_dir: Path, tmp_path: Path) -> None:
    """From the receipt's distance before the first update to that of the finished weights; a dense run has none."""
    dense = small_run()
    run = upcycled_run(dense, end_step=20)
    parent = train_in(tmp_path, tokens_dir, dense)
    folder = train_in(tmp_path, tokens_dir, run)
    assert not any("expert_distance" in row for row in rows_of(parent))
    rows = {row["step"]: row["expert_distance"] for row in rows_of(folder) if "heldout" in row}
    receipt = json.loads((folder / "receipt.json").read_text())
    assert rows[0] == receipt["expert_distance_by_layer"] == [0.0, 0.0]
    weights = load_file(folder / "weights.safetensors")
    for layer, (at_16, at_20) in enumerate(zip(rows[16], rows[20], strict=True)):
        assert 0 < at_16 < at_20
        experts = [weights[f"blocks.{layer}.moe.{name}"].double().flatten(1) for name in ("w_in", "w_out")]
        whole_EN = torch.cat(experts, dim=1)
        apart = torch.cdist(whole_EN, whole_EN) / whole_EN.norm(dim=1, keepdim=True)
        assert at_20 == pytest.approx(apart.triu().max().item(), abs=1e-6)
