"""The seam to interchangeable kernels: every op that a library may do faster, with its plain reference.

The model calls these four through a `Kernels` value, chosen once before the model is built and recorded with the
run. Which kernel computes an op changes rounding and speed only. `auto` chooses by what the machine and the
shape allow and says why; a kernel asked for by name that cannot run is an error, never replaced.

Shapes: B sequences, S positions, H heads, C head dimension, D d_model, M width of the MLP, E experts,
N slots (tokens x top_k) sorted by expert, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from upcycle.errors import UserError, nearest
from upcycle.spec import ModelSpec

T = TypeVar("T")
log = logging.getLogger(__name__)

GROUPED_MM_MULTIPLE = 8
"""grouped_mm wants rows of a multiple of 16 bytes: 8 elements in bfloat16 (4 in float32)."""


# --- attention: q, k, v (B, H, S, C) -> (B, H, S, C), causal


def sdpa(q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
    """Causal softmax attention by torch's fused kernels."""
    return F.scaled_dot_product_attention(q_BHSC, k_BHSC, v_BHSC, is_causal=True)


def plain(q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
    """Causal softmax attention written out, scores and softmax in float32: the reference."""
    positions, head_dim = q_BHSC.shape[-2:]
    scores_BHSS = q_BHSC.float() @ k_BHSC.float().mT * head_dim**-0.5
    future_SS = torch.ones(positions, positions, dtype=torch.bool, device=q_BHSC.device).triu(1)
    return (scores_BHSS.masked_fill(future_SS, -torch.inf).softmax(-1) @ v_BHSC.float()).type_as(q_BHSC)


# --- SwiGLU and the experts: x (N, D) sorted by expert, ends (E,) int32 the running counts of slots -> (N, D)


def swiglu(h_N2M: Tensor) -> Tensor:
    """SiLU(gate) * up, of a hidden layer whose first M columns are the gate and last M the up projection."""
    gate_NM, up_NM = h_N2M.chunk(2, dim=-1)
    return F.silu(gate_NM) * up_NM


def grouped_mm(x_ND: Tensor, ends_E: Tensor, w_in_E2MD: Tensor, w_out_EDM: Tensor) -> Tensor:
    """Every expert's SwiGLU MLP on its own rows, as two grouped matrix products."""
    h_N2M = F.grouped_mm(x_ND, w_in_E2MD.mT, offs=ends_E)
    return F.grouped_mm(swiglu(h_N2M), w_out_EDM.mT, offs=ends_E)


def loop(x_ND: Tensor, ends_E: Tensor, w_in_E2MD: Tensor, w_out_EDM: Tensor) -> Tensor:
    """Every expert's SwiGLU MLP on its own rows, one expert after another: the reference."""
    sizes = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    rows = x_ND.split(sizes)
    experts = zip(rows, w_in_E2MD.unbind(), w_out_EDM.unbind(), strict=True)
    return torch.cat([F.linear(swiglu(F.linear(x, w_in)), w_out) for x, w_in, w_out in experts])


# --- one implementation each, so far


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x^2) + eps) * weight, computed in float32."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def token_cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Cross-entropy of every token in nats, float32, (B, S), from the last hidden state and the output matrix."""
    logits_TV = F.linear(hidden_BSD, head_VD).float().flatten(0, -2)
    return F.cross_entropy(logits_TV, targets_BS.flatten(), reduction="none").view_as(targets_BS)


def cross_entropy(hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens in nats, float32, a scalar; arguments as above."""
    return F.cross_entropy(F.linear(hidden_BSD, head_VD).float().flatten(0, -2), targets_BS.flatten())


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Experts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

ATTENTION: dict[str, Attention] = {"sdpa": sdpa, "plain": plain}
EXPERTS: dict[str, Experts] = {"grouped_mm": grouped_mm, "loop": loop}


@dataclass(frozen=True)
class Kernels:
    """The kernel of each op; the default is what runs on any machine."""

    attention: Attention = sdpa
    experts: Experts = grouped_mm
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor] = cross_entropy
    token_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor] = token_cross_entropy

    def describe(self) -> dict[str, str]:
        """Names for the record of a run: the kernel of each op that has a choice, and torch's version."""
        return {"attention": self.attention.__name__, "experts": self.experts.__name__, "torch": torch.__version__}


def choose_kernels(
    model: ModelSpec, names: Mapping[str, str] | None = None, *, device: str = "cpu", dtype: str = "float32"
) -> Kernels:
    """The kernels named by op (as `Execution.kernels`), or for `auto` those that machine and shape allow, with a log
    line that says why.

    Raises UserError for an unknown name and for a named kernel that cannot run here or compute this shape.
    """
    wanted = {"layers": "auto", "attention": "auto", "experts": "auto"} | dict(names or {})
    attention, experts = wanted["attention"], wanted["experts"]
    reason = _why_not_grouped_mm(model)
    if experts == "auto":
        experts = "loop" if reason else "grouped_mm"
        log.info("experts kernel %s: %s", experts, reason or "one product over all experts, and the shape allows it")
    elif experts == "grouped_mm" and reason:
        raise UserError(f"experts kernel grouped_mm cannot be used: {reason}; name `loop` or `auto`")
    if attention == "auto":
        attention = "sdpa"
        log.info("attention kernel sdpa: torch's own, any head dimension")
    return Kernels(_named(ATTENTION, "attention", attention), _named(EXPERTS, "experts", experts))


def _why_not_grouped_mm(model: ModelSpec) -> str:
    """Why grouped_mm cannot take this shape, or nothing."""
    sizes = {"d_model": model.d_model, "d_mlp": model.mlp_width}
    odd = [f"{name} {size}" for name, size in sizes.items() if size % GROUPED_MM_MULTIPLE]
    return f"{' and '.join(odd)} not a multiple of {GROUPED_MM_MULTIPLE}" if odd else ""


def _named(kernels: Mapping[str, T], op: str, name: str) -> T:
    if name not in kernels:
        raise UserError(f"unknown {op} kernel `{name}`; {nearest(name, ['auto', *kernels])}")
    return kernels[name]
