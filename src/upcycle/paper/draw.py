"""A figure or table by name, written to files: whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upcycle.files import write_atomic
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import to_markdown
from upcycle.study import catalogue


def draw(name: str, inputs: Inputs, out_stem: Path, **options: Any) -> list[Path]:
    """Write a figure as `<out_stem>.svg` and `.pdf`; returns their paths.

    Raises `UserError` for an unknown figure or option, or for losses and fits that it needs and are not there.
    """
    item = catalogue.find_item(name, "figure")
    options = item.read(options)
    with style.context():
        figure = item.load()(inputs, **options)
        files = {f".{form}": style.encode(figure, form) for form in ("svg", "pdf")}
    return _write(out_stem, files)


def write_table(name: str, inputs: Inputs | None, out_stem: Path, **options: Any) -> list[Path]:
    """Write a table as `<out_stem>.csv` (full precision) and `.md`; returns their paths.

    `inputs` may be None for a table that is the same for every study.

    Raises `UserError` as `draw` does.
    """
    item = catalogue.find_item(name, "table")
    options = item.read(options)
    read = [inputs] if item.of_study else []
    frame = item.load()(*read, **options)
    mark = next((each.mark for each in read if each is not None), "")
    if mark:
        frame = frame.rename_axis(": ".join(filter(None, (mark, frame.index.name))))
    heading = ". ".join(filter(None, (mark, item.label, item.title)))
    files = {
        ".csv": frame.to_csv(lineterminator="\n").encode(),
        ".md": f"{heading}\n\n{to_markdown(frame)}".encode(),
    }
    return _write(out_stem, files)


def _write(stem: Path, files: dict[str, bytes]) -> list[Path]:
    """Write `<stem><suffix>` for each entry."""
    paths = []
    for suffix, content in files.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_atomic(paths[-1], content)
    return paths
