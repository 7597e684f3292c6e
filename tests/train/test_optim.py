"""AdamW and clipping against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from upcycle.model.stacks import stacked
from upcycle.model.transformer import Transformer
from upcycle.study.shape import ModelSpec
from upcycle.study.spec import OptimSpec
from upcycle.train.optim import (
    build_optimizer,
    global_norm,
    gradient_norms,
    optimizer_tensors,
    restore_optimizer,
    scale_gradients,
    set_learning_rate,
)


class Pair(nn.Module):
    """A matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(8, 4, generator=generator))
        self.vector = nn.Parameter(torch.randn(4, generator=generator))


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> float:
    """As an update clips; returns the norm before."""
    total = global_norm(norm * norm for norm in gradient_norms(parameters).tolist())
    scale_gradients(parameters, total, limit)
    return total


SPEC = OptimSpec(lr=0.01, batch=1, weight_decay=0.5)


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(8, 4, generator=generator), torch.randn(4, generator=generator)]


def test_adamw_is_the_formula_and_decays_matrices_only() -> None:
    """Five updates equal the textbook ones in float64 to 1e-6; the vector feels no decay."""
    module = Pair()
    optimizer = build_optimizer(module, SPEC)
    values = [parameter.detach().double().clone() for parameter in module.parameters()]
    first, second = ([torch.zeros_like(value) for value in values] for _ in range(2))
    for step in range(1, 6):
        lr = 0.01 * step
        set_learning_rate(optimizer, lr)
        for index, (parameter, gradient) in enumerate(zip(module.parameters(), gradients(step), strict=True)):
            parameter.grad = gradient
            decay = 0.5 if parameter.ndim == 2 else 0.0
            first[index] = 0.9 * first[index] + 0.1 * gradient.double()
            second[index] = 0.95 * second[index] + 0.05 * gradient.double() ** 2
            direction = (first[index] / (1 - 0.9**step)) / ((second[index] / (1 - 0.95**step)).sqrt() + 1e-8)
            values[index] = values[index] * (1 - lr * decay) - lr * direction
        optimizer.step()
    for parameter, value in zip(module.parameters(), values, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("several", [False, True], ids=["one process", "several"])
def test_norms_and_biases_feel_no_decay(several: bool) -> None:
    """However they are held: several processes stack a bias as they stack its matrix."""
    spec = ModelSpec(n_layer=1, d_model=16, n_head=2, vocab_size=8, context=8, qkv_bias=True, qk_norm=True, tied=True)
    model = Transformer(spec)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if several:
        attn = model.blocks[0].attn
        for leaf in ("wqkv", "bqkv"):
            setattr(attn, leaf, nn.Parameter(stacked(leaf, getattr(attn, leaf).detach(), spec)))
            names[id(getattr(attn, leaf))] = f"blocks.0.attn.{leaf}"
    groups = build_optimizer(model, SPEC).param_groups
    decayed = {names[id(weight)] for group in groups if group["weight_decay"] for weight in group["params"]}
    left = {names[id(weight)] for group in groups if not group["weight_decay"] for weight in group["params"]}
    assert decayed == {
        "embed.weight",
        *(f"blocks.0.{name}" for name in ("attn.wqkv", "attn.wo", "mlp.w_in", "mlp.w_out")),
    }
    norms = ("attn_norm", "mlp_norm", "attn.q_norm", "attn.k_norm")
    assert left == {"norm.weight", "blocks.0.attn.bqkv", *(f"blocks.0.{name}.weight" for name in norms)}


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    """Moments and count put back into a new optimizer: the next update is the same, bias correction included."""
    module, twin = Pair(), Pair()
    optimizer = build_optimizer(module, SPEC)
    for step in range(3):
        module.matrix.grad, module.vector.grad = gradients(step)
        optimizer.step()
    twin.load_state_dict(module.state_dict())
    other = build_optimizer(twin, SPEC)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(module, optimizer).items()}
    restore_optimizer(twin, other, saved, step=3)
    for model, its in ((module, optimizer), (twin, other)):
        model.matrix.grad, model.vector.grad = gradients(3)
        its.step()
    assert torch.equal(module.matrix, twin.matrix)
    assert torch.equal(module.vector, twin.vector)


def parameters_with(*tensors: torch.Tensor) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros_like(tensor)) for tensor in tensors]
    for parameter, tensor in zip(made, tensors, strict=True):
        parameter.grad = tensor.clone()
    return made


def test_clipping_scales_to_the_limit_and_leaves_small_gradients_alone() -> None:
    parameters = parameters_with(torch.tensor([3.0]), torch.tensor([[4.0]]))
    assert clip_gradients(parameters, limit=10.0) == 5.0
    assert [parameter.grad.item() for parameter in parameters] == [3.0, 4.0]
    assert clip_gradients(parameters, limit=1.0) == 5.0
    assert [parameter.grad.item() for parameter in parameters] == pytest.approx([0.6, 0.8], rel=1e-7)


def test_the_norm_depends_neither_on_order_nor_on_zero_gradients() -> None:
    """Bitwise, for gradients of very different sizes: what makes a 1-expert MoE clip as the dense model does."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(50, generator=generator) * 10.0**power for power in range(-6, 7)]
    norm = clip_gradients(parameters_with(*tensors), limit=1.0)
    assert clip_gradients(parameters_with(*reversed(tensors)), limit=1.0) == norm
    assert clip_gradients(parameters_with(torch.zeros(7), *tensors, torch.zeros(2, 2)), limit=1.0) == norm


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_gives_a_non_finite_norm_and_changes_nothing(bad: float) -> None:
    parameters = parameters_with(torch.tensor([1.0]), torch.tensor([bad]))
    assert not math.isfinite(clip_gradients(parameters, limit=0.5))
    assert parameters[0].grad.item() == 1.0
