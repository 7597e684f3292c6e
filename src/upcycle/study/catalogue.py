"""Every figure and table by name, found by reading the source, not by importing it.

A figure is a public function of a module `upcycle.paper.figures_*` that returns a matplotlib `Figure`, a table one of
`upcycle.paper.tables_*` that returns a `DataFrame`. The Snakefile lists targets and captions from here on every node,
so matplotlib must not be imported to know their names. The docstring is the entry: its first line is the label
("Figure 4. A title.") or, for an item that the paper does not have, a title alone; its second paragraph is the
caption. The first parameter is `inputs: Inputs`, unless the item is the same for every study. All other parameters are
options that a study may give, each of the type that its annotation names.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, StrictBool, TypeAdapter, ValidationError

from upcycle.errors import UserError, nearest
from upcycle.fingerprint import PACKAGE_ROOT
from upcycle.study.spec import Positive

_LABEL = re.compile(r"^((?:Figure|Table) \d+)\. ")
ItemKind = Literal["figure", "table"]
_KINDS: dict[str, ItemKind] = {"Figure": "figure", "DataFrame": "table"}
_TYPES: dict[str, Any] = {"str": str, "bool": StrictBool, "Positive": Positive}
"""Types that an option's annotation may name, also in `Sequence[...]` and with `| None`."""


@dataclass(frozen=True)
class CatalogueItem:
    """A figure or a table: where it is, its title and its caption."""

    name: str
    """Name of the target: `figure4`, `table1`, `overview`."""
    kind: ItemKind
    module: str
    function: str
    label: str
    """`Figure 4`; empty for items that the paper does not have."""
    title: str
    caption: str
    parameters: Mapping[str, str]
    """Options that config may give it, such as `sweep`, and the annotation of each."""
    defaults: Mapping[str, Any]
    """Values of the options that a study leaves out."""
    of_study: bool
    """Whether it reads the study's losses and fits; else it is the same for every study."""
    path: Path
    """Its source file, for the code fingerprint of its rule."""

    def load(self) -> Callable[..., Any]:
        """The function itself; imports its module (and matplotlib with it)."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function

    def read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a study gives, each read as the type of its annotation.

        Raises `UserError` naming the key for an option that the item does not have, or of another type.
        """
        found = {}
        for option, value in options.items():
            where = f"{self.kind}s.{self.name}.{option}"
            if option not in self.parameters:
                raise UserError(f"{where}: unknown option; {nearest(option, self.parameters)}")
            try:
                found[option] = TypeAdapter(_type(self.parameters[option])).validate_python(value)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join([where, *map(str, first["loc"])])
                raise UserError(f"{place}: {first['msg'].removeprefix('Value error, ')} (given: {value!r})") from None
        return found


def catalogue(wanted: ItemKind | None = None, folder: Path = PACKAGE_ROOT / "paper") -> dict[str, CatalogueItem]:
    """All figures and tables of the source files in `folder`, or those of one kind, by name."""
    return {name: item for name, item in _items(folder).items() if wanted in (None, item.kind)}


@cache
def _items(folder: Path) -> dict[str, CatalogueItem]:
    items: dict[str, CatalogueItem] = {}
    for path in sorted([*folder.glob("figures_*.py"), *folder.glob("tables_*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            kind = _KINDS.get(_returned(node))
            if kind is None or (document := ast.get_docstring(node)) is None:
                continue
            item = _item(path, node, kind, document)
            if item.name in items:
                raise ValueError(f"{path.name}: `{item.name}` is already in {items[item.name].path.name}")
            items[item.name] = item
    return items


def find_item(name: str, kind: ItemKind | None = None) -> CatalogueItem:
    """The figure or table of this name; `UserError` with the nearest valid name if there is none."""
    items = catalogue(kind)
    if name not in items:
        raise UserError(f"no {kind or 'figure or table'} `{name}`; {nearest(name, items)}")
    return items[name]


def _item(path: Path, node: ast.FunctionDef, kind: ItemKind, document: str) -> CatalogueItem:
    head, *rest = document.split("\n\n")
    head = " ".join(head.split())
    match = _LABEL.match(head)
    arguments = [*node.args.args, *node.args.kwonlyargs]
    given = [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]
    without = len(arguments) - len(given)  # options have defaults, and nothing else has
    annotations = {each.arg: ast.unparse(each.annotation) if each.annotation else "" for each in arguments}
    return CatalogueItem(
        name=re.sub(r"^(figure|table)_(?=\d)", r"\1", node.name),
        kind=kind,
        module=f"upcycle.paper.{path.stem}",
        function=node.name,
        label=match.group(1) if match else "",
        title=head[match.end() :] if match else head,
        caption=" ".join(rest[0].split()) if rest else "",
        parameters={name: annotation for name, annotation in annotations.items() if annotation != "Inputs"},
        defaults={each.arg: ast.literal_eval(value) for each, value in zip(arguments[without:], given, strict=True)},
        of_study="Inputs" in annotations.values(),
        path=path,
    )


def _returned(node: ast.FunctionDef) -> str:
    """Last name of the return annotation: `Figure` for `Figure` and `matplotlib.figure.Figure`."""
    return ast.unparse(node.returns).rsplit(".", 1)[-1] if node.returns else ""


def _type(annotation: str) -> Any:
    """The type that an option's annotation names, for pydantic to check.

    Raises `ValueError` for an annotation that names any other type than `_TYPES`.
    """

    def read(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None):
                return None
            case ast.Name(id=name) if name in _TYPES:
                return _TYPES[name]
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return Union[read(left), read(right)]  # noqa: UP007 - of types that are known at run time only
            case ast.Subscript(value=ast.Name(id="Sequence"), slice=inner):
                return Annotated[list[read(inner)], Field(min_length=1)]  # type: ignore[misc]
        raise ValueError(f"an option of a figure or table cannot be of type `{annotation}`: name one of {list(_TYPES)}")

    return read(ast.parse(annotation, mode="eval").body)
