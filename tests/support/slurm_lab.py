"""A real SLURM on this one machine: controller, accounting and several nodes with fake GPUs, for tests.

`SlurmLab` starts the daemons of Debian's packages as root, without systemd, in a folder of its own. Where the kernel
allows it they live in a network and a mount namespace of their own, so several labs run side by side and the machine's
own SLURM, if any, is not touched; else (a container without CAP_SYS_ADMIN) one lab at a time, and others wait. Whatever
a lab started ends with it, also when the test process is killed: every process has LAB_FOLDER in its environment, and a
guard process ends all of them when its standard input closes.

A node may have more CPUs, memory and GPUs than the machine (`config_overrides`; a GPU is a link to /dev/null, which is
enough for CUDA_VISIBLE_DEVICES). Partitions: `gpu` (default), `urgent`, which preempts the two others: `scavenge`
(preempted jobs are queued again) and `killable` (they are cancelled).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_configs import GRES_CONF, SLURM_CONF, SLURMDBD_CONF

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "sbatch", "nsenter")
PACKAGES = "munge slurm-client slurmctld slurmd slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core"
ETC = Path("/etc/slurm")
"""Where SLURM's commands look for their files. SLURM_CONF is not enough: Snakemake's jobs drop it before their srun."""
FILES = ("slurm.conf", "gres.conf", "slurmdbd.conf")
MARK, NODE_MARK = "LAB_FOLDER", "LAB_NODE"
"""Variables by which a lab's processes, and a node's daemons, are found."""
ACCOUNT, USER = "lab", "root"


def why_no_lab() -> str | None:
    """Why SLURM cannot be started here; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "SLURM's daemons are started as root, on Linux"
    missing = [program for program in PROGRAMS if shutil.which(program, path=_with_sbin(os.environ)) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install --no-install-recommends {PACKAGES}"
    if not _can_unshare() and (ETC / "slurm.conf").exists() and not (ETC / "slurm.conf").is_symlink():
        return f"{ETC}/slurm.conf is a real cluster's, and this container cannot have a mount namespace"
    return None


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it."""

    id: int
    state: str
    """RUNNING, PENDING, COMPLETED, ..."""
    node: str
    """Node, or list of nodes, that it runs on; empty while it is pending."""
    partition: str
    limit: str
    """Of its time, as SLURM prints it: 10:00, 1:10:00."""
    comment: str
    """Snakemake's: rule_<rule>_wildcards_<wildcards>."""


@dataclass(frozen=True)
class SlurmLab:
    """A running SLURM. Times are in seconds, much shorter than a cluster's."""

    folder: Path
    nodes: int = 4
    gpus: int = 8
    cpus: int = 64
    memory_mb: int = 512_000
    grace: int = 5
    """Between SIGTERM and the end of a preempted job."""
    kill_wait: int = 5
    """Between SIGTERM and SIGKILL of a cancelled job, or of one past its time."""
    node_timeout: int = 15
    """Until a node that does not answer is down."""

    @contextlib.contextmanager
    def running(self) -> Iterator[SlurmLab]:
        """Start everything (about 8 s), and end it, with whatever still runs in it, after the `with`."""
        for name in ("state", "log", "run", "gpu", "db", "munge", "pids"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        inside = ["unshare", "--mount", "--net"] if _can_unshare() else []
        guard = subprocess.Popen(
            [*inside, sys.executable, __file__, str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PATH": _with_sbin(os.environ)},
            start_new_session=True,  # a signal to the test process's group (Ctrl-C, `timeout`) must not end it
        )  # fmt: skip
        assert guard.stdin
        assert guard.stdout
        try:
            assert guard.stdout.readline() == b"ready\n", f"the lab's guard ended: {guard.poll()}"
            (self.folder / "pids" / "guard").write_text(str(guard.pid))
            self._write_config()
            self._start_munge()
            self._start_accounting()
            self.start_controller()
            for number in range(1, self.nodes + 1):
                self.start_node(f"node{number}")
            self.wait_for_nodes()
            yield self
        finally:
            guard.stdin.close()
            guard.wait()
            guard.stdout.close()

    # Commands in the lab

    def words(self, *command: str | Path, cwd: Path | None = None) -> list[str]:
        """A command line that runs in the lab. The process that it starts is the command itself: its pid is the pid."""
        # nsenter begins at /. A test run in the background ignores Ctrl-C; what it starts here does not.
        env = ["env", f"--chdir={cwd or Path.cwd()}", "--default-signal=INT", *map(str, command)]
        enter = ["nsenter", f"--target={self.pid('guard')}", "--mount", "--net", "--"]
        return [*enter, *env] if _can_unshare() else env

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """These variables (default: this process's), less those of a job, marked as the lab's."""
        kept = os.environ if variables is None else variables
        return {k: v for k, v in kept.items() if not k.startswith("SLURM_")} | {
            MARK: str(self.folder),
            "PATH": _with_sbin(kept),
        }

    def run(
        self, *command: str | Path, check: bool = True, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab to its end; AssertionError with its output if it fails and `check` is set."""
        options = {"capture_output": True, "text": True, "timeout": 600} | options
        done = subprocess.run(
            self.words(*command, cwd=options.get("cwd")), env=self.environment(env), check=False, **options
        )
        assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(
        self, *command: str | Path, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in the lab, as `subprocess.Popen` does."""
        return subprocess.Popen(self.words(*command, cwd=options.get("cwd")), env=self.environment(env), **options)

    def has_namespace(self) -> bool:
        """Whether it has a mount and a network namespace of its own."""
        return _can_unshare()

    def seen(self, path: Path) -> Path:
        """A path of the lab, with what is mounted there, as this process can read it."""
        return Path(f"/proc/{self.pid('guard')}/root") / path.relative_to("/") if _can_unshare() else path

    # Jobs

    def jobs(self) -> list[Job]:
        """All jobs that the controller still knows, ended ones too, in the order of their ids."""
        text = self.run("squeue", "-h", "-t", "all", "-S", "i", "-o", "%i\x1f%T\x1f%N\x1f%P\x1f%l\x1f%k").stdout
        rows = [line.split("\x1f") for line in text.splitlines()]
        return [Job(int(number), *others) for number, *others in rows]

    def job(self, job_id: int) -> Job:
        """One of them; AssertionError if the controller does not know it."""
        known = {job.id: job for job in self.jobs()}
        assert job_id in known, f"job {job_id} is unknown; known are {known}"
        return known[job_id]

    def restarts(self, job_id: int) -> int:
        """How often SLURM itself started a job again."""
        found = re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", str(job_id)).stdout)
        assert found
        return int(found[1])

    def cancel(self, job_id: int) -> None:
        """scancel."""
        self.run("scancel", str(job_id))

    def processes(self) -> list[int]:
        """All that runs in the lab, daemons too."""
        return [pid for pid, _ in _marked(self.folder)]

    def processes_of(self, job_id: int) -> list[int]:
        """Processes of a job, on all nodes, its batch script's shell included; not SLURM's own step daemons."""
        mark = f"SLURM_JOB_ID={job_id}".encode()
        return [pid for pid, variables in _marked(self.folder) if mark in variables]

    # Faults

    def kill_node(self, name: str) -> None:
        """A node is lost, as by a power cut: its daemons and whatever runs on it. It is DOWN after `node_timeout`.

        All of it stops before any of it ends. Else a step's daemon would still report that its task was killed, and
        the job would be FAILED at once, not NODE_FAIL.
        """
        marks = {f"{NODE_MARK}={name}".encode(), f"SLURMD_NODENAME={name}".encode()}

        def there() -> list[int]:
            return _with_descendants([pid for pid, variables in _marked(self.folder) if marks & variables])

        while awake := [pid for pid in there() if _state(pid) not in "TZX"]:
            for pid in awake:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.02)
        _kill(there)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, also again after `kill_node` (see `wait_for_nodes`)."""
        (self.folder / "run" / f"spool.{name}").mkdir(exist_ok=True)
        self._daemon(f"slurmd.{name}", "slurmd", "-D", "-N", name, variables={NODE_MARK: name})

    def wait_for_nodes(self) -> None:
        """Until all nodes are there and idle."""
        idle = ("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N")
        self._wait(lambda: len(self.run(*idle, check=False).stdout.split()) == self.nodes, "idle nodes")

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld. With SIGKILL it loses what it has not saved yet: the end of a job, or a new job."""
        pid = self.pid("slurmctld")
        os.kill(pid, number)
        self._wait(lambda: not _alive(pid), "the controller's end")

    def start_controller(self) -> None:
        """Start slurmctld, also again."""
        self._daemon("slurmctld", "slurmctld", "-D")
        self._wait(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "the controller")

    def pid(self, daemon: str) -> int:
        """Of `slurmctld`, `slurmdbd`, `slurmd.node1`, ..."""
        return int((self.folder / "pids" / daemon).read_text())

    # Starting

    def _daemon(self, name: str, *command: str, variables: Mapping[str, str] | None = None) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            process = self.start(
                *command, env=os.environ | dict(variables or {}), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        (self.folder / "pids" / name).write_text(str(process.pid))
        process.returncode = 0  # the guard ends it: no warning that it still runs

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = [path for path in (self.folder / "log").iterdir() if path.stat().st_size]
            tails = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-500:]}" for path in sorted(logs))
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{tails}"
            time.sleep(0.1)

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        own = {"key-file": "munge/key", "socket": "munge/sock", "pid-file": "munge/pid", "seed-file": "munge/seed"}
        own["log-file"] = "log/munged.log"
        options = [f"--{name}={self.folder / path}" for name, path in own.items()]
        self._daemon("munged", "munged", "--foreground", "--force", "--num-threads=2", *options)
        self._wait((self.folder / "munge" / "sock").is_socket, "munge")

    def _start_accounting(self) -> None:
        db, sock = self.folder / "db", self.folder / "run" / "mysql.sock"
        common = ("--no-defaults", "--user=root", f"--datadir={db}")
        self.run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
        self._daemon(
            "mariadbd", "mariadbd", *common, f"--socket={sock}", "--skip-networking", "--skip-log-bin",
            f"--pid-file={self.folder / 'run' / 'mysql.pid'}", "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        self._wait(sock.is_socket, "MariaDB")
        self._daemon("slurmdbd", "slurmdbd", "-D", variables={"MYSQL_UNIX_PORT": str(sock)})
        self._wait(lambda: self.run("sacctmgr", "-n", "list", "cluster", check=False).returncode == 0, "slurmdbd")
        self.run("sacctmgr", "-in", "add", "cluster", "lab")
        self.run("sacctmgr", "-in", "add", "account", ACCOUNT, f"description={ACCOUNT}", f"organization={ACCOUNT}")
        self.run("sacctmgr", "-in", "add", "user", USER, f"account={ACCOUNT}")

    def _write_config(self) -> None:
        host = socket.gethostname().partition(".")[0]
        for number in range(self.gpus):
            (self.folder / "gpu" / f"nvidia{number}").symlink_to("/dev/null")
        values = {
            name: getattr(self, name)
            for name in ("folder", "nodes", "gpus", "cpus", "memory_mb", "grace", "kill_wait", "node_timeout")
        }
        values |= {"host": host, "last_port": 17000 + self.nodes, "last_gpu": self.gpus - 1}
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(GRES_CONF.format(**values))
        accounting = self.folder / "slurmdbd.conf"
        accounting.touch(mode=0o600)  # slurmdbd refuses any other
        accounting.write_text(SLURMDBD_CONF.format(**values))


def _with_sbin(variables: Mapping[str, str]) -> str:
    return os.pathsep.join([variables.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


@functools.cache
def _can_unshare() -> bool:
    command = ["unshare", "--mount", "--net", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _stat(pid: int) -> tuple[str, int]:
    """State of a process (R, S, T, Z, ...; X if there is none) and its parent."""
    with contextlib.suppress(OSError):
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "X", 0


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _alive(pid: int) -> bool:
    return _state(pid) not in "XZ"


def _marked(folder: Path) -> Iterator[tuple[int, set[bytes]]]:
    """Live processes of a lab, and their environments."""
    mark = f"{MARK}={folder}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = _step_daemon(path) or set((path / "environ").read_bytes().split(b"\0"))
            if mark in variables and _alive(int(path.name)):
                yield int(path.name), variables


def _step_daemon(process: Path) -> set[bytes]:
    """The marks of a slurmstepd, which writes its title over its environment, by the log that it writes."""
    if (process / "cmdline").read_bytes().startswith(b"slurmstepd: "):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                log = link.readlink()
                if log.name.startswith("slurmd.") and log.suffix == ".log":
                    node = log.stem.removeprefix("slurmd.")
                    return {f"{MARK}={log.parents[1]}".encode(), f"{NODE_MARK}={node}".encode()}
    return set()


def _with_descendants(pids: list[int]) -> list[int]:
    """These processes, and theirs: a job's environment does not always name its node."""
    everyone = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    parents = {pid: _stat(pid)[1] for pid in everyone}
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [pid for pid in found if _alive(pid)]


def _kill(those: Callable[[], list[int]]) -> None:
    """SIGKILL, until there are none."""
    while pids := those():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


# The guard


def guard(folder: Path) -> None:
    """Prepare this process's namespaces, or take the machine's one place for a lab; end all of it at end of input."""
    own = Path("/proc/self/ns/net").readlink() != Path(f"/proc/{os.getppid()}/ns/net").readlink()
    ETC.mkdir(exist_ok=True)
    if own:
        _network_up()
        subprocess.run(["mount", "-t", "tmpfs", "none", ETC], check=True)
        lock = None
    else:
        lock = (ETC / ".lab.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        _unlink()  # of a lab whose guard was killed
    for name in FILES:
        (ETC / name).symlink_to(folder / name)
    print("ready", flush=True)
    sys.stdin.read()
    _kill(lambda: [pid for pid, _ in _marked(folder)])
    _unlink()


def _unlink() -> None:
    for name in FILES:
        (ETC / name).unlink(missing_ok=True)


def _network_up() -> None:
    """`ip link set lo up; ip address add 10.0.0.1 dev lo`, where there is no `ip`.

    slurmdbd needs an address other than the loopback's: glibc finds none for it otherwise (AI_ADDRCONFIG).
    """
    get_flags, set_flags, set_address, up = 0x8913, 0x8914, 0x8916, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, get_flags, struct.pack("16sH22x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, set_flags, struct.pack("16sH22x", b"lo", flags | up))
        own = struct.pack("16sHH4s16x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("10.0.0.1"))
        fcntl.ioctl(sock, set_address, own)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
