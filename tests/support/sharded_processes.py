"""Two and three real processes that save and load rolling states together; each assertion here is one of the test's.

`python sharded_processes.py SCENARIO SIZE FOLDER`: one import of torch, then a fork a process.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

SHAPES = {"model.stack": (3, 8, 6), "model.uneven": (5, 4), "model.norm": (7,)}
"""A stack split along its second dimension, rows split unevenly, and a vector that every process holds whole."""
NOTES = {"id": "dense-x", "tokens_fingerprint": "f", "clock": {}}


def whole(step: int) -> dict[str, Any]:
    """The state after `step` updates; the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def parts(tensors: dict[str, Any]) -> dict[str, Any]:
    """What this process holds of a state."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "model.stack": distribute_tensor(tensors["model.stack"], mesh, [Shard(1)], src_data_rank=None),
        "model.uneven": distribute_tensor(tensors["model.uneven"], mesh, [Shard(0)], src_data_rank=None),
        "model.norm": tensors["model.norm"],
    }


def assert_filled_as(folder: Path, step: int) -> None:
    """The newest state of a folder, whoever wrote it, gives this process its parts of that step."""
    import torch

    from upcycle.train.states.rolling import load_rolling

    state = load_rolling(folder, "dense-x")
    assert state is not None
    assert state.step == step
    assert state.notes == NOTES
    target = parts({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    state.fill(target)
    for name, expected in parts(whole(step)).items():
        own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in (target[name], expected)]
        assert torch.equal(*own), name


def save(saver: Any, folder: Path, step: int, before: Any = lambda: None) -> None:
    saver.save(folder, step, parts(whole(step)), NOTES, before=before, after=lambda _: None)


def scenario_save(folder: Path) -> None:
    """Three saves; the last two are kept, and given back to as many processes."""
    from upcycle.train.states.saving import Saver

    with Saver() as saver:
        for step in (1, 2, 3):
            save(saver, folder / "resume", step)
    assert [path.name[:14] for path in sorted((folder / "resume").iterdir())] == ["step-000000002", "step-000000003"]
    assert_filled_as(folder / "resume", 3)


def scenario_load(folder: Path) -> None:
    """States of another number of processes: a folder's, and one process's file."""
    assert_filled_as(folder / "resume", 3)
    assert_filled_as(folder / "one" / "resume", 4)


def scenario_beside(folder: Path) -> None:
    """A save held up on one process returns to the training of all: collectives go on, tensors change."""
    import torch
    import torch.distributed as dist

    from upcycle.train.states.saving import Saver

    folder, gate, rank = folder / "more", threading.Event(), dist.get_rank()
    folder.mkdir(exist_ok=True)
    state = parts(whole(5))
    with Saver() as saver:
        save(saver, folder / "resume", 4)
        saver.save(folder / "resume", 5, state, NOTES, before=gate.wait if rank else lambda: None, after=lambda _: None)
        for _ in range(20):
            total = torch.ones(3)
            dist.all_reduce(total)
            assert total[0] == dist.get_world_size()
        for tensor in state.values():
            tensor.zero_()
        assert not list((folder / "resume").glob("step-000000005-*"))
        gate.set()
    assert_filled_as(folder / "resume", 5)


def scenario_full(folder: Path) -> None:
    """A disk full under one process, before or while it writes, is a TrainingError of all; then there is room again.

    The second process looks for what the failed save left when the first has begun the next one, whose folder has a
    temporary name then: a look at all of `resume/` would take that for a half state.
    """
    import torch.distributed as dist

    from upcycle.train.processes.preemption import TrainingError
    from upcycle.train.states.folder import states_in
    from upcycle.train.states.saving import Saver

    folder, rank, fsync = folder / "more" / "resume", dist.get_rank(), os.fsync

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Saver() as saver:
        for step, when in ((6, "before"), (7, "while")):
            if rank == 1 and when == "while":
                os.fsync = no_space
            save(saver, folder, step, no_space if rank == 1 and when == "before" else lambda: None)
            try:
                saver.wait()
            except TrainingError as error:
                assert "disk is full" in str(error)  # noqa: PT017 (no pytest here)
            else:
                raise AssertionError("no error heard")
            finally:
                os.fsync = fsync
            dist.barrier()  # the first process has tidied up before it is here
            if rank:
                wait_for(folder / f"step-{step + 1:09d}.tmp")
            assert not list(folder.glob(f"step-{step:09d}*")), "a half state is left"
            assert [path.name[:14] for path in states_in(folder)] == ["step-000000005", "step-000000004"]
        save(saver, folder, 8)
    assert_filled_as(folder, 8)


def scenario_overtaken(folder: Path) -> None:
    """A process hears of a failed save and begins the next before the first process has removed what it left."""
    import shutil

    import torch.distributed as dist

    from upcycle.train.states import sharded
    from upcycle.train.states.saving import Saver

    folder, rank = folder / "overtaken", dist.get_rank()
    folder.mkdir(exist_ok=True)
    remove, gone_on = shutil.rmtree, folder / "gone on"

    def removes_late(path: Path, **options: bool) -> None:
        if path.exists():
            wait_for(gone_on)
        remove(path, **options)

    def no_space() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Saver() as saver:
        sharded.shutil.rmtree = removes_late  # of the first process: the second removes nothing
        save(saver, folder / "resume", 10, no_space if rank else lambda: None)
        try:
            saver.wait()
        except RuntimeError as error:
            assert "disk is full" in str(error)  # noqa: PT017 (no pytest here)
        else:
            raise AssertionError("no error heard")
        sharded.shutil.rmtree = remove
        save(saver, folder / "resume", 10)
        if rank:
            assert (folder / "resume" / "step-000000010.tmp").exists()
            gone_on.touch()
    assert_filled_as(folder / "resume", 10)
    assert [path.suffix for path in (folder / "resume").iterdir()] == [""]


def wait_for(path: Path) -> None:
    """Until another process has made this file or folder."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def scenario_stuck(folder: Path) -> None:
    """A process that never gets to writing is an error of those that wait for it, after the time stated and no later.

    It goes on after ten seconds, so that without that bound all would be well.
    """
    import torch.distributed as dist

    from upcycle.train.states import saving

    folder, gate, rank = folder / "stuck", threading.Event(), dist.get_rank()
    folder.mkdir(exist_ok=True)
    saving.TIMEOUT, stated = timedelta(seconds=1), saving.TIMEOUT
    with saving.Saver() as saver:
        saving.TIMEOUT = stated
        save(saver, folder / "resume", 9, (lambda: gate.wait(10)) if rank else lambda: None)
        try:
            saver.wait()
        except RuntimeError as error:
            assert rank or "Timed out" in str(error)  # noqa: PT017 (no pytest here)
        else:
            raise AssertionError("no error heard")
    assert not any((folder / "resume").iterdir())


def main(scenarios: str, size: int, folder: Path) -> int:
    """Fork, run, and report the number of processes that failed."""
    import torch
    import torch.distributed.checkpoint

    import upcycle.train.states.saving
    import upcycle.train.states.sharded  # noqa: F401
    from upcycle.train.processes.distributed import GLOO

    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                store = f"file://{folder}/rendezvous-{scenarios}-{size}"
                torch.distributed.init_process_group(GLOO, init_method=store, rank=rank, world_size=size)
                for scenario in scenarios.split(","):
                    globals()[f"scenario_{scenario}"](folder)
                    torch.distributed.barrier()
                torch.distributed.destroy_process_group()
            except BaseException:  # noqa: BLE001 (as the interpreter does)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
