"""One model held by several processes: FSDP2 over the data ranks, tensor and sequence parallelism within them.

| parameters                     | held                                                    | gradients summed         |
|--------------------------------|---------------------------------------------------------|--------------------------|
| wqkv, bqkv, wo, w_in, w_out of | tensor ranks: heads or hidden units (DTensor);          | by FSDP over data ranks  |
| every layer                    | data ranks: parts of another dimension (fully_shard)    |                          |
| embed, head (one, if tied)     | a part of the rows on every process (fully_shard)       | by FSDP over all         |
| norms, routers                 | whole, in float32, on every process: kilobytes          | over all: sum_replicated |

Between layers each process holds its data rank's sequences at its tensor rank's positions (B, S / tensor, D), where
embedding, norms and head work. Before attention, MLP and MoE the tensor ranks gather each other's positions, after
them they sum their partial results and keep their own positions. So embed, head, norms and routers see a tensor rank
as one more data rank, and every gradient is the plain SUM over processes: the caller weighs each process's loss by its
share of the tokens.

With `mixed` the matrices of a block are gathered in bfloat16, the cast that autocast would make, and their gradients
summed in float32; the rest stays float32. A block's weights are gathered for its forward and again for its backward
pass, and its gradients summed after every micro-batch: so neither is ever kept whole, which would cost 2 and 4 bytes a
parameter on every process. With `whole` they are kept: one gather and one sum an update (`exchange_after`).

Norms and routers are no FSDP group of their own, because that would be two more collectives a block for kilobytes.

Shapes: B sequences, S positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from upcycle.model.norm import RMSNorm
from upcycle.model.stacks import stacked, unstacked
from upcycle.model.transformer import Transformer

SPLIT = {"wqkv": 1, "bqkv": 1, "wo": -1, "w_in": -2, "w_out": -1}
"""Dimension by which tensor ranks split a stacked parameter: heads of keys and values, or hidden units."""


def parallelize(model: Transformer, mesh: DeviceMesh, *, mixed: bool = False, whole: bool = False) -> None:
    """Spread a model without values (built on the meta device) over the mesh ("data", "tensor"), in place.

    `whole`: gathered weights stay from the first forward pass until `reshard`, or the backward pass that resharded.
    Follow with `model.to_empty(device=...)` and `fill_parts`, then build the optimizer.
    """
    for name, parameter in list(model.named_parameters()):
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if leaf in SPLIT:
            weight = stacked(name, parameter.detach(), model.model)
            if mesh["tensor"].size() > 1:
                placements = [Shard(SPLIT[leaf] % weight.ndim)]
                weight = distribute_tensor(weight, mesh["tensor"], placements, src_data_rank=None)
            setattr(owner, leaf, nn.Parameter(weight))
    kept = set(replicated(model))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    data_size = mesh["data"].size()
    for block in model.blocks:
        fully_shard(
            block,
            mesh=mesh["data"],
            mp_policy=policy,
            reshard_after_forward=not whole,
            ignored_params=kept,
            shard_placement_fn=lambda parameter: Shard(_even_dimension(parameter, data_size)),
        )
    world = init_device_mesh(mesh.device_type, (mesh.size(),), mesh_dim_names=("world",))
    fully_shard(model, mesh=world, ignored_params=kept)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has sums, and no averages
            module.set_gradient_divide_factor(1.0)
    if mesh["tensor"].size() > 1:
        for block in model.blocks:
            for layer in block.children():
                if not isinstance(layer, RMSNorm):
                    _share_sequences(layer, mesh["tensor"])


def _even_dimension(parameter: nn.Parameter, parts: int) -> int:
    """The dimension that data ranks split: the first that divides evenly and is not the tensor ranks', else 0.

    FSDP splits unevenly along dimension 0 only; a stack of 3 projections over 2 ranks is even along its columns.
    """
    placements = parameter.placements if isinstance(parameter, DTensor) else ()
    taken = {place.dim for place in placements if isinstance(place, Shard)}
    for dimension, size in enumerate(parameter.shape):
        if dimension not in taken and size % parts == 0:
            return dimension
    return 0


def _share_sequences(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Let a layer see whole sequences and give partial sums, around the tensor ranks' own positions.

    The gradient of the gathered input is partial (each rank used its own part of the matrices), the gradient of a
    partial output is whole: both are what DTensor's redistribution makes of them in its backward pass.
    """

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own_BSD = DTensor.from_local(inputs[0], mesh, [Shard(1)], run_check=False)
        return (own_BSD.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()]), *inputs[1:])

    def scatter(_: nn.Module, __: tuple[Tensor, ...], output: Any) -> Any:
        y_BSD, *rest = output if isinstance(output, tuple) else (output,)
        own_BSD = DTensor.from_local(y_BSD, mesh, [Partial()], run_check=False).redistribute(placements=[Shard(1)])
        return (own_BSD.to_local(), *rest) if rest else own_BSD.to_local()

    layer.register_forward_pre_hook(gather)
    layer.register_forward_hook(scatter)


def exchange_after(model: Transformer, *, last: bool) -> None:
    """Sum gradients and give gathered weights up after the next backward pass only if it is the update's last.

    Until then gradients add up whole, in float32. For a model spread with `whole`.
    """
    root = cast(FSDPModule, model)
    root.set_requires_gradient_sync(last)
    root.set_reshard_after_backward(last)


def reshard(model: nn.Module) -> None:
    """Give up weights that stayed gathered after a forward pass without a backward one."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def replicated(model: Transformer) -> list[nn.Parameter]:
    """Norms and routers: the parameters that every process holds whole."""
    return [parameter for name, parameter in model.named_parameters() if "norm" in name or ".router." in name]


def sum_replicated(model: Transformer, add: Callable[[Tensor], Tensor]) -> None:
    """Sum the gradients of the replicated parameters over all processes (`add`), in one message."""
    gradients = [parameter.grad for parameter in replicated(model) if parameter.grad is not None]
    total = add(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without gradient: the same memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# --- tensors by name, in parts and whole


def full_state(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU in the single-process shapes, from those of a model or optimizer (any form).

    All processes call it, in one order of names; those without `keep` get an empty dict, and never hold more than one.
    """
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = unstacked(name, full.full_tensor())
        if keep:
            whole[name] = full.cpu()
    return whole


def fill_parts(tensors: Mapping[str, Tensor], source: Callable[[str, torch.Size], Tensor]) -> None:
    """Give tensors of a model or optimizer their values; `source(name, shape)` is the whole single-process tensor.

    One after another: a process holds its own parts and, for a moment, one whole tensor.
    """
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            shape = torch.Size(unstacked(name, torch.empty(tensor.shape, device="meta")).shape)
            whole = source(name, shape).view(tensor.shape).to(tensor.device)
            part = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
            local(tensor).copy_(part.to_local())
        else:
            tensor.detach().copy_(source(name, tensor.shape))
