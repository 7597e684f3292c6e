"""The paper's ablations (Figures 7 to 10): which runs each compares, what the paper claims, and what these losses show.

Every sentence is computed. An `Observation` is the caption of its figure and a line of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.tables.mixed_kernels import check_one_set_of_kernels
from upcycle.paper.comparisons import Finding, Verdict
from upcycle.paper.inputs import Inputs
from upcycle.paper.paired import Ablation, Difference
from upcycle.paper.render import number
from upcycle.study.spec import RunSpec

SIMILAR = 0.01
"""Relative difference of two losses up to which we call them similar, as the paper does without giving a bound."""
LAST = 0.1
"""Share of a run at its end over which the balance loss is averaged: its decay."""


@dataclass(frozen=True)
class Observation:
    """What the paper claims of an ablation, and what these losses show."""

    claim: str
    finding: Finding

    def __str__(self) -> str:
        return " ".join(filter(None, (f"The paper: {self.claim}", self.finding.sentence, self.finding.detail)))


def rows_of(inputs: Inputs, sweeps: Sequence[str]) -> pd.DataFrame:
    """Finished models of any of these sweeps, each once.

    Raises `UserError` naming a sweep without any, and for runs of different kernels.
    """
    rows = pd.concat([inputs.in_sweep(name) for name in sweeps]).drop_duplicates("id").sort_values("lr", kind="stable")
    check_one_set_of_kernels(rows, named(sweeps))
    return rows


def usual(inputs: Inputs, rows: pd.DataFrame, column: str) -> Any:
    """The value of a column that most mixtures of the study with the first row's shape have."""
    like = rows.iloc[0]
    same = (inputs.losses["model"] == like["model"]) & (inputs.losses["moe"] == like["moe"])
    return inputs.losses.loc[same, column].mode().iloc[0]


def short(value: float) -> str:
    """A setting as configs have it: 2e-3, 1.6e-2, 0.1, 0."""
    if value == 0 or value >= 0.1:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# Figure 7: schedules of the learning rate

WSD, COSINE = "WSD", "cosine"


def schedules(inputs: Inputs, sweeps: Sequence[str]) -> Ablation:
    """WSD and cosine schedules of dense models and of mixtures."""
    rows = rows_of(inputs, sweeps)
    names = [{"wsd": WSD}.get(kind, kind) for kind in rows["schedule"]]
    return Ablation.of(rows, names, (WSD, COSINE), named(sweeps))


def see_schedules(inputs: Inputs, sweeps: Sequence[str]) -> Observation:
    """Figure 7 in words."""
    found = schedules(inputs, sweeps)
    kinds = {"dense": "dense models", "moe": "mixtures", "up": "upcycled mixtures", "cont": "dense models trained on"}
    parts, all_of = [], []
    for lineage in dict.fromkeys(point.lineage for point in found.tables):
        points = [point for point in found.tables if point.lineage == lineage]
        difference = found.difference(COSINE, WSD, points)
        if difference is not None:
            parts.append(f"by {difference} for {kinds[lineage]}")
            all_of.append(difference)
    sentence = f"With a cosine schedule in place of WSD the loss changes {joined(parts)}."
    return _similar("both schedules give similar losses, for dense models and for mixtures.", sentence, all_of, found)


# Figure 8: learning rates of upcycling


@dataclass(frozen=True)
class Rates:
    """Arms of Figure 8."""

    ablation: Ablation
    claimed: str
    """The arm at the mixture's rate, which the paper finds best."""


def rates(inputs: Inputs, sweeps: Sequence[str]) -> Rates:
    """Upcycled training at a constant rate, at the dense model's maximum rate, and at the mixture's.

    The mixture's is, of the rates that are not the dense model's, the one that most of the study's mixtures have.
    """
    rows = rows_of(inputs, sweeps)
    dense = {inputs.spec(parent).optim.lr for parent in rows["dense_parent"]}
    varying = rows[rows["schedule"] != "constant"]
    if varying.empty:
        raise UserError(f"{named(sweeps)}: every schedule is constant, there is no run at the mixture's rate")
    others = [lr for lr in varying["lr"].unique() if lr not in dense]
    common = usual(inputs, varying, "lr")
    of_mixture = common if common in others or not others else others[0]

    def name(schedule: str, lr: float) -> str:
        if schedule == "constant":
            return f"a constant rate ({short(lr)})"
        kinds = [word for word, holds in (("the mixture's", lr == of_mixture), ("the dense", lr in dense)) if holds]
        return f"{' and '.join(kinds)} rate ({short(lr)})" if kinds else f"a rate of {short(lr)}"

    names = [name(kind, lr) for kind, lr in zip(rows["schedule"], rows["lr"].tolist(), strict=True)]
    found = Ablation.of(rows, names, dict.fromkeys(names), named(sweeps))
    claimed = next(each for each in found.arms if each.startswith("the mixture's"))
    return Rates(found, claimed)


def see_rates(inputs: Inputs, sweeps: Sequence[str]) -> Observation:
    """Figure 8 in words."""
    arms = rates(inputs, sweeps)
    found, claimed = arms.ablation, arms.claimed
    others = [arm for arm in found.arms if arm != claimed]
    against = {arm: found.difference(arm, claimed, among=len(others)) for arm in others}
    known = {arm: difference for arm, difference in against.items() if difference is not None}
    verdict = _lowest(list(known.values()))
    how = {"clear": "gives", "against": "does not give"}.get(verdict, "does not clearly give")
    parts = [f"{arm} by {difference}" for arm, difference in known.items()]
    sentence = f"Upcycling at {claimed} {how} the lowest loss; the loss changes at {joined(parts)}."
    return Observation(
        "the learning rate of the mixture works best; the dense rate and a constant rate are worse.",
        Finding(sentence, found.how(), verdict),
    )


def _lowest(differences: Sequence[Difference]) -> Verdict:
    """Whether an arm is below all others, given by how much these are above it."""
    if any(each.clear and each.nats < 0 for each in differences):
        return "against"
    clear = sum(each.clear for each in differences)
    return "clear" if clear == len(differences) else "part" if clear else "open"


# Figure 9: the coefficient of the balance loss


def coefficients(inputs: Inputs, sweeps: Sequence[str]) -> Ablation:
    """Mixtures trained with different coefficients of the load-balancing loss, smallest first."""
    rows = rows_of(inputs, sweeps)
    names = [short(value) for value in rows["aux_coef"]]
    return Ablation.of(rows, names, map(short, sorted(rows["aux_coef"].unique())), named(sweeps))


def usual_coefficient(inputs: Inputs, found: Ablation) -> str:
    """The arm that others are compared with: at the coefficient of most of the study's mixtures, or the middle one."""
    common = short(usual(inputs, found.rows, "aux_coef"))
    return common if common in found.arms else found.arms[len(found.arms) // 2]


def see_coefficients(inputs: Inputs, sweeps: Sequence[str]) -> Observation:
    """Figure 9 in words."""
    found = coefficients(inputs, sweeps)
    reference = usual_coefficient(inputs, found)
    others = [arm for arm in found.arms if arm != reference]
    differences = {arm: found.difference(arm, reference, among=len(others)) for arm in others}
    known = {arm: difference for arm, difference in differences.items() if difference is not None}
    largest = others[-1]
    parts = [f"A coefficient of {largest} changes the cross-entropy by {known[largest]} against {reference}"]
    rest = [f"{arm} by {known[arm]}" for arm in known if arm != largest and known[arm].clear]
    if rest:
        parts.append(f"{joined(rest)}")
    elif len(known) > 1:
        parts.append("no other differs clearly" if known[largest].error is not None else "")
    balance = {} if inputs.mark else final_balance(inputs, found)
    falls = True
    if balance:
        values = [balance[arm] for arm in found.arms]
        falls = values[0] > values[-1]
        verb = "falls" if falls else "does not fall"
        parts.append(
            f"from coefficient {found.arms[0]} to {found.arms[-1]} the balance loss of a layer {verb}, from "
            f"{number(values[0])} to {number(values[-1])} (1: all experts used alike)"
        )
    top = known[largest]
    verdict: Verdict = "open" if not top.clear else "clear" if top.nats > 0 and falls else "against"
    return Observation(
        "the largest coefficient, 1, gives the highest cross-entropy; the larger the coefficient, the smaller the "
        "balance loss; 1e-3 is the right balance.",
        Finding("; ".join(filter(None, parts)) + ".", found.how(), verdict),
    )


def final_balance(inputs: Inputs, found: Ablation) -> dict[str, float]:
    """Balance loss of a layer over the last tenth of training, by arm, mean over points and seeds; 1 is perfect."""
    return {
        str(arm): float(np.mean([_end_of_balance(inputs, run_id) for run_id in rows["id"]]))
        for arm, rows in found.rows.groupby("arm", sort=False)
    }


def _end_of_balance(inputs: Inputs, run_id: str) -> float:
    curve = balance_curve(inputs, run_id)
    return float(np.mean([balance for tokens, balance in curve if tokens >= (1 - LAST) * curve[-1][0]]))


def balance_curve(inputs: Inputs, run_id: str) -> list[tuple[float, float]]:
    """(tokens, balance loss of a layer) along the training of a mixture."""
    layers = inputs.spec(run_id).model.n_layer
    return [(row["tokens"], row["balance"] / layers) for row in inputs.curve(run_id) if "balance" in row]


# Figure 10: repetition of data

SAME, FRESH = "the same data", "other data"


def repetition(inputs: Inputs, sweeps: Sequence[str]) -> Ablation:
    """Upcycled training on its dense model's data, or on a part of the data that the dense model was not trained on."""
    rows = rows_of(inputs, sweeps)
    names = [
        _data_seen(inputs.spec(run), inputs.spec(parent))
        for run, parent in zip(rows["id"], rows["dense_parent"], strict=True)
    ]
    found = Ablation.of(rows, names, (FRESH, SAME, *dict.fromkeys(names)), named(sweeps))
    if not {FRESH, SAME} <= set(found.arms):
        raise UserError(f"{named(sweeps)}: Figure 10 compares {SAME} with {FRESH}, and one of them is missing")
    return found


def _data_seen(run: RunSpec, parent: RunSpec) -> str:
    """Which part of the dense model's data a run is trained on, from the slices of both."""
    data, before = run.data, parent.data
    if data.dataset != before.dataset or data.start >= before.stop or data.stop <= before.start:
        return FRESH
    return SAME if (data.start, data.stop) == (before.start, before.stop) else "some of the same data"


def see_repetition(inputs: Inputs, sweeps: Sequence[str]) -> Observation:
    """Figure 10 in words."""
    found = repetition(inputs, sweeps)
    difference = found.difference(SAME, FRESH)
    if difference is None:
        raise UserError(f"{named(sweeps)}: no D1 and D2 have runs on {SAME} and on {FRESH}")
    sentence = (
        f"Upcycling on its dense model's data in place of an equal part of other data changes the loss by {difference}."
    )
    return _similar("the difference is very small.", sentence, [difference], found)


def _similar(claim: str, sentence: str, differences: Sequence[Difference], found: Ablation) -> Observation:
    """An observation on a claim of no notable difference: it holds where noise leaves no room for a larger one."""
    bound = max(abs(each.nats) + each.bound for each in differences)
    surely = max(abs(each.nats) - each.bound for each in differences)
    loss = min(found.loss(arm) for arm in found.arms)
    verdict: Verdict = "clear" if bound <= SIMILAR * loss else "against" if surely > SIMILAR * loss else "open"
    limit = (
        f"The 95 % interval excludes more than {number(bound, 2)} nats, {number(100 * bound / loss, 2)} % of the loss."
    )
    return Observation(
        claim, Finding(sentence, " ".join(filter(None, (limit if np.isfinite(bound) else "", found.how()))), verdict)
    )


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1] if parts else "")))


def named(sweeps: Sequence[str]) -> str:
    """`sweeps a, b`, for messages."""
    return f"sweep{'s' if len(sweeps) > 1 else ''} {', '.join(sweeps)}"
