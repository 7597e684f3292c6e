"""The receipt of an upcycled start, measured by however many processes hold the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from upcycle.model import upcycling
from upcycle.model.fill import give
from upcycle.model.kernels import Kernels, float32_kernels
from upcycle.model.transformer import Transformer
from upcycle.train.optim import local_square_sums, of_one_mesh
from upcycle.train.step import accumulate
from upcycle.train.trainee import Trainee, build_model, run_batch


def measure_upcycling(
    trainee: Trainee, dense_state: Mapping[str, Tensor] | None, moe_state: Mapping[str, Tensor] | None
) -> dict[str, Any] | None:
    """What upcycling did (`upcycling.receipt`), on the run's first batch; states are whole, of the first process.

    Several processes measure it on models of their own, sharded as the run's and in float32, batch and all divided as
    in training: no process ever holds more than its parts, and for a moment one whole tensor. For those of the first
    process, which has read the states, None.
    """
    if trainee.group.size > 1:
        return _measure_sharded(trainee, dense_state, moe_state)
    run = trainee.run
    assert dense_state is not None
    ids = torch.from_numpy(run_batch(run, trainee.tokens, step=0)).to(trainee.device)
    kernels, moe = _kernels(trainee), trainee.model
    if kernels is not moe.kernels:
        assert moe_state is not None
        moe = Transformer(run.model, run.moe, kernels).to(trainee.device)
        moe.load_state_dict(moe_state)
    dense = Transformer(run.model, kernels=kernels).to(trainee.device)
    dense.load_state_dict(dense_state)
    optim = run.optim
    return upcycling.receipt(
        dense,
        moe,
        ids[:, :-1],
        ids[:, 1:],
        method=run.origin.partition(":")[2],
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        weight_decay=optim.weight_decay,
    )


def _kernels(trainee: Trainee) -> Kernels:
    """The run's kernels, or for a bfloat16 run, whose kernels may know nothing else, such as take float32."""
    run, execution = trainee.run, trainee.execution
    if run.dtype == "float32":
        return trainee.model.kernels
    return float32_kernels(
        run.model, execution.kernels, device=execution.device, tensor_parallel=execution.tensor_parallel
    )


def _measure_sharded(
    trainee: Trainee, dense_state: Mapping[str, Tensor] | None, moe_state: Mapping[str, Tensor] | None
) -> dict[str, Any] | None:
    run, group, kernels = trainee.run, trainee.group, _kernels(trainee)
    models = {}
    for name, moe, state in (("dense", None, dense_state), ("moe", run.moe, moe_state)):
        models[name] = build_model(run, moe, kernels, trainee.device, group, mixed=False)
        give(dict(models[name].named_parameters()), group.whole_of_first(state, trainee.device))
    probe = replace(trainee, run=run.model_copy(update={"dtype": "float32"}), model=models["moe"])
    gap = _logit_gap(probe, models["dense"])
    del models["dense"]
    before = _router_gradient(probe)
    groups = [{"params": part} for part in of_one_mesh(probe.model.parameters())]
    optim = run.optim
    step = torch.optim.AdamW(groups, optim.lr, (optim.beta1, optim.beta2), weight_decay=optim.weight_decay)
    probe.model.zero_grad()
    accumulate(probe, run_batch(run, trainee.tokens, step=0))
    step.step()
    after = _router_gradient(probe)
    if moe_state is None:
        return None
    assert run.moe is not None
    blocks = [f"blocks.{layer}.moe" for layer in range(run.model.n_layer)]
    return upcycling.written_receipt(
        run.moe,
        [(moe_state[f"{at}.router.weight"], moe_state[f"{at}.w_in"], moe_state[f"{at}.w_out"]) for at in blocks],
        method=run.origin.partition(":")[2],
        lr=optim.lr,
        tokens=run.tokens_per_step,
        gap=gap,
        router_gradients=(before, after),
    )


@torch.no_grad()
def _logit_gap(probe: Trainee, dense: Transformer) -> float:
    """Largest difference of a logit between the mixture and its dense parent, over the first batch."""
    group, ids = probe.group, run_batch(probe.run, probe.tokens, step=0)
    batch_BS = torch.from_numpy(ids[group.share(len(ids))]).to(probe.device)
    gap = torch.zeros((), device=probe.device)
    for ids_BS in batch_BS.split(probe.execution.micro_batch or len(batch_BS)):
        own_BS = group.positions(ids_BS[:, :-1])
        gap = torch.maximum(gap, (probe.model.logits(own_BS) - dense.logits(own_BS)).abs().max())
    cast(Any, probe.model).reshard()  # FSDP's
    return group.gather(gap).max().item()


def _router_gradient(probe: Trainee) -> dict[str, Any]:
    """Norms of the cross-entropy's gradient over the first batch."""
    probe.model.zero_grad()
    accumulate(probe, run_batch(probe.run, probe.tokens, step=0), aux_coef=0.0)
    squares = probe.group.sum(local_square_sums(probe.model.parameters(), first=probe.group.is_first))
    names = [name for name, _ in probe.model.named_parameters()]
    return upcycling.router_share(dict(zip(names, squares.sqrt().tolist(), strict=True)))
