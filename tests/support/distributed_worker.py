"""One of several processes that a test launches: does a list of jobs with the others and writes what came of each.

`torchrun ... distributed_worker.py JOBS.json`; a job is a run, execution settings, folders, and what to do.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from upcycle.errors import UserError
from upcycle.model.parallel import full_state, local
from upcycle.model.transformer import Transformer
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.loop import train_run
from upcycle.train.processes.distributed import Group, start_group
from upcycle.train.processes.preemption import EndedByPeer, Preempted, TrainingError
from upcycle.train.record import Clock, MetricsLog
from upcycle.train.start import prepare_trainee
from upcycle.train.step import Wishes, accumulate, update
from upcycle.train.tracing import HostReads, Trace
from upcycle.train.trainee import Trainee, run_batch


class SignalAtStep(logging.Handler):
    """Sends this process SIGTERM when the loop tells of a given step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def emit(self, record: logging.LogRecord) -> None:
        if "step %d of" in str(record.msg) and record.args[1] == self.step:  # type: ignore[index]
            signal.raise_signal(signal.SIGTERM)


def prepared(job: dict[str, Any], group: Group) -> tuple[Path, Trainee]:
    """A job's folder, and its run ready for the first update."""
    run, execution = RunSpec.model_validate(job["run"]), Execution.model_validate(job["execution"])
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    tokens = Path(job["tokens"])
    trainee = prepare_trainee(
        run, run_dir=folder, tokens_dir=tokens, parent_dir=None, execution=execution, clock=Clock(), group=group
    )
    return folder, trainee


def gradients(job: dict[str, Any], group: Group) -> None:
    """The whole gradient of the first update, by parameter (`gradients.safetensors`), and how weights are held."""
    folder, trainee = prepared(job, group)
    dtypes: dict[str, str] = {}
    for name, module in trainee.model.named_modules():
        for leaf, weight in [*module.named_parameters(recurse=False)]:
            whole = f"{name}.{leaf}"
            dtypes[whole] = str(weight.dtype)
            if name.startswith("blocks"):  # in a forward pass: what the layer multiplies by
                module.register_forward_pre_hook(
                    lambda module, _, leaf=leaf, whole=whole: dtypes.update({whole: str(getattr(module, leaf).dtype)})
                )
    with trainee.saver:
        backends = [dist.get_backend(each) for each in dist.distributed_c10d._world.pg_map]
    sums = accumulate(trainee, run_batch(trainee.run, trainee.tokens, 0))
    loss, balance = group.sum(torch.stack([sums.loss, sums.balance])).tolist()
    parameters = dict(trainee.model.named_parameters())
    found = full_state({name: weight.grad for name, weight in parameters.items()}, keep=group.is_first)
    notes = {
        "backends": backends,
        "loss": loss,
        "balance": balance,
        "dtypes": dtypes,
        "held": {name: list(local(weight).shape) for name, weight in parameters.items()},
        "saved": {name: list(weight.shape) for name, weight in trainee.model.state_dict().items()},
    }
    if group.is_first:
        save_file({name: grad.contiguous() for name, grad in found.items()}, folder / "gradients.safetensors")
        (folder / "gradients.json").write_text(json.dumps(notes))


def traffic(job: dict[str, Any], group: Group) -> None:
    """What the second update exchanges and what the host reads of it, from the first process: `traffic.json`."""
    folder, trainee = prepared(job, group)
    with trainee.saver:
        update(trainee, Wishes())
        trainee.step += 1
        with HostReads() as host, Trace() as trace:
            update(trainee, Wishes())
    if group.is_first:
        found = {"collectives": trace.collectives(), "reads": host.reads, "waits": trace.host_waits()}
        (folder / "traffic.json").write_text(json.dumps(found))


@contextmanager
def curve_that_takes(n_row: int | None) -> Iterator[None]:
    """Give the first process's `metrics.jsonl` a disk that is full after so many rows; None: never."""
    append, count = MetricsLog.append, 0

    def counted(log: MetricsLog, row: dict[str, Any]) -> None:
        nonlocal count
        if count == n_row and log._writes:
            with Path("/dev/full").open("ab") as full:
                os.dup2(full.fileno(), log._file.fileno())
        count += 1
        append(log, row)

    with patch.object(MetricsLog, "append", counted):
        yield


@contextmanager
def loss_that_is_nan_at(step: int | None) -> Iterator[None]:
    """Make the last process's loss of this step NaN; None: of no step."""
    forward, count = Transformer.forward, 0
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def counted(model: Transformer, *arguments: torch.Tensor, **named: bool) -> Any:
        nonlocal count
        count += model.training
        output = forward(model, *arguments, **named)
        return output._replace(loss=output.loss * torch.nan) if last and model.training and count == step else output

    with patch.object(Transformer, "forward", counted):
        yield


def exit_code(end: BaseException) -> Any:
    return end.code if isinstance(end, SystemExit) else getattr(end, "exit_code", 2)


def training(job: dict[str, Any]) -> None:
    """A whole run by `train_run`. With `stop_at` the LAST process gets SIGTERM in that step; with `without_tokens` the
    ranks named find no data; with `rows_that_fit` the disk takes no more of the curve; with `nan_at` the last process's
    loss of that step is NaN. Whatever ends it early is written to `end-RANK.txt`."""
    run, execution = RunSpec.model_validate(job["run"]), Execution.model_validate(job["execution"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    folder, logger = Path(job["folder"]), logging.getLogger("upcycle.train.loop")
    handler = SignalAtStep(job.get("stop_at", 0) if rank == size - 1 else 0)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with curve_that_takes(job.get("rows_that_fit")), loss_that_is_nan_at(job.get("nan_at")):
            train_run(
                run,
                run_dir=folder,
                tokens_dir=Path("/nowhere" if rank in job.get("without_tokens", ()) else job["tokens"]),
                parent_dir=Path(job["parent"]) if "parent" in job else None,
                execution=execution,
            )
    except (UserError, TrainingError, Preempted, EndedByPeer) as end:
        folder.with_name(f"{folder.name}-end-{rank}.txt").write_text(f"{type(end).__name__} {exit_code(end)}: {end}")
    finally:
        logger.removeHandler(handler)


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for layout in sorted({job["execution"].get("tensor_parallel", 1) for job in jobs}):
        part = [job for job in jobs if job["do"] != "train" and job["execution"].get("tensor_parallel", 1) == layout]
        if part:
            with start_group(Execution.model_validate(part[0]["execution"])) as group:
                for job in part:
                    {"gradients": gradients, "traffic": traffic}[job["do"]](job, group)
    for job in jobs:
        if job["do"] == "train":
            training(job)


if __name__ == "__main__":
    main()
