"""Bytes of the tensors alive at the worst moment of some code, by dispatch."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Counts the bytes of storages that ops make until they are freed; `peak` is the most at any moment.

    What is there before counts as `present` bytes; `held` are the tensors of it that ops may return.
    """

    def __init__(self, held: Iterable[Tensor], present: int) -> None:
        super().__init__()
        self.now = self.peak = present
        self._sizes: dict[int, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}
        self._kept = [tensor.untyped_storage() for tensor in held]
        for storage in self._kept:
            self._known[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return output

    def _see(self, storage: torch.UntypedStorage) -> None:
        known = self._known.get(id(storage))
        if known is None or known() is not storage:
            self.now += storage.nbytes()
            self._known[id(storage)] = weakref.ref(storage)
            self._sizes[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self._free, id(storage))

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        self._known.pop(key, None)

    def resized(self, tensor: Tensor) -> None:
        """Take note that code below dispatch has given a storage memory, or taken it away."""
        storage = tensor.untyped_storage()
        self._see(storage)
        self.now += storage.nbytes() - self._sizes.get(id(storage), storage.nbytes())
        if id(storage) in self._sizes:
            self._sizes[id(storage)] = storage.nbytes()
        self.peak = max(self.peak, self.now)
