"""Which kernel can compute what: device, precision and shape, checked before any work and without torch.

Layer 0, so that `upcycle plan` on a login node refuses a kernel that could not run in the job. Whether the library
is there is seen where the job runs (`model.kernels.choose_kernels`, which asks this module first). Limits are those of
the releases pinned in pyproject.toml, read in their source: docs/cluster.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from upcycle.errors import UserError, nearest
from upcycle.study.execution import Execution
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import RunSpec

GROUPED_MM_MULTIPLE = 8
"""grouped_mm wants rows of a multiple of 16 bytes: 8 elements in bfloat16 (4 in float32)."""
HEAD_DIM_MULTIPLE = 8
"""The flash kernels and cuDNN want heads of a multiple of 8: others are padded with zeros, at the original scale."""

NATIVE_MULTIPLE = 16
"""The C kernels take whole vectors of any machine: up to 16 numbers."""

KERNELS: dict[str, tuple[str, ...]] = {
    op: tuple(name for name in get_args(Execution.model_fields[op].annotation) if name != "auto")
    for op in ("attention", "experts", "rms_norm", "cross_entropy")
}
"""Names by op, the `auto` of Execution left out."""


@dataclass(frozen=True)
class Limits:
    """What a kernel can take."""

    cuda_only: bool = False
    bfloat16_only: bool = False
    """On CUDA; on a CPU there is no kernel with this limit."""
    max_head_dim: int | None = None
    """Of the padded head."""
    row_multiple: int = 1
    """Divides d_model and an expert's width (of one process, where tensor parallelism splits it)."""


LIMITS: dict[tuple[str, str], Limits] = {
    ("attention", "flash2"): Limits(cuda_only=True, bfloat16_only=True, max_head_dim=256),
    # cuDNN's fused attention in training; beyond, TE would write out the S x S matrix.
    ("attention", "te"): Limits(cuda_only=True, bfloat16_only=True, max_head_dim=128),
    ("attention", "sdpa_flash"): Limits(bfloat16_only=True, max_head_dim=256),
    ("experts", "grouped_mm"): Limits(row_multiple=GROUPED_MM_MULTIPLE),
    ("experts", "te"): Limits(cuda_only=True, bfloat16_only=True),
    ("rms_norm", "te"): Limits(cuda_only=True),
}


def why_not(
    op: str,
    name: str,
    model: ModelSpec,
    *,
    device: str,
    dtype: str,
    moe: MoESpec | None = None,
    tensor_parallel: int = 1,
) -> str:
    """Why kernel `name` of `op` cannot compute this model on this device in this precision, or nothing.

    `dtype` is the precision of the products (`RunSpec.dtype`); `moe` gives the experts' width, d_mlp without it.
    """
    limits = LIMITS.get((op, name), Limits())
    head_dim = -(-model.head_dim // HEAD_DIM_MULTIPLE) * HEAD_DIM_MULTIPLE
    widths = {"d_model": model.d_model, **_hidden_width(model, moe, tensor_parallel)}
    odd = [f"{key} {width}" for key, width in widths.items() if width % limits.row_multiple]
    if limits.cuda_only and device != "cuda":
        return f"it needs device cuda, and the device is {device}"
    if limits.bfloat16_only and device == "cuda" and dtype != "bfloat16":
        return f"it computes in bfloat16 only, and the dtype is {dtype}"
    if limits.max_head_dim and head_dim > limits.max_head_dim:
        return f"head dimension {model.head_dim} is above {limits.max_head_dim}"
    if odd:
        shared = f" (of each of {tensor_parallel} processes)" if tensor_parallel > 1 else ""
        return f"{' and '.join(odd)}{shared} not a multiple of {limits.row_multiple}"
    return ""


def _hidden_width(model: ModelSpec, moe: MoESpec | None, tensor_parallel: int = 1) -> dict[str, int]:
    """Width of the MLP or of an expert in one process, by name."""
    if moe is None or moe.granularity == 1:
        return {"d_mlp": model.mlp_width // tensor_parallel}
    return {"d_mlp / granularity": moe.expert_width(model) // tensor_parallel}


def why_not_native(
    model: ModelSpec,
    named: Mapping[str, str],
    *,
    device: str,
    dtype: str,
    moe: MoESpec | None = None,
    tensor_parallel: int = 1,
    compile: bool = False,
) -> str:
    """Why the C kernels of `model/native` cannot compute this model, or nothing; `named` are kernels of single ops."""
    if device != "cpu":
        return f"they run on device cpu, and the device is {device}"
    if dtype != "float32":
        return f"they compute in float32, and the dtype is {dtype}"
    if tensor_parallel > 1:
        return "they take whole matrices, and tensor_parallel splits them"
    if compile:
        return "torch.compile has nothing to compile in them"
    if lacking := [key for key in ("qkv_bias", "qk_norm") if getattr(model, key)]:
        return f"they have no {' and no '.join(lacking)}"
    widths = {"d_model": model.d_model, **_hidden_width(model, moe)}
    if model.kv_width != model.d_model:
        widths["n_kv_head x head dimension"] = model.kv_width
    odd = [f"{key} {width}" for key, width in widths.items() if width % NATIVE_MULTIPLE]
    if odd:
        return f"{' and '.join(odd)} not a multiple of {NATIVE_MULTIPLE}"
    asked = " and ".join(f"{op}: {name}" for op, name in named.items())
    return f"whole layers take no kernels of ops, and {asked} is asked for" if asked else ""


def torch_routes(moe: MoESpec) -> bool:
    """Whether torch chooses and weighs the experts on the C kernels' way too: those know softmax gates, and no biases.

    Experts and everything else are then theirs all the same."""
    return moe.gate == "sigmoid_topk_renormalised" or moe.bias_rate > 0


def fitting(execution: Execution, run: RunSpec) -> dict[str, Any]:
    """What `why_not` and `why_not_native` ask of a run beside its model."""
    return {
        "device": execution.device,
        "dtype": run.dtype,
        "moe": run.moe,
        "tensor_parallel": execution.tensor_parallel,
    }


def named_kernels(kernels: Mapping[str, str]) -> dict[str, str]:
    """The ops whose kernel is asked for by name, of `Execution.kernels`."""
    return {op: kernels[op] for op in KERNELS if kernels[op] != "auto"}


def alternatives(op: str) -> str:
    """The end of a refusal: what can be named instead."""
    reference = {"attention": "sdpa", "experts": "loop", "rms_norm": "torch", "cross_entropy": "plain"}[op]
    return f"name `{reference}` or `auto`"


def check_name(op: str, name: str) -> None:
    """Raise UserError for a kernel that does not exist."""
    if name != "auto" and name not in KERNELS[op]:
        raise UserError(f"unknown {op} kernel `{name}`; {nearest(name, ['auto', *KERNELS[op]])}")


def check_kernels(execution: Execution, runs: Iterable[RunSpec]) -> None:
    """Raise UserError where a kernel named in `execution` could not compute one of these runs.

    Experts are asked of mixtures only.
    """
    named = named_kernels(execution.kernels)
    for run in runs:
        fit = fitting(execution, run)
        if execution.layers == "native" and (
            reason := why_not_native(run.model, named, **fit, compile=execution.compile)
        ):
            raise UserError(
                f"execution.layers: native cannot compute run {run.id}: {reason}; name `composed` or `auto`"
            )
        for op, name in named.items():
            if op == "experts" and run.moe is None:
                continue
            if reason := why_not(op, name, run.model, **fit):
                raise UserError(f"execution.{op}: {name} cannot compute run {run.id}: {reason}; {alternatives(op)}")
