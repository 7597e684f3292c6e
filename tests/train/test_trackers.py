"""Copies of a run's curve: TensorBoard's event files and an offline run of Weights & Biases, read back from disk."""

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preempted import preempt_at
from small_runs import MOE, small_run, train_in, write_tokens

from upcycle.errors import UserError
from upcycle.study import execution
from upcycle.study.execution import Execution
from upcycle.train.record import MetricsLog
from upcycle.train.trackers import Trackers, scalars

RUN = small_run(moe=MOE, end_step=12)
STOPPED = 7


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tracked(name: str) -> Execution:
    return Execution(device="cpu", log_steps=1, trackers=[name])


def events(folder: Path) -> Iterator[Any]:
    """Events of TensorBoard's files: records of a length, its checksum, the event, its checksum."""
    event = importlib.import_module("tensorboardX.proto.event_pb2").Event
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def curve_in_tensorboard(folder: Path) -> list[tuple[str, int, float]]:
    found = [
        (value.tag, event.step, value.simple_value)
        for event in events(folder / "tensorboard")
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]
    return sorted(found)


def test_event_files_have_each_row_once_after_a_resume(tokens_dir, tmp_path):
    pytest.importorskip("tensorboardX")
    preempt_at(STOPPED, tmp_path, tokens_dir, RUN, tracked("tensorboard"))
    before = curve_in_tensorboard(tmp_path / RUN.id)
    assert max(step for _, step, _ in before) == STOPPED
    folder = train_in(tmp_path, tokens_dir, RUN, tracked("tensorboard"))
    expected = [(tag, row["step"], x) for row in rows_of(folder) for tag, x in scalars(row).items() if tag != "step"]
    found = curve_in_tensorboard(folder)
    assert [(tag, step) for tag, step, _ in found] == [(tag, step) for tag, step, _ in sorted(expected)]
    assert [x for *_, x in found] == pytest.approx([x for *_, x in sorted(expected)], rel=1e-6)
    assert {"loss", "heldout", "lr", "grad_norm", "mfu", "entropy/0", "load_max/1"} <= {tag for tag, *_ in found}
    assert len(list((folder / "tensorboard").iterdir())) == 1


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(parts)
            parts = b""


def curve_in_wandb(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def test_an_offline_run_of_wandb_has_each_row_once_after_a_resume(tokens_dir, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    preempt_at(STOPPED, tmp_path, tokens_dir, RUN, tracked("wandb"))
    assert curve_in_wandb(tmp_path / RUN.id)[-1]["step"] == STOPPED
    folder = train_in(tmp_path, tokens_dir, RUN, tracked("wandb"))
    assert curve_in_wandb(folder) == [scalars(row) for row in rows_of(folder)]


def test_a_missing_library_is_named_before_anything_starts(tokens_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"execution\.trackers: wandb needs the library wandb: `pip install wandb`"):
        train_in(tmp_path, tokens_dir, RUN, tracked("wandb"))
    assert not (tmp_path / RUN.id).exists()


class Failing:
    """A tracker that breaks after so many rows."""

    def __init__(self, rows: int) -> None:
        self.left, self.closed = rows, False

    def log(self, index: int, row: object) -> None:
        if index == self.left:
            raise ConnectionError("no route to host")

    def close(self, *, failed: bool) -> None:
        self.closed = True


def test_a_tracker_that_fails_is_left_out_and_the_curve_is_whole(tmp_path, caplog):
    broken, whole = Failing(1), Failing(9)
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, trackers=Trackers({"broken": broken, "whole": whole})) as metrics:
        for step in range(3):
            metrics.append({"step": step, "loss": 3.0})
    assert [row["step"] for row in metrics.rows()] == [0, 1, 2]
    assert "broken: no route to host" in caplog.text
    assert (broken.closed, whole.closed) == (False, True)


def test_a_number_that_is_not_finite_is_left_out():
    row = {"step": 4, "loss": None, "skipped": True, "entropy": [0.5, 1.0], "load": [[0.75, 0.25], [0.5, 0.5]]}
    assert scalars(row) == {
        "step": 4, "skipped": 1, "entropy/0": 0.5, "entropy/1": 1.0, "load_max/0": 0.75, "load_max/1": 0.5
    }  # fmt: skip
