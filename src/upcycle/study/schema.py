"""The JSON schema of a study, for editors: generated from the typed config, pinned by a test.

python -m upcycle.study.schema        # rewrites workflow/schemas/study.schema.json

It accepts what `load_study` accepts, and more: ranges over several keys, and whether a name exists, are checked when
the study is planned.
"""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from upcycle.files import write_atomic
from upcycle.study import shape, study, texts
from upcycle.study.values import NUMBER

SCHEMA = Path("workflow") / "schemas" / "study.schema.json"
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""Pydantic's keys of a range that is checked after a validator of ours, and JSON schema's keys."""


def schema_text() -> str:
    """The schema as the file holds it."""
    _, schema = models_json_schema([(study.ImportedStudy, "validation"), (study.StudyConfig, "validation")])
    for name, section in schema["$defs"].items():
        module = next(module for module in (study, shape, texts) if hasattr(module, name))
        for field, text in _field_docstrings(getattr(module, name)).items():
            section["properties"][field]["description"] = text
    imported = schema["$defs"]["ImportedStudy"]["properties"]
    own = [key for key in study.ImportedStudy.model_fields if key not in study.StudyConfig.model_fields]
    schema["$defs"]["ImportedStudy"]["properties"] = {key: imported[key] for key in (*own, *study.OF_LOSSES)}
    schema |= {"if": {"required": ["losses_from"]}, "then": _named("ImportedStudy"), "else": _named("StudyConfig")}
    return json.dumps(_as_loaded(schema), indent=2) + "\n"


def _named(kind: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{kind}"}


def _field_docstrings(section: type) -> dict[str, str]:
    """The docstring below each field of a section, in one line.

    Pydantic can collect them too (`use_attribute_docstrings`), but at each import: 0.1 s of every job.
    """
    found: dict[str, str] = {}
    for part in reversed([each for each in section.__mro__ if issubclass(each, shape.Frozen)]):
        (tree,) = ast.parse(inspect.getsource(part)).body
        for node, after in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
            match node, after:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[field] = " ".join(text.split())
    return found


def _as_loaded(schema: Any) -> Any:
    """The schema with ranges as JSON schema has them, and numbers also as text (`2_000`), as the loader reads them."""
    if isinstance(schema, list):
        return [_as_loaded(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") not in ("number", "integer"):
        return {key: _as_loaded(value) for key, value in schema.items()}
    number = {_BOUNDS.get(key, key): value for key, value in schema.items()}
    about = {key: number.pop(key) for key in ("description", "title", "default") if key in number}
    return {**about, "anyOf": [number, {"type": "string", "pattern": f"^{NUMBER}$"}]}


if __name__ == "__main__":
    write_atomic(SCHEMA, schema_text())
