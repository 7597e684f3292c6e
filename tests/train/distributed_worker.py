"""One of several processes that a test launches: does a list of jobs with the others, the first writes what they found.

`torchrun ... distributed_worker.py JOBS.json`; a job is a run, execution settings and what to do with them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from upcycle.execution import Execution
from upcycle.model.parallel import full_state, local
from upcycle.spec import RunSpec
from upcycle.train.distributed import Group, start_group
from upcycle.train.loop import train
from upcycle.train.preemption import Preempted
from upcycle.train.record import Clock
from upcycle.train.start import prepare
from upcycle.train.step import accumulate
from upcycle.train.trainee import run_batch


def gradients(job: dict[str, Any], group: Group) -> None:
    """Every parameter's gradient in the first update, whole, and what arrives where: `gradients.safetensors`."""
    run, execution = RunSpec.model_validate(job["run"]), Execution.model_validate(job["execution"])
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    trainee = prepare(
        run,
        run_dir=folder,
        tokens_dir=Path(job["tokens"]),
        parent_dir=Path(job["parent"]) if job.get("parent") else None,
        execution=execution,
        clock=Clock(),
        group=group,
    )
    seen: dict[str, str] = {}
    for name, module in trainee.model.named_modules():
        if name.endswith(("norm", "router")):
            module.register_forward_pre_hook(lambda module, _, name=name: seen.update({name: str(module.weight.dtype)}))
        if name.endswith("attn"):
            module.register_forward_pre_hook(lambda module, _, name=name: seen.update({name: str(module.wqkv.dtype)}))
    sums = accumulate(trainee, run_batch(run, trainee.tokens, 0))
    loss, balance = group.sum(torch.stack([sums.loss, sums.balance])).tolist()
    parameters = dict(trainee.model.named_parameters())
    found = full_state({name: weight.grad for name, weight in parameters.items()}, keep=group.is_first)
    held = {name: list(local(weight).shape) for name, weight in parameters.items()}
    if group.is_first:
        save_file({name: grad.contiguous() for name, grad in found.items()}, folder / "gradients.safetensors")
        notes = {"loss": loss, "balance": balance, "dtypes": seen, "held": held}
        (folder / "gradients.json").write_text(json.dumps(notes))


def training(job: dict[str, Any]) -> None:
    """A whole run by `train`; with `stop_at` asked to stop by a signal to the LAST process in that step."""
    run, execution = RunSpec.model_validate(job["run"]), Execution.model_validate(job["execution"])
    try:
        train(
            run,
            run_dir=Path(job["folder"]),
            tokens_dir=Path(job["tokens"]),
            parent_dir=Path(job["parent"]) if job.get("parent") else None,
            execution=execution,
        )
    except Preempted:
        if "stop_at" not in job:
            raise


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    together = [job for job in jobs if job["do"] == "gradients"]
    if together:
        execution = Execution.model_validate(together[0]["execution"])
        by_layout: dict[int, list[dict[str, Any]]] = {}
        for job in together:
            by_layout.setdefault(job["execution"].get("tensor_parallel", 1), []).append(job)
        for tensor_parallel, part in by_layout.items():
            layout = execution.model_copy(update={"tensor_parallel": tensor_parallel})
            with start_group(layout) as group:
                for job in part:
                    gradients(job, group)
    for job in jobs:
        if job["do"] == "train":
            training(job)


if __name__ == "__main__":
    main()
