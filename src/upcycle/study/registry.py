"""Names in the registries of heavier layers, read from the source: planning knows them without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from upcycle.fingerprint import module_path


@dataclass(frozen=True)
class LawNames:
    """What a law is called and what its parts are called."""

    inputs: tuple[str, ...]
    """Columns of losses.csv, or derived from them."""
    parameters: tuple[str, ...]
    of_fits: bool
    """Whether it is a law of another law's parameters: fits give its points, not losses."""


def decorated(module: str, decorator: str) -> dict[str, ast.FunctionDef]:
    """A module's top-level functions that bear a decorator: the laws under `@register`, for instance."""
    path = module_path(module)
    if path is None:
        raise KeyError(f"no module {module}")
    return {
        node.name: node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(
            getattr(mark.func if isinstance(mark, ast.Call) else mark, "id", "") == decorator
            for mark in node.decorator_list
        )
    }


@cache
def method_names() -> tuple[str, ...]:
    """Upcycling methods of `upcycle.model.upcycling`."""
    return tuple(decorated("upcycle.model.upcycling", "method"))


@cache
def law_names() -> dict[str, LawNames]:
    """Laws of `upcycle.laws.forms`, a folder of modules, by name."""
    folder = module_path("upcycle.laws.forms")
    assert folder is not None
    modules = sorted(path.stem for path in folder.parent.glob("*.py") if path.stem != "__init__")
    functions: dict[str, ast.FunctionDef] = {}
    for module in modules:
        functions |= decorated(f"upcycle.laws.forms.{module}", "register")
    return {name: _law(name, functions) for name in functions}


def _law(name: str, functions: dict[str, ast.FunctionDef]) -> LawNames:
    """Names of a law's parts, from its function `terms` or, where it has none, from the law that it is made from.

    `terms` takes the inputs and returns a dict of parameters a term; `Shifted` brings an offset, `drop` takes a
    parameter out. Raises `ValueError` for a law that is written otherwise (a test reads them all).
    """
    function = functions[name]
    terms = next(
        (node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node.name == "terms"), None
    )
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    keywords = {keyword.arg: keyword.value for call in calls for keyword in call.keywords}
    if terms is not None:
        inputs = tuple(argument.arg for argument in terms.args.args)
        return LawNames(inputs, tuple(dict.fromkeys(_keys(terms))), "source" in keywords)
    base = next((call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id in functions), None)
    if base is None:
        raise ValueError(f"law `{name}` has no function `terms` and is made from no other law")
    whole = _law(base, functions)
    dropped = ast.literal_eval(keywords["drop"]) if "drop" in keywords else None
    return LawNames(whole.inputs, tuple(p for p in whole.parameters if p != dropped), whole.of_fits)


def _keys(terms: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(terms):
        if isinstance(node, ast.Dict):
            yield from (ast.literal_eval(key) for key in node.keys if key is not None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Shifted":
            yield next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "offset"), "D0")
