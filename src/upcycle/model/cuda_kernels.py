"""Attention by flash-attn 2, 3 and 4: thin wrappers in the project's own layout. **Not run by us: there was no GPU.**

Each `*_attention` takes the library's function, so that a test can hand in a recorder; `find_library` imports it.
Libraries
are called by keyword only (flash-attn 2 and 3 disagree on the argument after v). What was read in their source and
checked without a GPU is told in docs/cluster.md.

Shapes: B sequences, S positions, H heads, C head dimension; tensors come and go as (B, H, S, C), libraries want
(B, S, H, C), which is how the model's tensors lie in memory: the transposes cost nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upcycle.study.kernel_fit import HEAD_DIM_MULTIPLE

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Library:
    """Where a kernel comes from, and how to get it."""

    distribution: str
    """Name of the installed distribution. An importable module proves nothing: flash-attn-4 alone makes `import
    flash_attn` succeed, without any function of flash-attn 2."""
    module: str
    functions: tuple[str, ...]
    capability: tuple[int, int]
    """Lowest compute capability of the device."""
    highest: tuple[int, int] = (99, 0)
    install: str = ""


LIBRARIES = {
    "flash2": Library(
        "flash-attn",
        "flash_attn",
        ("flash_attn_func",),
        (8, 0),
        install="pip install --no-build-isolation -e '.[flash2]'",
    ),
    "flash3": Library(
        "flash-attn-3",
        "flash_attn_interface",
        ("flash_attn_func",),
        (9, 0),
        (9, 0),
        install="build it from the hopper folder of flash-attention",
    ),
    "flash4": Library(
        "flash-attn-4",
        "flash_attn.cute",
        ("flash_attn_func",),
        (9, 0),
        install="pip install --no-build-isolation -e '.[flash4]'",
    ),
    "te": Library(
        "transformer-engine",
        "transformer_engine.pytorch",
        ("DotProductAttention", "GroupedLinear", "RMSNorm"),
        (8, 0),
        install="pip install --no-build-isolation -e '.[te]'",
    ),
}


class MissingLibraryError(Exception):
    """A kernel's library is not here, or not as we know it; the message says why."""


def find_library(name: str) -> tuple[Any, str]:
    """The module of the library behind a kernel, with the functions wanted in it, and its version.

    Raises MissingLibraryError. An unfit library fails on import in its own way (OSError, RuntimeError, AssertionError:
    transformer-engine without its CUDA part), so that every exception is a reason, and is told.
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


def check_device(name: str) -> None:
    """Raise MissingLibraryError where the CUDA device is not one that the kernel was written for."""
    library = LIBRARIES[name]
    if not torch.cuda.is_available():
        raise MissingLibraryError("torch finds no CUDA device here")
    found = torch.cuda.get_device_capability()
    if not library.capability <= found <= library.highest:
        raise MissingLibraryError(f"the device has compute capability {found[0]}.{found[1]}, it needs {_span(library)}")


def _span(library: Library) -> str:
    low = "{}.{}".format(*library.capability)
    return low if library.highest == library.capability else f"{low} or newer"


def check_keywords(function: Callable[..., Any], *keywords: str) -> None:
    """Raise MissingLibraryError where an installed release has lost a keyword that we pass."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    lost = [keyword for keyword in keywords if keyword not in parameters]
    if lost:
        raise MissingLibraryError(
            f"its function does not know {', '.join(lost)}: this release is not the one pinned in pyproject.toml"
        )


def padded(x_BSHC: Tensor) -> Tensor:
    """Heads filled up with zeros to the next multiple of 8. Exact: zeros add nothing to scores, and are cut off."""
    missing = -x_BSHC.shape[-1] % HEAD_DIM_MULTIPLE
    return F.pad(x_BSHC, (0, missing)) if missing else x_BSHC  # a pad of nothing would copy


def flash2_attention(flash_attn_func: Callable[..., Any]) -> Attention:
    """flash-attn 2, which pads head dimensions itself."""

    def flash2(q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
        y_BSHC = flash_attn_func(
            q=q_BHSC.transpose(1, 2),
            k=k_BHSC.transpose(1, 2),
            v=v_BHSC.transpose(1, 2),
            softmax_scale=q_BHSC.shape[-1] ** -0.5,
            causal=True,
            deterministic=True,
        )
        return y_BSHC.transpose(1, 2)

    check_keywords(flash_attn_func, "q", "k", "v", "softmax_scale", "causal", "deterministic")
    return flash2


def flash3_attention(flash_attn_func: Callable[..., Any]) -> Attention:
    """flash-attn 3 (H100), which takes multiples of 8 only; some builds return (out, lse)."""
    return _padding_attention(flash_attn_func, "flash3")


def flash4_attention(flash_attn_func: Callable[..., Any]) -> Attention:
    """flash-attn 4, which takes multiples of 8 only and always returns (out, lse)."""
    return _padding_attention(flash_attn_func, "flash4")


def _padding_attention(flash_attn_func: Callable[..., Any], name: str) -> Attention:
    def attention(q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
        head_dim = q_BHSC.shape[-1]
        out = flash_attn_func(
            q=padded(q_BHSC.transpose(1, 2)),
            k=padded(k_BHSC.transpose(1, 2)),
            v=padded(v_BHSC.transpose(1, 2)),
            softmax_scale=head_dim**-0.5,
            causal=True,
            deterministic=True,
        )
        y_BSHC = out[0] if isinstance(out, tuple) else out
        return y_BSHC[..., :head_dim].transpose(1, 2)

    check_keywords(flash_attn_func, "q", "k", "v", "softmax_scale", "causal", "deterministic")
    attention.__name__ = name
    return attention
