"""Audit of A.10: FLOPs, GPU-hours and what WSD saves, with every reading of D that the printed numbers allow."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from upcycle.audit.items.models import EIGHT, shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import FLOPS, TABLE_3
from upcycle.audit.verdict import AuditItem, Evidence, Texts, close, plain_number, reading
from upcycle.study.counting import count_parameters, n1, n2

_NAMES = {"dense": "dense", "moe": "MoE", "upcycled": "upcycled MoE"}
_DENSE_BUDGETS = 5
"""Dense models of each size that are upcycled: the printed FLOPs of upcycled models over those of MoEs."""
_TEXTS = Texts.of("cost")


def cost_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    ratio = n2(shape("1B"), EIGHT) / n1(shape("1B"))
    dense = 6.0 * sum(count_parameters(shape(name)).non_embedding * largest_budget(evidence, name) for name in TABLE_3)
    flops = {"dense": dense, "moe": ratio * dense, "upcycled": _DENSE_BUDGETS * ratio * dense}
    for key, printed in FLOPS.items():
        name, in_sequences = _NAMES[key], flops[key] / evidence.study.context
        sequences = close(in_sequences, Decimal(printed))
        yield _TEXTS.number(
            "flops", flops[key], printed, name=name, sequences=sequences, right=plain_number(flops[key])
        )
        yield reading(_TEXTS.number("flops_sequences", in_sequences, printed, name=name))
    exact = 6.0 * sum(count_parameters(shape(name), EIGHT).active * largest_budget(evidence, name) for name in TABLE_3)
    yield _TEXTS.follows("flops_exact", {"MoE": exact, "upcycled": _DENSE_BUDGETS * exact})
    yield _TEXTS.follows("parents", {"upcycled / MoE": float(FLOPS["upcycled"]) / float(FLOPS["moe"])})
    yield from _hours(evidence, sum(flops.values()))
    yield from _savings(evidence)


def _hours(evidence: Evidence, flops: float) -> Iterator[AuditItem]:
    rate = evidence.study.execution.flops_per_second
    assert rate is not None  # config/paper.yaml gives it
    yield _TEXTS.number("rate", rate / 1e12)
    right, printed = flops / rate / 3600, sum(map(float, FLOPS.values())) / rate / 3600
    yield _TEXTS.number("hours", right, printed_hours=printed, right=right)
    yield _TEXTS.follows("hours_printed", {"hours": printed})
    yield reading(_TEXTS.number("hours_thousand", 1000 * printed))


def _savings(evidence: Evidence) -> Iterator[AuditItem]:
    budgets = evidence.study.models["1B"].budgets
    decay = evidence.study.schedule.decay_fraction
    separate = sum(budgets) / max(budgets)
    with_decays = separate / (1 - decay + decay * separate)
    yield _TEXTS.number("cosine_trunk", separate)
    yield reading(_TEXTS.number("cosine_decays", with_decays))
    yield _TEXTS.claim("wsd", with_decays > 1.5, {"trunk alone": separate, "trunk and decays": with_decays})
