"""Runs of another results folder: what verifies is taken, what does not is refused by name, nothing is half adopted."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from checkouts import SNAKEMAKE, make_checkout

from upcycle.data.provenance import text_fingerprint
from upcycle.errors import UserError
from upcycle.manifest import MANIFEST, json_bytes, sealed
from upcycle.study.recorded import is_finished
from upcycle.train.states.checkpoint import verify_finished
from upcycle.workflow import adopt as module
from upcycle.workflow.adopt import adopt_results, show_adopted
from upcycle.workflow.dag import Workflow
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.paths import RESULTS

pytestmark = pytest.mark.workflow


@pytest.fixture
def source(finished) -> Path:
    return finished.root / "results"


@pytest.fixture
def workflow(finished, tmp_path, monkeypatch) -> Workflow:
    """The test study in an empty folder, with a longer budget that nobody has trained."""
    text = (finished.root / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("steps: [20, 80]}\nev", "steps: [20, 80, 160]}\nev"))
    monkeypatch.chdir(tmp_path)
    return read_workflow(None, tmp_path)


def test_finished_runs_are_linked_verified_and_the_rest_is_named(workflow, source):
    adopted = adopt_results(workflow, source)
    assert (len(adopted.taken), adopted.copied, adopted.refused, adopted.here) == (18, 0, {}, [])
    for run_id in adopted.taken:
        assert verify_finished(RESULTS / "runs" / run_id, run_id)
        for name in ("metrics.json", "manifest.json"):
            assert (RESULTS / "runs" / run_id / name).read_bytes() == (source / "runs" / run_id / name).read_bytes()
        assert (RESULTS / "runs" / run_id / "spec.json").samefile(source / "runs" / run_id / "spec.json")
        assert not (RESULTS / "runs" / run_id / "metrics.json").samefile(source / "runs" / run_id / "metrics.json")
    again = read_workflow(None, Path.cwd())
    lacking = [run_id for run_id in again.plan.runs if run_id not in adopted.taken]
    text = show_adopted(again, source, adopted)
    assert len(lacking) == 4
    assert f"still to train: 4 runs, 22.5k tokens: {', '.join(lacking)}" in text
    assert not again.stale_evaluations  # of the same weights, so they came along
    assert len(adopt_results(again, source).here) == 18


def test_an_adopted_study_needs_no_text_to_be_tokenised_again(finished, tmp_path):
    """In a new checkout of the same study nothing is left to do but its products; the report says what was taken."""
    checkout = make_checkout(tmp_path / "checkout")
    shutil.copy(finished.root / "config.yaml", checkout.root / "config.yaml")
    done = subprocess.run(
        [SNAKEMAKE.with_name("upcycle"), "adopt", finished.root / "results"],
        cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"took 18 runs and 2 token sets from \S+ \(\d+ MB, linked\)\nnothing is left to train\n", done.stdout
    )
    assert not {"tokenize", "pretrain_dense", "pretrain_moe", "decay", "upcycle", "evaluate"} & set(checkout.jobs())
    for path in (finished.root / "results" / "tokens").glob("*/*.bin"):
        assert (checkout.root / path.relative_to(finished.root)).samefile(path)
    assert not list((checkout.root / "results" / "tokens").glob(".*"))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("train-00000.bin", lambda data: data[:-1] + b"\x7f", "damaged in block 0 of 1"),
        ("heldout-00000.bin", lambda data: data[:-2], "bytes, the manifest lists"),
        ("tokenizer.json", lambda data: data + b" ", "tokenizer.json"),
        ("manifest.json", lambda data: data.replace(b"words", b"wards", 1), "not the manifest that was written"),
        ("train-00000.bin", None, "train-00000.bin: missing"),
    ],
)
def test_a_token_set_that_does_not_verify_is_refused_and_leaves_nothing(workflow, source, tmp_path, name, change, why):
    copied = Path(shutil.copytree(source, tmp_path / "copied"))
    path = copied / "tokens" / "words-1-bpe300" / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    adopted = adopt_results(workflow, copied)
    assert why in adopted.refused.pop("token set words-1-bpe300")
    assert not adopted.refused
    assert list(adopted.token_sets) == [each for each in workflow.token_sets if each != "words-1-bpe300"]
    assert sorted(path.name for path in (RESULTS / "tokens").iterdir()) == sorted(adopted.token_sets)


def test_tokens_that_the_runs_here_were_not_trained_on_are_refused(workflow, source, tmp_path):
    """A set whose every hash holds, of other text."""
    adopt_results(workflow, source)
    shutil.rmtree(RESULTS / "tokens")
    other = Path(shutil.copytree(source, tmp_path / "other"))
    shards = sorted((other / "tokens").glob("*/train-00000.bin"))
    first = other / "tokens" / "words-1-bpe300"
    assert len(shards) == 2
    manifest = json.loads((first / MANIFEST).read_bytes())
    del manifest["sha256"]
    tokens = bytes(reversed((first / "train-00000.bin").read_bytes()))
    (first / "train-00000.bin").write_bytes(tokens)
    part = manifest["parts"]["train"]
    part["sha256"] = part["shards"][0]["blocks"][0] = hashlib.sha256(tokens).hexdigest()
    manifest["fingerprint"] = text_fingerprint(manifest["tokenizer"]["sha256"], manifest["parts"])
    (first / MANIFEST).write_bytes(json_bytes(sealed(manifest)))
    adopted = adopt_results(read_workflow(None, Path.cwd()), other)
    assert "which is here, was trained on" in adopted.refused["token set words-1-bpe300"]
    assert not (RESULTS / "tokens" / "words-1-bpe300").exists()


def test_what_does_not_verify_is_refused_and_leaves_nothing(workflow, source, tmp_path):
    copied = Path(shutil.copytree(source, tmp_path / "copied"))
    decays = sorted(path.name for path in (copied / "runs").glob("decay-*"))
    flipped, altered, foreign, edited, missing = decays[:5]
    weights = copied / "runs" / flipped / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    metrics = copied / "runs" / altered / "metrics.json"
    metrics.write_bytes(json_bytes(json.loads(metrics.read_bytes()) | {"loss": 1.0}))
    manifest = copied / "runs" / foreign / MANIFEST
    content = json.loads(manifest.read_bytes())
    del content["sha256"]
    manifest.write_bytes(json_bytes(sealed(content | {"id": altered})))
    spec = copied / "runs" / edited / "spec.json"
    spec.write_text(spec.read_text().replace('"seed": 0', '"seed": 1'))
    (copied / "runs" / missing / "metrics.jsonl").unlink()
    adopted = adopt_results(workflow, copied)
    assert set(adopted.refused) >= {flipped, altered, foreign, edited, missing}
    assert "weights.safetensors: damaged" in adopted.refused[flipped]
    assert "metrics.json: damaged" in adopted.refused[altered]
    assert f"{MANIFEST} is of another run" in adopted.refused[foreign]
    assert "spec.json" in adopted.refused[edited]
    assert "metrics.jsonl: missing" in adopted.refused[missing]
    for run_id in decays[:5]:
        assert not is_finished(RESULTS / "runs" / run_id)
        assert not list((RESULTS / "runs" / run_id).glob("*.tmp"))
    assert len(adopted.taken) == 13


def test_runs_on_other_tokens_are_refused(workflow, source):
    folder = RESULTS / "tokens/words-1-bpe300"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"fingerprint": "other"}')
    adopted = adopt_results(workflow, source)
    assert not adopted.taken
    assert all("was trained on tokens" in why for why in adopted.refused.values())


def test_another_file_system_is_copied_from_and_a_kill_is_made_good(workflow, source, monkeypatch):
    """Without links; the first call ends before the last file of its third run."""

    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    count, write = [0], module.write_atomic

    def killed(path: Path, *content: str) -> None:
        count[0] += path.name == "metrics.json"
        if count[0] == 3:
            raise KeyboardInterrupt
        write(path, *content)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        adopt_results(workflow, source)
    assert sum(is_finished(path) for path in (RESULTS / "runs").iterdir()) == 2
    monkeypatch.setattr(module, "write_atomic", write)
    adopted = adopt_results(workflow, source)
    # The third has its manifest: `upcycle train` restores metrics.json from it.
    assert (len(adopted.here), len(adopted.taken), adopted.copied) == (3, 15, 15)
    assert all(verify_finished(path, path.name) for path in (RESULTS / "runs").iterdir())


def test_folders_that_are_none(workflow, source, tmp_path):
    for folder, why in ((tmp_path / "nowhere", "has no folder `runs`"), (source.parent, "has no folder `runs`")):
        with pytest.raises(UserError, match=why):
            adopt_results(workflow, folder)
    (RESULTS / "runs").mkdir(parents=True)
    with pytest.raises(UserError, match="is the results folder of this study itself"):
        adopt_results(workflow, RESULTS)
