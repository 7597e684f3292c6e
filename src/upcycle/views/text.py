"""Tables and sizes as the views print them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def text_table(rows: Sequence[Mapping[str, str]], left: Collection[str]) -> list[str]:
    """Lines of a table under its header, the keys of its rows: columns two blanks apart, aligned `left` or right."""
    header = list(rows[0])
    cells = [header, *(list(row.values()) for row in rows)]
    sides = ["<" if name in left else ">" for name in header]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (zip(line, sides, widths, strict=True) for line in cells)
    return ["  ".join(f"{cell:{side}{width}}" for cell, side, width in line).rstrip() for line in lines]


def text_bytes(count: float) -> str:
    """A size in MB or GB, 10^6 and 10^9 bytes."""
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.0f} GB"
