"""Top-1 and more experts: which mixtures a study compares, how their routers fare, and whether starvation explains it.

By Equation 15 a top-1 token's one weight is 1 whatever the logits: the cross-entropy never reaches the router, which is
starved. With the softmax first it does, but a copied expert's output is scaled by a probability below 1, the smaller
the more experts there are: the mixture does not begin as its dense parent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.tables.mixed_kernels import check_one_set_of_kernels
from upcycle.paper.ablations import Observation, named
from upcycle.paper.comparisons import Finding, Verdict
from upcycle.paper.inputs import Inputs
from upcycle.paper.paired import Difference, mean_difference, residual_noise
from upcycle.paper.render import number, plural, signed
from upcycle.study.shape import MoESpec
from upcycle.study.spec import short_count

FEW, MANY = 4, (8, 16)
"""Experts that are compared: of the paper's own losses, top-1 is worse with any of `MANY` than with `FEW`."""
LAST_QUARTER = 0.75
"""Dead experts and entropy are means over the updates from this share of training on."""
ORDERS = {
    "topk_softmax": "top-k first",
    "softmax_topk": "softmax first",
    "softmax_topk_renormalised": "renormalised",
    "sigmoid_topk_renormalised": "sigmoid",
}
ZERO = 1e-6
"""A share of the gradient that is zero up to rounding, as in receipts."""


@dataclass(frozen=True, order=True)
class RouteArm:
    """Mixtures that differ in their number of experts and seed alone."""

    lineage: str
    top_k: int
    gate: str
    bias_rate: float = 0.0
    z_coef: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it routes as the paper may have: a softmax gate, no biases, no z-loss."""
        return not (self.bias_rate or self.z_coef or self.gate == "sigmoid_topk_renormalised")

    @property
    def starved(self) -> bool:
        """Whether no token's weight depends on its logits: top-1 whose weight is the constant 1."""
        return self.top_k == 1 and self.gate != "softmax_topk"

    @property
    def base(self) -> RouteArm:
        """The arm of the paper that this one changes: by biases, a z-loss, or a sigmoid in place of a softmax."""
        gate = "topk_softmax" if self.gate == "sigmoid_topk_renormalised" else self.gate
        return RouteArm(self.lineage, self.top_k, gate)

    @property
    def name(self) -> str:
        """`top-1, softmax first`; what is beyond the paper after it."""
        more = " + biases" * bool(self.bias_rate) + " + z-loss" * bool(self.z_coef)
        return f"top-{self.top_k}, {ORDERS[self.gate]}{more}" + ", scratch" * (self.lineage == "moe")


@dataclass(frozen=True)
class RouterState:
    """What a run's router was like: means over layers, and over the last quarter of the updates."""

    first_loss: float
    """Held-out loss before the first update, nats."""
    gradient_share: float
    """Norm of the routers' cross-entropy gradient after one update over that of all gradients; NaN from scratch."""
    dead: float
    """Share of the experts without a token in a batch."""
    entropy: float
    """Entropy of the router's probabilities over ln E: 1 where all experts are equally likely."""


@dataclass(frozen=True)
class Routes:
    """Losses by arm: a table [seeds, experts], 4 experts among them where an arm has several."""

    tables: Mapping[RouteArm, pd.DataFrame]
    ids: Mapping[RouteArm, pd.DataFrame]
    """Run ids in the same places."""

    @property
    def plain(self) -> list[RouteArm]:
        """Arms over several numbers of experts that route as the paper may have."""
        return [arm for arm, table in self.tables.items() if arm.plain and FEW in table and table.shape[1] > 1]

    @cached_property
    def noise(self) -> tuple[float, int] | None:
        """Standard deviation of a loss apart from what its arm, experts and seed explain; degrees of freedom."""
        return residual_noise(self.tables[arm] for arm in self.plain)

    def beyond(self) -> dict[RouteArm, list[float]]:
        """By arm beyond the paper: its losses minus those of the paper's arm, at equal experts and seed."""
        found = {}
        for arm, table in self.tables.items():
            if not arm.plain and arm.base in self.tables:
                values = [x for x in (table - self.tables[arm.base]).to_numpy().ravel().tolist() if not math.isnan(x)]
                if values:
                    found[arm] = values
        return found

    def change(self, arm: RouteArm, few: int, many: int, *, among: int = 1) -> Difference | None:
        """Loss with `many` experts minus that with `few`, paired by seed; None where no seed has both."""
        table = self.tables[arm]
        if not {few, many} <= set(table.columns):
            return None
        values = (table[many] - table[few]).dropna().tolist()
        return mean_difference([values], self.noise, among=among) if values else None

    def changes(self, arm: RouteArm) -> dict[int, Difference]:
        """By number of experts: by how much the loss differs from that with FEW."""
        pairs = list(product(self.plain, MANY))
        found = {many: self.change(arm, FEW, many, among=len(pairs)) for many in MANY}
        return {many: change for many, change in found.items() if change is not None}


def count_worse(rows: pd.DataFrame) -> tuple[int, int]:
    """Comparisons of a loss with 8 or 16 experts to that with 4, all else equal (columns `n_expert`, `loss` and
    others), that are worse, and all of them.

    Of the paper's own losses: 22 of 22 for top-1, 5 of 21 for top-2 (tests/paper/test_routes.py).
    """
    others = [name for name in rows.columns if name not in ("n_expert", "loss")]
    table = rows.pivot_table(index=others, columns="n_expert", values="loss")
    found = [(table[many] - table[FEW]).dropna() for many in MANY if {FEW, many} <= set(table.columns)]
    return sum(int((each > 0).sum()) for each in found), sum(map(len, found))


def routes(inputs: Inputs, sweeps: Sequence[str] | None) -> Routes:
    """Losses of a study's mixtures by arm, of these sweeps or of all.

    Raises `UserError` for sweeps without mixtures, of several sizes or budgets, and for arms over several numbers of
    experts that different kernels computed.
    """
    chosen = list(sweeps or inputs.sweep_names())
    rows = pd.concat([inputs.in_sweep(name) for name in chosen]).drop_duplicates("id")
    rows = rows[rows["lineage"].isin(["up", "moe"])]
    if rows.empty:
        raise UserError(f"{named(chosen)}: there is no mixture, nothing is routed")
    up = rows[rows["lineage"] == "up"]
    for column, of in (("model", rows), ("D", rows), ("D1", up)):
        if of[column].nunique() > 1:
            several = ", ".join(map(str, sorted(of[column].unique())))
            raise UserError(f"{named(chosen)}: mixtures of several {column} ({several}); name sweeps of one")
    moes = {run_id: inputs.spec(run_id).moe for run_id in rows["id"]}
    arms = [_arm(lineage, moes[run_id]) for lineage, run_id in zip(rows["lineage"], rows["id"], strict=True)]
    rows = rows.assign(arm=pd.Series(arms, rows.index, dtype=object))
    tables, ids = {}, {}
    for arm in sorted(set(arms), key=_rank):
        own = rows[rows["arm"] == arm]
        if own.duplicated(["seed", "n_expert"]).any():
            first, second = own.loc[own.duplicated(["seed", "n_expert"], keep=False), "id"][:2]
            raise UserError(f"{named(chosen)}: {first} and {second} differ in more than what is compared")
        tables[arm] = own.pivot(index="seed", columns="n_expert", values="loss")
        ids[arm] = own.pivot(index="seed", columns="n_expert", values="id")
    found = Routes(tables, ids)
    check_one_set_of_kernels(rows[[arm in found.plain for arm in arms]], named(chosen))
    return found


def _arm(lineage: str, moe: MoESpec | None) -> RouteArm:
    assert moe is not None
    assert moe.gate is not None
    return RouteArm(lineage, moe.top_k, moe.gate, moe.bias_rate, moe.z_coef)


def _rank(arm: RouteArm) -> tuple[object, ...]:
    """Upcycled first, then by top-k, by gate in the order of ORDERS, additions last."""
    return (arm.lineage != "up", arm.top_k, list(ORDERS).index(arm.gate), arm.bias_rate, arm.z_coef)


def router_state(inputs: Inputs, run_id: str) -> RouterState:
    """What the receipt and the curve of a run record of its routers."""
    spec, curve = inputs.spec(run_id), inputs.curve(run_id)
    assert spec.moe is not None
    share = math.nan
    if spec.dense_parent is not None:
        share = inputs.record(inputs.chain(run_id)[0], "receipt")["router_gradient"]["step_1"]["share"]
    last = [row for row in curve if "dead" in row and row["step"] >= LAST_QUARTER * spec.end_step]
    return RouterState(
        first_loss=next(row["heldout"] for row in curve if "heldout" in row),
        gradient_share=share,
        dead=float(np.mean([row["dead"] for row in last])) / (spec.model.n_layer * spec.moe.n_expert),
        entropy=float(np.mean([row["entropy"] for row in last])) / math.log(spec.moe.n_expert),
    )


def router_states(inputs: Inputs, found: Routes, arm: RouteArm) -> dict[int, RouterState]:
    """By number of experts: means over an arm's seeds."""
    states = {}
    for n_expert, run_ids in found.ids[arm].items():
        each = [router_state(inputs, run_id) for run_id in run_ids.dropna()]
        fields = RouterState.__dataclass_fields__
        states[int(str(n_expert))] = RouterState(*[float(np.mean([getattr(s, name) for s in each])) for name in fields])
    return states


# --- in words

STARVED, FED = RouteArm("up", 1, "topk_softmax"), RouteArm("up", 1, "softmax_topk")


def see_routes(inputs: Inputs, sweeps: Sequence[str] | None) -> Observation:
    """Whether starvation explains why top-1 losses get worse with more experts, as these losses show it."""
    found = routes(inputs, sweeps)
    verdict, answer = _answer(found)
    changes = {arm: found.changes(arm) for arm in found.plain if found.changes(arm)}
    parts = [f"{arm.name} {change[max(change)]}, worse in {_count(found, arm)} runs" for arm, change in changes.items()]
    most = f"{max(MANY)} experts in place of {FEW}"
    detail = [f"With {most}: {'; '.join(parts)} (of 8 and 16 experts)."] if parts else []
    if not inputs.mark:
        detail += [_of_router(inputs, found, arm) for arm in (STARVED, FED) if arm in changes]
    if found.noise is not None:
        freedom = plural(found.noise[1], "degree")
        detail.append(f"Paired by seed; after ± the standard error by the noise of seeds ({freedom} of freedom).")
    detail.append(
        f"{_where(inputs, found)} They cannot show which gate the paper's top-1 runs had, nor what longer training or "
        "larger models do."
    )
    return Observation(
        f"top-1 losses are higher with 8 or 16 experts than with {FEW} in 22 of 22 comparisons, top-2 losses in 5 of "
        "21 (its own losses, as far as they are published).",
        Finding(" ".join(filter(None, (answer, _without_balance_loss(found)))), " ".join(detail), verdict),
    )


def _answer(found: Routes) -> tuple[Verdict, str]:
    """What the changes with more experts say of starvation, in a sentence."""
    hungry, fed = (found.changes(arm) if arm in found.tables else {} for arm in (STARVED, FED))
    if not hungry or not fed:
        return "open", "Only one kind of top-1 router was trained: these losses cannot say whether starvation matters."
    top2 = RouteArm("up", 2, FED.gate)
    worse = {arm: _gets_worse(found.changes(arm)) for arm in (STARVED, FED, top2) if arm in found.tables}
    both = (
        f"where the router is starved (top-k first: {hungry[max(hungry)]} with {max(hungry)} experts in place of "
        f"{FEW}), {{}} where it learns (softmax first: {fed[max(fed)]})"
    )
    if worse[STARVED] and worse[FED]:
        where = both.format("and also")
        return "part", f"Top-1 gets worse with more experts {where}: starvation alone does not explain it."
    if worse[STARVED]:
        much = "most of it" if fed[max(fed)].nats > 0 else "it"
        where = both.format("not clearly")
        return "clear", f"Top-1 gets clearly worse with more experts {where}: here starvation explains {much}."
    if worse[FED]:
        also = (
            " So does top-2 with the softmax first, so it is the gate order and not top-1." if worse.get(top2) else ""
        )
        return "against", (
            f"Starvation does not explain it here: with more experts top-1 gets worse with the softmax first "
            f"({fed[max(fed)]} with {max(fed)} in place of {FEW}), whose router learns, and not clearly with the "
            f"starved router.{also}"
        )
    return "open", "No top-1 arm gets clearly worse with more experts here: these losses cannot say what explains it."


def _gets_worse(changes: Mapping[int, Difference]) -> bool:
    return any(each.clear and each.nats > 0 for each in changes.values())


def _without_balance_loss(found: Routes) -> str:
    """Whether a starved router that biases balance, so that no gradient reaches it, fares as badly."""
    biased = next((arm for arm in found.tables if arm.base == STARVED and arm.bias_rate), None)
    if biased is None or not {STARVED, FED} <= set(found.tables):
        return ""
    experts = max(found.tables[biased].columns)
    losses = pd.concat([found.tables[arm][experts] for arm in (STARVED, biased, FED)], axis=1).dropna()
    if losses.empty:
        return ""
    hungry, without, fed = losses.to_numpy(float).mean(axis=0)
    words = (
        f"With {experts} experts the starved router's loss is {signed(hungry - fed)} nats from that with the softmax "
        f"first, and {signed(without - fed)} where biases replace the balance loss and no gradient reaches the router"
    )
    if hungry - fed > 0 and without - fed < (hungry - fed) / 2:
        return f"{words}: what hurts is a router that the balance loss alone moves."
    return f"{words}."


def _count(found: Routes, arm: RouteArm) -> str:
    worse, of = count_worse(found.tables[arm].reset_index().melt(id_vars="seed", value_name="loss"))
    return f"{worse} of {of}"


def _of_router(inputs: Inputs, found: Routes, arm: RouteArm) -> str:
    """What an arm's routers did with the most experts."""
    states = router_states(inputs, found, arm)
    state = states[max(states)]
    share = "nothing" if state.gradient_share < ZERO else f"{number(100 * state.gradient_share, 2)} %"
    return (
        f"{max(states)} experts, {arm.name}: routers have {share} of the cross-entropy's gradient, "
        f"{100 * state.dead:.0f} % of the experts are dead in a batch, entropy is {state.entropy:.2f} of the largest, "
        f"the loss before the first update {state.first_loss:.2f}."
    )


def _where(inputs: Inputs, found: Routes) -> str:
    run_ids = next(iter(found.ids.values())).to_numpy().ravel().tolist()
    spec = inputs.spec(next(run_id for run_id in run_ids if isinstance(run_id, str)))
    return f"These are models of width {spec.model.d_model} with D2 = {short_count(spec.tokens)} tokens from one D1."
