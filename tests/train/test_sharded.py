"""Rolling states of several processes: saved together, read by any number, refused when damaged."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from corruptions import corrupt
from sharded_processes import NOTES, whole

from upcycle.manifest import DamagedError
from upcycle.train.states.folder import clear_temporaries, prune
from upcycle.train.states.rolling import load_rolling, save_rolling

pytestmark = pytest.mark.slow

DRAWS = 120


def run_processes(scenarios: str, size: int, folder: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "sharded_processes.py"
    done = subprocess.run(
        [sys.executable, script, scenarios, str(size), folder], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `resume` holds the states of two processes after steps 2 and 3; `more` is of another test."""
    folder = tmp_path_factory.mktemp("sharded")
    run_processes("save,beside,full,overtaken,stuck", 2, folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(saved / "resume", tmp_path / "resume")
    return tmp_path


def filled(folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and tensors of the newest state, read by this one process, in the shapes of a single process."""
    state = load_rolling(folder / "resume", "dense-x")
    assert state is not None
    assert state.notes == NOTES
    flat = {"model.stack": (24, 6), "model.uneven": (5, 4), "model.norm": (7,)}
    tensors = {name: torch.zeros(shape) for name, shape in flat.items()}
    state.fill(tensors)
    return state.step, tensors


def test_one_process_reads_a_state_of_two(saved: Path) -> None:
    """Bit for bit, in its own shapes: the stack of three as one matrix."""
    step, tensors = filled(saved)
    assert step == 3
    for name, expected in whole(3).items():
        assert torch.equal(tensors[name], expected.view(tensors[name].shape))


def test_three_processes_read_states_of_two_and_of_one(copied: Path) -> None:
    """Five rows over three processes, two of which wrote them; and a file that one process wrote."""
    one = {name: value.view(-1, 6) if name == "model.stack" else value for name, value in whole(4).items()}
    (copied / "one").mkdir()
    save_rolling(copied / "one" / "resume", 4, one, NOTES)
    run_processes("load", 3, copied)


def test_a_save_runs_beside_training_and_a_full_disk_is_everyones_error(saved: Path) -> None:
    """As the processes assert (`scenario_beside`, `scenario_full`); steps 6 and 7 found the disk full under one."""
    assert [path.name[:14] for path in sorted((saved / "more" / "resume").iterdir())] == [
        "step-000000005",
        "step-000000008",
    ]


def test_a_process_may_begin_the_next_save_before_a_failed_one_is_removed(saved: Path) -> None:
    """As the processes assert (`scenario_overtaken`), which hold the removal up until then."""
    assert [path.name[:14] for path in (saved / "overtaken" / "resume").iterdir()] == ["step-000000010"]


def test_a_stuck_process_ends_a_save_after_the_stated_time(saved: Path) -> None:
    """As the processes assert (`scenario_stuck`), with a second in place of `saving.TIMEOUT`; no half state is left."""
    assert list((saved / "stuck" / "resume").iterdir()) == []


def test_states_of_both_kinds_are_kept_and_pruned_by_step(copied: Path) -> None:
    """1 -> 2 -> 1 processes: the newest valid one counts, whichever kind it is; the last two stay."""
    save_rolling(copied / "resume", 4, whole(4), NOTES)
    names = sorted(path.name[:14] + path.suffix for path in (copied / "resume").iterdir())
    assert names == ["step-000000003", "step-000000004.safetensors"]
    assert filled(copied)[0] == 4
    newest = max((copied / "resume").iterdir())
    newest.write_bytes(b"")
    assert filled(copied)[0] == 3


def test_a_pruner_killed_half_way_leaves_no_state_behind(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is renamed before its files go, and swept away by the next start."""
    monkeypatch.setattr("upcycle.train.states.folder.KEPT", 1)
    with monkeypatch.context() as patch:
        patch.setattr("upcycle.train.states.folder.remove", lambda _: None)
        prune(copied / "resume")
    left = sorted(path.name for path in (copied / "resume").iterdir())
    assert left[0].startswith("step-000000002")
    assert left[0].endswith(".tmp")
    assert filled(copied)[0] == 3
    clear_temporaries(copied)
    assert len(list((copied / "resume").iterdir())) == 1


def test_a_renamed_folder_is_refused(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = max((copied / "resume").iterdir())
    renamed = newest.rename(newest.with_name(newest.name.replace("000000003", "000009999")))
    assert filled(copied)[0] == 2
    assert f"{renamed}: damaged, renamed: it was saved after step 3" in caplog.text


def test_no_damaged_folder_is_accepted(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any file of the newest state: it is named, nothing of it is unpickled, and the state before it is read."""
    draw = random.Random(3)
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    unpickled: list[Path] = []
    read_metadata = torch.distributed.checkpoint.FileSystemReader.read_metadata

    def watched(self: torch.distributed.checkpoint.FileSystemReader, *arguments: object, **named: object) -> object:
        unpickled.append(Path(self.path))
        return read_metadata(self, *arguments, **named)

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemReader.read_metadata", watched)
    for index in range(DRAWS):
        shutil.copytree(saved / "resume", tmp_path / str(index) / "resume")
        older, newest = sorted((tmp_path / str(index) / "resume").iterdir())
        path = draw.choice(sorted(newest.iterdir()))
        caplog.clear()
        kinds[corrupt(path, draw)] += 1
        names[path.name] += 1
        step, tensors = filled(tmp_path / str(index))
        assert step == 2
        assert torch.equal(tensors["model.norm"], whole(2)["model.norm"])
        assert f"{path}: damaged" in caplog.text
        corrupt(older / draw.choice(sorted(SEEN & {found.name for found in older.iterdir()})), draw)
        with pytest.raises(DamagedError, match=r"no state in it is valid .*--fresh"):
            load_rolling(tmp_path / str(index) / "resume", "dense-x")
        assert set(unpickled) == {older}
        unpickled.clear()
        shutil.rmtree(tmp_path / str(index))
    assert len(kinds) == 6, kinds
    assert set(names) == {"manifest.json", ".metadata", "__0_0.distcp", "__1_0.distcp"}, names


SEEN = {"manifest.json", ".metadata", "__0_0.distcp", "__1_0.distcp"}
