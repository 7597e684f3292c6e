"""Record the call signatures of GPU libraries from their source text: syntax trees only, nothing is imported.

    python tests/support/record_signatures.py ROOT OUT.json flash_attn/flash_attn_interface.py:flash_attn_func ...

ROOT is the unpacked package. The files of tests/signatures were made so, one a library and release; an update of a pin
in pyproject.toml records anew. They say how a function is called and nothing of what it computes.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

Definition = ast.FunctionDef | ast.ClassDef


def find(tree: ast.Module, name: str) -> Definition | None:
    """The function or class of that dotted name."""
    body, found = tree.body, None
    for part in name.split("."):
        inside = ast.walk(ast.Module(body=body, type_ignores=[]))
        found = next((node for node in inside if isinstance(node, Definition) and node.name == part), None)
        if found is None:
            return None
        body = found.body
    return found


def parameters(function: ast.FunctionDef) -> list[dict[str, str | None]]:
    """Name, kind and default (its source) of every parameter."""
    arguments = function.args

    def described(argument: ast.arg, kind: str, default: ast.expr | None = None) -> dict[str, str | None]:
        return {"name": argument.arg, "kind": kind, "default": None if default is None else ast.unparse(default)}

    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    recorded = [described(each, "positional", default) for each, default in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        recorded.append(described(arguments.vararg, "var_positional"))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        recorded.append(described(each, "keyword_only", default))
    if arguments.kwarg:
        recorded.append(described(arguments.kwarg, "var_keyword"))
    return recorded


def record(root: Path, names: list[str]) -> dict[str, Any]:
    """Line and parameters of every `path/to/file.py:name` under root; None for what is not there."""
    recorded: dict[str, Any] = {}
    for name in names:
        path, _, dotted = name.partition(":")
        source = root / path
        tree = ast.parse(source.read_text(encoding="utf-8")) if source.is_file() else ast.Module([], [])
        node = find(tree, dotted)
        if isinstance(node, ast.ClassDef):
            node = find(tree, f"{dotted}.__init__") or node
        if node is None:
            recorded[name] = None
        elif isinstance(node, ast.FunctionDef):
            recorded[name] = {"line": node.lineno, "params": parameters(node)}
        else:
            recorded[name] = {"line": node.lineno}
    return recorded


if __name__ == "__main__":
    made = record(Path(sys.argv[1]), sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for missing in (name for name, entry in made.items() if entry is None):
        print(f"not found: {missing}")
