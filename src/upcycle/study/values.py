"""Values of a config and of a specification: how numbers are written, and the range that each kind has.

Layer 0: standard library and pydantic. What is outside of a range is refused when it is read, with its key, before
anything is planned: a learning rate of 1e300, a name with a blank. Ranges are wide: they keep out what no training
can use and what would overflow, not what is merely unusual.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from upcycle.errors import brief

MAX_COUNT = 10**18
"""Largest token, step or parameter count that a specification takes; products of a few stay finite as floats."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Range of the positive numbers: inside of float32's, with room for products."""
MAX_DIGITS = 40
"""A number of more characters is not read as one."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names that become file names and words of a command: nothing that a shell or a path would interpret."""
NAME_LENGTH = 64
"""A file name of the longest names (a token set of an evaluation holds four) stays below 255 bytes."""
NUMBER = r"[-+]?((0|[1-9](_?[0-9])*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""A number in decimal, as `parse_number` reads it."""


def is_name(value: object) -> bool:
    """Whether a value is a text that can name a file: what `Name` takes."""
    return isinstance(value, str) and len(value) <= NAME_LENGTH and re.fullmatch(NAME_PATTERN, value) is not None


def parse_number(text: str) -> int | float | None:
    """The number that a text spells in decimal (`8e-3`, `2_000`, `-.5`), or None.

    Not numbers: what YAML 1.1 and 1.2 read differently (`60:00`, `010`), other bases, and more than 40 characters.
    """
    if len(text) > MAX_DIGITS or re.fullmatch(NUMBER, text) is None:
        return None
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _number(value: Any) -> Any:
    """Read numbers written as text (`8e-3`, `2.3e9`); refuse booleans."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    if isinstance(value, str):
        number = parse_number(value)
        if number is None:
            raise ValueError(f"{brief(value)} is not a number")
        return number
    return value


def _whole(value: Any) -> Any:
    """As `_number`, and a float that is a whole number becomes an int (2.3e9 is a token count)."""
    value = _number(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{value} is not a whole number")
        return int(value)
    return value


def _in_float32(value: float) -> float:
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{value:g} is outside of what training in float32 can use, {SMALLEST:g} to {LARGEST:g}")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False), AfterValidator(_in_float32)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Beta = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
LearningRate = Annotated[Positive, Field(le=10)]
Epsilon = Annotated[Positive, Field(le=1)]
Deviation = Annotated[Positive, Field(le=10)]
"""Standard deviation of initial weights."""
WeightDecay = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MAX_COUNT)]
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MAX_COUNT)]
Depth = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10_000)]
Width = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=2**20)]
"""Dimensions of a model, and its number of experts."""
Sequences = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=2**30)]
"""Sequences of a batch, and tokens of a sequence."""
Vocabulary = Annotated[int, BeforeValidator(_whole), Field(ge=2, le=2**24)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=32)]
"""Without `-`, which ends it in a token set's folder name."""
RunId = Annotated[str, Field(pattern=NAME_PATTERN, max_length=255)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PATH_PATTERN = r"^[^\x00-\x1f\x7f]+$"
PathText = Annotated[str, Field(pattern=PATH_PATTERN, max_length=1000)]
"""A path or glob pattern: any printable text. It is opened, never given to a shell."""


def as_list(value: Any) -> Any:
    """A value that stands for a list of one, as the list; lists and tuples as they are."""
    return value if isinstance(value, list | tuple) else [value]


def as_axes(value: Any) -> Any:
    """Axes by name, each as a list."""
    return {key: as_list(item) for key, item in value.items()} if isinstance(value, dict) else value


# A list, or one value in place of a list of one; the input type is for the editor's schema.
AnyNames = Annotated[list[Name], BeforeValidator(as_list, json_schema_input_type=Name | list[Name])]
Names = Annotated[AnyNames, Field(min_length=1)]
Paths = Annotated[list[PathText], BeforeValidator(as_list, json_schema_input_type=PathText | list[PathText])]
Texts = Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]
Wholes = Annotated[list[Whole], BeforeValidator(as_list, json_schema_input_type=Whole | list[Whole])]
Budgets = Annotated[
    list[Count], BeforeValidator(as_list, json_schema_input_type=Count | list[Count]), Field(min_length=1)
]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]
Axes = Annotated[
    dict[str, Annotated[list[Any], Field(min_length=1)]],
    BeforeValidator(as_axes, json_schema_input_type=dict[str, Any]),
]
Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=NAME_LENGTH)]
"""Name of a sweep or a fit: it is part of a target's name too."""


def duration(seconds: float) -> str:
    """Seconds as people say them: `0 s` (for none at all), `< 1 s`, `41 s`, `12 min 5 s`, `3 h 20 min`, `120 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole or not seconds else "< 1 s"
    if whole >= 360_000:
        return f"{seconds / 3600:,.0f} h"
    (large, small), (unit, part) = divmod(whole, 60), ("min", "s")
    if whole >= 3600:
        (large, small), (unit, part) = divmod(whole // 60, 60), ("h", "min")
    return f"{large} {unit} {small} {part}" if small else f"{large} {unit}"
