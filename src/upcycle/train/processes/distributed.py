"""The processes that train one run together: which this one is, what they agree on, how they start and end.

Launched by torchrun (not by `srun` alone, which sets none of this) or by `upcycle train` itself, each process finds
its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). They form a mesh of data x
tensor: consecutive ranks are tensor neighbours, which share each matrix; a data rank computes a share of every batch. A
run of one process has no process group, and every method here is then the identity. gloo carries CPU runs, NCCL CUDA
ones (gloo what lives on the host), gloo with one worker thread a group (`GLOO`). No NCCL path has been run by us.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from upcycle.errors import UserError
from upcycle.study.execution import Execution
from upcycle.train.processes.preemption import EndedByPeer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_starts = itertools.count()

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun says to each process."""

TIMEOUT = timedelta(minutes=10)
"""Longest wait for all to join, and in one collective over all: a stuck process ends the others with an error, not a
hang. Groups of some of them (the mesh's, under tensor parallelism) have torch's default: gloo 30 minutes, NCCL 10. A
process that is gone ends the others sooner under gloo, by its lost connections."""

GLOO = "gloo_one_worker"
"""Backend of every group on the host, in place of "gloo"."""


def _gloo_with_one_worker(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    """gloo, its collectives completed by one thread a group, in the order in which they were issued.

    torch's own groups have two such threads. Both note the name of the collective that they completed in one
    std::string, without a lock (`ProcessGroupGloo::runLoop`, torch 2.13). A name of 16 characters or more is on the
    heap, as ALLGATHER_COALESCED is, by which DTensor gathers. A thread that loses its core there goes on to write into
    memory that the other has freed: "malloc(): unaligned tcache chunk detected" at a later allocation (docs/log.md).
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stub lacks it
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    options._devices = [dist.ProcessGroupGloo.create_device(interface=name) for name in interfaces] or [
        dist.ProcessGroupGloo.create_default_device()
    ]
    options._threads = 1
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


dist.Backend.register_backend(GLOO, _gloo_with_one_worker, devices=["cpu"])


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them; `Group()` is a run of one process."""

    rank: int = 0
    size: int = 1
    tensor_size: int = 1
    """Processes that share each matrix."""
    mesh: DeviceMesh | None = None
    """("data", "tensor"); None for one process, which has no process group."""

    @property
    def is_first(self) -> bool:
        """Whether this process holds the lease and writes the run's files."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Parts that a batch is cut into."""
        return self.size // self.tensor_size

    @property
    def data_rank(self) -> int:
        """Which part of a batch is this process's."""
        return self.rank // self.tensor_size

    @property
    def tensor_rank(self) -> int:
        """Which part of each matrix, and of each sequence, is this process's."""
        return self.rank % self.tensor_size

    # --- agreement

    def any(self, flag: bool) -> bool:
        """Whether any process has the flag set; all get the same answer."""
        return flag if self.size == 1 else any(self._gather_objects(bool(flag)))

    def from_first(self, value: T) -> T:
        """The first process's value, on all; a small picklable object."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that every process, or some, does alone: if it fails anywhere, all end here, with one message.

        The lowest process that failed raises its own error, the others EndedByPeer. Within, no process may wait for
        another.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below, when all know
            failure = error
        code = getattr(failure, "exit_code", 1)
        ends = self._gather_objects(None if failure is None else (self.rank, code, str(failure)))
        failed = [end for end in ends if end is not None]
        if not failed:
            return
        first, code, message = failed[0]
        if failure is not None and self.rank == first:
            raise failure
        raise EndedByPeer(code, message)

    def _gather_objects(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    # --- tensors

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place; every process gets the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, stacked by rank."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def whole_of_first(self, tensors: Mapping[str, Tensor] | None, device: torch.device) -> Callable[..., Tensor]:
        """A source for `parallel.fill_parts`: whole tensors that only the first process has (others: None).

        They are sent one by one, so that the others never hold more than one of them.
        """

        def receive(name: str, shape: torch.Size) -> Tensor:
            if self.size == 1:
                assert tensors is not None
                return tensors[name]
            tensor = torch.empty(shape, device=device) if tensors is None else tensors[name].to(device).contiguous()
            dist.broadcast(tensor, src=0)
            return tensor

        return receive

    # --- shares

    def share(self, count: int) -> slice:
        """This data rank's part of `count` sequences: contiguous, in the order of ranks."""
        return slice(self.data_rank * count // self.data_size, (self.data_rank + 1) * count // self.data_size)

    def positions(self, ids_BS: Tensor) -> Tensor:
        """This process's part of the positions of its sequences (sequence parallelism)."""
        return ids_BS if self.tensor_size == 1 else ids_BS.chunk(self.tensor_size, dim=1)[self.tensor_rank]


@contextmanager
def start_group(execution: Execution) -> Iterator[Group]:
    """Join the processes that the environment names, for the length of the `with`.

    Raises UserError if their number is not `execution.devices`, or if the environment does not say how to find each
    other, before anything waits for anything.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size != execution.devices:
        raise UserError(
            f"execution.devices is {execution.devices}, but {size} process{'es' if size > 1 else ''} started "
            "(WORLD_SIZE): start as many as devices, or set execution.devices to what you start"
        )
    if size == 1:
        yield Group()
        return
    missing = [name for name in PLACE if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK is set, but not {', '.join(missing)}: start workers with torchrun, which sets {', '.join(PLACE)}; "
            "srun alone does not"
        )
    from torch.distributed.device_mesh import init_device_mesh

    cuda = execution.device == "cuda"
    if cuda and torch.cuda.is_available():  # if not, `use_device` raises
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    cuda = cuda and torch.cuda.is_available()
    store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # A second group in one process must not find the addresses of the first in torchrun's store, which outlives it.
    store = dist.PrefixStore(f"upcycle-{next(_starts)}", store)
    backend = f"cpu:{GLOO},cuda:nccl" if cuda else GLOO
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        shape = (size // execution.tensor_parallel, execution.tensor_parallel)
        mesh = init_device_mesh("cuda" if cuda else "cpu", shape, mesh_dim_names=("data", "tensor"))
        yield Group(rank, size, execution.tensor_parallel, mesh)
    finally:
        dist.destroy_process_group()
