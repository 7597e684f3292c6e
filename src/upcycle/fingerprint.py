"""Fingerprints of code: what a cheap product (fit, figure, table, report) was made by.

Layer 0, standard library only; nothing is imported, sources are parsed. A fingerprint hashes the syntax tree
of a function, of what it uses in its own module, and of the project's modules that it imports, docstrings and
comments left out: editing a figure's code redraws that figure, a comment redraws nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

PACKAGE_ROOT = Path(__file__).parent
PACKAGE = "upcycle"


def fingerprint(*targets: str) -> str:
    """Hash of `package.module` (the whole module) or `package.module:function`, with their project imports.

    Raises `KeyError` for a function that its module does not define.
    """
    digest = hashlib.sha256()
    modules: set[str] = set()
    for target in targets:
        module, _, symbol = target.partition(":")
        if symbol:
            text, imported = _symbol_closure(module, symbol)
            digest.update(f"{target}\n{text}".encode())
            modules |= imported
        else:
            modules.add(module)
    for module in sorted(_closure(modules, _module_imports)):
        digest.update(f"{module}\n{_module_text(module)}".encode())
    return digest.hexdigest()[:16]


def module_path(module: str) -> Path | None:
    """Source file of a module of this package, or None for any other module."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = PACKAGE_ROOT.joinpath(*parts[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = module_path(module)
    if path is None:
        raise KeyError(f"no module {module} in {PACKAGE}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:]  # the docstring
    return tree


@cache
def _module_text(module: str) -> str:
    return ast.dump(_tree(module))


def _imports(node: ast.AST) -> set[str]:
    """Project modules named by the import statements inside a node."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names if module_path(alias.name)}
        elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                if module_path(submodule):
                    found.add(submodule)
                elif module_path(child.module):
                    found.add(child.module)
    return found


@cache
def _module_imports(module: str) -> set[str]:
    return _imports(_tree(module))


def _closure(names: Iterable[str], following: Callable[[str], Iterable[str]]) -> set[str]:
    """These names and all that follow from them, directly or not."""
    seen: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack += following(name)
    return seen


@cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    """Top-level statements of a module by each name that they bind."""
    found: dict[str, ast.stmt] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found |= {name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
    return found


def _symbol_closure(module: str, symbol: str) -> tuple[str, set[str]]:
    """Syntax of a function and of all that it uses in its module; the project modules that these import."""
    definitions = _definitions(module)
    if symbol not in definitions:
        raise KeyError(f"{module} does not define {symbol}")

    def named(name: str) -> list[str]:
        names = [node.id for node in ast.walk(definitions[name]) if isinstance(node, ast.Name)]
        return [each for each in names if each in definitions]

    used = {name: definitions[name] for name in sorted(_closure([symbol], named))}
    text = "\n".join(f"{name}: {ast.dump(node)}" for name, node in used.items())
    return text, set().union(*map(_imports, used.values()))
