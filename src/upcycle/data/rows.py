"""Rows of a user's files as they are read: which ones count, and how many cannot be used. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upcycle.errors import UserError

MAX_BAD = 0.001
"""Default of the largest share of unusable rows."""
HOPELESS, ENOUGH = 10, 10_000
"""Reading stops early at this multiple of the largest share, among as many rows at least."""

Where = Mapping[str, list[str]]
"""Values that a row may have in a column, by the column's path: `meta.redpajama_set_name`."""


@dataclass
class Rows:
    """What to take of a user's files, and what was found in them.

    `max_bad` is the largest share of rows without usable text (no JSON, no UTF-8, no text, empty).
    """

    text_key: str = "text"
    where: Where = field(default_factory=dict)
    max_bad: float = MAX_BAD
    read: int = 0
    left_out: int = 0
    """Rows that `where` leaves out."""
    bad: Counter[str] = field(default_factory=Counter)
    """Unusable rows by reason."""
    first: str = ""
    """File, row and reason of the first unusable row."""

    def refuse(self, reason: str, message: str) -> None:
        """Count an unusable row; `message` names it. UserError if there are so many that reading on is pointless."""
        self.bad[reason] += 1
        self.first = self.first or message
        if self.bad.total() > HOPELESS * self.max_bad * max(self.read, ENOUGH):
            raise UserError(self._refusal())

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether `where` takes a row; one that lacks the column is left out."""
        if all(_at(row, path) in wanted for path, wanted in self.where.items()):
            return True
        self.left_out += 1
        return False

    def check(self) -> None:
        """UserError if more rows are unusable than may be."""
        if self.bad.total() > self.max_bad * self.read:
            raise UserError(self._refusal())

    def _refusal(self) -> str:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.bad.items()))
        return (
            f"{self.first}; {self.bad.total():,} of {self.read:,} rows cannot be used ({kinds}), and max_bad allows "
            f"{self.max_bad:.3%}: repair the text, or raise max_bad of the data set"
        )

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "read": self.read,
            "left_out": self.left_out,
            "bad": dict(sorted(self.bad.items())),
            "first": self.first,
        }

    def add(self, record: Mapping[str, Any]) -> None:
        """Add what was found in other files."""
        self.read += record["read"]
        self.left_out += record["left_out"]
        self.bad.update(record["bad"])
        self.first = self.first or record["first"]


def _at(row: Any, path: str) -> Any:
    for key in path.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def named_columns(columns: Iterable[str]) -> str:
    """Columns in words, fit for one line of a terminal."""
    return " ".join(", ".join(columns).encode(errors="replace").decode().split())[:200] or "none"
