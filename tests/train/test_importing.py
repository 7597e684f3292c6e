"""A checkpoint as a finished run, and what begins with it: its weights to the bit, no update, every byte checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import LLAMA, llama_tensors, write_folder, write_weights
from small_runs import EXECUTION, VOCABULARY, rows_of, small_run, tensors_sha256, train_in, upcycled_run, write_tokens

from upcycle.errors import UserError
from upcycle.manifest import STATE, WEIGHTS, read_manifest
from upcycle.study.parent import Checkpoint, identify, noted_hashes
from upcycle.study.spec import RunSpec
from upcycle.train.evaluate import evaluate_run
from upcycle.train.loop import train_run
from upcycle.train.processes.preemption import TrainingError
from upcycle.train.states.checkpoint import read_tensors

D1 = 10**6


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A checkpoint in mine/, and tokens of its tokenizer."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("mine"), vocab_size=VOCABULARY, num_key_value_heads=1, intermediate_size=24, shards=2)
    Path("tokens").mkdir()
    write_tokens(Path("tokens"), given=Path("mine/tokenizer.json"))
    return tmp_path


def imported_run(checkpoint: Checkpoint, **changes: Any) -> RunSpec:
    shape = checkpoint.parent.shape.model_dump(exclude_defaults=True) | {"vocab_size": VOCABULARY, "context": 32}
    about = {"role": "imported", "origin": "checkpoint", "end_step": 0, "dense_tokens": D1}
    return small_run(**about | {"model": shape, "checkpoint": checkpoint.fingerprint} | changes)


def import_mine(checkpoint: Checkpoint, **changes: Any) -> Path:
    run = imported_run(checkpoint)
    options = {"parent_dir": Path("mine"), "files": checkpoint.files} | changes
    train_run(run, run_dir=Path(run.id), tokens_dir=Path("tokens"), execution=EXECUTION, **options)
    return Path(run.id)


@pytest.fixture
def checkpoint(here) -> Checkpoint:
    return identify(Path("mine"), noted_hashes())


def test_an_import_writes_a_finished_run(checkpoint):
    """Weights, no moments, a held-out loss that evaluation finds again, no update; the same command verifies it."""
    folder = import_mine(checkpoint)
    manifest = read_manifest(folder)
    assert manifest["step"] == 0
    assert manifest["files"].keys() == {WEIGHTS, "spec.json", "metrics.jsonl"}
    metrics = manifest["metrics"]
    assert (metrics["kind"], metrics["tokens"], metrics["segment_tokens"], metrics["flops"]) == ("import", D1, 0, 0)
    assert metrics["loss"] == evaluate_run(folder, Path("tokens"), EXECUTION)["loss"]
    assert [set(row) for row in rows_of(folder)] == [{"step", "tokens", "heldout", "subset_tokens"}]
    assert not (folder / "resume").exists()
    before = tensors_sha256(folder)
    assert import_mine(checkpoint) == folder
    (folder / "metrics.json").unlink()
    assert import_mine(checkpoint, parent_dir=None, files=None) == folder
    assert tensors_sha256(folder) == before


def test_weights_are_the_checkpoints_to_the_bit(checkpoint):
    """Query heads are in our order; here both share one head of keys, so the orders are the same."""
    weights = read_tensors(import_mine(checkpoint), WEIGHTS)
    config = LLAMA | {"vocab_size": VOCABULARY, "num_key_value_heads": 1}
    theirs = {name: torch.from_numpy(tensor) for name, tensor in llama_tensors(config).items()}
    assert torch.equal(weights["embed.weight"], theirs["model.embed_tokens.weight"])
    assert torch.equal(weights["head.weight"], theirs["lm_head.weight"])
    parts = [theirs[f"model.layers.1.self_attn.{name}_proj.weight"] for name in ("q", "k", "v")]
    assert torch.equal(weights["blocks.1.attn.wqkv"], torch.cat(parts))


def test_a_continued_run_begins_with_the_parents_weights_and_a_fresh_optimizer(checkpoint):
    """Its first held-out loss is the parent's; the learning rate warms up from step 0; then the loss falls."""
    parent = import_mine(checkpoint)
    start = {"origin": "continued", "dense_parent": parent.name, "parent": parent.name, "dense_tokens": D1}
    run = small_run(**start, model=imported_run(checkpoint).model, optim={"lr": 3e-3, "batch": 4})
    folder = train_in(Path(), Path("tokens"), run)
    rows = rows_of(folder)
    assert rows[0]["heldout"] == rows_of(parent)[0]["heldout"]
    assert [row["lr"] for row in rows if "lr" in row][:4] == [pytest.approx(3e-3 * k / 4) for k in (1, 2, 3, 4)]
    assert rows[-1]["heldout"] < rows[0]["heldout"]
    assert read_manifest(folder)["files"].keys() >= {WEIGHTS, STATE}
    assert not (folder / "receipt.json").exists()


def test_a_continued_run_of_our_own_dense_model(tmp_path):
    """The same from a run that was trained here: not its moments, and not its step count."""
    for name in ("tokens", "other"):
        (tmp_path / name).mkdir()
    tokens = write_tokens(tmp_path / "tokens")
    dense = small_run(role="full", schedule={"kind": "cosine", "warmup_steps": 4})
    parent = train_in(tmp_path, tokens, dense)
    start = {"origin": "continued", "dense_parent": dense.id, "parent": dense.id, "dense_tokens": dense.tokens}
    rows = rows_of(train_in(tmp_path, tokens, small_run(**start)))
    assert rows[0]["step"] == 0
    assert rows[0]["heldout"] == rows_of(parent)[-1]["heldout"]
    other = write_tokens(tmp_path / "other", pieces=b"another tokenizer")
    with pytest.raises(UserError, match=r"its tokens are of tokenizer .* those of its parent"):
        train_in(tmp_path, other, small_run(**start, data={"dataset": "other", "vocab_size": VOCABULARY}))


def test_an_upcycled_run_of_a_checkpoint_keeps_its_function(checkpoint):
    parent = import_mine(checkpoint)
    spec = imported_run(checkpoint)
    run = upcycled_run(spec, model=spec.model, dense_tokens=D1)
    rows = rows_of(train_in(Path(), Path("tokens"), run))
    assert rows[0]["heldout"] == pytest.approx(rows_of(parent)[0]["heldout"], abs=1e-5)


def test_changed_weights_are_refused_before_anything_is_written(checkpoint):
    changed = {name: np.flip(tensor, 0).copy() for name, tensor in weights_of(Path("mine")).items()}
    write_weights(Path("mine"), changed, shards=2)
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors: changed since it was planned"):
        import_mine(checkpoint)
    (folder,) = Path().glob("import-*")
    assert {path.name for path in folder.iterdir()} <= {"spec.json", "lease", "metrics.jsonl"}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return llama_tensors(LLAMA | {"vocab_size": VOCABULARY, "num_key_value_heads": 1})


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.nan, UserError, r"safetensors: tensor model.norm.weight holds NaN or infinity"),
        (3e38, TrainingError, "the held-out loss is not finite: .* Take another checkpoint"),
    ],
    ids=["no number", "overflow"],
)
def test_a_checkpoint_that_computes_no_loss_is_refused(here, value, error, words):
    write_weights(Path("mine"), weights_of(Path("mine")) | {"model.norm.weight": np.full(16, value, np.float32)}, 2)
    with pytest.raises(error, match=words):
        import_mine(identify(Path("mine"), noted_hashes()))
    (folder,) = Path().glob("import-*")
    assert {path.name for path in folder.iterdir()} <= {"spec.json", "lease", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parent_dir": None}, "name the folder of its checkpoint"),
        ({"files": {"model.safetensors": "0" * 64}}, "mine is not the checkpoint of import-dense"),
        ({"parent_dir": Path("other")}, "other is not the checkpoint of import-dense"),
    ],
)
def test_another_folder_or_other_hashes_are_refused(checkpoint, changes, words):
    write_folder(Path("other"), vocab_size=VOCABULARY, num_key_value_heads=1, rope_theta=5e5, shards=2)
    with pytest.raises(UserError, match=words):
        import_mine(checkpoint, **changes)


def test_tokens_of_another_tokenizer_are_refused(checkpoint):
    Path("mine/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokens is not of tokenizer mine/tokenizer.json"):
        import_mine(checkpoint)
