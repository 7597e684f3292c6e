"""Fingerprints of code: what a cheap product (fit, figure, table, report) was made by.

Layer 0, standard library only; nothing is imported, sources are parsed. A fingerprint hashes the syntax tree
of a function, of what it uses in its own module, and of the project's modules that it imports, docstrings and
comments left out: editing a figure's code redraws that figure, a comment redraws nothing.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from upcycle.files import cache_folder, write_atomic

PACKAGE_ROOT = Path(__file__).parent
PACKAGE = "upcycle"


@dataclass(frozen=True)
class Statement:
    """What counts of a statement, or of a whole module: found in one walk over its syntax tree."""

    digest: str
    names: tuple[str, ...]
    """Names that it uses."""
    imports: tuple[tuple[str, str], ...]
    """Modules that it imports: (`package.module`, where it is a name in that module, or a module itself)."""

    @property
    def project_modules(self) -> set[str]:
        """Modules of this package among its imports."""
        found = set()
        for module, name in self.imports:
            submodule = f"{module}.{name}"
            if name and module_path(submodule):
                found.add(submodule)
            elif module_path(module):
                found.add(module)
        return found


@dataclass(frozen=True)
class Source:
    """A module as its source states it."""

    whole: Statement
    definitions: dict[str, Statement]
    """Top-level statements by each name that they bind."""


def fingerprint(*targets: str) -> str:
    """Hash of `package.module` (the whole module) or `package.module:function`, with their project imports.

    Raises `KeyError` for a function that its module does not define.
    """
    digest = hashlib.sha256()
    modules: set[str] = set()
    for target in targets:
        module, _, symbol = target.partition(":")
        if symbol:
            used = _used(module, symbol)
            digest.update("\n".join([target, *(f"{name}: {each.digest}" for name, each in used.items())]).encode())
            modules = modules.union(*(each.project_modules for each in used.values()))
        else:
            modules.add(module)
    for module in sorted(_closure(modules, lambda name: _source(name).whole.project_modules)):
        digest.update(f"{module}\n{_source(module).whole.digest}".encode())
    return digest.hexdigest()[:16]


@cache
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
def _source(module: str) -> Source:
    path = module_path(module)
    if path is None:
        raise KeyError(f"no module {module} in {PACKAGE}")
    return _remembered(path.read_bytes())


def _remembered(text: bytes) -> Source:
    """What a source states, from the user's cache if it was parsed before: parsing all takes a second."""
    with contextlib.suppress(OSError):  # a cache that cannot be read or written costs that second
        # By the source, by what parses it, and by what reads the tree.
        name = hashlib.sha256(b"".join([text, sys.version.encode(), Path(__file__).read_bytes()])).hexdigest()
        kept = cache_folder() / "sources" / f"{name[:32]}.json"
        if not kept.exists():
            write_atomic(kept, json.dumps(asdict(_parsed(text))))
        content = json.loads(kept.read_bytes())
        return Source(Statement(**content["whole"]), {k: Statement(**v) for k, v in content["definitions"].items()})
    return _parsed(text)


def _parsed(text: bytes) -> Source:
    tree = ast.parse(text)
    _drop_docstring(tree)
    whole: list[Statement] = []
    definitions: dict[str, Statement] = {}
    for node in tree.body:
        statement = _statement(node)
        whole.append(statement)
        definitions |= dict.fromkeys(_bound(node), statement)
    digest = _hash("\n".join(each.digest for each in whole))
    imports = dict.fromkeys(found for each in whole for found in each.imports)
    return Source(Statement(digest, (), tuple(imports)), definitions)


def _statement(node: ast.stmt) -> Statement:
    names: dict[str, None] = {}
    imports: dict[tuple[str, str], None] = {}
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            names[child.id] = None
        elif isinstance(child, ast.Import):
            imports |= {(alias.name, ""): None for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
            imports |= {(child.module, alias.name): None for alias in child.names}
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(child)
    return Statement(_hash(ast.dump(node)), tuple(names), tuple(imports))


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    body = node.body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        node.body = body[1:]


def _bound(node: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return []


def _used(module: str, symbol: str) -> dict[str, Statement]:
    """A function and all that it uses in its module, by name."""
    definitions = _source(module).definitions
    if symbol not in definitions:
        raise KeyError(f"{module} does not define {symbol}")
    names = _closure([symbol], lambda name: [used for used in definitions[name].names if used in definitions])
    return {name: definitions[name] for name in sorted(names)}


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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
