"""Giving the tensors of a model or an optimizer their values, whole or this process's part of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def give(tensors: Mapping[str, Tensor], source: Callable[[str, torch.Size], Tensor]) -> None:
    """Copy into each tensor, in place, the whole single-process tensor that `source(name, shape)` returns, or of it
    the part that this process holds."""
    if any(hasattr(tensor, "to_local") for tensor in tensors.values()):
        from upcycle.model.parallel import fill_parts  # a second of imports that one process does not need

        fill_parts(tensors, source)
    else:
        for name, tensor in tensors.items():
            tensor.copy_(source(name, tensor.shape))
