"""A corpus that several jobs make: steps in the DAG, each done once, the same tokens as of one job."""

import json

import pytest
from checkouts import make_checkout

from upcycle.data.parts import making_steps
from upcycle.data.provenance import read_token_manifest
from upcycle.data.tokens import tokenize_corpus
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import Node
from upcycle.workflow.resources import Cluster
from upcycle.workflow.submission import pending_requests

TOKENS = "words-1-bpe300"
TARGET = f"results/tokens/{TOKENS}/manifest.json"


@pytest.fixture
def divided(tmp_path):
    """A checkout without results, whose text is in five files of about one part each."""
    checkout = make_checkout(tmp_path / "divided")
    lines = (checkout.root / "words.jsonl").read_text().splitlines(keepends=True)
    for number in range(5):
        (checkout.root / f"part-{number}.jsonl").write_text("".join(lines[number::5]))
    size = (checkout.root / "part-0.jsonl").stat().st_size
    checkout.edit("config.yaml", "words: {files: [words.jsonl]", f"words: {{files: [part-*.jsonl], part_bytes: {size}")
    return checkout


@pytest.mark.workflow
def test_steps_of_a_large_corpus_are_jobs_and_are_done_once(divided, tmp_path):
    files = {key: [divided.root / f"{name}.jsonl"] for key, name in (("files", "words"), ("heldout_files", "heldout"))}
    whole = tokenize_corpus("words", tmp_path / "whole", vocab_size=300, **files)
    jobs = divided.jobs(TARGET)
    assert jobs.pop("tokenize") == 1
    assert jobs.pop("tokenize_step") >= 5 + 1 + 5
    assert jobs == {}
    folder = divided.root / "results/tokens" / TOKENS
    divided.run("-c1", f"results/tokens/{TOKENS}/work/encode-1.json")
    done = {path: path.stat().st_mtime_ns for path in (folder / "work").glob("*.json")}
    assert not (folder / "manifest.json").exists()
    left = divided.jobs(TARGET)["tokenize_step"]
    assert left == sum(name.startswith("encode") for name in _steps(divided)) - 1
    divided.run("-c1", f"results/tokens/{TOKENS}/work/encode-0.json")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    divided.run("-c1", TARGET)
    manifest = read_token_manifest(folder)
    assert manifest["fingerprint"] == whole["fingerprint"]
    assert not (folder / "work").exists()
    assert not {"tokenize", "tokenize_step"} & set(divided.jobs("sweep_dense"))


def _steps(checkout):
    study = load_study(checkout.root / "config.yaml")
    files = [checkout.root / "heldout.jsonl", *sorted(checkout.root.glob("part-*.jsonl"))]
    return [step for stage in making_steps(files, study.datasets["words"].part_bytes) for step in stage]


def test_steps_ask_for_one_cpu_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "x" * 1000}) + "\n")
    config = {"study": "default", "data": {"dataset": "mine", "vocab_size": 300}, "context": 32}
    config |= {"datasets": {"mine": {"files": ["a.jsonl"], "heldout_files": ["b.jsonl"], "part_bytes": 500}}}
    config |= {"models": {"m": {"n_layer": 1, "d_model": 16, "n_head": 2, "batch": 4, "warmup_steps": 2}}}
    config["models"]["m"] |= {"lr": 0.01, "lr_moe": 0.01}
    config |= {"execution": {"device": "cpu"}, "sweeps": {"dense": {"kind": "dense", "model": "m", "steps": [20]}}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    study = load_study(tmp_path / "config.yaml")
    node = Node(gpus=0, cpus=8, memory_gb=16, max_hours=24)
    workflow = Workflow(study, build_plan(study, tmp_path / "results"), tmp_path / "results", node)
    requests = pending_requests(workflow)
    steps = requests["tokenize_step", ""]
    assert len(steps) == 2 + 1 + 6  # two files, 2,030 bytes in parts of 500, and the held-out text
    assert {request.cpus for request in [*steps, *requests["tokenize", ""]]} == {1}
    assert max(request.memory_mb for request in steps) == steps[2].memory_mb > steps[0].memory_mb == 4000
    (tmp_path / "config.yaml").write_text(json.dumps(config).replace(', "part_bytes": 500', ""))
    study = load_study(tmp_path / "config.yaml")
    small = Workflow(study, workflow.plan, tmp_path / "results", node)
    assert ("tokenize_step", "") not in pending_requests(small)
    assert Cluster(small, node).tokenize("mine-1-bpe300").cpus == 8
