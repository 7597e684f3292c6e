"""Random damage to any file that a run leaves: a hundred and more draws of each kind of state, none accepted."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from corruptions import corrupt
from small_runs import small_run, train_in, upcycled_run

from upcycle.laws.tables.losses import collect_losses
from upcycle.manifest import METRICS, DamagedError, read_manifest
from upcycle.study.spec import RunSpec
from upcycle.train.states.checkpoint import read_spec, read_tensors, verify_finished
from upcycle.train.states.rolling import load_rolling, save_rolling

DRAWS = 120


def test_no_damaged_one_file_state_is_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each falls back to the state before and names the damaged one; without a state before it is a clear stop."""
    draw = random.Random(1)
    values = {step: torch.randn(64, generator=torch.Generator().manual_seed(step)) for step in (7, 8)}
    for step, value in values.items():
        save_rolling(tmp_path / "whole", step, {"model.w": value}, {"id": "dense-x"})
    kinds: Counter[str] = Counter()
    for _ in range(DRAWS):
        folder = tmp_path / "resume"
        shutil.copytree(tmp_path / "whole", folder)
        older, newest = sorted(folder.iterdir())
        caplog.clear()
        kind = corrupt(newest, draw)
        kinds[kind] += 1
        state = load_rolling(folder, "dense-x")
        assert state is not None
        assert state.step == 7, f"{kind} was accepted"
        tensors = {"model.w": torch.empty(64)}
        state.fill(tensors)
        assert torch.equal(tensors["model.w"], values[7])
        if kind != "deleted":
            assert str(newest) in caplog.text
            corrupt_to_the_end(older, draw)
            with pytest.raises(DamagedError, match=rf"no state in it is valid .*{newest.name}.*--fresh"):
                load_rolling(folder, "dense-x")
        shutil.rmtree(folder)
    assert len(kinds) == 6, kinds


def corrupt_to_the_end(path: Path, draw: random.Random) -> None:
    """Damage a file in a way that leaves it there."""
    data = path.read_bytes()
    while corrupt(path, draw) == "deleted":
        path.write_bytes(data)


@pytest.fixture(scope="module")
def finished(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[RunSpec, Path]:
    """A finished trunk point and a finished upcycled run."""
    root = tmp_path_factory.mktemp("finished")
    dense = small_run()
    return {run: train_in(root, tokens_dir, run) for run in (dense, upcycled_run(dense))}


def test_no_damaged_file_of_a_finished_run_is_accepted(
    finished: dict[RunSpec, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any file at all: the run names it and stops; metrics.json alone, which the manifest keeps, is restored."""
    draw = random.Random(2)
    damaged: Counter[str] = Counter()
    for index in range(2 * DRAWS):
        run = draw.choice(list(finished))
        folder = tmp_path / str(index) / run.id
        shutil.copytree(finished[run], folder)
        path = draw.choice(sorted(path for path in folder.iterdir() if path.name != "lease"))
        kind = corrupt(path, draw)
        damaged[path.name] += 1
        if path.name == METRICS:
            check_metrics_are_restored(finished[run], folder, deleted=kind == "deleted", caplog=caplog)
        else:
            with pytest.raises(DamagedError, match=path.name):
                verify_finished(folder, run.id)
            check_readers_stop(folder, path.name)
        shutil.rmtree(folder)
    assert set(damaged) == {path.name for folder in finished.values() for path in folder.iterdir()} - {"lease"}
    assert min(damaged.values()) >= 10, damaged


def check_metrics_are_restored(whole: Path, folder: Path, *, deleted: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A table of losses refuses damaged metrics; the run restores them and says so."""
    same = not deleted and json_or_none(folder / METRICS) == json_or_none(whole / METRICS)
    if not same:  # bytes that mean the same numbers, a newline more, harm no table
        with pytest.raises(ValueError, match=METRICS):
            collect_losses([folder], {}, {})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert verify_finished(folder, whole.name)
    assert f"{folder / METRICS} was {'missing' if deleted else 'damaged'}; restored from manifest.json" in caplog.text
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def json_or_none(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def check_readers_stop(folder: Path, name: str) -> None:
    """What a child, an evaluation or a table reads of the damaged file is refused by name."""
    if name.endswith(".safetensors") or name == "manifest.json":
        tensors = name if name.endswith(".safetensors") else "weights.safetensors"
        with pytest.raises(DamagedError, match=name):
            read_tensors(folder, tensors)
    if name == "spec.json":
        with pytest.raises(DamagedError, match=name):
            read_spec(folder)


def test_a_manifest_without_its_seal_is_damaged(finished: dict[RunSpec, Path], tmp_path: Path) -> None:
    """No `sha256`, that key misspelt, one key more, or another value: each is named with how to fix it."""
    source = next(iter(finished.values()))
    shutil.copytree(source, tmp_path / source.name)
    path = tmp_path / source.name / "manifest.json"
    sealed = json.loads(path.read_text())
    content = {key: value for key, value in sealed.items() if key != "sha256"}
    assert read_manifest(path.parent) == content
    seal = sealed["sha256"]
    for damaged in (content, content | {"sha25v": seal}, sealed | {"more": 1}, content | {"step": 11, "sha256": seal}):
        path.write_text(json.dumps(damaged, indent=1) + "\n")
        with pytest.raises(DamagedError, match=r"manifest\.json: damaged.*--fresh"):
            read_manifest(path.parent)


def test_a_damaged_row_of_an_unfinished_run_is_named(tokens_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / small_run().id
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0, "heldout": 4.0}\n{"step": 1, "lo\n{"step"')
    with pytest.raises(DamagedError, match=r"metrics\.jsonl: line 2 is damaged"):
        train_in(tmp_path, tokens_dir, small_run())


def shapes_of(state: Path) -> dict[str, list[int]]:
    data = state.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
