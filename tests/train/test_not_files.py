"""What is no file, or no text, in the place of a run's file: one line that names it, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import EXECUTION, small_run, tensors_sha256, train_in

from upcycle.errors import UserError
from upcycle.manifest import DamagedError
from upcycle.study.recorded import recorded_spec
from upcycle.train.states.folder import states_in
from upcycle.views.status import read_state

RUN = small_run(end_step=6)
OFTEN = EXECUTION.model_copy(update={"save_seconds": 1e-6})


@pytest.fixture(scope="module")
def finished(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("finished"), tokens_dir, RUN)


@pytest.fixture(scope="module")
def unfinished(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All updates done and two states saved, the end not written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upcycle.train.finish.checkpoint.save_finished", lambda *_, **__: None)
        return train_in(tmp_path_factory.mktemp("unfinished"), tokens_dir, RUN, OFTEN)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("x")


REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    "a folder": folder,
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a folder": lambda path: path.symlink_to(path.parent.parent),
}


def replaced(source: Path, root: Path, name: str, replacement: str) -> Path:
    """A copy of a run's folder in which something else is in the place of one file."""
    run_dir = root / source.name
    shutil.copytree(source, run_dir)
    (run_dir / name).unlink()
    REPLACEMENTS[replacement](run_dir / name)
    return run_dir


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_state_that_is_no_file_is_passed_over(
    replacement: str, unfinished: Path, finished: Path, tokens_dir: Path, tmp_path: Path
) -> None:
    """The run goes on from the state before and ends in the same bits; a link's end, here its folder, stays."""
    newest, older = states_in(unfinished / "resume")
    run_dir = replaced(unfinished, tmp_path, f"resume/{newest.name}", replacement)
    assert train_in(tmp_path, tokens_dir, RUN, OFTEN) == run_dir
    assert tensors_sha256(run_dir) == tensors_sha256(finished)
    assert json.loads((run_dir / "metrics.json").read_text())["resumed"] == 1
    assert not (run_dir / "resume").exists()
    shutil.rmtree(run_dir)
    run_dir = replaced(unfinished, tmp_path, f"resume/{newest.name}", replacement)
    (run_dir / "resume" / older.name).unlink()
    with pytest.raises(DamagedError, match=rf"no state in it is valid .*{newest.name}.*--fresh"):
        train_in(tmp_path, tokens_dir, RUN)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("name", ["weights.safetensors", "spec.json", "metrics.jsonl", "manifest.json", "metrics.json"])
def test_a_finished_runs_file_that_is_none_is_named(
    name: str, replacement: str, finished: Path, tokens_dir: Path, tmp_path: Path
) -> None:
    run_dir = replaced(finished, tmp_path, name, replacement)
    read_state(run_dir, RUN, set())
    if name == "metrics.json" and replacement == "a link to nothing":
        train_in(tmp_path, tokens_dir, RUN)  # restored from the manifest
        assert (run_dir / name).read_bytes() == (finished / name).read_bytes()
        return
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        train_in(tmp_path, tokens_dir, RUN)
    train_in(tmp_path, tokens_dir, RUN, fresh=True)
    assert tensors_sha256(run_dir) == tensors_sha256(finished)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "resume", "lease"])
def test_what_is_in_an_unfinished_runs_way_is_named(
    name: str, replacement: str, unfinished: Path, tokens_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / unfinished.name
    shutil.copytree(unfinished, run_dir)
    shutil.rmtree(run_dir / name) if name == "resume" else (run_dir / name).unlink()
    REPLACEMENTS[replacement](run_dir / name)
    read_state(run_dir, RUN, set())
    harmless = {("resume", "a folder"), ("resume", "a link to a folder"), ("lease", "a link to nothing")}
    if (name, replacement) in harmless:  # a folder without a state; a file that is there once it is written
        train_in(tmp_path, tokens_dir, RUN)
    else:
        with pytest.raises(ValueError, match=f"{name}"):
            train_in(tmp_path, tokens_dir, RUN)


ROWS = {
    "a byte that is no UTF-8": lambda data: data.replace(b"heldout", b"held\xffout", 1),
    "no object": lambda data: b"[1]\n" + data,
    "no step": lambda data: data.replace(b'"step"', b'"stap"', 1),
    "a step in words": lambda data: data.replace(b'"step": 0', b'"step": "0"', 1),
    "no number": lambda data: data.replace(b'"tokens": 0', b'"tokens": NaN', 1),
    "nesting": lambda data: b"[" * 10_000 + b"\n" + data,
}


@pytest.mark.parametrize("damage", ROWS)
def test_a_damaged_row_is_named_and_fresh_begins_anew(
    damage: str, unfinished: Path, finished: Path, tokens_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / unfinished.name
    shutil.copytree(unfinished, run_dir)
    path = run_dir / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(ROWS[damage](before))
    assert path.read_bytes() != before
    read_state(run_dir, RUN, set())
    with pytest.raises(DamagedError, match=r"metrics\.jsonl: line 1 is damaged; .*--fresh"):
        train_in(tmp_path, tokens_dir, RUN)
    train_in(tmp_path, tokens_dir, RUN, fresh=True)
    assert tensors_sha256(run_dir) == tensors_sha256(finished)


def test_a_curve_that_lost_all_its_updates_is_named(unfinished: Path, tokens_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / unfinished.name
    shutil.copytree(unfinished, run_dir)
    path = run_dir / "metrics.jsonl"
    for rows in (b"", path.read_bytes().splitlines(keepends=True)[0]):
        path.write_bytes(rows)
        with pytest.raises(DamagedError, match=r"metrics\.jsonl: has no row of the updates up to the saved step \d"):
            train_in(tmp_path, tokens_dir, RUN)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"\\ud800"', b"[" * 10_000, b"\xff\xfe", b'{"id": "x"}'])
def test_a_specification_that_is_none_is_one_line(
    content: bytes, finished: Path, tokens_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / finished.name
    run_dir.mkdir()
    (run_dir / "spec.json").write_bytes(content)
    for read in (lambda: train_in(tmp_path, tokens_dir, RUN), lambda: recorded_spec(run_dir)):
        with pytest.raises(UserError, match=r"spec\.json(: not a run's specification| is damaged) \(") as error:
            read()
        assert "\n" not in str(error.value)
