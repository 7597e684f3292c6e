"""`upcycle export`: what transformers loads is the run; what it cannot hold is refused; nothing is half-written."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_text import write_texts
from safetensors.torch import load_file
from small_runs import EXECUTION, MOE, small_run, upcycled_run

from upcycle.cli import main
from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.errors import UserError
from upcycle.manifest import WEIGHTS
from upcycle.model.hub import read_checkpoint
from upcycle.model.interop import to_hugging_face
from upcycle.study.parent import identify, noted_hashes
from upcycle.study.shape import ModelShape, ModelSpec
from upcycle.study.spec import RunSpec
from upcycle.train import export
from upcycle.train.export import export_run
from upcycle.train.loop import train_run
from upcycle.train.processes.preemption import TrainingError
from upcycle.train.states.checkpoint import read_spec, read_tensors

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
PIECES = 300
SHAPE = {"n_layer": 2, "d_model": 24, "n_head": 4, "n_kv_head": 2, "d_mlp": 40, "vocab_size": PIECES, "context": 32}
DATA = {"dataset": "words", "vocab_size": PIECES, "repeat": True}
BRIEF = {"data": DATA, "optim": {"lr": 2e-2, "batch": 4}, "end_step": 12}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A results folder with the tokens of a made-up text and no runs."""
    root = tmp_path_factory.mktemp("results")
    write_texts(root)
    texts = {"files": [root / "words.jsonl"], "heldout_files": [root / "heldout.jsonl"]}
    tokenize_corpus("words", root / "tokens" / dense().data.tokens_id, vocab_size=PIECES, **texts)
    return root


@pytest.fixture(scope="module")
def trained(results) -> Callable[..., Path]:
    """Folder of a finished run of a few steps, trained when it is first asked for, its parent with it."""

    def trained(run: RunSpec, parent: RunSpec | None = None) -> Path:
        folder = results / "runs" / run.id
        if not (folder / "metrics.json").exists():
            parent_dir = trained(parent) if parent else None
            tokens_dir = results / "tokens" / run.data.tokens_id
            where = {"run_dir": folder, "tokens_dir": tokens_dir, "parent_dir": parent_dir}
            train_run(run, **where, execution=EXECUTION, evaluate=run.moe is not None)
        return folder

    return trained


def dense(**shape: Any) -> RunSpec:
    return small_run(**BRIEF, model=SHAPE | shape)


def upcycled(*, gate: str = "topk_softmax", top_k: int = 2, **shape: Any) -> tuple[RunSpec, RunSpec]:
    """A mixture and the dense run that it was upcycled from."""
    parent = dense(**shape)
    return upcycled_run(parent, **BRIEF, model=SHAPE | shape, moe=MOE | {"gate": gate, "top_k": top_k}), parent


LINEAR = {"kind": "linear", "factor": 2}
LLAMA3 = {"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_context": 16}
CASES = {
    "LlamaForCausalLM": (dense(), None),
    "LlamaForCausalLM tied": (dense(tied=True), None),
    "LlamaForCausalLM llama3": (dense(rope_base=5e5, rope_scaling=LLAMA3), None),
    "LlamaForCausalLM linear": (dense(rope_scaling=LINEAR), None),
    "MistralForCausalLM": (dense(n_head=5, n_kv_head=5, d_head=6), None),
    "Qwen2ForCausalLM": (dense(qkv_bias=True), None),
    "Qwen3ForCausalLM": (dense(qk_norm=True, d_head=8), None),
    "MixtralForCausalLM": upcycled(),
    "MixtralForCausalLM tied": upcycled(gate="softmax_topk_renormalised", tied=True, d_head=8),
    "MixtralForCausalLM top-1": upcycled(gate="topk_softmax", top_k=1),
    "MixtralForCausalLM all": upcycled(gate="softmax_topk", top_k=4),
    "Qwen2MoeForCausalLM": upcycled(gate="softmax_topk"),
    "Qwen2MoeForCausalLM biases": upcycled(qkv_bias=True, rope_scaling=LINEAR),
    "Qwen3MoeForCausalLM": upcycled(gate="softmax_topk", qk_norm=True),
    "Qwen3MoeForCausalLM renormalised": upcycled(qk_norm=True, tied=True),
}


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_what_the_run_computes(name, trained, results, tmp_path, monkeypatch):
    """To 1e-5 of the largest logit. Its weights are the run's to the bit. Planned and imported again, a dense run is
    what it was, to the bit."""
    monkeypatch.chdir(tmp_path)
    run, parent = CASES[name]
    run_dir, folder = trained(run, parent), tmp_path / "out"
    compared = export_run(run_dir, results / "tokens" / run.data.tokens_id, folder)
    assert compared.difference <= 1e-5 * compared.largest
    assert compared.tokens > 500
    weights = read_tensors(run_dir, WEIGHTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == name.split()[0]
    theirs = model.state_dict()
    for tensor, weight in to_hugging_face(weights, run.model, run.moe).items():
        assert torch.equal(theirs[tensor], weight), tensor
    if run.moe is None:
        found = identify(folder, noted_hashes())
        shape = run.model.model_dump(include=set(ModelShape.model_fields), exclude={"init_std", "output_init"})
        again = ModelSpec(**dict(found.parent.shape), vocab_size=found.parent.rows, context=found.parent.context)
        assert again.model_dump(include=set(shape)) == shape
        imported = read_checkpoint(folder, again, found.files)
        assert imported.keys() == weights.keys()
        assert all(torch.equal(imported[tensor], weight) for tensor, weight in weights.items())


@pytest.fixture(scope="module")
def mixture(trained) -> Path:
    return trained(*CASES["MixtralForCausalLM"])


def test_large_files_are_cut_and_indexed(mixture, results, tmp_path, monkeypatch):
    """No file is larger than the limit; transformers loads all of them, or `export_run` would raise."""
    monkeypatch.setattr(export, "SHARD_BYTES", 60_000)
    folder = tmp_path / "out"
    export_run(mixture, results / "tokens" / read_spec(mixture).data.tokens_id, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == names
    sizes = {}
    for name in names:
        shard = load_file(folder / name)
        assert {tensor for tensor, place in index["weight_map"].items() if place == name} == shard.keys()
        sizes[name] = sum(tensor.nbytes for tensor in shard.values())
    assert len(names) > 2
    assert max(sizes.values()) <= 60_000
    assert index["metadata"]["total_size"] == sum(sizes.values())


def test_the_verb_takes_an_id_or_a_folder(mixture, results, tmp_path, monkeypatch, capsys):
    """An empty folder is written into. The card states tokens, losses and an unknown licence; text is generated."""
    byid, byfolder, inside = tmp_path / "byid", tmp_path / "new" / "byfolder", tmp_path / "inside"
    (tmp_path / "results").symlink_to(results)
    byid.mkdir()
    inside.mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["export", mixture.name, "byid"]) == 0
    assert "of the largest logit" in capsys.readouterr().out
    monkeypatch.chdir(mixture)
    assert main(["export", ".", str(byfolder)]) == 0
    monkeypatch.chdir(inside)
    assert main(["export", str(mixture), "."]) == 0
    files = {path.name: path.read_bytes() for path in byid.iterdir()}
    for folder in (byfolder, inside):
        assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == settings | {"README.md", "model.safetensors"}
    card, run = files["README.md"].decode(), read_spec(mixture)
    metrics = json.loads((mixture / "metrics.json").read_text())
    loss = f"{metrics['loss']:.4f} ± {metrics['loss_se']:.4f}"
    assert all(words in card for words in (loss, f"{run.tokens:,}", f"{run.dense_tokens:,}", "license: unknown"))
    assert "| its parent | words | not evaluated |" in card
    assert str(results) not in card
    model = transformers.AutoModelForCausalLM.from_pretrained(byid)
    tokenizer = transformers.AutoTokenizer.from_pretrained(byid)
    given = tokenizer("the cat sat", return_tensors="pt")
    text = model.generate(**given, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert len(text[0]) == given["input_ids"].shape[1] + 5
    end = TokenSet(results / "tokens" / run.data.tokens_id).manifest["end_of_text"]
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == end
    assert model.config.bos_token_id is None


def refused(run_dir: Path, results: Path, folder: Path) -> str:
    """The message of an export that is refused; it leaves nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises((UserError, TrainingError)) as error:
        export_run(run_dir, results / "tokens" / read_spec(run_dir).data.tokens_id, folder)
    assert sorted(folder.parent.iterdir()) == before
    return str(error.value)


def test_other_logits_are_refused_and_removed(mixture, results, tmp_path, monkeypatch):
    """As if an expert in the file were another one."""
    real = export.file_tensors

    def swapped(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = real(*arguments)
        one, other = (f"model.layers.1.block_sparse_moe.experts.{number}.w2.weight" for number in (0, 1))
        return tensors | {one: tensors[other], other: tensors[one]}

    monkeypatch.setattr(export, "file_tensors", swapped)
    assert "1e-05 is allowed, so nothing is exported" in refused(mixture, results, tmp_path / "out")


def test_a_tensor_that_transformers_would_draw_anew_is_refused(mixture, results, tmp_path, monkeypatch):
    """It only warns where the file lacks one."""
    real = export.file_tensors

    def without(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = real(*arguments)
        del tensors["model.norm.weight"]
        return tensors

    monkeypatch.setattr(export, "file_tensors", without)
    assert "model.norm.weight" in refused(mixture, results, tmp_path / "out")


def test_a_near_tie_of_the_router_is_left_out_with_what_follows(mixture, monkeypatch):
    run, weights = read_spec(mixture), read_tensors(mixture, WEIGHTS)
    ids = torch.arange(64).view(2, 32)
    _, decided = export._logits(run, weights, ids)
    assert decided.all()
    monkeypatch.setattr(export, "UNDECIDED", 0.05)
    _, decided = export._logits(run, weights, ids)
    assert 0 < decided.sum() < 64
    assert (decided.int().diff(dim=1) <= 0).all()


def test_a_folder_that_holds_something_is_refused(mixture, results, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        assert f"{name}: is there already" in refused(mixture, results, tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_what_no_class_holds_is_refused_by_name(trained, results, tmp_path):
    run_dir = trained(dense(qkv_bias=True, qk_norm=True))
    assert "qkv_bias with qk_norm has no Hugging Face form" in refused(run_dir, results, tmp_path / "out")


def test_tokens_of_another_tokenizer_are_refused(trained, results, tmp_path):
    run = dense()
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts")
    other = {"files": [tmp_path / "texts" / "heldout.jsonl"], "heldout_files": [tmp_path / "texts" / "other.jsonl"]}
    tokenize_corpus("words", tmp_path / "other" / "tokens" / run.data.tokens_id, vocab_size=PIECES, **other)
    message = f"its tokenizer is not the one that {run.id} was trained with"
    assert message in refused(trained(run), tmp_path / "other", tmp_path / "out")


def test_without_transformers_it_says_what_to_install(mixture, results, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'transformers" in refused(mixture, results, tmp_path / "out")


@pytest.mark.parametrize("name", ["../../etc", "dense-l2d24", "a;touch x", "/", "results"])
def test_what_is_no_run_is_refused_by_name(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "results" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["export", name, "out"]) == 2
    assert f"no run `{name}` in results/runs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["results", "runs"]
