"""Names in the registries of heavier layers, read from the source: planning knows them without importing torch."""

from __future__ import annotations

import ast
from functools import cache

from upcycle.fingerprint import module_path


@cache
def decorated(module: str, decorator: str) -> tuple[str, ...]:
    """Names of a module's top-level functions that bear a decorator: the laws under `@register`, for instance."""
    path = module_path(module)
    if path is None:
        raise KeyError(f"no module {module}")
    return tuple(
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(
            getattr(mark.func if isinstance(mark, ast.Call) else mark, "id", "") == decorator
            for mark in node.decorator_list
        )
    )


def law_names() -> tuple[str, ...]:
    """Laws of `upcycle.laws.forms`, a folder of modules."""
    folder = module_path("upcycle.laws.forms")
    assert folder is not None
    modules = sorted(path.stem for path in folder.parent.glob("*.py") if path.stem != "__init__")
    return tuple(name for module in modules for name in decorated(f"upcycle.laws.forms.{module}", "register"))


def method_names() -> tuple[str, ...]:
    """Upcycling methods of `upcycle.model.upcycling`."""
    return decorated("upcycle.model.upcycling", "method")
