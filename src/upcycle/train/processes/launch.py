"""Several processes a job: `upcycle train` of a study with `execution.devices` > 1 starts its own workers.

The launcher is torch's elastic agent, in this process, for one machine; a worker is the same command with RANK and its
kin in the environment, which is also how a user's own `torchrun` over many machines starts one. Workers are
never restarted in place: the same command resumes.

- SIGTERM, SIGUSR1 or SIGINT to the launcher goes to every worker (SIGINT as SIGTERM); one to a worker alone reaches the
  others by their own agreement. They finish the step, save and exit 75, and so does the launcher. torch kills what is
  left 30 s after the first signal (TORCH_ELASTIC_SHUTDOWN_TIMEOUT); if a save takes longer, the last state counts.
- A worker that dies ends the job: exit code 1. A worker's words end in the launcher's one message, not in one a worker.
- Workers die with their launcher (Linux), so no orphan holds the lease or computes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from upcycle.errors import UserError
from upcycle.train.processes.allocation import NodePlace
from upcycle.train.processes.preemption import HOPELESS, PREEMPTED, Preempted, TrainingError
from upcycle.train.processes.words import ENDS_VARIABLE, End, is_first

PARENT_VARIABLE = "UPCYCLE_LAUNCHER"
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PR_SET_PDEATHSIG = 1


# A worker


def become_worker() -> None:
    """Die with the launcher; only the first process logs progress."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGKILL, int(os.environ.get(PARENT_VARIABLE, os.getppid())))
    if not is_first():
        logging.getLogger("upcycle").setLevel(logging.WARNING)


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Get this signal when the parent process `parent` dies (Linux); exit if it is dead already."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)  # it died before this line


# The launcher


def launch(arguments: Sequence[str], devices: int, place: NodePlace | None = None) -> None:
    """Run `upcycle <arguments>` in so many workers of this machine, to their end; `place`: of this node among several.

    Raises what they raised: UserError (one message, whoever found it), Preempted if they were stopped and saved, or
    were stopped and could not save in time; TrainingError if one failed or died.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # all it knows is in our message
    with tempfile.TemporaryDirectory(prefix="upcycle-launch-") as name:
        folder = Path(name)
        config = LaunchConfig(
            **_meeting(place),
            nproc_per_node=devices,
            max_restarts=0,
            signals_to_handle="SIGHUP",  # the others are `_stops_once`'s: torch's handler does not bear a second signal
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torch")),
        )
        codes: dict[int, int] = {}
        stopped_by = None
        variables = {ENDS_VARIABLE: name, PARENT_VARIABLE: str(os.getpid())}
        try:
            with _environment(variables), _stops_once(SignalException):
                elastic_launch(config, sys.executable)("-m", "upcycle.cli", *arguments)
        except ChildFailedError as failure:
            codes = {rank: found.exitcode for rank, found in failure.failures.items()}
        except SignalException as stop:
            stopped_by = stop.sigval
        _raise_outcome(_ends(folder), codes, stopped_by, devices, nodes=place.nodes if place else 1)


def _meeting(place: NodePlace | None) -> dict[str, Any]:
    """Where the agents of all nodes meet. Nodes have fixed ranks, so that equal jobs number their processes equally."""
    if place is None:
        alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        return alone | {"min_nodes": 1, "max_nodes": 1, "run_id": uuid.uuid4().hex}
    several = {"rdzv_backend": "static", "rdzv_endpoint": place.endpoint, "rdzv_configs": {"rank": place.rank}}
    return several | {"min_nodes": place.nodes, "max_nodes": place.nodes, "run_id": os.environ["SLURM_JOB_ID"]}


@contextlib.contextmanager
def _stops_once(exception: type[Exception]) -> Iterator[None]:
    """Raise torch's exception at the first stop signal, and take no notice of those that follow.

    A scheduler sends SIGTERM again while workers are saving; a second exception would leave them unattended.
    """
    seen = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            passed_on = signal.SIGTERM if number == signal.SIGINT else signal.Signals(number)
            raise exception(f"stopped by {signal.Signals(number).name}", passed_on)

    previous = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that workers inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ends(folder: Path) -> dict[int, End]:
    """Last words by rank, of the workers that had any."""
    return {int(path.stem): End(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def _raise_outcome(
    ends: Mapping[int, End],
    codes: Mapping[int, int],
    stopped_by: signal.Signals | None,
    devices: int,
    *,
    nodes: int = 1,
) -> None:
    """Make one end of many; returns if all went well.

    `codes`: exit codes of the workers that torch saw fail; `devices`: number of workers of this node.
    """
    by_code = {end.code: end.message for _, end in sorted(ends.items(), reverse=True)}  # of the lowest rank with it
    if 2 in by_code:
        raise UserError(by_code[2])
    if HOPELESS in by_code:  # also when stopped: words of a failed save must not end as "preempted"
        raise TrainingError(by_code[HOPELESS], HOPELESS)
    killed = _killed(codes, devices * nodes)
    if 1 in by_code:
        raise TrainingError(killed or by_code[1])
    if PREEMPTED in by_code:  # they leave with it once the state of all is on disk
        raise Preempted(by_code[PREEMPTED])
    if stopped_by is not None:
        if len(ends) == devices and set(by_code) == {0}:
            return
        raise Preempted(
            f"stopped by {stopped_by.name}, and ended before a new state was saved; the last one is kept: "
            "the same command continues"
        )
    if killed:
        raise TrainingError(killed)
    if codes:
        rank, code = next(iter(codes.items()))
        raise TrainingError(f"process {rank} of {devices * nodes} failed with exit code {code}; its words are above")


def _killed(codes: Mapping[int, int], devices: int) -> str | None:
    """Which process was killed by a signal, if one was; torch ends the others with SIGTERM."""
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:
            return (
                f"process {rank} of {devices} was killed by {signal.Signals(-code).name}. "
                "The last saved state is kept: the same command continues"
            )
    return None
