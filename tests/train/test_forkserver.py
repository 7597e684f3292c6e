"""The fork server is invisible: same bytes, output, exit codes and signals as a plain process; never stale code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_runs import VOCABULARY, rows_of, small_run, tensors_sha256, train_in

import upcycle
from upcycle.study.spec import RunSpec
from upcycle.train.processes import forkserver
from upcycle.train.processes.preemption import TrainingError

STUDY = f"""
study: default
data: {{dataset: walk, vocab_size: {VOCABULARY}}}
datasets: {{walk: {{files: ["unused.txt"]}}}}
context: 32
execution: {{device: cpu, log_steps: 1}}
models: {{small: {{n_layer: 2, d_model: 16, n_head: 2, batch: 4, lr: 2e-2, lr_moe: 2e-2, warmup_steps: 4}}}}
sweeps: {{dense: {{kind: dense, model: small, tokens: [12e3]}}}}
"""


HANGS = 600
"""Seconds until a test gives up."""


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


def wait_until_gone(pid: int) -> None:
    """Until a process is no more, or a zombie that nobody reaps."""
    deadline = time.monotonic() + HANGS
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "the job goes on"
            time.sleep(0.02)


def test_two_first_clients_share_one_server_and_give_the_bytes_of_plain_runs(
    desk: Desk, tokens_dir: Path, tmp_path: Path
) -> None:
    """Started at the same moment: one server, both done, weights and rows as trained in this process."""
    runs = [small_run(seed=seed) for seed in (1, 2)]
    clients = [desk.client(run) for run in runs]
    for run, client in zip(runs, clients, strict=True):
        said, _ = client.communicate(timeout=HANGS)
        assert client.returncode == 0, said
        assert f"{run.id}: held-out loss" in said, "the job's output is the client's"
        plain = train_in(tmp_path, tokens_dir, run)
        assert tensors_sha256(desk.run_dir(run)) == tensors_sha256(plain)
        assert rows_of(desk.run_dir(run)) == rows_of(plain)
    assert len(desk.servers()) == 1


def test_a_warm_client_skips_the_imports(desk: Desk) -> None:
    """Its job is forked from the server, without an exec, and the server has loaded torch before."""
    run = long_run(seed=3)
    client = desk.client(run)
    job = Path(f"/proc/{wait_until_training(desk, run, client)}")
    ((_, server),) = desk.servers().items()
    assert f"PPid:\t{server}\n" in (job / "status").read_text()
    assert (job / "cmdline").read_bytes() == Path(f"/proc/{server}/cmdline").read_bytes()
    assert "libtorch" in Path(f"/proc/{server}/maps").read_text()
    client.terminate()
    client.communicate(timeout=HANGS)


@pytest.mark.parametrize("line", [b"\n", b"not json\n", b"[1]\n", b'{"argv": []}\n', b'{"argv": ['])
def test_a_malformed_request_is_nobodys_job_and_keeps_no_descriptor(line: bytes) -> None:
    """Nonsense, the wrong keys, or a client that died half-way: None, no exception, the descriptors closed."""
    open_before = sorted(Path("/proc/self/fd").iterdir())
    client, server = socket.socketpair()
    request = forkserver.Request(server)
    with client:
        assert request.hear(), "nothing has come yet"
        socket.send_fds(client, [line], [0, 1, 2])
    while request.hear():
        pass
    assert request.asked() is None
    request.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == open_before


def test_a_request_without_descriptors_is_none() -> None:
    client, server = socket.socketpair()
    with client, server:
        client.sendall(b'{"argv": [], "folder": "", "environment": {}}\n')
        request = forkserver.Request(server)
        assert not request.hear()
        assert request.asked() is None


SERVER = """
import os, signal, socket, sys
from upcycle.train.processes import forkserver

forkserver.REQUEST_SECONDS = float(sys.argv[2])
forkserver._run_job = lambda request, *_: signal.pause() if request["argv"] == ["wait"] else os._exit(7)
wake, woken = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(woken)
signal.signal(signal.SIGCHLD, lambda *_: None)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen(64)
    print(flush=True)
    forkserver._Server(listener, wake, None).run()
"""
"""A server without torch; its jobs end with 7, but one that is asked to wait for a signal."""


@contextlib.contextmanager
def serving(request_seconds: float) -> Iterator[Callable[[], socket.socket]]:
    """A server; what connects to it."""
    with tempfile.TemporaryDirectory(prefix="fs") as folder, contextlib.ExitStack() as connections:
        address = f"{folder}/socket"
        command = [sys.executable, "-c", SERVER, address, str(request_seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout
            server.stdout.readline()

            def connect() -> socket.socket:
                connection = connections.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(HANGS)
                connection.connect(address)
                return connection

            try:
                yield connect
            finally:
                server.terminate()


def line_of(*argv: str) -> bytes:
    return json.dumps({"argv": argv, "folder": "/", "environment": {}}).encode() + b"\n"


def test_a_slow_request_holds_nobody_up() -> None:
    """Half a request of one client; another's job is done, and one more begun, before the first goes on to its end.
    No job holds what another client has passed: its output ends when that client is gone."""
    with serving(request_seconds=HANGS) as connect:
        slow, quick, leaving, waiting = (connect() for _ in range(4))
        read, write = os.pipe()
        socket.send_fds(slow, [line_of("x")[:9]], [0, 1, 2])
        socket.send_fds(leaving, [b"{"], [write] * 3)
        os.close(write)
        socket.send_fds(quick, [line_of("x")], [0, 1, 2])
        assert quick.recv(10) == b"7\n"
        socket.send_fds(waiting, [line_of("wait")], [0, 1, 2])
        slow.sendall(line_of("x")[9:])
        assert slow.recv(10) == b"7\n"
        leaving.close()
        assert select.select([read], [], [], HANGS)[0], "the job that waits has kept it"
        assert os.read(read, 1) == b""
        os.close(read)


def test_a_request_that_dribbles_is_given_up_in_the_stated_time() -> None:
    """A byte every few milliseconds, without end: dropped when the whole of it has taken too long (half a second)."""
    with serving(request_seconds=0.5) as connect:
        client = connect()
        socket.send_fds(client, [b"{"], [0, 1, 2])
        deadline = time.monotonic() + HANGS
        with contextlib.suppress(BrokenPipeError):
            while client.send(b" "):
                assert time.monotonic() < deadline, "it was not given up"
                time.sleep(0.005)


def test_a_signal_right_behind_a_request_reaches_its_job() -> None:
    """The rest of a request and a signal, in one piece."""
    with serving(request_seconds=HANGS) as connect:
        client, line = connect(), line_of("wait")
        socket.send_fds(client, [line[:5]], [0, 1, 2])
        client.sendall(line[5:] + bytes([signal.SIGUSR1]))
        assert client.recv(10) == b"%d\n" % -signal.SIGUSR1


EARLY = """
import os, signal, socket, sys
from upcycle.train.processes import forkserver
client, server = socket.socketpair()
forkserver._connect = lambda _: client
send_fds = socket.send_fds
def send_after_a_signal(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return send_fds(*arguments)
socket.send_fds = send_after_a_signal
if os.fork() == 0:
    client.close()
    request = forkserver.Request(server)
    while request.hear():
        pass
    asked, signals = request.asked()
    assert asked["argv"] == ["train", "x"], asked
    server.setblocking(True)
    server.sendall(b"%d\\n" % (signals or server.recv(1))[0])
    os._exit(0)
server.close()
sys.exit(forkserver.run_via_server(["train", "x"], "upcycle.cli"))
"""


def test_a_signal_while_the_request_is_sent_follows_it() -> None:
    """The request is whole, and its first byte after is the signal; the server's answer here is that byte."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == signal.SIGUSR1, done.stderr


def test_a_client_whose_server_is_gone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TrainingError (exit code 1: a workflow tries again), whether its request was still heard or not."""
    handlers = {number: signal.getsignal(number) for number in forkserver.FORWARDED}
    for heard in (False, True):
        client, server = socket.socketpair()
        if heard:
            server.shutdown(socket.SHUT_WR)
        else:
            server.close()
        monkeypatch.setattr(forkserver, "_connect", lambda _, client=client: client)
        with server, pytest.raises(TrainingError, match="ended before its job did"):
            forkserver.run_via_server(["train", "x"], "upcycle.cli")
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_exit_codes_pass_through(desk: Desk) -> None:
    """Bad input is 2, with its message on the client's output."""
    client = desk.client("missing.json")
    said, _ = client.communicate(timeout=HANGS)
    assert client.returncode == 2
    assert "missing.json" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_job(desk: Desk, number: signal.Signals) -> None:
    """The client passes them on; the job saves and leaves with 75, and so does the client."""
    run = long_run(seed=number)
    client = desk.client(run)
    wait_until_training(desk, run, client)
    client.send_signal(number)
    said, _ = client.communicate(timeout=HANGS)
    assert client.returncode == 75, said
    assert list((desk.run_dir(run) / "resume").glob("step-*"))


def test_a_killed_job_is_an_error(desk: Desk) -> None:
    """A child that died of SIGKILL (out of memory, say) gives 128 + 9."""
    run = long_run(seed=100)
    client = desk.client(run)
    os.kill(wait_until_training(desk, run, client), signal.SIGKILL)
    client.communicate(timeout=HANGS)
    assert client.returncode == 137


def test_a_killed_client_takes_its_job_with_it(desk: Desk) -> None:
    """SIGKILL of the client: the job saves its state and ends; the server goes on."""
    run = long_run(seed=101)
    client = desk.client(run)
    pid = wait_until_training(desk, run, client)
    client.kill()
    client.communicate()
    wait_until_gone(pid)
    assert list((desk.run_dir(run) / "resume").glob("step-*"))
    assert len(desk.servers()) == 1


def test_a_killed_server_lets_its_jobs_save(desk: Desk) -> None:
    """SIGKILL of the server: the client fails by name, the job saves and ends; the next client starts a new server."""
    run = long_run(seed=102)
    client = desk.client(run)
    pid = wait_until_training(desk, run, client)
    (server,) = desk.servers().values()
    os.kill(server, signal.SIGKILL)
    said, _ = client.communicate(timeout=HANGS)
    assert client.returncode == 1
    assert "the fork server ended before its job did" in said
    wait_until_gone(pid)
    assert list((desk.run_dir(run) / "resume").glob("step-*"))
    client = desk.client("missing.json")
    client.communicate(timeout=HANGS)
    assert client.returncode == 2


def test_edited_code_is_never_served_stale(desk: Desk) -> None:
    """After an edit the next client gets a new server, and the new behaviour."""
    source = desk.package / "cli.py"
    text = source.read_text()
    assert "last_words(args.verb, error.exit_code," in text
    source.write_text(text.replace("last_words(args.verb, error.exit_code,", "last_words(args.verb, 9,"))
    client = desk.client("missing.json")
    client.communicate(timeout=HANGS)
    assert client.returncode == 9
    assert len(desk.servers()) == 2


def test_a_folder_open_to_others_is_refused(desk: Desk) -> None:
    """The socket's folder must be this user's alone, or another user could feed the client."""
    parent = next(desk.sockets.glob("upcycle-*"))
    parent.chmod(0o755)
    client = desk.client("missing.json")
    said, _ = client.communicate(timeout=HANGS)
    parent.chmod(0o700)
    assert client.returncode != 0
    assert "mode 700" in said


def test_the_client_is_light() -> None:
    """It imports neither torch nor pydantic nor numpy."""
    code = "import sys, upcycle.train.processes.forkserver; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
