"""Every figure and table by name, found by reading the source, not by importing it.

A figure is a public function of `upcycle.paper` that returns a matplotlib `Figure`, a table one that returns a
`DataFrame`. Standard library only: the Snakefile lists targets and captions from here on every node, so
matplotlib must not be imported to know their names. The docstring is the entry: its first line is the label
("Figure 4. A title.") or, for what the paper has not, a title alone; its second paragraph is the caption.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from upcycle.errors import UserError, nearest
from upcycle.fingerprint import PACKAGE_ROOT

_LABEL = re.compile(r"^((?:Figure|Table) \d+)\. ")
_KINDS: dict[str, Literal["figure", "table"]] = {"Figure": "figure", "DataFrame": "table"}


@dataclass(frozen=True)
class Item:
    """A figure or a table: where it is and what is said of it."""

    name: str
    """Name of the target: `figure4`, `table1`, `overview`."""
    kind: Literal["figure", "table"]
    module: str
    function: str
    label: str
    """`Figure 4`; empty for what the paper has not."""
    title: str
    caption: str
    parameters: tuple[str, ...]
    """Options that config may give it, such as `sweep`."""
    path: Path
    """Its source file, for the code fingerprint of its rule."""

    def load(self) -> Callable[..., Any]:
        """The function itself; imports its module (and matplotlib with it)."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function

    def check(self, options: dict[str, Any]) -> None:
        """Raise `UserError` for an option that this figure or table does not have."""
        for option in options:
            if option not in self.parameters:
                raise UserError(
                    f"{self.kind}s.{self.name}.{option}: unknown option; {nearest(option, list(self.parameters))}"
                )


def catalogue(folder: Path | None = None) -> dict[str, Item]:
    """All figures and tables of the source files in `folder` (default: `upcycle/paper`), by name."""
    folder = folder or PACKAGE_ROOT / "paper"
    items: dict[str, Item] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            kind = _KINDS.get(_returned(node))
            if kind is None or (document := ast.get_docstring(node)) is None or not _takes_inputs(node):
                continue
            item = _item(path, node, kind, document)
            if item.name in items:
                raise ValueError(f"{path.name}: `{item.name}` is already in {items[item.name].path.name}")
            items[item.name] = item
    return items


def figures() -> dict[str, Item]:
    """All figures by name."""
    return {name: item for name, item in catalogue().items() if item.kind == "figure"}


def tables() -> dict[str, Item]:
    """All tables by name."""
    return {name: item for name, item in catalogue().items() if item.kind == "table"}


def find(name: str, kind: Literal["figure", "table"] | None = None) -> Item:
    """The figure or table of this name; `UserError` with the nearest valid name if there is none."""
    items = {key: item for key, item in catalogue().items() if kind in (None, item.kind)}
    if name not in items:
        raise UserError(f"no {kind or 'figure or table'} `{name}`; {nearest(name, list(items))}")
    return items[name]


def _item(path: Path, node: ast.FunctionDef, kind: Literal["figure", "table"], document: str) -> Item:
    head, *rest = document.split("\n\n")
    head = " ".join(head.split())
    match = _LABEL.match(head)
    return Item(
        name=re.sub(r"^(figure|table)_(?=\d)", r"\1", node.name),
        kind=kind,
        module=f"upcycle.paper.{path.stem}",
        function=node.name,
        label=match.group(1) if match else "",
        title=head[match.end() :] if match else head,
        caption=" ".join(rest[0].split()) if rest else "",
        parameters=tuple(argument.arg for argument in [*node.args.args[1:], *node.args.kwonlyargs]),
        path=path,
    )


def _returned(node: ast.FunctionDef) -> str:
    """Last name of the return annotation: `Figure` for `Figure` and `matplotlib.figure.Figure`."""
    return ast.unparse(node.returns).rsplit(".", 1)[-1] if node.returns else ""


def _takes_inputs(node: ast.FunctionDef) -> bool:
    first = node.args.args[0] if node.args.args else None
    return first is not None and first.annotation is not None and ast.unparse(first.annotation) == "Inputs"
