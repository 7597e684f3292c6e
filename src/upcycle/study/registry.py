"""Names in the registries of heavier layers, read from the source: planning knows them without importing torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from typing import Any

from upcycle.fingerprint import module_path
from upcycle.study.formulas import read_formula

FORMULA_ARGUMENT = {"form": 1, "special_case": 3}
"""Functions of `upcycle.laws.registry` that take a formula, and which of their arguments it is."""


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
def method_parameters() -> dict[str, dict[str, Any]]:
    """Parameters of each upcycling method of `upcycle.model.upcycling_methods`, its keyword arguments, by default."""
    return {
        name: {
            argument.arg: ast.literal_eval(default)
            for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
            if default is not None
        }
        for name, function in decorated("upcycle.model.upcycling_methods", "method").items()
    }


@cache
def moving_methods() -> tuple[str, ...]:
    """Upcycling methods that only move weights, under `@method(..., moves=True)`: AdamW's moments can follow."""
    return tuple(
        name
        for name, function in decorated("upcycle.model.upcycling_methods", "method").items()
        for mark in function.decorator_list
        if any(each.arg == "moves" and ast.literal_eval(each.value) for each in getattr(mark, "keywords", ()))
    )


@cache
def law_names() -> dict[str, LawNames]:
    """Laws of `upcycle.laws.forms`, a folder of modules, by name."""
    folder = module_path("upcycle.laws.forms")
    assert folder is not None
    modules = sorted(path.stem for path in folder.parent.glob("*.py") if path.stem != "__init__")
    functions: dict[str, ast.FunctionDef] = {}
    for module in modules:
        functions |= decorated(f"upcycle.laws.forms.{module}", "register")
    return {name: _law(function) for name, function in functions.items()}


def _law(function: ast.FunctionDef) -> LawNames:
    """Names of a law's parts from its formula, or from its function `terms` where it is no sum of products of powers.

    `terms` takes the inputs and returns a dict of parameters a term. Raises `ValueError` for a law that is written
    otherwise (a test reads them all).
    """
    nodes = list(ast.walk(function))
    of_fits = any(isinstance(node, ast.keyword) and node.arg == "source" for node in nodes)
    terms = next((node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "terms"), None)
    if terms is not None:
        keys = [key for node in ast.walk(terms) if isinstance(node, ast.Dict) for key in node.keys if key is not None]
        return LawNames(tuple(a.arg for a in terms.args.args), tuple(map(ast.literal_eval, keys)), of_fits)
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORMULA_ARGUMENT:
            formula = read_formula(ast.literal_eval(node.args[FORMULA_ARGUMENT[node.func.id]]))
            return LawNames(formula.inputs, formula.parameters, of_fits)
    raise ValueError(f"law `{function.name}` has neither a formula nor a function `terms`")
