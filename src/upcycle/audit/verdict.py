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
from typing import Any, Literal, get_args

import numpy as np

from upcycle.decisions.curves import ThreeLaws, published
from upcycle.decisions.published import half_unit
from upcycle.decisions.thresholds import Threshold, d_star
from upcycle.errors import UserError
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.study import StudyConfig, load_study

Verdict = Literal[
    "reproduced",
    "within rounding",
    "slip",
    "recomputed from a part of the losses",
    "cannot be recomputed without the losses",
    "not printed, follows",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""A part of the losses neither confirms nor refutes what was printed of all. The last is of numbers that the paper does
not print but that follow from those that it does, or from its losses."""

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

        Raises `UserError` where the package is installed without its repository.
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


@dataclass(frozen=True)
class Texts:
    """The words of one topic's items, from items/<topic>.yaml; items/<topic>.py has the arithmetic.

    An entry has `where` (the item's label), `printed` unless these methods are given it, `from` (what it is recomputed
    from), `unit`, `shown` (what the paper prints where the digits alone do not tell the rounding), `remark`, and `slip`
    (a remark for a verdict other than reproduced). Each may hold `{name}` of the further arguments of these methods.
    """

    entries: Mapping[str, dict[str, str]]
    """Every entry by its key."""

    @classmethod
    def of(cls, topic: str) -> Texts:
        """Read a topic's file."""
        return cls(read_yaml(Path(__file__).with_name("items") / f"{topic}.yaml"))

    def _filled(self, key: str, words: Mapping[str, Any]) -> dict[str, str]:
        fields = dict.fromkeys(("where", "from", "unit", "shown", "remark", "slip"), "") | {"printed": "{printed}"}
        words = {"printed": "", **words}
        return {field: text.format(**words) for field, text in (fields | self.entries[key]).items()}

    def number(
        self, key: str, value: float, printed: str = "", *, allowed: tuple[float, float] | None = None, **words: Any
    ) -> AuditItem:
        """A printed number against its recomputed value, in the same unit."""
        text, value = self._filled(key, words | {"printed": printed}), float(value)
        printed, unit, remark = text["printed"], text["unit"], text["slip"] or text["remark"]
        exact = Decimal(printed.replace(",", ""))
        # repr, not the binary expansion: 52.9350 from two-digit scores is a tie, not a little below one
        rounded = Decimal(repr(value)).quantize(Decimal((0, (1,), int(exact.as_tuple().exponent))))
        half, centre = half_unit(str(exact)), float(exact)
        within = abs(value - centre) <= half * (1 + 1e-9)
        if allowed is not None:
            within |= allowed[0] <= centre + half and centre - half <= allowed[1]
        verdict: Verdict = "reproduced" if rounded == exact else "within rounding" if within else "slip"
        found = close(value, exact) + unit
        if verdict == "slip" and not remark:
            remark = f"printed {printed}{unit}, right is {found}"
        if allowed is not None and verdict != "reproduced":
            ends = "{} to {}".format(*map(plain_number, allowed))
            remark = "; ".join(filter(None, (remark, f"rounding of the printed inputs allows {ends}{unit}")))
        shown = text["shown"] or printed + unit
        return AuditItem(text["where"], shown, text["from"], found, verdict, remark, {"value": value}, allowed)

    def claim(
        self,
        key: str,
        holds: bool | np.bool_,
        values: Mapping[str, float] | None = None,
        *,
        recomputed: str = "",
        under_rounding: bool | np.bool_ = False,
        count: int = 1,
        **words: Any,
    ) -> AuditItem:
        """A printed statement (or several at once): whether it holds, or may `under_rounding` of its inputs."""
        text, values = self._filled(key, words), _floats(values or {})
        verdict: Verdict = "reproduced" if holds else "within rounding" if under_rounding else "slip"
        remark = text["remark"]
        if not holds:
            remark = text["slip"] or remark or "does not hold for the printed numbers"
        found = recomputed or listed(values)
        return AuditItem(text["where"], text["printed"], text["from"], found, verdict, remark, values, count=count)

    def settings(self, key: str, printed: Mapping[str, str], study: Mapping[str, object], **words: Any) -> AuditItem:
        """Printed settings against the study's: cells that are chosen, not computed; one that differs is a slip."""
        cells = {name: study.get(name, "missing") for name in printed}
        differing = {name: value for name, value in cells.items() if not _same(printed[name], value)}
        found = ", ".join(f"{name} {value}" for name, value in differing.items()) or "the same"
        shown = ", ".join(f"{name} {text}" for name, text in printed.items())
        return self.claim(key, not differing, printed=shown, recomputed=found, count=len(printed), **words)

    def follows(self, key: str, values: Mapping[str, float], **words: Any) -> AuditItem:
        """Numbers that the paper does not print but that follow from those that it does."""
        text, values = self._filled(key, words), _floats(values)
        found, count = listed(values), len(values)
        return AuditItem(
            text["where"], "", text["from"], found, "not printed, follows", text["remark"], values, count=count
        )

    def partly(self, key: str, values: Mapping[str, float], count: int = 1, **words: Any) -> AuditItem:
        """Printed numbers beside those that a part of the measured losses gives."""
        text, values = self._filled(key, words), _floats(values)
        verdict: Verdict = "recomputed from a part of the losses"
        return AuditItem(
            text["where"], text["printed"], text["from"], listed(values), verdict, text["remark"], values, count=count
        )

    def lost(self, key: str, count: int = 1, **words: Any) -> AuditItem:
        """Printed numbers that only the measured losses (or runs) can give; `remark` says why."""
        text = self._filled(key, words)
        verdict: Verdict = "cannot be recomputed without the losses"
        return AuditItem(text["where"], text["printed"], "", "–", verdict, text["remark"], count=count)


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


def plain_number(value: float, digits: int = 4, plain: tuple[float, float] = (1e-3, 1e6)) -> str:
    """A number to some significant digits, as people write it; with an exponent outside the range `plain`.

    Whole numbers below a million are written in full.
    """
    if not math.isfinite(value):
        return "none" if math.isnan(value) else ("−" if value < 0 else "") + "infinity"
    size, whole = abs(value), float(value).is_integer()
    if whole and size < 1e6:
        text = f"{int(value):,}"
    elif plain[0] <= size < plain[1]:
        text = f"{value:,.{max(digits - 1 - math.floor(math.log10(size)), 0)}f}"
    else:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if whole and '.' in mantissa else mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def close(value: float, printed: Decimal) -> str:
    """A recomputed value with two digits more than were printed; whole numbers in full."""
    if int(printed.as_tuple().exponent) == 0 and float(value).is_integer():
        return f"{int(value):,}".replace("-", "−")
    return plain_number(value, len(printed.as_tuple().digits) + 2)


def listed(values: Mapping[str, float]) -> str:
    """`name value, name value`."""
    return ", ".join(f"{name} {plain_number(value)}" for name, value in values.items())


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    """Plain floats, as JSON takes them."""
    return {name: float(value) for name, value in values.items()}


def _same(text: str, value: object) -> bool:
    """Whether a printed setting is the study's: as numbers where both are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text == str(value)
    return math.isclose(float(text.replace(",", "")), value, rel_tol=1e-12)
