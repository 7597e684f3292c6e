"""Audit of A.10: FLOPs, GPU-hours and what WSD saves, with every reading of D that the printed numbers allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from upcycle.audit.items.models import EIGHT, shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import FLOPS, TABLE_3
from upcycle.audit.verdict import AuditItem, Evidence, claim, follows, number_item, plain_number, reading
from upcycle.study.counting import count_parameters, n1, n2

_NAMES = {"dense": "dense", "moe": "MoE", "upcycled": "upcycled MoE"}
_DENSE_BUDGETS = 5
"""Dense models of each size that are upcycled: the printed upcycled total over that of the MoEs."""


def cost_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    ratio = n2(shape("1B"), EIGHT) / n1(shape("1B"))
    dense = 6.0 * sum(count_parameters(shape(name)).non_embedding * largest_budget(evidence, name) for name in TABLE_3)
    flops = {"dense": dense, "moe": ratio * dense, "upcycled": _DENSE_BUDGETS * ratio * dense}
    context = evidence.study.context
    for key, printed in FLOPS.items():
        counted = number_item("", printed, flops[key] / context, "").recomputed
        yield number_item(
            f"Section A.10, FLOPs, {_NAMES[key]}",
            printed,
            flops[key],
            "6 N D over Table 3, D = batch x 1,024 x iterations, N2 = 1.75 N_dense",
            remark=f"the context length is left out: {counted} is with D in sequences, "
            f"right is {plain_number(flops[key])}",
        )
        label = f"Section A.10, FLOPs, {_NAMES[key]}, D in sequences"
        yield reading(number_item(label, printed, flops[key] / context, "the same with D = batch x iterations"))
    exact = 6.0 * sum(count_parameters(shape(name), EIGHT).active * largest_budget(evidence, name) for name in TABLE_3)
    yield follows(
        "Section A.10, FLOPs with N2 counted exactly",
        {"MoE": exact, "upcycled": _DENSE_BUDGETS * exact},
        "router and norms included",
    )
    fraction = float(FLOPS["upcycled"]) / float(FLOPS["moe"])
    yield follows(
        "Section A.10, dense models of each size that are upcycled",
        {"upcycled / MoE": fraction},
        "printed FLOPs",
        "five D1 for each size. Table 7's 8x1B used half of the largest budget, so this overstates it",
    )
    yield from _hours(evidence, flops)
    yield from _savings(evidence)


def _hours(evidence: Evidence, flops: Mapping[str, float]) -> Iterator[AuditItem]:
    rate = evidence.study.execution.flops_per_second
    assert rate is not None  # config/paper.yaml gives it
    yield number_item("Section A.10, TFLOP/s of a GPU", "400", rate / 1e12, "config/paper.yaml", suffix=" TFLOP/s")
    right = sum(flops.values()) / rate / 3600
    printed = sum(float(text) for text in FLOPS.values()) / rate / 3600
    yield number_item(
        "Section A.10, GPU-hours",
        "4.9e3",
        right,
        "FLOPs with D in tokens / 400 TFLOP/s",
        shown="approximately 4,900",
        suffix=" hours",
        remark=f"printed FLOPs give {printed:.2f} hours: a factor of 1,000 is mistaken; right is {right:,.1f} hours",
    )
    yield follows("Section A.10, GPU-hours of the printed FLOPs", {"hours": printed}, "printed FLOPs / 400 TFLOP/s")
    label, source = "Section A.10, the same times 1,000", "printed FLOPs x 1,000 / 400 TFLOP/s"
    yield reading(number_item(label, "4.9e3", 1000 * printed, source, shown="approximately 4,900", suffix=" hours"))


def _savings(evidence: Evidence) -> Iterator[AuditItem]:
    budgets = evidence.study.models["1B"].budgets
    decay = evidence.study.schedule.decay_fraction
    separate = sum(budgets) / max(budgets)
    trunk_and_decays = 1 - decay + decay * separate
    label, source = (
        "Section A.10, cosine against one trunk",
        "five budgets by halving, each trained alone, over the longest",
    )
    yield number_item(label, "2", separate, source, shown="about twice", suffix=" times")
    label, source = "Section A.10, cosine against trunk and decays", "the same over 90 % of it and five decays of 10 %"
    item = number_item(label, "2", separate / trunk_and_decays, source, shown="about twice", suffix=" times")
    yield reading(item)
    yield claim(
        "Section 3.1, WSD reduces training substantially",
        "reduces substantially",
        separate / trunk_and_decays > 1.5,
        "the two before",
        values={"trunk alone": separate, "trunk and decays": separate / trunk_and_decays},
    )
