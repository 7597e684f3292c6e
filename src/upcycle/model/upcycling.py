"""Upcycling: the weights of a dense model become those of a mixture of experts, and a receipt says what that did.

To add a method, decorate one function with `@method`: it makes a layer's experts out of its dense MLP.

Shapes: B sequences, S positions, D d_model, M width of the MLP, E experts, V vocabulary.
"""

from __future__ import annotations

import copy as copying
import difflib
import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.errors import UserError
from upcycle.model.transformer import Transformer, router_weight
from upcycle.spec import ModelSpec, MoESpec

ZERO_SHARE = 1e-6
"""A router gradient below this share of the whole gradient's norm is zero up to float32 rounding."""
ZERO_GAP = 1e-5
"""A logit gap at or below this is zero up to float32 rounding."""

Method = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
METHODS: dict[str, Method] = {}


def method(function: Method) -> Method:
    """Register an upcycling method under its function's name."""
    METHODS[function.__name__] = function
    return function


@method
def copy(w_in_2MD: Tensor, w_out_DM: Tensor, n_expert: int) -> tuple[Tensor, Tensor]:
    """Every expert is the dense MLP (2.1): (2M, D), (D, M) -> (E, 2M, D), (E, D, M)."""
    return w_in_2MD.repeat(n_expert, 1, 1), w_out_DM.repeat(n_expert, 1, 1)


def find_method(name: str) -> Method:
    """The upcycling method of that name; UserError with the nearest one if there is none."""
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown upcycling method {name!r}: did you mean {nearest!r}? ({', '.join(METHODS)})")
    return METHODS[name]


@torch.no_grad()
def upcycle(
    name: str, dense_state: Mapping[str, Tensor], model: ModelSpec, moe: MoESpec, seed: int
) -> dict[str, Tensor]:
    """The state of the MoE made from a dense one: experts by the method, a fresh router, all else copied.

    The router is N(0, 2 / (5 d_model)) (A.6) and depends on the seed alone, as in a MoE from scratch.
    Raises UserError for an unknown method and for a dense state that is not of `model`'s shape.
    """
    make_experts = find_method(name)
    _check_state(dense_state, model)
    state: dict[str, Tensor] = {}
    for key, weight in dense_state.items():
        if key.endswith(".mlp.w_in"):
            block = key.removesuffix(".mlp.w_in")
            w_in_E2MD, w_out_EDM = make_experts(weight, dense_state[f"{block}.mlp.w_out"], moe.n_expert)
            state[f"{block}.moe.w_in"], state[f"{block}.moe.w_out"] = w_in_E2MD, w_out_EDM
            state[f"{block}.moe.router"] = router_weight(model, moe, f"{block}.moe.router", seed).to(weight)
        elif not key.endswith(".mlp.w_out"):
            state[key] = weight.clone()
    return state


def _check_state(state: Mapping[str, Tensor], model: ModelSpec) -> None:
    """UserError naming the first weight that is missing, of another shape, or not of the dense model."""
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in Transformer(model).state_dict().items()}
    for name in wanted | dict.fromkeys(state):
        found = tuple(state[name].shape) if name in state else None
        if found != wanted.get(name):
            raise UserError(
                f"dense weights do not fit the model: {name} is {found or 'missing'}, wanted {wanted.get(name, 'absent')}; "
                "give the weights of a dense run of the same model"
            )
