"""The seam to interchangeable kernels: every op that a library may do faster, with its plain reference.

The model calls these through a `Kernels` value, chosen once before the model is built and recorded with the run.
Which kernel computes an op changes rounding and speed only. `auto` chooses by what the machine and the shape allow
and says why; a kernel asked for by name that cannot run is an error, never replaced.

| op | kernels | `auto` |
|---|---|---|
| layers | native (C, whole layers), composed of the ops below | cpu, float32 and no op named: native; else composed |
| attention | flash2, te, sdpa_flash, sdpa, plain | cuda, bfloat16: flash2, sdpa_flash; else sdpa |
| experts | grouped_mm, te, loop | grouped_mm where the shape allows, else loop |
| rms_norm | torch, te | torch |
| cross_entropy | plain, chunked | plain |
| router | native (softmax gates without biases), torch (`moe.Router` and the gates, in float32) | follows the layers |

flash2 and te were not run by us: docs/cluster.md. Layout and dtypes of arguments are ours:
`torch_kernels.py` (no library), `cuda_kernels.py` (flash-attn), `te_kernels.py` (Transformer Engine).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model import cuda_kernels, te_kernels, torch_kernels
from upcycle.model.cuda_kernels import LIBRARIES, Attention, MissingLibraryError
from upcycle.model.native import build
from upcycle.study.kernel_fit import (
    KERNELS,
    alternatives,
    check_name,
    named_kernels,
    torch_routes,
    why_not,
    why_not_native,
)
from upcycle.study.shape import ModelSpec, MoESpec

log = logging.getLogger(__name__)

Experts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

TORCH: dict[str, dict[str, Any]] = {
    "attention": {
        "sdpa_flash": torch_kernels.sdpa_flash,
        "sdpa": torch_kernels.sdpa,
        "plain": torch_kernels.plain_attention,
    },
    "experts": {"grouped_mm": torch_kernels.grouped_mm, "loop": torch_kernels.loop},
    "rms_norm": {"torch": torch_kernels.rms_norm},
    "cross_entropy": {"plain": torch_kernels.cross_entropy, "chunked": torch_kernels.chunked_cross_entropy},
}
"""Kernels that need torch alone, by op and name."""
WRAPPERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("attention", "flash2"): lambda library: cuda_kernels.flash2_attention(library.flash_attn_func),
    ("attention", "te"): te_kernels.te_attention,
    ("experts", "te"): te_kernels.te_experts,
    ("rms_norm", "te"): te_kernels.te_rms_norm,
}
"""The others, made from the imported module of the library of that name."""
UNTRACEABLE = {("attention", "te"), ("experts", "te"), ("rms_norm", "te")}
"""Kernels that torch.compile cannot trace: left outside of the graph."""


@dataclass(frozen=True)
class Kernels:
    """The kernel of each op; the default is what runs on any machine."""

    attention: Attention = torch_kernels.sdpa
    experts: Experts = torch_kernels.grouped_mm
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = torch_kernels.rms_norm
    cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor] = torch_kernels.cross_entropy
    token_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor] = torch_kernels.token_cross_entropy
    native: bool = False
    """Whole layers by `model/native/layers.py` in place of the ops: then these are used where logits are asked for
    only."""
    names: Mapping[str, str] = field(
        default_factory=lambda: {
            "attention": "sdpa",
            "experts": "grouped_mm",
            "rms_norm": "torch",
            "cross_entropy": "plain",
            "router": "torch",
            "layers": "composed",
        }
    )
    """Name of the kernel, by op."""
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": str(torch.__version__)})
    """Version of each library that computes one of the ops."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernels:
        """Itself: a copied model computes by the same kernels, and functions have nothing to copy."""
        return self

    def describe(self) -> dict[str, str]:
        """For the record of a run: the kernel of each op, and the version of each library."""
        return {**self.names, **self.versions}


def choose_kernels(
    model: ModelSpec,
    names: Mapping[str, str] | None = None,
    *,
    moe: MoESpec | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    tensor_parallel: int = 1,
    compile: bool = False,
) -> Kernels:
    """The kernels named by op (as `Execution.kernels`), or for `auto` those that machine and shape allow; a log line
    each says why. `moe` gives the width of experts (d_mlp without it) and who routes. `tensor_parallel` processes share
    each MLP; with `compile` what cannot be traced is kept out.

    Raises UserError for an unknown name and for a named kernel that cannot run here or compute this shape.
    """
    wanted = dict.fromkeys(("layers", *KERNELS), "auto") | dict(names or {})
    chosen: dict[str, Any] = {}
    described: dict[str, str] = {}
    versions = {"torch": str(torch.__version__)}
    fit: dict[str, Any] = {"device": device, "dtype": dtype, "moe": moe, "tensor_parallel": tensor_parallel}
    for op in KERNELS:
        check_name(op, wanted[op])
        name, reason, kernel, version = _choose(op, wanted[op], model, fit)
        library = LIBRARIES[name].distribution if name in LIBRARIES else "torch"
        versions[library] = version
        described[op] = name
        log.info("%s=%s %s %s: %s", op, name, library, version, reason)
        if compile and _untraceable(op, name, dtype):
            log.info("%s=%s stays outside of the compiled graph", op, name)
            kernel = torch.compiler.disable(kernel)
        chosen[op] = kernel
    if described["cross_entropy"] == "chunked":
        chosen["token_cross_entropy"] = torch_kernels.chunked_token_cross_entropy
        if compile:
            chosen["cross_entropy"] = torch_kernels.compiled_chunked_cross_entropy
    native = _whole_layers(wanted, model, {**fit, "compile": compile})
    described |= {"router": "torch", "layers": "composed"}
    if native:  # whole layers compute every op of a training step
        described = dict.fromkeys(described, "native")
        versions["native"] = build.key()
        if moe is not None and torch_routes(moe):
            described["router"] = "torch"
            log.info("router=torch: the C kernels have no biases of experts and no sigmoid gate")
    return Kernels(**chosen, native=native, names=described, versions=versions)


def float32_kernels(
    model: ModelSpec,
    names: Mapping[str, str],
    *,
    device: str,
    moe: MoESpec | None = None,
    tensor_parallel: int = 1,
) -> Kernels:
    """The kernels for what a bfloat16 run computes in float32, the receipt of its upcycling: those named that can, and
    `auto` for the others."""
    log.info("kernels in float32, for the receipt:")
    fit: dict[str, Any] = {"device": device, "dtype": "float32", "moe": moe, "tensor_parallel": tensor_parallel}
    able = {op: name for op, name in names.items() if op in KERNELS and not why_not(op, name, model, **fit)}
    return choose_kernels(model, able | {"layers": "composed"}, **fit)


def _whole_layers(wanted: Mapping[str, str], model: ModelSpec, fit: Mapping[str, Any]) -> bool:
    """Whether to use the C kernels, as they can be and nothing else is asked for; a log line gives the reason."""
    if wanted["layers"] == "composed":
        log.info("layers=composed: as asked for, or as several processes need")
        return False
    reason = why_not_native(model, named_kernels(wanted), **fit)
    if not reason:
        try:
            build.library()
        except build.CannotBuildError as error:
            reason = str(error)
    if reason and wanted["layers"] == "native":
        raise UserError(f"layers kernel native cannot be used: {reason}; name `composed` or `auto`")
    log.info("layers=%s: %s", "composed" if reason else "native", reason or "C kernels, float32 on the CPU")
    return not reason


def _choose(op: str, wanted: str, model: ModelSpec, fit: Mapping[str, Any]) -> tuple[str, str, Any, str]:
    """Name, reason, kernel and version of the kernel asked for, or for `auto` of the first that fits and loads.

    Raises UserError with op, name, reason and how to fix it for a named kernel that cannot be used.
    """
    refused: list[str] = []
    for name in _preference(op, fit["device"]) if wanted == "auto" else (wanted,):
        reason, fix = why_not(op, name, model, **fit), alternatives(op)
        if not reason:
            try:
                kernel, version = _load(op, name)
            except MissingLibraryError as error:
                reason, fix = str(error), f"to install: {LIBRARIES[name].install} (docs/cluster.md); or {fix}"
            else:
                first = "the first choice on this device" if wanted == "auto" else "as asked for"
                return name, "; ".join(refused) or first, kernel, version
        if name == wanted:
            raise UserError(f"{op} kernel {name} cannot be used: {reason}; {fix}")
        refused.append(f"not {name}: {reason}")
    raise AssertionError(f"the last {op} kernel in order of preference fits anything: {refused}")


def _preference(op: str, device: str) -> tuple[str, ...]:
    """What `auto` tries, best first; the last fits every model and needs torch alone."""
    if op == "attention":
        return ("flash2", "sdpa_flash", "sdpa") if device == "cuda" else ("sdpa",)
    return {"experts": ("grouped_mm", "loop"), "rms_norm": ("torch",), "cross_entropy": ("plain",)}[op]


def _load(op: str, name: str) -> tuple[Any, str]:
    """The kernel and the version of its library. Raises MissingLibraryError."""
    if name in TORCH[op]:
        return TORCH[op][name], str(torch.__version__)
    library, version = cuda_kernels.find_library(name)
    cuda_kernels.check_device()
    return WRAPPERS[op, name](library), version


def _untraceable(op: str, name: str, dtype: str) -> bool:
    """Whether torch.compile cannot take the kernel; torch 2.13 traces grouped_mm in bfloat16 only."""
    return (op, name) in UNTRACEABLE or (op == "experts" and (name == "loop" or dtype != "bfloat16"))
