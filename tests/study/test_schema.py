"""The committed schema is the typed config's, describes every key, and accepts what the loader accepts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from upcycle.study.schema import SCHEMA, schema_text
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.study import StudyConfig

REPOSITORY = Path(__file__).parents[2]
STUDIES = [REPOSITORY / name for name in ("config.yaml", "config/paper.yaml", "tests/workflow/config.yaml")]


def test_the_schema_file_is_in_sync():
    """If this fails: `python -m upcycle.study.schema`."""
    assert (REPOSITORY / SCHEMA).read_text() == schema_text()


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of a schema at any depth, by its path."""
    if isinstance(schema, dict):
        for key, value in schema.get("properties", {}).items():
            yield f"{path}.{key}", value
        for key, value in schema.items():
            yield from properties(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for item in schema:
            yield from properties(item, path)


def test_every_key_at_any_depth_has_a_description_of_its_own():
    schema = json.loads(schema_text())
    found = dict(properties(schema))
    assert len(found) > 90
    assert [path for path, entry in found.items() if len(entry.get("description", "")) < 10] == []
    assert [name for name, section in schema["$defs"].items() if len(section["description"]) < 10] == []
    texts = [entry["description"] for path, entry in found.items() if path.startswith(".$defs.Execution.")]
    assert len(set(texts)) == len(texts)


def test_ranges_are_in_json_schemas_own_words():
    """Pydantic writes `ge` for a bound behind a validator, which no editor reads."""
    assert not any(f'"{bound}":' in schema_text() for bound in ("ge", "gt", "le", "lt"))


def with_changes(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of a study with dotted paths set."""
    study = json.loads(json.dumps(base))
    for path, value in changes.items():
        *sections, key = path.split("/")
        place = study
        for section in sections:
            place = place[section]
        place[key] = value
    return study


ACCEPTED = [
    {},
    {"sweeps/dense/model": "33k"},
    {"sweeps/dense/model": ["33k", "74k"]},
    {"sweeps/dense/steps": 480, "sweeps/moe/moe": ["8x2"]},
    {"sweeps/moe/steps": 480.0, "sweeps/moe/schedule": "cosine"},
    {"sweeps/dense/seed": 1, "sweeps/dense/set": {"optim.lr": 1e-3}},
    {"sweeps/dense/set": {"optim.lr": [1e-3, "2e-3"], "dtype": "bfloat16"}},
    {"sweeps/upcycled/method": "copy", "sweeps/upcycled/dense_set": {"data.seed": 3}},
    {"fits/scratch/shared": "E", "fits/scratch/sweep": "dense", "fits/additive/floor_from": "dense"},
    {"evaluations/web/sweep": "dense", "evaluations/web/max_tokens": "65_536"},
    {"datasets": {"mine": {"files": "texts/*.txt", "heldout_files": "held.txt"}}},
    {"context": "64", "optim/eps": "1e-8", "models/33k/lr": "6e-3", "execution/micro_batch": None},
    {"figures/figure4": {"sweep": "upcycled"}, "models/33k/d_mlp": 128},
]
REFUSED = [
    {"context": 0},
    {"context": "many"},
    {"optim/beta1": 1.5},
    {"sweeps/dense/kind": "sparse"},
    {"sweeps/dense/modle": "33k"},
    {"sweeps/dense/schedule": ["wsd", "linear"]},
    {"models/33k/n_layer": None},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_what_the_loader_accepts_the_schema_accepts(changes: dict[str, Any]):
    study = with_changes(read_yaml(STUDIES[0]), changes)
    StudyConfig.model_validate(study)
    jsonschema.validate(study, json.loads(schema_text()))


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_an_editor_marks_what_the_loader_refuses(changes: dict[str, Any]):
    study = with_changes(read_yaml(STUDIES[0]), changes)
    with pytest.raises(ValueError):  # noqa: PT011 - which key is the loader's tests' matter
        StudyConfig.model_validate(study)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(study, json.loads(schema_text()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_here_pass(path: Path):
    jsonschema.validate(read_yaml(path), json.loads(schema_text()))
