"""The registry of upcycling methods: each makes a layer's experts out of its dense MLP, `expand` out of a mixture.

To add one, decorate one function with `@method`.

Shapes: D d_model, M width of the MLP, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from upcycle.errors import UserError, nearest
from upcycle.model.transformer import generator_of, router_weight
from upcycle.study.shape import ModelSpec, MoESpec


@dataclass(frozen=True)
class DenseMLP:
    """What a method makes a layer's experts from."""

    w_in_2MD: Tensor
    """The gate's M rows over the up projection's."""
    w_out_DM: Tensor
    model: ModelSpec
    moe: MoESpec
    block: str
    """Its layer, `blocks.{i}`."""
    seed: int
    """That of the upcycled run."""

    def experts(self, change: Change) -> dict[str, Tensor]:
        """Every expert as `change` makes it of a copy of the dense gate, up (M, D) and down (D, M) and of the expert's
        own generator: what is drawn depends on seed, layer and expert alone, not on order, ranks or the number of
        experts."""
        w_ins, w_outs = [], []
        for expert in range(self.moe.n_expert):
            generator = generator_of(f"{self.block}.moe.upcycling.{expert}", self.seed)
            gate_MD, up_MD = self.w_in_2MD.clone().chunk(2)
            gate, up, down = change(gate_MD, up_MD, self.w_out_DM.clone(), generator)
            w_ins.append(torch.cat([gate, up]))
            w_outs.append(down)
        return {"w_in": torch.stack(w_ins), "w_out": torch.stack(w_outs)}


Change = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]
"""One expert's gate, up and down, of the dense ones and a generator."""


@dataclass(frozen=True)
class ParentMixture:
    """What `expand` makes a layer's experts from."""

    weights: Mapping[str, Tensor]
    """The layer's weights by their name below `blocks.{i}.moe`."""
    moe: MoESpec
    """The mixture that is made."""
    block: str
    """Its layer, `blocks.{i}`."""
    seed: int
    """That of the upcycled run."""


@dataclass(frozen=True)
class Method:
    """An upcycling method of the registry."""

    make: Callable[..., dict[str, Tensor]]
    """From a `DenseMLP` (of `expand` a `ParentMixture`) and the method's parameters to the layer's weights by their
    name below `blocks.{i}.moe`: `w_in` (E, 2M, D), `w_out` (E, D, M), `router.weight` unless it is fresh, and
    `shared.w_in` and `shared.w_out` of shared experts."""
    exact: bool
    """Whether a token's experts together compute what the dense MLP does, if their gate weights sum to 1."""
    moves: bool
    """Whether each weight of an expert is one of the parent's, unscaled, so that AdamW's moments can follow it."""


METHODS: dict[str, Method] = {}


def method(
    *, exact: bool, moves: bool = False
) -> Callable[[Callable[..., dict[str, Tensor]]], Callable[..., dict[str, Tensor]]]:
    """Register an upcycling method under its function's name; `exact` and `moves` as in `Method`.

    The function's keyword-only arguments are the method's parameters, with their defaults: fields of `UpcyclingSpec`.
    """

    def register(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        METHODS[function.__name__] = Method(function, exact, moves)
        return function

    return register


@method(exact=True, moves=True)
def copy(mlp: DenseMLP) -> dict[str, Tensor]:
    """Every expert is the dense MLP (2.1)."""
    return mlp.experts(lambda gate, up, down, _: (gate, up, down))


@method(exact=False)
def noise(mlp: DenseMLP, *, std: float = 0.1) -> dict[str, Tensor]:
    """Gaussian noise is added to every weight of every expert (A.6); `std` is relative to that of the same matrix.

    The default is ours: A.6 gives no size. Drop-Upcycling (arXiv 2502.19261, `noise_upcycling.py`) adds noise of
    standard deviation 0.02 to half of the hidden units. OLMoE's `noise_injection` adds none: it redraws half of the
    weights (`reinit`).
    """

    def change(gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        for matrix in (gate, up, down):
            matrix += torch.empty_like(matrix).normal_(0.0, std * matrix.std().item(), generator=generator)
        return gate, up, down

    return mlp.experts(change)


@method(exact=False)
def reinit(mlp: DenseMLP, *, share: float = 0.5) -> dict[str, Tensor]:
    """Each weight of each expert is redrawn with probability `share`, as a MoE from scratch draws it (A.6: partial
    re-initialisation).

    Inferred: A.6 gives neither share nor distribution. These are those of OLMoE's `noise_injection`
    (`sparsify_ckpt_unsharded.py`), which redraws half of the weights with its initial standard deviation.
    """

    def change(gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        for matrix, std in ((gate, mlp.model.weight_std), (up, mlp.model.weight_std), (down, mlp.model.output_std)):
            drawn = torch.empty_like(matrix).uniform_(generator=generator) < share
            fresh = torch.empty_like(matrix).normal_(0.0, std, generator=generator)
            matrix.copy_(torch.where(drawn, fresh, matrix))
        return gate, up, down

    return mlp.experts(change)


@method(exact=False)
def low_rank(mlp: DenseMLP, *, share: float = 0.5, rank: float = 0.5) -> dict[str, Tensor]:
    """Each matrix of each expert is replaced with probability `share` by its best approximation of lower rank, `rank`
    of the full one (A.6: low-rank replacements at random).

    Inferred, numbers too: A.6 gives no more than those words. The approximation is the truncated SVD, in float64.
    """
    reduced = [_truncated(matrix, rank) for matrix in (*mlp.w_in_2MD.chunk(2), mlp.w_out_DM)]

    def change(gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        replaced = (torch.rand(3, generator=generator) < share).tolist()
        gate, up, down = (
            low if is_low else whole for whole, low, is_low in zip((gate, up, down), reduced, replaced, strict=True)
        )
        return gate, up, down

    return mlp.experts(change)


def _truncated(matrix: Tensor, rank: float) -> Tensor:
    """The nearest matrix (L2) of `rank` of the full rank, at least 1."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = max(round(rank * len(s)), 1)
    return (u[:, :kept] * s[:kept] @ vh[:kept]).to(matrix.dtype)


@method(exact=False)
def drop(mlp: DenseMLP, *, share: float = 0.5, shared_indices: bool = True) -> dict[str, Tensor]:
    """A share r of each expert's hidden units is redrawn, normal with mean and standard deviation of what was dropped
    of gate, up and down each (Drop-Upcycling, arXiv 2502.19261).

    `shared_indices`: the three matrices drop the same units, as in the paper. Its code (`drop_upcycling.py`) draws
    units for each matrix, so that 1 - (1 - r)^3 of the units lose something. It also permutes the units of each expert,
    which changes no function.
    """

    def change(gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        units = [torch.randperm(len(gate), generator=generator)[: int(share * len(gate))] for _ in range(3)]
        for matrix, dropped in zip((gate, up, down.T), [units[0]] * 3 if shared_indices else units, strict=True):
            old = matrix[dropped]
            if old.numel() > 1:
                mean, std = old.mean().item(), old.std().item()
                matrix[dropped] = torch.empty_like(old).normal_(mean, std, generator=generator)
        return gate, up, down

    return mlp.experts(change)


@method(exact=True, moves=True)
def permuted(mlp: DenseMLP) -> dict[str, Tensor]:
    """The hidden units of each expert are in a random order of their own (ours): the function of `copy` up to rounding,
    and weights that lie apart.

    A control: training commutes with the order of units, so its losses are those of `copy` up to rounding too.
    """

    def change(gate: Tensor, up: Tensor, down: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        order = torch.randperm(len(gate), generator=generator)
        return gate[order], up[order], down[:, order]

    return mlp.experts(change)


@method(exact=True, moves=True)
def expand(mixture: ParentMixture, *, router_noise: float = 0.01) -> dict[str, Tensor]:
    """Expert i is a copy of the parent's expert i mod E, and so is its row of the router, with noise on the rows of all
    but the first copy (Expert Upcycling, arXiv 2604.19835: its `copy` of experts, its `copy_noise` of routers).

    `router_noise`: standard deviation relative to that of the router's weights. Without noise, copies that a token
    always chooses together have equal gradients and never differ. Shared experts stay as they are.
    """
    n_expert = len(mixture.weights["router.weight"])
    copies = mixture.moe.n_expert // n_expert
    made = {
        name: weight.clone() if name.startswith("shared.") else weight.repeat(copies, *[1] * (weight.ndim - 1))
        for name, weight in mixture.weights.items()
    }
    if "router.bias" in made and mixture.moe.gate != "sigmoid_topk_renormalised":
        made["router.bias"] /= copies  # as the probabilities to which biases are added where experts are chosen
    rows_ED = made["router.weight"]
    std = router_noise * rows_ED[:n_expert].std().item()
    for expert in range(n_expert, len(rows_ED)):
        generator = generator_of(f"{mixture.block}.moe.upcycling.{expert}", mixture.seed)
        rows_ED[expert] += torch.empty_like(rows_ED[expert]).normal_(0.0, std, generator=generator)
    return made


@method(exact=True)
def fine_grained(mlp: DenseMLP) -> dict[str, Tensor]:
    """Experts are slices of the dense MLP's hidden units, G = granularity of them, each E / G times (Nemotron, arXiv
    2410.07524; Megatron's `upcycling_utils.py`).

    Experts jG to jG + G - 1 are a virtual group, one copy of every slice, and have equal rows of the router. So each of
    a token's K / G best groups is chosen whole, and its slices have equal gate weights. Where all these sum to 1, the
    slices scaled by G add up to the dense MLP, exactly. Under `softmax_topk` they are scaled by E G / K (E counts the
    slices; E G^2 / topk in Nemotron's, which counts groups): right for a router that prefers none.

    The factor c is put as sqrt(c) on the up projection and on the output, in which SwiGLU is linear. Megatron has its
    cube root on gate, up and output: exact for a squared ReLU, which is homogeneous of degree 2, not for SwiGLU.
    """
    granularity = mlp.moe.granularity
    scales_G = torch.full((granularity,), float(granularity) * _lacking(mlp.moe))
    return _grouped_slices(mlp, scales_G)


@method(exact=True)
def shared_expert(mlp: DenseMLP) -> dict[str, Tensor]:
    """The s shared experts are the first s slices of the dense MLP (all of it, if s = granularity); the routed experts
    are those of `fine_grained`, at granularity 1 copies.

    A slice that is also shared gives half of its output from there and half from the routed copies, so the function is
    preserved. The halves are ours. OLMoE's `share` (`sparsify_ckpt_unsharded.py`) copies the MLP to both places
    unscaled, which doubles its output; mergekit's `residual_scale` leaves the scale to the user.
    """
    moe, model = mlp.moe, mlp.model
    scales_G = torch.full((moe.granularity,), float(moe.granularity) * _lacking(moe))
    scales_G[: moe.shared_expert] /= 2
    width, root = moe.shared_width(model), math.sqrt(1 / 2)
    gate_MD, up_MD = mlp.w_in_2MD.chunk(2)
    return _grouped_slices(mlp, scales_G) | {
        "shared.w_in": torch.cat([gate_MD[:width], root * up_MD[:width]]),
        "shared.w_out": root * mlp.w_out_DM[:, :width],
    }


def _grouped_slices(mlp: DenseMLP, scales_G: Tensor) -> dict[str, Tensor]:
    """Virtual groups of all slices of the dense MLP, the output of slice g times scales_G[g], and their router."""
    moe, granularity = mlp.moe, mlp.moe.granularity
    groups = moe.n_expert // granularity
    roots_G11 = scales_G.sqrt().view(-1, 1, 1).to(mlp.w_in_2MD)
    gate_GMD, up_GMD = (matrix.unflatten(0, (granularity, -1)) for matrix in mlp.w_in_2MD.chunk(2))
    w_in_G2MD = torch.cat([gate_GMD, roots_G11 * up_GMD], dim=1)
    w_out_GDM = roots_G11 * mlp.w_out_DM.unflatten(1, (granularity, -1)).transpose(0, 1)
    one_a_group = moe.model_copy(update={"n_expert": groups})
    router = router_weight(mlp.model, one_a_group, f"{mlp.block}.moe.router", mlp.seed).to(mlp.w_in_2MD)
    return {
        "w_in": w_in_G2MD.repeat(groups, 1, 1),
        "w_out": w_out_GDM.repeat(groups, 1, 1),
        "router.weight": router.repeat_interleave(granularity, 0),
    }


def _lacking(moe: MoESpec) -> float:
    """What a token's gate weights must be multiplied by to sum to 1, under `softmax_topk` for equal router logits."""
    return moe.n_expert / moe.top_k if moe.gate == "softmax_topk" else 1.0


def find_method(name: str) -> Method:
    """The upcycling method of that name; UserError with the nearest one if there is none."""
    if name not in METHODS:
        raise UserError(f"unknown upcycling method `{name}`; {nearest(name, METHODS)}")
    return METHODS[name]
