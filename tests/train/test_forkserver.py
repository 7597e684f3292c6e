"""The fork server is invisible: same bytes, output, exit codes and signals as a plain process; never stale code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import VOCABULARY, rows_of, small_run, tensors_sha256, train_in

import upcycle
from upcycle.spec import RunSpec

STUDY = f"""
study: default
data: {{dataset: walk, vocab_size: {VOCABULARY}}}
datasets: {{walk: {{files: ["unused.txt"]}}}}
context: 32
execution: {{device: cpu, log_steps: 1}}
models: {{small: {{n_layer: 2, d_model: 16, n_head: 2, batch: 4, lr: 2e-2, lr_moe: 2e-2, warmup_steps: 4}}}}
sweeps: {{dense: {{kind: dense, model: small, tokens: [12e3]}}}}
"""


class Desk:
    """A study folder, a copy of the package that can be edited, and clients of that copy's fork server."""

    def __init__(self, folder: Path, sockets: Path, tokens_dir: Path) -> None:
        self.folder, self.sockets = folder, sockets
        self.package = folder / "code" / "upcycle"
        shutil.copytree(Path(upcycle.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.study = folder / "study"
        (self.study / "results" / "tokens").mkdir(parents=True)
        (self.study / "results" / "tokens" / small_run().data.tokens_id).symlink_to(tokens_dir)
        (self.study / "config.yaml").write_text(STUDY)

    def client(self, run: RunSpec | str) -> subprocess.Popen[str]:
        """`upcycle train` of a spec file through the fork server, its output caught."""
        spec = self.study / (run if isinstance(run, str) else f"{run.id}.json")
        if isinstance(run, RunSpec):
            spec.write_text(run.model_dump_json())
        environment = os.environ | {
            "UPCYCLE_FORK_SERVER": "1",
            "PYTHONPATH": str(self.package.parent),
            "TMPDIR": str(self.sockets),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "upcycle.cli", "train", str(spec)],
            cwd=self.study,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_dir(self, run: RunSpec) -> Path:
        return self.study / "results" / "runs" / run.id

    def servers(self) -> dict[Path, int]:
        """Process ids of the servers that listen, by socket."""
        found = {}
        for path in self.sockets.glob("*/*/socket"):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                    found[path] = struct.unpack("3i", credentials)[0]
        return found


@pytest.fixture(scope="module")
def desk(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    sockets = Path(tempfile.mkdtemp(prefix="fs"))  # short: a socket's address has 108 bytes
    made = Desk(tmp_path_factory.mktemp("desk"), sockets, tokens_dir)
    yield made
    for pid in made.servers().values():
        os.kill(pid, signal.SIGTERM)
    shutil.rmtree(sockets)


def long_run(seed: int) -> RunSpec:
    data = {"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True}
    return small_run(end_step=5000, seed=seed, data=data)


def wait_until_training(desk: Desk, run: RunSpec, client: subprocess.Popen[str]) -> int:
    """Wait for the first rows; the pid of the child that writes them."""
    curve = desk.run_dir(run) / "metrics.jsonl"
    while not curve.exists() or len(curve.read_text().splitlines()) < 3:
        assert client.poll() is None, client.communicate()[0]
        time.sleep(0.01)
    return json.loads((desk.run_dir(run) / "lease").read_text())["pid"]


def test_two_first_clients_share_one_server_and_give_the_bytes_of_plain_runs(
    desk: Desk, tokens_dir: Path, tmp_path: Path
) -> None:
    """Started at the same moment: one server, both done, weights and rows as trained in this process."""
    runs = [small_run(seed=seed) for seed in (1, 2)]
    clients = [desk.client(run) for run in runs]
    for run, client in zip(runs, clients, strict=True):
        said, _ = client.communicate(timeout=120)
        assert client.returncode == 0, said
        assert f"{run.id}: held-out loss" in said, "the job's output is the client's"
        plain = train_in(tmp_path, tokens_dir, run)
        assert tensors_sha256(desk.run_dir(run)) == tensors_sha256(plain)
        assert rows_of(desk.run_dir(run)) == rows_of(plain)
    assert len(desk.servers()) == 1


def test_a_warm_client_skips_the_imports(desk: Desk) -> None:
    """A job's start-up, measured from its fork, is below half a second where torch's import alone takes two."""
    run = small_run(seed=3)
    client = desk.client(run)
    said, _ = client.communicate(timeout=60)
    assert client.returncode == 0, said
    metrics = json.loads((desk.run_dir(run) / "metrics.json").read_text())
    assert metrics["startup_seconds"] < 0.5


def test_exit_codes_pass_through(desk: Desk) -> None:
    """Bad input is 2, with its message on the client's output."""
    client = desk.client("missing.json")
    said, _ = client.communicate(timeout=60)
    assert client.returncode == 2
    assert "missing.json" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_job(desk: Desk, number: signal.Signals) -> None:
    """The client passes them on; the job saves and leaves with 75, and so does the client."""
    run = long_run(seed=number)
    client = desk.client(run)
    wait_until_training(desk, run, client)
    client.send_signal(number)
    said, _ = client.communicate(timeout=60)
    assert client.returncode == 75, said
    assert list((desk.run_dir(run) / "resume").glob("step-*"))


def test_a_killed_job_is_an_error(desk: Desk) -> None:
    """A child that died of SIGKILL (out of memory, say) gives 128 + 9."""
    run = long_run(seed=100)
    client = desk.client(run)
    os.kill(wait_until_training(desk, run, client), signal.SIGKILL)
    client.communicate(timeout=60)
    assert client.returncode == 137


def test_a_killed_client_takes_its_job_with_it(desk: Desk) -> None:
    """SIGKILL of the client: the job saves its state and ends; the server goes on."""
    run = long_run(seed=101)
    client = desk.client(run)
    pid = wait_until_training(desk, run, client)
    client.kill()
    client.communicate()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    assert list((desk.run_dir(run) / "resume").glob("step-*"))
    assert len(desk.servers()) == 1


def test_edited_code_is_never_served_stale(desk: Desk) -> None:
    """After an edit the next client gets a new server, and the new behaviour."""
    source = desk.package / "cli.py"
    source.write_text(source.read_text().replace("last_words(args.verb, 2,", "last_words(args.verb, 3,"))
    client = desk.client("missing.json")
    client.communicate(timeout=120)
    assert client.returncode == 3
    assert len(desk.servers()) == 2


def test_a_folder_open_to_others_is_refused(desk: Desk) -> None:
    """The socket's folder must be this user's alone, or another user could feed the client."""
    parent = next(desk.sockets.glob("upcycle-*"))
    parent.chmod(0o755)
    client = desk.client("missing.json")
    said, _ = client.communicate(timeout=60)
    parent.chmod(0o700)
    assert client.returncode != 0
    assert "mode 700" in said


def test_the_client_is_light() -> None:
    """It imports neither torch nor pydantic nor numpy."""
    code = "import sys, upcycle.train.forkserver; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
