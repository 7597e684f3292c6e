"""Damage: every truncated, altered, missing or foreign file is named; a rolling state falls back to the one before."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import EXECUTION, small_run, tensors_sha256, train_in, upcycled_run, write_tokens

from upcycle.errors import UserError
from upcycle.manifest import DamagedError, read_manifest
from upcycle.study.spec import RunSpec
from upcycle.train.states.rolling import load_rolling, save_rolling

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [truncate, flip_a_bit, empty]


def save_state(folder: Path, step: int, run_id: str = "dense-x") -> Path:
    tensors = {"model.w": torch.full((100,), float(step))}
    return save_rolling(folder, step, tensors, {"id": run_id, "tokens_fingerprint": "f"})


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_rolling_state_falls_back_to_the_one_before_and_says_so(
    damage: Damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        newest = save_state(tmp_path / "resume", step)
    assert len(list((tmp_path / "resume").iterdir())) == 2
    damage(newest)
    found = load_rolling(tmp_path / "resume", "dense-x")
    assert found is not None
    assert found.step == 2
    tensors = {"model.w": torch.zeros(10, 10)}
    found.fill(tensors)
    assert torch.equal(tensors["model.w"], torch.full((10, 10), 2.0))
    with pytest.raises(UserError, match=r"`model.w` too many, no `model.v`; .*--fresh"):
        found.fill({"model.v": torch.zeros(100)})
    assert str(newest) in caplog.text
    assert "damaged" in caplog.text


def test_a_damaged_newer_state_does_not_crowd_out_good_ones(tmp_path: Path) -> None:
    """Going on from 1, those of steps 2 and 3 are of no use: the next state removes them and keeps the good one."""
    folder = tmp_path / "resume"
    old = save_state(folder, 1)
    save_state(folder, 2)
    truncate(max(folder.iterdir()))
    for step in (3, 9):
        (folder / f"step-{step:09d}-{step:064d}").mkdir()  # of several processes
    found = load_rolling(folder, "dense-x")
    assert found is not None
    assert found.step == 1
    new = save_rolling(folder, 2, {"model.w": torch.ones(3)}, {"id": "dense-x"})
    assert sorted(folder.iterdir()) == [old, new]
    truncate(new)
    found = load_rolling(folder, "dense-x")
    assert found is not None
    assert found.path == old


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_good_states_are_kept_after_a_damaged_one(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed at 980, as 990 is damaged: that is set aside under a name that the log tells, and gone with the next
    save, which leaves 980 and 1000. Stopped before it, and 980 lost too, nothing begins anew."""
    folder = tmp_path / "resume"
    good = save_state(folder, 980)
    damaged = save_state(folder, 990)
    truncate(damaged)
    if kind == "folder":
        damaged.unlink()
        damaged = folder / f"step-{990:09d}-{0:064d}"
        for path in (damaged, damaged.with_name(damaged.name + ".damaged")):  # one left by a kill too
            path.mkdir()
            (path / "manifest.json").touch()
    found = load_rolling(folder, "dense-x")
    assert found is not None
    assert found.step == 980
    aside = damaged.with_name(damaged.name + ".damaged")
    assert sorted(folder.iterdir()) == [good, aside]
    assert f"{damaged}: set aside until the next state is saved, as {aside.name}" in caplog.text
    copy = good.read_bytes()
    good.unlink()
    with pytest.raises(DamagedError, match=f"no state in it is valid .{aside.name}"):
        load_rolling(folder, "dense-x")
    good.write_bytes(copy)
    new = save_state(folder, 1000)
    assert sorted(folder.iterdir()) == [good, new]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_state_that_cannot_be_read_falls_back_as_a_damaged_one(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that fails under the newest state; the state before it is read."""
    save_state(tmp_path / "resume", 1)
    newest = save_state(tmp_path / "resume", 2)
    opened = Path.open

    def failing(self: Path, *arguments: str) -> object:
        if self == newest:
            raise OSError(number, os.strerror(number))
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", failing)
    found = load_rolling(tmp_path / "resume", "dense-x")
    assert found is not None
    assert found.step == 1
    assert f"{newest}: damaged, it cannot be read ({os.strerror(number)})" in caplog.text


def test_a_renamed_state_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The step is in the notes, which the SHA-256 covers."""
    folder = tmp_path / "resume"
    save_state(folder, 980)
    path = save_state(folder, 990)
    renamed = path.rename(path.with_name(path.name.replace("000000990", "000009999")))
    found = load_rolling(folder, "dense-x")
    assert found is not None
    assert found.step == 980
    assert found.notes == {"id": "dense-x", "tokens_fingerprint": "f"}
    assert f"{renamed}: damaged, renamed: it was saved after step 990" in caplog.text


def test_a_foreign_rolling_state_is_refused_naming_both_runs(tmp_path: Path) -> None:
    save_state(tmp_path / "resume", 1, "dense-other")
    with pytest.raises(UserError, match="dense-other, not of dense-x"):
        load_rolling(tmp_path / "resume", "dense-x")


def test_training_goes_on_from_the_state_before_a_damaged_one(
    tokens_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path: newest state damaged, the run resumes one step earlier and ends in the same bits."""
    run = small_run()
    reference = train_in(tmp_path / "reference", tokens_dir, run)
    monkeypatch.setattr("upcycle.train.loop.finish", lambda *_, **__: None)
    run_dir = train_in(tmp_path, tokens_dir, run, EXECUTION.model_copy(update={"save_seconds": 1e-6}))
    monkeypatch.undo()
    truncate(max((run_dir / "resume").iterdir()))
    train_in(tmp_path, tokens_dir, run)
    assert tensors_sha256(run_dir) == tensors_sha256(reference)
    assert json.loads((run_dir / "metrics.json").read_text())["resumed"] == 1


@pytest.fixture(scope="module")
def finished(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSpec]:
    root, run = tmp_path_factory.mktemp("finished"), small_run()
    train_in(root, tokens_dir, run)
    return root, run


@pytest.fixture
def family(finished: tuple[Path, RunSpec], tmp_path: Path) -> tuple[Path, RunSpec]:
    """A copy of a finished trunk point, to be damaged."""
    root, run = finished
    shutil.copytree(root / run.id, tmp_path / run.id)
    return tmp_path, run


def children(run: RunSpec) -> list[RunSpec]:
    return [small_run(start_step=12, end_step=14, parent=run.id), upcycled_run(run)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(["weights.safetensors", "state.safetensors"], [*DAMAGES, Path.unlink]),
        *itertools.product(["manifest.json", "spec.json"], [truncate, empty, Path.unlink]),
    ],
)
def test_a_damaged_finished_run_is_named_by_itself_and_by_its_children(
    name: str, damage: Damage, family: tuple[Path, RunSpec], tokens_dir: Path
) -> None:
    """Neither the run nor what starts from it goes on silently with a file that is not what it was."""
    root, run = family
    path = root / run.id / name
    damage(path)
    with pytest.raises(UserError, match=name):
        train_in(root, tokens_dir, run)
    readers = {"state.safetensors": children(run)[:1], "spec.json": children(run)[1:]}
    for child in readers.get(name, children(run)):
        with pytest.raises(UserError, match=name):
            train_in(root, tokens_dir, child)


@pytest.mark.parametrize("content", ["[]", "null", "1", '"id"', "{}"])
def test_a_manifest_of_another_kind_of_json_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)


def test_a_mended_run_is_trained_again_with_fresh(family: tuple[Path, RunSpec], tokens_dir: Path) -> None:
    """Whatever else is in its folder goes, folders too."""
    root, run = family
    before = tensors_sha256(root / run.id)
    (root / run.id / "notes" / "deep").mkdir(parents=True)
    (root / run.id / "elsewhere").symlink_to(root)
    truncate(root / run.id / "weights.safetensors")
    train_in(root, tokens_dir, run, fresh=True)
    assert tensors_sha256(root / run.id) == before
    assert not {"notes", "elsewhere"} & {path.name for path in (root / run.id).iterdir()}


def test_weights_without_manifest_are_an_unfinished_run(family: tuple[Path, RunSpec], tokens_dir: Path) -> None:
    """A kill between weights and manifest: the run is not finished, and is finished by the same command."""
    root, run = family
    before = tensors_sha256(root / run.id)
    for name in ("manifest.json", "metrics.json"):
        (root / run.id / name).unlink()
    flip_a_bit(root / run.id / "weights.safetensors")
    train_in(root, tokens_dir, run)
    assert tensors_sha256(root / run.id) == before


def test_a_folder_of_another_run_is_refused_naming_both(family: tuple[Path, RunSpec], tokens_dir: Path) -> None:
    root, run = family
    other = small_run(end_step=14)
    (root / run.id).rename(root / other.id)
    with pytest.raises(UserError, match=f"{run.id}, not of {other.id}"):
        train_in(root, tokens_dir, other)


def test_a_wrong_parent_is_refused_naming_both(family: tuple[Path, RunSpec], tokens_dir: Path) -> None:
    root, run = family
    child = small_run(start_step=11, end_step=14, parent="dense-else")
    (root / "dense-else").symlink_to(root / run.id)
    with pytest.raises(UserError, match=f"holds run {run.id}, but .* starts from dense-else"):
        train_in(root, tokens_dir, child)
    with pytest.raises(UserError, match=r"ended at step 12, but .* starts at 11"):
        train_in(root, tokens_dir, small_run(start_step=11, end_step=14, parent=run.id))


def test_tokens_changed_under_a_run_are_refused_naming_both_fingerprints(
    family: tuple[Path, RunSpec], tokens_dir: Path, tmp_path: Path
) -> None:
    """A child with other tokens than its parent, and a resumed run with other tokens than it began with."""
    root, run = family
    (tmp_path / "changed").mkdir()
    changed = write_tokens(tmp_path / "changed", seed=1)
    old, new = (json.loads((folder / "manifest.json").read_text())["fingerprint"] for folder in (tokens_dir, changed))
    for child in children(run):
        with pytest.raises(UserError, match=f"{run.id} was trained on fingerprint {old}, now it is {new}"):
            train_in(root, changed, child)
    for name in ("manifest.json", "metrics.json"):
        (root / run.id / name).unlink()
    save_rolling(root / run.id / "resume", 3, {}, {"id": run.id, "tokens_fingerprint": old})
    with pytest.raises(UserError, match=f"fingerprint {old}, now it is {new}"):
        train_in(root, changed, run)


def test_an_upcycled_run_reads_other_text_in_its_parents_pieces_alone(tokens_dir: Path, tmp_path: Path) -> None:
    dense = small_run()
    train_in(tmp_path, tokens_dir, dense)
    child = upcycled_run(dense, data={"dataset": "other", "vocab_size": 64}, end_step=2)
    for pieces in (b"sixty-four others", b"sixty-four pieces"):
        (tmp_path / str(pieces)).mkdir()
        tokens = write_tokens(tmp_path / str(pieces), seed=1, pieces=pieces)
        if b"others" in pieces:
            with pytest.raises(UserError, match=rf"its tokens are of tokenizer .*, those of its parent {dense.id}"):
                train_in(tmp_path, tokens, child)
        else:
            train_in(tmp_path, tokens, child)


def test_tokens_beyond_the_data_are_refused_unless_repeated(tokens_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"128,000 tokens wanted.*repeat: true"):
        train_in(tmp_path, tokens_dir, small_run(end_step=1000))


def test_a_micro_batch_that_splits_a_balance_group_is_refused(tokens_dir: Path, tmp_path: Path) -> None:
    run = small_run(moe={"n_expert": 4, "top_k": 2, "balance_group": 4})
    with pytest.raises(UserError, match=r"micro_batch 2 is not a whole number of moe.balance_group 4"):
        train_in(tmp_path, tokens_dir, run, EXECUTION.model_copy(update={"micro_batch": 2}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_stops_and_never_falls_back(tokens_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device: cuda, but torch finds no CUDA"):
        train_in(tmp_path, tokens_dir, small_run(), EXECUTION.model_copy(update={"device": "cuda"}))
