"""One update: what it descends on, and options of execution that change its speed and memory alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EXECUTION, MOE, small_run
from torch import Tensor

from upcycle.study.spec import RunSpec
from upcycle.train.processes.preemption import TrainingError
from upcycle.train.record import Clock
from upcycle.train.start import prepare_trainee
from upcycle.train.step import Sums, Wishes, accumulate, update
from upcycle.train.tracing import HostReads, Trace
from upcycle.train.trainee import run_batch


def first_gradients(run: RunSpec, folder: Path, tokens_dir: Path, **execution: Any) -> dict[str, Tensor]:
    """Gradients of the first update by parameter."""
    folder.mkdir()
    settings = EXECUTION.model_copy(update=execution)
    trainee = prepare_trainee(
        run, run_dir=folder, tokens_dir=tokens_dir, parent_dir=None, execution=settings, clock=Clock()
    )
    accumulate(trainee, run_batch(run, trainee.tokens, 0))
    gradients = {name: weight.grad for name, weight in trainee.model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def test_an_update_descends_on_the_loss_and_the_routers_losses_by_their_coefficients(
    tokens_dir: Path, tmp_path: Path
) -> None:
    """Gradients of loss + aux_coef x balance + z_coef x z over the whole batch, by autograd; in micro-batches to
    rounding, and what they add up to."""
    run = small_run(moe=MOE | {"aux_coef": 0.3, "z_coef": 0.2})
    (tmp_path / "one").mkdir()
    trainee = prepare_trainee(
        run,
        run_dir=tmp_path / "one",
        tokens_dir=tokens_dir,
        parent_dir=None,
        execution=EXECUTION.model_copy(update={"layers": "composed"}),
        clock=Clock(),
    )
    batch = run_batch(run, trainee.tokens, 0)
    ids = torch.from_numpy(batch)
    output = trainee.model(ids[:, :-1], ids[:, 1:])
    parameters = dict(trainee.model.named_parameters())
    wanted = torch.autograd.grad(output.loss + 0.3 * output.balance + 0.2 * output.z, list(parameters.values()))
    for micro_batch in (None, 2):
        trainee.execution = trainee.execution.model_copy(update={"micro_batch": micro_batch})
        trainee.optimizer.zero_grad()
        sums = accumulate(trainee, batch)
        for (name, parameter), gradient in zip(parameters.items(), wanted, strict=True):
            assert parameter.grad is not None
            assert torch.linalg.vector_norm(parameter.grad - gradient) <= 1e-6 * torch.linalg.vector_norm(gradient), (
                name
            )
        assert sums.loss.item() == pytest.approx(output.loss.item(), rel=1e-6)
        assert sums.balance.item() == pytest.approx(output.balance.item(), rel=1e-6)
        assert sums.z.item() == pytest.approx(output.z.item(), rel=1e-6)
        assert sums.stats is not None
        assert torch.allclose(sums.stats.load_LE, output.stats.load_LE)
        assert torch.allclose(sums.stats.entropy_L, output.stats.entropy_L)


def test_an_update_has_the_learning_rate_of_its_step(tokens_dir: Path, tmp_path: Path) -> None:
    """The first of four of a warm-up takes a quarter of the maximum."""
    trainee = prepare_trainee(
        small_run(), run_dir=tmp_path, tokens_dir=tokens_dir, parent_dir=None, execution=EXECUTION, clock=Clock()
    )
    done, _ = update(trainee, Wishes())
    assert done.lr == pytest.approx(2e-2 / 4)
    assert {group["lr"] for group in trainee.optimizer.param_groups} == {done.lr}


@pytest.mark.parametrize("moe", [None, MOE])
def test_the_host_waits_for_the_device_once_an_update(
    moe: dict[str, int] | None, tokens_dir: Path, tmp_path: Path
) -> None:
    """For loss, balance and gradient norms together; with two passes too. Nothing in between has a shape that only the
    values tell."""
    trainee = prepare_trainee(
        small_run(moe=moe),
        run_dir=tmp_path,
        tokens_dir=tokens_dir,
        parent_dir=None,
        execution=EXECUTION.model_copy(update={"layers": "composed", "micro_batch": 2}),
        clock=Clock(),
    )
    with HostReads() as host, Trace() as trace:
        update(trainee, Wishes())
    assert host.reads == {"tolist": 1}
    assert trace.host_waits() == []
    products = 3 * (2 * (5 if moe else 4) + 1)  # of 2 blocks and the head: forward, and twice backward
    attentions = 2 * 2
    assert sum(operation.flops > 0 for operation in trace.operations) == 2 * (products + attentions)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_nothing_changes_where_the_loss_or_the_gradient_is_not_finite(
    loss: float, norm: float, tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainee = prepare_trainee(
        small_run(), run_dir=tmp_path, tokens_dir=tokens_dir, parent_dir=None, execution=EXECUTION, clock=Clock()
    )
    before = {name: weight.clone() for name, weight in trainee.model.state_dict().items()}
    sums = Sums(torch.tensor(loss), torch.tensor(0.0), torch.tensor(0.0), None)
    monkeypatch.setattr("upcycle.train.step.accumulate", lambda *_: sums)
    monkeypatch.setattr("upcycle.train.step.gradient_norms", lambda *_: torch.ones(1))
    monkeypatch.setattr("upcycle.train.step.global_norm", lambda *_: norm)
    with pytest.raises(TrainingError, match=f"step 1: loss {loss}, gradient norm {norm}"):
        update(trainee, Wishes())
    for name, weight in trainee.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("layers", ["composed", "auto"])
@pytest.mark.parametrize("moe", [None, MOE])
def test_recomputed_blocks_give_the_same_bits(
    moe: dict[str, int] | None, layers: str, tokens_dir: Path, tmp_path: Path
) -> None:
    """Activation checkpointing computes the inside of a block twice, both times the same."""
    run = small_run(moe=moe)
    kept = first_gradients(run, tmp_path / "kept", tokens_dir, layers=layers)
    recomputed = first_gradients(
        run, tmp_path / "recomputed", tokens_dir, layers=layers, activation_checkpointing="block"
    )
    assert recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_recomputing_keeps_less(tokens_dir: Path, tmp_path: Path) -> None:
    """What the backward pass is kept for it: with checkpointing, each block's input and little else."""
    kept = []
    for option in ("none", "block"):
        (tmp_path / option).mkdir()
        trainee = prepare_trainee(
            small_run(),
            run_dir=tmp_path / option,
            tokens_dir=tokens_dir,
            parent_dir=None,
            execution=EXECUTION.model_copy(update={"activation_checkpointing": option, "layers": "composed"}),
            clock=Clock(),
        )
        ids = torch.from_numpy(run_batch(trainee.run, trainee.tokens, 0))
        sizes: dict[int, int] = {}

        def count(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x_BSD = torch.nn.functional.embedding(ids[:, :-1], trainee.model.embed.weight)
        weights = sum(parameter.nbytes for parameter in trainee.model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainee.model(ids[:, :-1], ids[:, 1:])
        kept.append((sum(sizes.values()) - weights) / x_BSD.nbytes)
    assert kept[1] < kept[0] / 2, kept


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(tokens_dir: Path, tmp_path: Path) -> None:
    """Gradients to 2 u sqrt(n) of each one's norm, as between processes; parameters keep their names."""
    shape = {"n_layer": 1, "d_model": 16, "n_head": 2, "vocab_size": 64, "context": 32}
    run = small_run(model=shape)
    eager = first_gradients(run, tmp_path / "eager", tokens_dir, layers="composed")
    torch._dynamo.utils.counters.clear()
    compiled = first_gradients(run, tmp_path / "compiled", tokens_dir, layers="composed", compile=True)
    assert compiled.keys() == eager.keys()
    bound = 2 * 2.0**-24 * math.sqrt(run.tokens_per_step)
    for name, gradient in eager.items():
        assert torch.linalg.vector_norm(compiled[name] - gradient) <= bound * torch.linalg.vector_norm(gradient), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "one graph, without a break"
