"""Jobs forked from one process that has imported torch, for local sweeps of many short runs.

Importing torch costs two seconds, more than a small run's first hundred steps. The first client starts a detached
server that imports torch and the training code once, runs no torch operation (thread pools do not survive a fork) and
forks a child a job. A client is a plain, light process that represents its job: the child writes to the client's own
standard output and error, gets its arguments, folder, environment and signals, and ends with it.

- A server belongs to one user, checkout, interpreter, state of the source and allocation of a cluster
  (`_version_key`): edited code is never served stale, the old server just ends when it has been idle.
- The protocol, on a Unix socket: the client sends one JSON line with its three descriptors, then a byte a signal; the
  server sends the exit status as a line. A connection that closes early means that the client is dead: its child gets
  SIGTERM, and SIGKILL if it has not saved and left after GRACE_SECONDS.
- Nothing is seeded here: children inherit the server's global generators, so training uses only seeded ones of its own.

The client part imports the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from upcycle.errors import UserError
from upcycle.leave import leave
from upcycle.train.processes.preemption import TrainingError

Main: TypeAlias = Callable[[list[str]], int]
"""The command line: arguments to exit code."""
FORK_VARIABLE = "UPCYCLE_FORK_SERVER"
"""Environment variable; `1` sends `upcycle train` and `evaluate` through the server."""
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""What names an allocation of a cluster. Each has a server of its own: a fork has its server's GPUs, limits and end."""
IDLE_SECONDS = 60.0
GRACE_SECONDS = 20.0
START_SECONDS = 120.0
"""How long a client waits for a new server to import torch."""
REQUEST_SECONDS = 10.0
"""How long a client may take over its request, the whole of it; the server hears the others meanwhile."""
REQUEST = {"argv", "folder", "environment"}
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


# The client


def run_via_server(argv: list[str], *modules: str) -> int:
    """Run `upcycle <argv>` in a child of the fork server, as if in this process; return its exit code.

    `modules` are those that a new server imports, in this order, before it forks; the last one has the `main(argv)`
    that a child runs. The command line hands them in, so that nothing here imports upwards.

    A child that died of signal n gives 128 + n. A signal before the job is asked for ends this process as any; those
    after it go to the job. UserError if the server cannot start or its folder is not ours alone; TrainingError if it
    ends before the job does.
    """
    with _connect(modules) as connection:
        request = {"argv": argv, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        sys.stdout.flush()
        sys.stderr.flush()
        line = json.dumps(request).encode() + b"\n"
        status = b""
        with contextlib.suppress(ConnectionError):  # the server has died: no status
            with _signals_held_back():  # a byte of theirs within the request would spoil it
                sent = socket.send_fds(connection, [line], [0, 1, 2])
                connection.sendall(line[sent:])
                for number in FORWARDED:
                    signal.signal(number, lambda number, _: _forward(connection, number))
            status = connection.makefile("rb").readline()
    if not status:
        raise TrainingError(
            f"the fork server ended before its job did, which saves and ends; see {_home() / 'log'}. "
            "The same command continues, or set fork_server: false"
        )
    code = int(status)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Signals that come meanwhile are delivered at the end of the `with`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward(connection: socket.socket, number: int) -> None:
    """Pass a signal on to the server; it is dropped if the job or the server has ended."""
    with contextlib.suppress(OSError):
        connection.send(bytes([number]))


def _connect(modules: Sequence[str]) -> socket.socket:
    """A connection to this version's server, which is started if there is none; safe for many clients at once."""
    home = _home()
    connection = socket.socket(socket.AF_UNIX)
    # Without the lock, clients that start together would each start a server, and each unlink the other's socket.
    with (home / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.connect_ex(str(home / "socket")) == 0:
            return connection
        _start_server(home, connection, modules)
    return connection


def _start_server(home: Path, connection: socket.socket, modules: Sequence[str]) -> None:
    """Start a detached server and connect to it as soon as it listens. Call under the lock."""
    import subprocess  # only the first client pays for it

    address = str(home / "socket")
    (home / "socket").unlink(missing_ok=True)
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "upcycle.train.processes.forkserver", address, *modules]
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + START_SECONDS
    while connection.connect_ex(address) != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            said = (home / "log").read_text().strip()[-2000:]
            raise UserError(f"the fork server did not start; set fork_server: false, or fix this:\n{said}")
        time.sleep(0.02)


def _home() -> Path:
    """Folder of this version's socket, lock and log, readable by its owner alone."""
    home = Path(os.environ.get("TMPDIR", "/tmp")) / f"upcycle-{os.getuid()}" / _version_key()
    if len(str(home)) > 90:  # an address of a Unix socket has 108 bytes at most
        home = Path("/tmp", *home.parts[-2:])
    for folder in (home.parent, home):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
            raise UserError(
                f"{folder}: not a folder of this user alone (mode 700); remove it, or set fork_server: false"
            )
    return home


def _version_key() -> str:
    """Sixteen hexadecimal digits of all that a server holds: interpreter, torch, this source, its allocation."""
    package = Path(__file__).resolve().parents[2]
    torch = importlib.util.find_spec("torch")
    sources = [*package.rglob("*.py"), *([Path(torch.origin)] if torch and torch.origin else [])]
    lines = [sys.executable, sys.version, os.environ.get("PYTHONPATH", "")]
    lines += [f"{name}={os.environ.get(name, '')}" for name in ALLOCATIONS]
    for path in sorted(sources):
        found = path.stat()
        lines.append(f"{path} {found.st_mtime_ns} {found.st_size}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# The server


class Request:
    """A client that has connected, and what it has sent so far: a JSON line with its three standard descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # a slow client must not hold up the others
        self.connection = connection
        self.give_up_at = time.monotonic() + REQUEST_SECONDS
        self.descriptors: list[int] = []
        self._received = b""

    def hear(self) -> bool:
        """Take what has come, without waiting. Whether there is more to come: neither the line nor the client ended."""
        try:
            more, descriptors, _, _ = socket.recv_fds(self.connection, 65536, 3)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.descriptors += descriptors
        self._received += more
        return bool(more) and b"\n" not in more

    def asked(self) -> tuple[dict[str, Any], bytes] | None:
        """The request, and the signals that came with its end; None if it is none."""
        line, _, signals = self._received.partition(b"\n")
        try:
            asked = json.loads(line)
        except ValueError:
            return None
        if len(self.descriptors) != 3 or not isinstance(asked, dict) or not asked.keys() >= REQUEST:
            return None
        return asked, signals

    def close_descriptors(self) -> None:
        """Leave the client's standard input, output and error to itself, or to its job."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def close(self) -> None:
        """Be done with the client."""
        self.close_descriptors()
        self.connection.close()


class Job:
    """A child and its client; `kill_at` is when to send SIGKILL, once that client is gone."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.connection = pid, connection
        self.kill_at: float | None = None


def serve(address: str, *modules: str) -> None:
    """Import the modules, then fork a child a connection, which runs the last one's `main`, until idle."""
    main = [importlib.import_module(name) for name in modules][-1].main
    gc.collect()
    gc.freeze()  # children share these pages with the server as long as no collection touches them
    # A child's end must wake the selector. A handler alone does not, as Python restarts select after it; the byte that
    # the interpreter writes into this pipe at every signal does.
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        _Server(listener, wake, main).run()


class _Server:
    """One thread, one selector: new clients, their signals and their ends, and the ends of children."""

    def __init__(self, listener: socket.socket, wake: int, main: Main) -> None:
        self.listener, self.wake, self.main = listener, wake, main
        self.requests: list[Request] = []
        self.jobs: list[Job] = []
        self.selector = selectors.DefaultSelector()
        for source in (listener, wake):
            self.selector.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        busy_at = time.monotonic()
        while self.jobs or self.requests or time.monotonic() - busy_at < IDLE_SECONDS:
            for key, _ in self.selector.select(timeout=1.0):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj == self.wake:
                    os.read(self.wake, 4096)
                elif isinstance(key.data, Request):
                    self._listen(key.data)
                else:
                    self._hear(key.data)
            self._give_up()
            self._reap()
            if self.jobs:
                busy_at = time.monotonic()

    def _accept(self) -> None:
        request = Request(self.listener.accept()[0])
        self.requests.append(request)
        self.selector.register(request.connection, selectors.EVENT_READ, request)

    def _listen(self, request: Request) -> None:
        """Take what has come of a request. Once it is whole its job begins; a client that died or asks for nonsense is
        dropped, because no client may end the server, on which the jobs of all depend."""
        if request.hear():
            return
        self._forget(request)
        asked = request.asked()
        if asked is None:
            request.close()
        else:
            self._fork(request, *asked)

    def _forget(self, request: Request) -> None:
        self.requests.remove(request)
        self.selector.unregister(request.connection)

    def _fork(self, request: Request, asked: dict[str, Any], signals: bytes) -> None:
        """Begin a job, and pass on the signals that came right behind its request."""
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            # Not to hold the other clients' connections: their ends of file would not arrive while this child lives.
            self.selector.close()
            self.listener.close()
            for job in self.jobs:
                job.connection.close()
            for other in self.requests:
                other.close()
            request.connection.close()
            _run_job(asked, request.descriptors, server, self.main)
        request.close_descriptors()
        request.connection.setblocking(True)
        job = Job(pid, request.connection)
        self.jobs.append(job)
        self.selector.register(job.connection, selectors.EVENT_READ, job)
        for number in signals:  # until the child has its handlers they act by default, which ends it: nothing is lost
            os.kill(pid, number)

    def _hear(self, job: Job) -> None:
        """Forward a signal; an end of file means that the client is dead."""
        try:
            received = job.connection.recv(64)
        except ConnectionError:
            received = b""
        for number in received:
            os.kill(job.pid, number)
        if not received:
            self.selector.unregister(job.connection)
            os.kill(job.pid, signal.SIGTERM)
            job.kill_at = time.monotonic() + GRACE_SECONDS

    def _give_up(self) -> None:
        """Drop clients that have not ended their request in time."""
        for request in [each for each in self.requests if time.monotonic() > each.give_up_at]:
            self._forget(request)
            request.close()

    def _reap(self) -> None:
        """Report children that ended; kill those that outstayed a dead client."""
        for job in list(self.jobs):
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                self.jobs.remove(job)
                if job.kill_at is None:
                    self.selector.unregister(job.connection)
                    with contextlib.suppress(ConnectionError):  # the client died at this very moment
                        job.connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                job.connection.close()
            elif job.kill_at is not None and time.monotonic() > job.kill_at:
                os.kill(job.pid, signal.SIGKILL)


def _run_job(request: dict[str, Any], descriptors: list[int], server: int, main: Main) -> NoReturn:
    """In the child: become the client as far as the program can tell, run the command, exit.

    It gets SIGTERM, saves and ends when the server dies, as nobody would be left to pass its client's signals on.
    """
    from upcycle.train.processes.launch import end_with_parent

    signal.set_wakeup_fd(-1)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(signal.SIGTERM, server)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    # The server's own streams were made for the file that it logs to, which can seek; the client's may be a pipe.
    sys.stdout, sys.stderr = (open(standard, "w", buffering=1, closefd=False) for standard in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop(FORK_VARIABLE, None)  # or the job would ask for a fork again
    os.chdir(request["folder"])
    sys.argv = ["upcycle", *request["argv"]]
    leave(lambda: main(request["argv"]))


if __name__ == "__main__":
    serve(*sys.argv[1:])
