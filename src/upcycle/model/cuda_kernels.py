"""Attention by flash-attn 2, and finding the libraries of CUDA kernels. **Not run by us: there was no GPU.**

`flash2_attention` takes the library's function, so that a test can hand in a recorder; `find_library` imports it.
Libraries are called by keyword only: a release that has moved an argument then refuses the call instead of misreading
it. docs/cluster.md lists what was checked without a GPU.

Shapes: B sequences, S positions, H heads (of keys and values G), C head dimension; tensors come and go as (B, H, S, C),
libraries want (B, S, H, C), which is how the model's tensors lie in memory: the transposes cost nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

LOWEST_CAPABILITY = (8, 0)
"""Compute capability that the kernels of every library here need."""


@dataclass(frozen=True)
class Library:
    """Where a kernel comes from, and how to get it."""

    distribution: str
    """Name of the installed distribution. An importable module proves nothing: other distributions put files into the
    folder `flash_attn` too, and alone make `import flash_attn` succeed without any function of flash-attn 2."""
    module: str
    functions: tuple[str, ...]
    """What we use of the module."""
    install: str


LIBRARIES = {
    "flash2": Library(
        "flash-attn",
        "flash_attn",
        ("flash_attn_func",),
        install="pip install --no-build-isolation -e '.[flash2]'",
    ),
    "te": Library(
        "transformer-engine",
        "transformer_engine.pytorch",
        ("DotProductAttention", "GroupedLinear", "RMSNorm"),
        install="pip install --no-build-isolation -e '.[te]'",
    ),
}
"""By the name of the kernels that a library computes."""


class MissingLibraryError(Exception):
    """A kernel's library is missing here, or is not the release that we know; the message gives the reason."""


def find_library(name: str) -> tuple[Any, str]:
    """The module of the library behind a kernel, with the functions wanted in it, and its version.

    Raises MissingLibraryError. A library that does not fit the machine fails on import in its own way (OSError,
    RuntimeError, AssertionError: transformer-engine without its CUDA part), so every exception counts as a reason, and
    the message repeats it.
    """
    library = LIBRARIES[name]
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise MissingLibraryError(f"{library.distribution} is not installed") from None
    try:
        module = importlib.import_module(library.module)
        for function in library.functions:
            getattr(module, function)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise MissingLibraryError(f"{library.distribution} {version} does not import: {reason}") from error
    return module, version


def check_device() -> None:
    """Raise MissingLibraryError where there is no CUDA device that the libraries' kernels run on."""
    if not torch.cuda.is_available():
        raise MissingLibraryError("torch finds no CUDA device here")
    found = torch.cuda.get_device_capability()
    if found < LOWEST_CAPABILITY:
        needed = "{}.{}".format(*LOWEST_CAPABILITY)
        raise MissingLibraryError(
            f"the device has compute capability {found[0]}.{found[1]}, it needs {needed} or newer"
        )


def flash2_attention(flash_attn_func: Callable[..., Any]) -> Attention:
    """flash-attn 2, which pads head dimensions itself.

    Raises MissingLibraryError where an installed release has lost a keyword that we pass.
    """

    def flash2(q_BHSC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor) -> Tensor:
        y_BSHC = flash_attn_func(
            q=q_BHSC.transpose(1, 2),
            k=k_BGSC.transpose(1, 2),
            v=v_BGSC.transpose(1, 2),
            softmax_scale=q_BHSC.shape[-1] ** -0.5,
            causal=True,
            deterministic=True,
        )
        return y_BSHC.transpose(1, 2)

    known = inspect.signature(flash_attn_func).parameters
    lost = [name for name in ("q", "k", "v", "softmax_scale", "causal", "deterministic") if name not in known]
    if lost:
        raise MissingLibraryError(
            f"its function does not know {', '.join(lost)}: this release is not the one pinned in pyproject.toml"
        )
    return flash2
