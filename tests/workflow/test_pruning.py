"""Removal by `keep`: what goes and when, what readers are told, and what it costs to have a file again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import Checkout
from small_runs import small_run, train_in, write_tokens

from upcycle.errors import UserError
from upcycle.manifest import STATE, WEIGHTS, DamagedError, RemovedError, read_manifest, removed_files
from upcycle.study.recorded import is_finished
from upcycle.train.states.checkpoint import read_tensors, verify_finished
from upcycle.train.states.lease import lease
from upcycle.workflow.pruning import remove_files

BY = {STATE: "keep.state: none of study `test`", WEIGHTS: "keep.weights: none of study `test`"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "tokens").mkdir()
    return train_in(root, write_tokens(root / "tokens"), small_run(end_step=6))


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def test_a_removed_file_is_recorded_and_the_run_stays_finished(run_dir):
    before = read_manifest(run_dir)
    assert remove_files(run_dir, {STATE: BY[STATE]}) == [STATE]
    after = read_manifest(run_dir)
    note = removed_files(after)[STATE]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", note["time"])
    assert note["by"] == BY[STATE]
    assert {key: after[key] for key in before} == before
    assert verify_finished(run_dir, run_dir.name)
    assert read_tensors(run_dir, WEIGHTS)
    with pytest.raises(RemovedError, match=rf"{STATE}: removed on .* by keep.state: none of study `test`; .*--fresh"):
        read_tensors(run_dir, STATE)
    assert remove_files(run_dir, BY) == [WEIGHTS]
    assert removed_files(read_manifest(run_dir))[STATE] == note  # of when it went, not of the last look
    assert remove_files(run_dir, BY) == []


def test_a_file_that_is_missing_without_a_record_is_damage(run_dir):
    (run_dir / STATE).unlink()
    with pytest.raises(DamagedError, match="missing"):
        verify_finished(run_dir, run_dir.name)


def test_nothing_is_removed_beside_a_writer_or_without_a_sound_manifest(run_dir):
    with lease(run_dir), pytest.raises(UserError, match="another process is writing"):
        remove_files(run_dir, BY)
    (run_dir / "manifest.json").write_text("{}")
    with pytest.raises(DamagedError):
        remove_files(run_dir, BY)
    assert (run_dir / STATE).exists()
    assert (run_dir / WEIGHTS).exists()


@pytest.mark.slow
@pytest.mark.parametrize("call", ["Path.replace", "Path.unlink"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_kill_in_the_middle_loses_nothing_and_the_next_call_ends_it(run_dir, call, after):
    """SIGKILL before the manifest is renamed, after that, between two files, after both."""
    code = f"""
import os, signal
from pathlib import Path
from upcycle.workflow.pruning import remove_files
done, counted = {call}, [0]
def kill(self, *more, **named):
    if counted[0] == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    counted[0] += 1
    return done(self, *more, **named)
{call} = kill
remove_files(Path({str(run_dir)!r}), {BY!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    renamed = (call, after) == ("Path.replace", 1)
    assert done.returncode == (0 if renamed else -signal.SIGKILL), done.stderr
    assert is_finished(run_dir)
    assert verify_finished(run_dir, run_dir.name)
    recorded = removed_files(read_manifest(run_dir)).keys()
    assert all((run_dir / name).exists() or name in recorded for name in BY)
    remove_files(run_dir, BY)
    assert not any((run_dir / name).exists() for name in BY)
    assert verify_finished(run_dir, run_dir.name)
    assert not list(run_dir.glob("*.tmp"))


# Through Snakemake


def tensors(checkout: Checkout) -> dict[str, set[str]]:
    """Which tensor files each run has, `s` and `w`."""
    folders = (checkout.root / "results/runs").iterdir()
    return {path.name: {file.name[0] for file in path.glob("*.safetensors")} for path in folders}


def upcycle(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "upcycle.cli", *words]
    return subprocess.run(
        command, cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.workflow
def test_a_study_keeps_what_it_says_and_extends_from_there(checkout):
    """Last points stay: a longer budget continues. The others go, and a budget between begins at the start."""
    before = {path.parent.name: path.read_bytes() for path in checkout.root.glob("results/runs/*/metrics.json")}
    checkout.edit("config.yaml", "moes:\n", "keep: {state: last, weights: finished}\nmoes:\n")
    assert checkout.jobs() == {"prune": 5}
    checkout.run()
    found = tensors(checkout)
    trunks = {run for run in found if not run.startswith("decay-")}
    assert sorted(map(sorted, (found[run] for run in trunks))) == [[]] * 5 + [["s", "w"]] * 4
    assert all(found[run] == {"w"} for run in found.keys() - trunks)
    assert {path.parent.name: path.read_bytes() for path in checkout.root.glob("results/runs/*/metrics.json")} == before
    assert checkout.jobs() == {}
    assert "damaged" not in upcycle(checkout, "status").stdout
    checkout.edit("config.yaml", "steps: [20, 80]}\nev", "steps: [20, 40, 80, 160]}\nev")
    runs = json.loads(upcycle(checkout, "plan", "--json").stdout)["runs"]
    starts = {(run["end_step"], run["start_step"]) for run in runs if run["lineage"] == "up" and run["role"] == "trunk"}
    assert starts == {(18, 0), (36, 0), (72, 18), (144, 72)}


@pytest.mark.workflow
def test_another_studys_planned_child_keeps_its_parents_files(checkout):
    """The second study upcycles from dense models of the first: they stay until it has; then they go."""
    checkout.edit("config.yaml", "moes:\n", "keep: {state: none, weights: none}\nmoes:\n")
    (checkout.root / "config").mkdir()
    second = (Path(__file__).parent / "second.yaml").read_text()
    (checkout.root / "config/second.yaml").write_text(second)
    plan = json.loads(upcycle(checkout, "plan", "--json", "--study", "second").stdout)["runs"]
    wanted = {run["parent"] for run in plan if not run["finished"]} & tensors(checkout).keys()
    assert wanted
    assert upcycle(checkout, "prune").returncode == 0
    found = tensors(checkout)
    assert {run for run in found if found[run]} == wanted
    (checkout.root / "config/second.yaml").write_text("study: second\n")
    words = "keep removes nothing while config/second.yaml, whose study may read the same runs, cannot be planned: "
    for done in (upcycle(checkout, "prune"), upcycle(checkout, "plan"), checkout.run()):
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(words) == done.stderr.count("second.yaml") == 1, done.stderr
    assert {run for run in tensors(checkout) if tensors(checkout)[run]} == wanted
    os.unlink(checkout.root / "config/second.yaml")  # noqa: PTH108
    assert upcycle(checkout, "prune").returncode == 0
    assert not any(tensors(checkout).values())


@pytest.mark.workflow
def test_what_a_removed_model_costs_is_said_and_one_command_a_run_brings_it_back(checkout):
    """Nothing is trained again by itself; the commands of the message restore the files bit for bit."""
    kept = {path: path.read_bytes() for path in checkout.root.glob("results/runs/*dense*/weights.safetensors")}
    checkout.edit("config.yaml", "moes:\n", "keep: {state: none, weights: none}\nmoes:\n")
    assert upcycle(checkout, "prune").returncode == 0
    assert not any(tensors(checkout).values())
    assert checkout.jobs() == {}
    checkout.edit(
        "config.yaml", "dense_steps: [20, 80], steps: [20, 80]", "dense_steps: [20, 80], steps: [20, 80, 160]"
    )
    done = checkout.run("-n", check=False)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert re.search(
        r"reads results/runs/decay-dense\S+/weights.safetensors, which keep.weights: none of study", message
    )
    commands = re.findall(r"`upcycle (train (\S+) --fresh)`", message)
    assert [run.partition("-")[0] for _, run in commands] == ["dense", "decay"]
    metrics = [checkout.root / "results/runs" / run / "metrics.json" for _, run in commands]
    cost = sum(json.loads(path.read_text())["tokens"] for path in metrics[:1]) + 1024  # its trunk from the start
    assert f"{cost:,} tokens are trained again" in message
    refused = upcycle(checkout, *commands[1][0].split())
    assert refused.returncode == 2  # before anything is discarded
    assert metrics[1].exists()
    for command, run in commands:
        assert upcycle(checkout, *command.split()).returncode == 0
        weights = checkout.root / "results/runs" / run / "weights.safetensors"
        assert weights.read_bytes() == kept[weights]
