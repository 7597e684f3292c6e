"""One number or statement of the paper, what recomputing it gives, and the verdict, which only arithmetic decides.

A printed number is a string: its digits say how it was rounded. It is reproduced when the recomputed value rounds to
all of its digits; within rounding when it is at most half a unit of its last digit away, or when rounding the printed
inputs can move the recomputed value to it; else it is a slip. A statement is reproduced when it holds, within rounding
when it holds for some inputs that round to the printed ones; else it is a slip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Literal

from upcycle.decisions.curves import ThreeLaws, published
from upcycle.decisions.published import half_unit
from upcycle.decisions.thresholds import Threshold, d_star
from upcycle.errors import UserError
from upcycle.study.study import StudyConfig, load_study

Verdict = Literal[
    "reproduced", "within rounding", "slip", "cannot be recomputed without the losses", "not printed, follows"
]
VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "within rounding",
    "slip",
    "cannot be recomputed without the losses",
    "not printed, follows",
)
"""The last is of numbers that the paper does not print but that follow from those that it does."""

STUDY = Path(__file__).resolve().parents[3] / "config" / "paper.yaml"
"""The paper's settings as a study: the shapes, budgets and constants that numbers are recomputed from."""


@dataclass(frozen=True)
class AuditItem:
    """A printed number (or a row of them, or a statement) beside its recomputed value."""

    label: str
    """Where it is in the paper, and what."""
    printed: str
    source: str
    """What it is recomputed from."""
    recomputed: str
    verdict: Verdict
    remark: str = ""
    """For a slip: what is wrong and what is right."""
    values: Mapping[str, float] = field(default_factory=dict)
    """The recomputed numbers at full precision; `value` for a single printed number."""
    allowed: tuple[float, float] | None = None
    """Smallest and largest value that rounding of the printed inputs allows."""
    count: int = 1
    """Printed numbers or statements that this item covers."""


@dataclass(frozen=True)
class Evidence:
    """What everything is recomputed from: the study of the paper's settings, and the laws of its Table 2."""

    study: StudyConfig
    three: ThreeLaws

    @classmethod
    def read(cls, draws: int = 5000) -> Evidence:
        """Read config/paper.yaml and build the published laws with draws from their rounding boxes.

        Raises `UserError` where the package stands apart from its repository.
        """
        if not STUDY.is_file():
            raise UserError(
                "the audit needs config/paper.yaml: install upcycle from its repository with `pip install -e`"
            )
        return cls(load_study(STUDY), published(draws))

    @cached_property
    def central(self) -> ThreeLaws:
        """The laws exactly as printed, without draws: what needs no band is faster with these."""
        return self.three.without_draws()

    @cached_property
    def at_1e9(self) -> Threshold:
        """D* at N1 = 1e9 with its draws, which several items read."""
        return d_star(self.three, 1e9)


def number_item(
    label: str,
    printed: str,
    value: float,
    source: str,
    *,
    allowed: tuple[float, float] | None = None,
    shown: str = "",
    suffix: str = "",
    remark: str = "",
) -> AuditItem:
    """A printed number against its recomputed value, in the same unit (`suffix`).

    `shown` is what the paper prints where the digits alone do not tell the rounding, such as "about twice".
    """
    exact = Decimal(printed.replace(",", ""))
    # repr, not the binary expansion: 52.9350 from two-digit scores is a tie, not a little below one
    rounded = Decimal(repr(float(value))).quantize(Decimal((0, (1,), int(exact.as_tuple().exponent))))
    half, centre = half_unit(str(exact)), float(exact)
    verdict: Verdict
    if rounded == exact:
        verdict = "reproduced"
    elif abs(value - centre) <= half * (1 + 1e-9) or _meet(allowed, centre - half, centre + half):
        verdict = "within rounding"
    else:
        verdict = "slip"
    if verdict == "slip" and not remark:
        remark = f"printed {printed}{suffix}, right is {close(value, exact)}{suffix}"
    if allowed is not None and verdict != "reproduced":
        span = f"rounding of the printed inputs allows {plain_number(allowed[0])} to {plain_number(allowed[1])}{suffix}"
        remark = f"{remark}; {span}" if remark else span
    return AuditItem(
        label,
        shown or printed + suffix,
        source,
        close(value, exact) + suffix,
        verdict,
        remark,
        {"value": float(value)},
        allowed,
    )


def claim(
    label: str,
    printed: str,
    holds: bool,
    source: str,
    *,
    recomputed: str = "",
    values: Mapping[str, float] | None = None,
    under_rounding: bool = False,
    remark: str = "",
    count: int = 1,
) -> AuditItem:
    """A printed statement (or several settings at once): whether it holds, or may `under_rounding` of its inputs."""
    verdict: Verdict = "reproduced" if holds else "within rounding" if under_rounding else "slip"
    values = values or {}
    if verdict != "reproduced" and not remark:
        remark = "does not hold for the printed numbers"
    return AuditItem(label, printed, source, recomputed or listed(values), verdict, remark, values, count=count)


def settings(
    label: str, printed: Mapping[str, str], study: Mapping[str, object], source: str, remark: str = ""
) -> AuditItem:
    """Printed settings against those of the study: cells that are chosen, not computed; one that differs is a slip."""
    differing = {name: study.get(name, "missing") for name, text in printed.items() if not _same(text, study.get(name))}
    found = "the same" if not differing else ", ".join(f"{name} {value}" for name, value in differing.items())
    shown = ", ".join(f"{name} {text}" for name, text in printed.items())
    return claim(label, shown, not differing, source, recomputed=found, remark=remark, count=len(printed))


def lost(label: str, printed: str, why: str, count: int = 1) -> AuditItem:
    """A printed number that only the measured losses (or runs) can give."""
    return AuditItem(label, printed, "", "–", "cannot be recomputed without the losses", why, count=count)


def follows(label: str, values: Mapping[str, float], source: str, remark: str = "", recomputed: str = "") -> AuditItem:
    """Numbers that the paper does not print but that follow from those that it does."""
    text = recomputed or listed(values)
    return AuditItem(label, "", source, text, "not printed, follows", remark, values, count=len(values))


def reading(item: AuditItem) -> AuditItem:
    """The same number or statement read in another way: what follows, and whether it is then as printed."""
    agrees = {"reproduced": "as printed", "within rounding": "as printed within rounding"}.get(
        item.verdict, "not as printed"
    )
    remark = f"{agrees}: {item.printed}" + (f"; {item.remark}" if item.remark else "")
    return replace(item, printed="", verdict="not printed, follows", remark=remark)


def box(function: Callable[..., float], *printed: str) -> tuple[float, float]:
    """Smallest and largest value over the corners of the boxes that round to the printed inputs.

    Exact for functions that are monotone in each input over its box.
    """
    ends = [(float(text) - half_unit(text), float(text) + half_unit(text)) for text in printed]
    values = [function(*corner) for corner in itertools.product(*ends)]
    return min(values), max(values)


def plain_number(value: float, digits: int = 4) -> str:
    """A number to some significant digits, as people write it."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else ("−" if value < 0 else "") + "infinity"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        if float(value).is_integer():
            mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def close(value: float, printed: Decimal) -> str:
    """A recomputed value with two digits more than were printed; whole numbers in full."""
    if int(printed.as_tuple().exponent) == 0 and float(value).is_integer():
        return f"{int(value):,}".replace("-", "−")
    return plain_number(value, len(printed.as_tuple().digits) + 2)


def listed(values: Mapping[str, float]) -> str:
    """`name value, name value`."""
    return ", ".join(f"{name} {plain_number(value)}" for name, value in values.items())


def _meet(allowed: tuple[float, float] | None, low: float, high: float) -> bool:
    return allowed is not None and allowed[0] <= high and low <= allowed[1]


def _same(text: str, value: object) -> bool:
    """Whether a printed setting is the study's: as numbers where both are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text == str(value)
    return math.isclose(float(text.replace(",", "")), value, rel_tol=1e-12)
