"""What a hostile folder, name or file gets: nothing of it is run, and nothing is read or written elsewhere.

docs/security.md lists these and the other tests of each guarantee.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hf_folders import write_folder
from hostile_pickle import Marks

from upcycle.cli import main
from upcycle.data.provenance import manifest_bytes, text_fingerprint
from upcycle.data.spool import Document
from upcycle.data.tokenizer import encode_documents, load_tokenizer
from upcycle.data.vocabulary import MAX_TOKENIZER_BYTES
from upcycle.errors import UserError
from upcycle.manifest import MANIFEST, METRICS, WEIGHTS, json_bytes, sealed
from upcycle.model.hub import read_checkpoint
from upcycle.study.parent import WEIGHTS_FILE, identify, noted_hashes, read_parent
from upcycle.study.shape import ModelSpec
from upcycle.train.states.checkpoint import file_entry, write_spec
from upcycle.workflow.invocation import read_workflow

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted((REPOSITORY / "src").rglob("*.py"))
RULES = [REPOSITORY / "Snakefile", *sorted((REPOSITORY / "workflow").rglob("*.smk"))]


# Folders of Hugging Face


def imported(folder: Path) -> None:
    """Plan and load a folder, as a study and its import do."""
    found = identify(folder, noted_hashes())
    read_checkpoint(
        folder, ModelSpec(**dict(found.parent.shape), vocab_size=found.parent.rows, context=32), found.files
    )
    load_tokenizer(found.parent.tokenizer, 300, sha256=found.tokenizer_sha256)


def test_an_imported_folder_runs_no_code(tmp_path, monkeypatch):
    """Modules that transformers would run with `trust_remote_code`, and some that Python finds by their names."""
    folder, marker = write_folder(tmp_path / "x"), tmp_path / "ran"
    names = [
        "modeling_x.py",
        "tokenization_x.py",
        "safetensors.py",
        "torch.py",
        "__init__.py",
        "setup.py",
        "conftest.py",
    ]
    for name in names:
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    auto_map = {"AutoConfig": "modeling_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": "modeling_x.py"}))
    monkeypatch.chdir(folder)
    imported(folder)
    write_folder(folder, auto_map=auto_map)
    with pytest.raises(UserError, match=r"auto_map.*code of its own, which is never done"):
        read_parent(folder)
    assert not marker.exists()
    runpy.run_path(str(folder / "modeling_x.py"))
    assert marker.exists(), "the code is harmless: this test shows nothing"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", r"pickles \(.bin\), which are never loaded; convert them with transformers"),
        (WEIGHTS_FILE, rf"{WEIGHTS_FILE} is damaged"),
    ],
)
def test_a_pickle_is_refused_and_not_loaded(tmp_path, monkeypatch, name, words):
    """By its own name, with the way to convert it, or by that of a safetensors file (tests/model/test_hub.py)."""
    folder, marker = write_folder(tmp_path / "x"), tmp_path / "ran"
    (folder / WEIGHTS_FILE).unlink()
    (folder / name).write_bytes(pickle.dumps(Marks(marker)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as refused:
        imported(folder)
    assert "\n" not in str(refused.value)
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists(), "the pickle is harmless: this test shows nothing"


# tokenizer.json


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> dict:
    return json.loads((write_folder(tmp_path_factory.mktemp("x")) / "tokenizer.json").read_text())


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Paths to the parts of a JSON value, one of those in each list or long object."""
    yield path
    children = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, child in children[: None if len(children) < 20 else 1]:
        yield from places(child, (*path, key))


def refusal(path: Path) -> str:
    """What is said of a tokenizer.json; nothing if it is taken."""
    try:
        load_tokenizer(path, 300)
    except UserError as error:
        return str(error)
    return ""


def test_a_tokenizer_with_a_part_of_another_type_is_used_or_refused_in_one_line(tokenizer, tmp_path):
    """Each part of a tokenizer.json in turn, as each type."""
    path, refused, parts = tmp_path / "tokenizer.json", 0, list(places(tokenizer))
    for place in parts:
        for value in (None, -1, 2**63, 1e300, "x", "\ud800", [], [None], {}, {"a": None}, True):
            hostile = json.loads(json.dumps({"": tokenizer}))
            parent = hostile
            *above, last = ("", *place)
            for key in above:
                parent = parent[key]
            parent[last] = value
            path.write_text(json.dumps(hostile[""]))
            said = refusal(path)
            assert "\n" not in said, place
            refused += bool(said)
    assert refused > len(parts)


def test_a_tokenizer_of_many_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(UserError, match=f"larger than {MAX_TOKENIZER_BYTES:,} bytes"):
        load_tokenizer(path, 300)


@pytest.mark.parametrize(
    "part",
    [
        {
            "model": {
                "type": "WordPiece",
                "unk_token": "absent",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9,
            }
        },
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    ],
    ids=["pieces", "normalizer", "regular expression"],
)
def test_a_tokenizer_that_fails_at_a_text_is_refused_in_one_line(tokenizer, tmp_path, part):
    """Also where the library panics, which raises no `Exception`."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer | part))
    with pytest.raises(UserError) as refused:
        list(encode_documents(load_tokenizer(path, 300), [Document(b"", 0, b"a" * 40 + b"!")], np.dtype("uint16")))
    assert "\n" not in str(refused.value)


# Names


HOSTILE = ["a;touch x", "../../x", "/tmp/x", "$(touch x)", "`touch x`", "a b", "-x", ""]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the smallest study, and a results folder outside of it."""
    place = tmp_path / "in" / "here"
    (place / "config").mkdir(parents=True)
    (place / "results" / "runs").mkdir(parents=True)
    for name, content in (("words", "{}"), ("heldout", "{}"), ("other", "{}")):
        (place / f"{name}.jsonl").write_text(content)
    (place / "config.yaml").write_text((REPOSITORY / "tests/workflow/config.yaml").read_text())
    monkeypatch.chdir(place)
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_on_the_command_line_is_refused(here, capsys, name):
    """Of runs, token sets, texts, products, folders of results and studies: no file is made, here or elsewhere."""
    before = sorted(here.rglob("*"))
    verbs = ["train", "tokenize", "evaluate", "prune", "fit", "figure", "table", "adopt"]
    for words in (*([verb, "--", name] for verb in verbs), ["export", "--", name, "out"], ["plan", f"--study={name}"]):
        assert main(words) == 2, words
        assert re.fullmatch("upcycle[^\n]*\n", capsys.readouterr().err), words
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("section", ["datasets", "models", "moes", "sweeps", "evaluations", "fits"])
def test_a_hostile_name_in_a_study_is_refused(here, capsys, section):
    """More of them, and those of figures and tables, are in tests/study/test_study.py."""
    text = Path("config.yaml").read_text()
    before = sorted(here.rglob("*"))
    for name in HOSTILE:
        study = yaml.safe_load(text)
        study[section][name] = next(iter(study[section].values()))
        Path("config.yaml").write_text(yaml.safe_dump(study))
        assert main(["plan"]) == 2, name
        assert re.search(rf"config\.yaml: `{section}\.[^\n]*should match pattern", capsys.readouterr().err), name
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", ["../../../evil", "{here}/evil", "..", "a/../evil"])
def test_adopting_results_writes_nowhere_else(here, capsys, name):
    """Someone's results folder whose manifests, with right hashes and seals, name a file outside of their folders."""
    workflow, theirs = read_workflow(None, Path.cwd()), here / "theirs"
    run, (tokens_id, *_) = next(iter(workflow.plan.runs.values())), workflow.token_sets
    run_dir, tokens_dir = theirs / "runs" / run.id, theirs / "tokens" / tokens_id
    run_dir.mkdir(parents=True)
    tokens_dir.mkdir(parents=True)
    (here / "evil").write_bytes(b"evil")
    name = name.format(here=here)
    write_spec(run_dir, run)
    files = {WEIGHTS: file_entry(b""), name: file_entry(b"evil")}
    (run_dir / WEIGHTS).touch()
    (run_dir / METRICS).write_bytes(json_bytes({"simulated": False}))
    manifest = {"id": run.id, "files": files, "metrics": {"simulated": False}, "tokens_fingerprint": ""}
    (run_dir / MANIFEST).write_bytes(json_bytes(sealed(manifest)))
    parts = {"train": {"sha256": "", "shards": [{"file": name}]}, "heldout": {"sha256": "", "shards": []}}
    content = {"parts": parts, "fingerprint": text_fingerprint("", parts), "tokenizer": {"sha256": ""}}
    (tokens_dir / MANIFEST).write_bytes(manifest_bytes(content))
    (tokens_dir / "tokenizer.json").touch()
    assert main(["adopt", str(theirs)]) == 2
    said = capsys.readouterr()
    assert said.out.count("which is not beside it; do not use its folder") == 2
    assert said.err == "upcycle adopt: 2 refused, as named above; the others are taken\n"
    assert not [path for path in (here / "in").rglob("*") if path.name == "evil"]


# Sources


def test_every_word_of_a_rules_command_is_quoted():
    """Names are checked before, so this is the second of two locks."""
    commands = [text for path in RULES for text in re.findall(r'"(exec [^"]*)"', path.read_text())]
    assert len(commands) >= 8
    assert not [text for text in commands for word in re.findall(r"\{[^}]*\}", text) if not word.endswith(":q}")]
    assert not [path for path in RULES if re.search(r"\bshell\(|os\.system|subprocess", path.read_text())]


def test_nothing_is_run_by_a_shell_and_nothing_is_unpickled():
    """Nor is `trust_remote_code` set, or text evaluated as Python."""
    modules, calls, options = {"pickle", "marshal", "shelve", "dill", "joblib"}, set(), set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {name.name for name in node.names} & modules, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in modules, path
            elif isinstance(node, ast.Call):
                calls.add(ast.unparse(node.func))
                options |= {word.arg for word in node.keywords}
    assert "safetensors.torch.load" in calls
    assert not calls & {"eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "pd.read_pickle"}
    assert not options & {"shell", "allow_pickle", "weights_only", "trust_remote_code", "auto_map"}
