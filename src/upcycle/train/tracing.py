"""What some code asks of a device, seen by dispatch: operations, bytes, collectives, and reads by the host.

It works on real tensors and on fake ones (`FakeTensorMode`), so a machine without a GPU can trace an update of any size
(benchmarks/roofline.py). An operation is what would be a kernel or a few on a GPU; views cost nothing. Operations that
torch composes of others on a CPU, and fuses on a GPU, appear as composed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device", "lift_fresh", "detach")
"""Operations of which no kernel comes."""
HOST_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal")
"""Operations whose result, or its shape, the host must know."""
BY_INDEX: dict[str, Callable[[Any, Any], float]] = {
    **dict.fromkeys(("gather", "index_select", "embedding"), lambda _, output: _bytes(output)),
    **dict.fromkeys(("scatter_", "scatter_add_"), lambda args, _: _bytes(args[2])),
}
"""Operations that touch a part of a tensor, with the bytes of that part."""
READS = (Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__)


@dataclass
class Operation:
    """One operation; tensors by the identity of their storage, with the bytes that it touches."""

    name: str
    reads: dict[int, float]
    writes: dict[int, float]
    flops: float = 0.0
    collective: bool = False
    half: bool = False
    """Whether its first tensor has two bytes a number."""
    region: str = ""

    @property
    def bytes(self) -> float:
        """Moved, if nothing is in a cache."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass
class Trace(TorchDispatchMode):
    """Within it operations are recorded, in order."""

    operations: list[Operation] = field(default_factory=list)
    region: str = ""
    """Noted with each operation."""

    def __post_init__(self) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}  # kept, so that identities are not used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name not in FREE and func.namespace in ("aten", "c10d", "_c10d_functional", "fsdp"):
            self._record(name, func, self._touched([args, kwargs]), self._touched(output), args, output)
        return output

    def _touched(self, values: Any) -> dict[int, float]:
        found: dict[int, float] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
                found[storage._cdata] = found.get(storage._cdata, 0.0) + _bytes(tensor)
        return found

    def _record(
        self, name: str, func: Any, reads: dict[int, float], writes: dict[int, float], args: Any, output: Any
    ) -> None:
        if "c10d" in func.namespace:
            if name.removesuffix("_") not in ("wait_tensor", "barrier"):
                # Of a gather and a sum the whole tensor; its parts are views of the same memory.
                whole = max(_bytes(tensor) for tensor in tree_leaves(args) if isinstance(tensor, Tensor))
                self.operations.append(Operation(name, {0: whole}, {}, collective=True, region=self.region))
            return
        if not func._schema.is_mutable and writes.keys() <= reads.keys():
            return  # a view
        if func._schema.is_mutable and not writes:  # e.g. a fused optimizer: what it is given, it changes
            writes = reads
        if name.startswith(("new_", "zeros", "ones", "full")):
            reads = {}  # a shape and a type are all that is taken
        if name in BY_INDEX:  # as many numbers as there are indices, of what may be much larger
            most = BY_INDEX[name](args, output)
            reads, writes = ({key: min(size, most) for key, size in each.items()} for each in (reads, writes))
        half = any(isinstance(value, Tensor) and value.element_size() == 2 for value in args[:1])
        self.operations.append(
            Operation(name, reads, writes, flops_of(name, args, output), half=half, region=self.region)
        )

    def kernel(self, name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        """Record a kernel that a GPU has and torch composes here."""
        self.operations.append(Operation(name, self._touched(reads), self._touched(writes), region=self.region))

    def collectives(self) -> dict[str, tuple[int, float]]:
        """Number and bytes of the collectives, by name."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for operation in self.operations:
            if operation.collective:
                counts[operation.name] += 1
                sizes[operation.name] += operation.bytes  # type: ignore[assignment]
        return {name: (count, float(sizes[name])) for name, count in counts.items()}

    def host_waits(self) -> list[str]:
        """Operations for which the host waits."""
        return [operation.name for operation in self.operations if operation.name in HOST_WAITS]


def _bytes(tensor: Tensor) -> float:
    return float(tensor.numel() * tensor.element_size())


class HostReads(TorchFunctionMode):
    """Within it every read of a tensor's values by Python is counted, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.reads[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def flops_of(name: str, args: Any, output: Any) -> float:
    """FLOPs of a matrix product or of causal attention; 0 of anything else, which memory limits."""
    shapes = [tuple(value.shape) for value in args if isinstance(value, Tensor)]
    if name in ("mm", "bmm"):
        return 2.0 * math.prod(shapes[0]) * shapes[1][-1]
    if name == "addmm":
        return 2.0 * math.prod(shapes[1]) * shapes[2][-1]
    if name == "_grouped_mm":  # rows, each by one expert's matrix; or two lists of rows, expert by expert
        return 2.0 * math.prod(shapes[0]) * shapes[1][-1]
    if "attention" in name:
        backward = "backward" in name
        batch, heads, positions, width = shapes[1 if backward else 0]
        products = 5 if backward else 2  # of S x S x C, half of them masked
        return products * 2.0 * batch * heads * positions**2 * width / 2
    return 0.0
