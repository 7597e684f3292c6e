"""The parameters of upcycling methods, as fields of a run's identity.

Layer 0. A method's own parameters and their defaults are the keyword arguments of its function in
`upcycle.model.upcycling_methods`; this module has their types and ranges, and refuses those that a method would ignore.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upcycle.study.registry import method_parameters, moving_methods
from upcycle.study.shape import Frozen, MoESpec
from upcycle.study.values import Number, Positive, Share


class UpcyclingSpec(Frozen):
    """What an upcycling method takes beside the dense weights. None: the method's own default, which is written out in
    the spec of the run, so that it is the same run whether a study gives it or not."""

    std: Annotated[Positive, Field(le=10)] | None = None
    """Standard deviation of the noise that is added, as a share of that of the weights of the same matrix."""
    share: Annotated[Share, Field(gt=0)] | None = None
    """Share of the weights (`reinit`), matrices (`low_rank`) or hidden units (`drop`) of an expert that are changed."""
    rank: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """Rank of a replaced matrix, as a share of its full rank."""
    shared_indices: bool | None = None
    """Whether gate, up and down drop the same hidden units."""
    router_noise: Annotated[Number, Field(ge=0, le=10)] | None = None
    """Standard deviation of the noise on the router's rows of copied experts, as a share of that of its weights."""
    optimizer: Literal["fresh", "copied"] = "fresh"
    """AdamW's moments: zero, or those of the parent for every expert and for all that is copied (the router's are
    zero). Copied are those of the trunk point off which the parent's decay branched; a finished decay keeps none. The
    learning rate warms up in both cases."""


def full_upcycling(method: str, given: UpcyclingSpec) -> UpcyclingSpec:
    """The parameters of a method with its defaults written out; of an unknown method, which cannot start, as given.

    Raises `ValueError` naming a parameter that the method would ignore.
    """
    known = method_parameters()
    if method not in known:
        return given
    if given.optimizer == "copied" and method not in moving_methods():
        raise ValueError(
            f"upcycling.optimizer copied: method `{method}` makes weights for which its parent has no moments; methods "
            f"that only move weights can have it: {', '.join(moving_methods())}"
        )
    for name, value in given.model_dump(exclude_defaults=True, exclude={"optimizer"}).items():
        if name not in known[method]:
            own = ", ".join(f"upcycling.{parameter}" for parameter in known[method]) or "none"
            raise ValueError(
                f"upcycling.{name} {value} would have no effect: method `{method}` has no such parameter "
                f"(its own: {own})"
            )
    return UpcyclingSpec(**known[method] | given.model_dump(exclude_defaults=True))


def check_experts(method: str, moe: MoESpec) -> None:
    """Raise ValueError for a shape of experts that the method does not make."""
    granularity, shared = moe.granularity, moe.shared_expert
    if method not in ("fine_grained", "shared_expert"):
        if granularity > 1 or shared:
            raise ValueError(
                f"method `{method}` makes experts as wide as the dense MLP, and none that all tokens share; with "
                f"moe.granularity {granularity} and moe.shared_expert {shared} name `fine_grained` or `shared_expert`"
            )
        return
    if method == "fine_grained" and (granularity == 1 or shared):
        raise ValueError(
            f"method `fine_grained` cuts the dense MLP into moe.granularity slices, all of them routed: with "
            f"granularity {granularity} and moe.shared_expert {shared} name "
            f"`{'shared_expert' if shared else 'copy'}`"
        )
    if method == "shared_expert" and not 1 <= shared <= granularity:
        raise ValueError(
            f"method `shared_expert` fills the shared experts with slices of the dense MLP: moe.shared_expert {shared} "
            f"is not from 1 to moe.granularity {granularity}"
        )
    for name, number in (("n_expert", moe.n_expert), ("top_k", moe.top_k)):
        if number % granularity:
            raise ValueError(
                f"method `{method}`: moe.{name} {number} is no multiple of moe.granularity {granularity}, and a token "
                "begins with whole copies of the dense MLP"
            )
