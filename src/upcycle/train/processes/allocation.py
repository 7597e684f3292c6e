"""A training in a SLURM job: `upcycle train` starts itself by srun, once on each node of its allocation.

| process | where | what |
|---|---|---|
| `upcycle train RUN` | the job's first node, batch step | starts srun, passes signals on, ends as the nodes ended |
| the same under srun | each node | trains (one device), or starts its workers (`launch`) |
| workers | each node | train |

So one command works on one node and on several, and SLURM's warnings reach what trains: SIGTERM before a preemption
and `--signal=USR1@...` go to the processes of srun only. What Snakemake's jobs leave of SLURM's variables is the
job's number; counts are given to srun. A node leaves its exit code and last words in a folder beside the results,
which all nodes see. A node that was preempted, and has saved, ends with 0 for srun, which ends all other nodes when
one has failed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from upcycle.errors import UserError
from upcycle.study.execution import Execution
from upcycle.train.processes.preemption import HOPELESS, PREEMPTED, Preempted, TrainingError
from upcycle.train.processes.words import ENDS_VARIABLE, NODE_VARIABLE, End, read_end

SRUN_VARIABLE = "UPCYCLE_SRUN"
"""Set for the jobs of a cluster's profile: `1` makes `upcycle train` start its processes by srun."""
FIRST_PORT, PORTS = 20_000, 10_000
"""Where the nodes of a job meet: one of these ports by the job's number, on its first node."""
VISIBLE_SECONDS = 60.0
"""How long a file that another node wrote may take to be seen on a shared file system."""


@dataclass(frozen=True)
class NodePlace:
    """One node of a job that trains on several."""

    rank: int
    nodes: int
    endpoint: str
    """host:port of the first node, where all meet."""


def is_due(execution: Execution) -> bool:
    """Whether this process is to start srun: in a job of a cluster's profile, and for several nodes in any SLURM job.

    Raises UserError if several nodes are asked for outside of a job.
    """
    if NODE_VARIABLE in os.environ:
        return False
    in_job = "SLURM_JOB_ID" in os.environ
    if execution.nodes > 1 and not in_job:
        raise UserError(
            f"execution.nodes is {execution.nodes}, and this is no SLURM job: use `snakemake --profile slurm`, call "
            "this in an allocation of that many nodes, or start the workers yourself with torchrun (docs/cluster.md)"
        )
    return in_job and (execution.nodes > 1 or os.environ.get(SRUN_VARIABLE) == "1")


def node_place(execution: Execution) -> NodePlace | None:
    """This node's place among several; None where a job has one node."""
    if execution.nodes == 1:
        return None
    job, address = int(os.environ["SLURM_JOB_ID"]), os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    return NodePlace(int(os.environ["SLURM_NODEID"]), execution.nodes, f"{address}:{FIRST_PORT + job % PORTS}")


def launch_on_nodes(arguments: Sequence[str], nodes: int, folder: Path) -> None:
    """Run `upcycle <arguments>` on every node of the allocation, to its end; `folder` is on a shared file system.

    Raises as `launch.launch` does: UserError, Preempted or TrainingError with the words of the first node that has any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = Path(tempfile.mkdtemp(prefix=f"job-{os.environ['SLURM_JOB_ID']}-", dir=folder)).resolve()
    # --cpu-bind=none: all CPUs that the job has there; --wait=0: a node may end long before the one that writes.
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    command += ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL"]
    command += [sys.executable, "-m", "upcycle.cli", *arguments]
    try:
        process = subprocess.Popen(command, env=os.environ | {ENDS_VARIABLE: str(ends), NODE_VARIABLE: "1"})
        with _passed_on(process):
            code = process.wait()
        _raise_end(_node_ends(ends, nodes, code), code)
    finally:
        shutil.rmtree(ends, ignore_errors=True)


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals to stop reach every node as SIGUSR1: srun passes that on, while SIGTERM would make it kill the nodes."""

    def stop(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGUSR1)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _node_ends(folder: Path, nodes: int, code: int) -> list[End]:
    """How the nodes ended, of those that left a word, in their order; all do if srun ended well."""
    deadline = time.monotonic() + (VISIBLE_SECONDS if code == 0 else 2.0)
    while True:
        found = [end for rank in range(nodes) if (end := read_end(folder, f"node-{rank}"))]
        if len(found) == nodes or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _raise_end(ends: Sequence[End], code: int) -> None:
    """Make one end of the nodes'; returns if all went well."""
    by_code = {end.code: end.message for end in reversed(ends)}
    if 2 in by_code:
        raise UserError(by_code[2])
    if HOPELESS in by_code:
        raise TrainingError(by_code[HOPELESS], HOPELESS)
    if failed := [end.message for end in ends if end.code not in (0, PREEMPTED)]:
        raise TrainingError("; ".join(dict.fromkeys(failed)))  # of one cause, seen from several nodes
    if code == 0 and PREEMPTED not in by_code:
        return
    if PREEMPTED in by_code:
        raise Preempted(by_code[PREEMPTED])
    if code in (137, 139):  # srun's words for a process that SIGKILL or SIGSEGV ended
        why = " (out of memory, or another process)" if code == 137 else ""
        raise TrainingError(
            f"a training process was killed by {signal.Signals(code - 128).name}{why}. The last saved state is kept: "
            "the same command continues"
        )
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise TrainingError(
        f"srun was {how} before the nodes left a word: a node was lost, or SLURM ended the job; the lines above and "
        "SLURM's log have more. The last saved state is kept: the same command continues"
    )
