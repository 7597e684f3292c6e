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
from upcycle.model.stacks import own
from upcycle.model.transformer import Transformer
from upcycle.train.record import Clock
from upcycle.train.step import accumulate
from upcycle.train.trainee import Trainee, build_model, run_batch


def measure_upcycling(
    trainee: Trainee, parent_state: Mapping[str, Tensor] | None, moe_state: Mapping[str, Tensor] | None
) -> dict[str, Any] | None:
    """What upcycling did, on the run's first batch: the content of `receipt.json`, for the first process to write.

    The first process has read the states and holds them whole; the others pass None and get None. Measured are the
    largest logit gap to the parent, and the router's cross-entropy gradient before and after one AdamW step of
    the run's learning rate on cross-entropy and router losses. This is done on models of their own in float32, held and
    fed as in training: micro-batch by micro-batch, and by several processes in parts. Blocks are recomputed, and the
    step is taken without moments, so a receipt needs no more memory than an update, in bfloat16 too.
    """
    run, group, kernels = trainee.run, trainee.group, _kernels(trainee)
    models = {}
    for name, moe, state in (("parent", run.parent_moe, parent_state), ("moe", run.moe, moe_state)):
        models[name] = build_model(run, moe, kernels, trainee.device, group, mixed=False)
        give(models[name].state_dict(), group.whole_of_first(state, trainee.device))
    # The probe's clock is its own: the receipt counts as start-up, its batches are no time of the training.
    float32 = run.model_copy(update={"dtype": "float32"})
    execution = trainee.execution.model_copy(update={"exchange": "micro_batch"})
    probe = replace(trainee, run=float32, execution=execution, model=models["moe"], clock=Clock())
    gap, largest = _logit_gap(probe, models["parent"])
    del models["parent"]
    probe.model.recompute = True
    before = _router_gradient(probe)
    probe.model.zero_grad()
    accumulate(probe, run_batch(run, trainee.tokens, step=0))
    _first_step(probe)
    after = _router_gradient(probe)
    if moe_state is None:
        return None
    assert run.moe is not None
    blocks = [f"blocks.{layer}.moe" for layer in range(run.model.n_layer)]
    return upcycling.receipt(
        run.moe,
        [(moe_state[f"{at}.router.weight"], moe_state[f"{at}.w_in"], moe_state[f"{at}.w_out"]) for at in blocks],
        method=run.method,
        parameters=run.upcycling.model_dump(exclude_defaults=True),
        parent_moe=run.parent_moe,
        lr=run.optim.lr,
        tokens=run.tokens_per_step,
        gap=gap,
        largest=largest,
        router_gradients=(before, after),
    )


def _kernels(trainee: Trainee) -> Kernels:
    """The run's kernels, or for a bfloat16 run, whose kernels may know nothing else, such as take float32."""
    run, execution = trainee.run, trainee.execution
    if run.dtype == "float32":
        return trainee.model.kernels
    return float32_kernels(
        run.model,
        execution.kernels,
        device=execution.device,
        moe=run.moe,
        tensor_parallel=execution.tensor_parallel,
    )


@torch.no_grad()
def _first_step(probe: Trainee) -> None:
    """AdamW's first step, whose moments are the gradient and its square: so there is no need to hold them."""
    optim = probe.run.optim
    for parameter in probe.model.parameters():
        weight, gradient = own(parameter), own(cast(Tensor, parameter.grad))
        weight.mul_(1 - optim.lr * optim.weight_decay).addcdiv_(
            gradient, gradient.abs().add_(optim.eps), value=-optim.lr
        )


@torch.no_grad()
def _logit_gap(probe: Trainee, parent: Transformer) -> tuple[float, float]:
    """Over the first batch: the largest difference of a logit between the mixture and its parent, and the
    parent's largest logit."""
    group, ids = probe.group, run_batch(probe.run, probe.tokens, step=0)
    batch_BS = torch.from_numpy(ids[group.share(len(ids))]).to(probe.device)
    found = torch.zeros(2, device=probe.device)
    # One sequence at a time: two models' logits are more than an update holds with `cross_entropy: chunked`.
    for ids_BS in batch_BS.split(1):
        own_BS = group.positions(ids_BS[:, :-1])
        logits_BSV, parent_BSV = probe.model.eval().logits(own_BS), parent.eval().logits(own_BS)
        gap = logits_BSV.sub_(parent_BSV).abs_().max()
        found = torch.maximum(found, torch.stack([gap, parent_BSV.abs_().max()]))
        del logits_BSV, parent_BSV
    probe.model.train()
    if group.size > 1:
        from upcycle.model.parallel import reshard

        reshard(probe.model)
    gap, largest = group.gather(found).amax(0).tolist()
    return gap, largest


def _router_gradient(probe: Trainee) -> dict[str, Any]:
    """Norms of the cross-entropy's gradient over the first batch."""
    probe.model.zero_grad()
    accumulate(probe, run_batch(probe.run, probe.tokens, step=0), router_losses=False)
    squares = []
    for parameter in probe.model.parameters():
        assert parameter.grad is not None
        counted = probe.group.is_first or hasattr(parameter.grad, "to_local")  # what is held whole: once
        squares.append(own(parameter.grad).double().square().sum() * counted)
    norms = probe.group.sum(torch.stack(squares)).sqrt().tolist()
    return upcycling.router_share(dict(zip(dict(probe.model.named_parameters()), norms, strict=True)))
