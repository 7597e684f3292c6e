"""Upcycling: the weights of a dense model become the weights of a mixture of experts; a receipt records the effect.

Shapes: B sequences, S positions, D d_model, M width of the MLP, E experts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model.transformer import Transformer, router_weight
from upcycle.model.upcycling_methods import DenseMLP, ParentMixture, find_method
from upcycle.study.methods import UpcyclingSpec, full_upcycling
from upcycle.study.shape import ModelSpec, MoESpec

ZERO_SHARE = 1e-6
"""A router gradient below this share of the whole gradient's norm is zero up to float32 rounding."""
ZERO_GAP = 1e-5
"""A logit gap at or below this share of the largest logit, if that is above 1, is zero up to float32 rounding."""


@torch.no_grad()
def upcycle(
    name: str,
    parent_state: Mapping[str, Tensor],
    model: ModelSpec,
    moe: MoESpec,
    seed: int,
    parameters: UpcyclingSpec | None = None,
    parent_moe: MoESpec | None = None,
) -> dict[str, Tensor]:
    """The state of the MoE made from a dense one: experts by the method, a fresh router, all else copied.

    The router is N(0, 2 / (5 d_model)) (A.6) and depends on the seed alone, as in a MoE from scratch. With `parent_moe`
    the parent's state is of that mixture, and the method `expand`.
    Raises UserError for an unknown method and for a state that is not of `model`'s shape.
    """
    make = find_method(name).make
    given = full_upcycling(name, parameters or UpcyclingSpec()).model_dump(exclude_none=True, exclude={"optimizer"})
    _check_state(parent_state, model, parent_moe)
    # Identical experts compute the dense MLP only if the gate weights of a token sum to 1 (`preserves_function`). They
    # are scaled for other gates by those methods alone that scale them anyway. The router is fresh, as a dense model
    # has nothing to copy it from, and random, as equal rows would send every token to the same experts.
    state: dict[str, Tensor] = {}
    for key, weight in parent_state.items():
        if key.endswith(".moe.w_in"):
            block = key.removesuffix(".moe.w_in")
            at = f"{block}.moe."
            parts = {each.removeprefix(at): part for each, part in parent_state.items() if each.startswith(at)}
            made = make(ParentMixture(parts, moe, block, seed), **given)
            state |= {f"{at}{part}": tensor for part, tensor in made.items()}
        elif key.endswith(".mlp.w_in"):
            block = key.removesuffix(".mlp.w_in")
            made = make(DenseMLP(weight, parent_state[f"{block}.mlp.w_out"], model, moe, block, seed), **given)
            router = router_weight(model, moe, f"{block}.moe.router", seed).to(weight)
            state |= {f"{block}.moe.{part}": tensor for part, tensor in ({"router.weight": router} | made).items()}
        elif ".moe." not in key and not key.endswith(".mlp.w_out"):
            state[key] = weight.clone()
    for layer in range(model.n_layer):  # `expand` has copied those of a parent that has biases
        name = f"blocks.{layer}.moe.router.bias"
        if moe.bias_rate:
            state.setdefault(name, torch.zeros(moe.n_expert))
        else:
            state.pop(name, None)
    return state


def _check_state(state: Mapping[str, Tensor], model: ModelSpec, moe: MoESpec | None) -> None:
    """UserError naming the first weight that is missing, of another shape, or not of the parent's model."""
    kind = "mixture's" if moe else "dense"
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in Transformer(model, moe).state_dict().items()}
    for name in wanted | dict.fromkeys(state):
        found = tuple(state[name].shape) if name in state else None
        if found != wanted.get(name):
            raise UserError(
                f"{kind} weights do not fit the model: {name} is {found or 'missing'}, wanted "
                f"{wanted.get(name, 'absent')}; give the weights of a run of the parent's model"
            )


# --- the receipt


def preserves_function(moe: MoESpec) -> bool:
    """Whether identical experts compute the dense function, in theory: the gate's weights of a token sum to 1."""
    return moe.gate != "softmax_topk" or moe.top_k == moe.n_expert


def preserves_mixture(parent: MoESpec, moe: MoESpec) -> bool:
    """Whether m copies of each expert, chosen by m copies of its logit, compute the parent's function, in theory.

    They do where a token's experts are copies of those that the parent chose, in equal numbers, and the weights of an
    expert's copies add up to its own: (1) K' = m K, by one gate, or by gates that are one function; (2) K = 1 and
    K' <= m, where both gates' weights sum to 1. Otherwise a token uses other experts: with K' = K = m = 2 both copies
    of its best one. Biases must choose as before: with one kind of scores, as `expand` divides them where those are.
    """
    copies = moe.n_expert // parent.n_expert
    before, after = (_gate_function(each) for each in (parent, moe))
    if parent.bias_rate and not (moe.bias_rate and (before == "sigmoid") == (after == "sigmoid")):
        return False
    sums_to_1 = preserves_function(parent) and preserves_function(moe)
    if parent.top_k == 1 and moe.top_k <= copies and sums_to_1:
        return True
    return moe.top_k == copies * parent.top_k and before == after


def _gate_function(moe: MoESpec) -> str | None:
    """Which function a gate is: those of softmaxes whose weights sum to 1 are one, a softmax over the chosen logits."""
    if moe.gate == "sigmoid_topk_renormalised":
        return "sigmoid"
    return "softmax" if preserves_function(moe) else moe.gate


def starves_router(moe: MoESpec) -> bool:
    """Whether the one gate weight is the constant 1, so that the cross-entropy never reaches the router (K = 1)."""
    return moe.top_k == 1 and preserves_function(moe)


@torch.no_grad()
def receipt(
    spec: MoESpec,
    mixtures: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    method: str,
    parameters: Mapping[str, Any],
    parent_moe: MoESpec | None,
    lr: float,
    tokens: int,
    gap: float,
    largest: float,
    router_gradients: tuple[dict[str, Any], dict[str, Any]],
) -> dict[str, Any]:
    """The receipt of what `train/receipt.py` measured, as JSON-able data: numbers, bounds, and a statement in words.

    `mixtures` are each layer's router (E, D), w_in (E, 2M, D) and w_out (E, D, M), from which the distances between
    experts come; `gap` and `largest` are of logits; `router_gradients` are `router_share` before and after one update.
    """
    before, after = router_gradients
    kept = find_method(method).exact and preserves_function(spec)
    if parent_moe is not None:
        kept = preserves_mixture(parent_moe, spec) and parameters["router_noise"] == 0
    routers, w_ins, w_outs = zip(*mixtures, strict=True)
    by_layer = [expert_distance(w_in, w_out) for w_in, w_out in zip(w_ins, w_outs, strict=True)]
    return {
        "method": method,
        "parameters": dict(parameters),
        "n_expert": spec.n_expert,
        "top_k": spec.top_k,
        "granularity": spec.granularity,
        "shared_expert": spec.shared_expert,
        "gate": spec.gate,
        "router_std": [router.std().item() for router in routers],
        "logit_gap": gap,
        "logit_gap_zero_in_theory": kept,
        "logit_gap_bound": ZERO_GAP * max(largest, 1.0),
        "largest_logit": largest,
        "router_gradient": {"step_0": before, "step_1": after, "zero_share": ZERO_SHARE, "lr": lr},
        "expert_distance": max(by_layer),
        "expert_distance_by_layer": by_layer,
        "tokens": tokens,
        "statement": _statement(spec, parent_moe, find_method(method).exact, gap, largest, before, after),
    }


def router_share(norms: Mapping[str, float]) -> dict[str, Any]:
    """A receipt's entry on the routers' gradients, from the gradient norm of every parameter by name."""
    routers = [norm for name, norm in norms.items() if name.endswith(".router.weight")]
    norm, whole = math.hypot(*routers), math.hypot(*norms.values())
    return {
        "norm": norm,
        "by_layer": routers,
        "share": norm / whole,
        "zero": norm <= ZERO_SHARE * whole,  # relative: rounding leaves a residue that grows with the gradient
    }


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


def expert_distance(w_in_E2MD: Tensor, w_out_EDM: Tensor) -> float:
    """Largest distance between two experts of a layer relative to the first one's norm (L2, all their weights)."""
    experts = [[w_in, w_out] for w_in, w_out in zip(w_in_E2MD, w_out_EDM, strict=True)]
    distances = (
        _norm([a - b for a, b in zip(one, other, strict=True)]) / _norm(one) for one, other in combinations(experts, 2)
    )
    return max(distances, default=0.0)


def _router_teacher(spec: MoESpec) -> str:
    """What trains a router that the cross-entropy does not reach."""
    losses = " and ".join(
        name for name, weight in (("the balance loss", spec.aux_coef), ("the z-loss", spec.z_coef)) if weight
    )
    choice = "; its biases balance the choices" if spec.bias_rate else ""
    return (f"only {losses} trains it" if losses else "no loss trains it") + choice


def _statement(
    spec: MoESpec,
    parent: MoESpec | None,
    exact: bool,
    gap: float,
    largest: float,
    before: dict[str, Any],
    after: dict[str, Any],
) -> str:
    """What the numbers mean, for a reader of the report."""
    kept = "is" if gap <= ZERO_GAP * max(largest, 1.0) else "is not"
    whose = "parent's" if parent else "dense"
    function = f"The {whose} function {kept} preserved: the largest logit gap is {gap:.2g}."
    scaled = spec.granularity > 1 or spec.shared_expert > 0
    if starves_router(spec):
        cost = (
            f"Top-1 under {spec.gate} starves the router: a token's one gate weight is always 1, so the "
            f"cross-entropy never tells the router anything, and {_router_teacher(spec)}."
        )
    elif parent is not None:
        copies = spec.n_expert // parent.n_expert
        cost = (
            f"Each of the {parent.n_expert} experts, of which a token used {parent.top_k}, has {copies} copies, whose "
            f"logits differ by the noise on the router alone: so at first a token's {spec.top_k} experts are copies of "
            f"its best {-(-spec.top_k // copies)}."
        )
    elif not preserves_function(spec) and scaled:
        cost = (
            f"Under {spec.gate} the gate weights of a token do not sum to 1; the experts are scaled for a router that "
            "prefers none. In return the router learns from the cross-entropy at once."
        )
    elif not preserves_function(spec):
        cost = (
            f"Under {spec.gate} the {spec.top_k} of {spec.n_expert} gate weights of a token sum to less than 1, so "
            "every MLP's output starts smaller than the dense one's; in return the router learns from the "
            "cross-entropy at once."
        )
    elif not exact:
        cost = "The experts differ from the dense MLP and from each other, so the router learns at once."
    elif spec.granularity > 1:
        cost = "The experts of a group are different parts of the dense MLP, so the router learns at once."
    else:
        cost = (
            "Experts that compute the same give the router no cross-entropy gradient at first; it begins when the "
            "experts have received different tokens and no longer do."
        )
    words = {True: "zero", False: "not zero"}
    measured = f"Router gradient: {words[before['zero']]} at step 0, {words[after['zero']]} after one step."
    return f"{function} {cost} {measured}"
