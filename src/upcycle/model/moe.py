"""The mixture of experts that replaces an MLP: router, gate, dropless dispatch, load-balancing loss (A.3).

Shapes: B sequences, S positions, T = B S tokens, D d_model, M width of an expert, E routed experts, K = top_k,
N = T K slots (one a chosen expert of a token), sorted by expert where the experts compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.kernels import Kernels
from upcycle.model.mlp import MLP
from upcycle.model.native import layers as native
from upcycle.model.stacks import own
from upcycle.study.kernel_fit import torch_routes
from upcycle.study.shape import Gate, ModelSpec, MoESpec

# --- gates: logits (T, E) and the ids (T, K) of each token's K largest -> weights (T, K), in float32


def topk_softmax(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Equation 15. Softmax over the K largest router logits: the weights of a token sum to 1.

    For K = 1 the weight is the constant 1, and the router gets no gradient from the cross-entropy.
    """
    return logits_TE.gather(-1, ids_TK).softmax(-1)


def softmax_topk(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Softmax over all experts, then the K largest as they are: the weights sum to less than 1 unless K = E."""
    return logits_TE.softmax(-1).gather(-1, ids_TK)


def softmax_topk_renormalised(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Softmax over all experts, the K largest divided by their sum (Mixtral): the same function as Eq. 15."""
    probs_TK = softmax_topk(logits_TE, ids_TK)
    return probs_TK / probs_TK.sum(-1, keepdim=True)


def sigmoid_topk_renormalised(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Sigmoid of each logit, the K largest divided by their sum (DeepSeek-V3, arXiv 2412.19437, Equations 13 to 15).

    Divided in the logarithm, where a sigmoid of 0 is finite. For K = 1 the constant 1, as under Eq. 15.
    """
    return F.logsigmoid(logits_TE).gather(-1, ids_TK).softmax(-1)


GATES: dict[Gate, Callable[[Tensor, Tensor], Tensor]] = {
    "topk_softmax": topk_softmax,
    "softmax_topk": softmax_topk,
    "softmax_topk_renormalised": softmax_topk_renormalised,
    "sigmoid_topk_renormalised": sigmoid_topk_renormalised,
}


def balance_loss(*, probs_BSE: Tensor, load_BE: Tensor, top_k: int, group: int) -> Tensor:
    """Load-balancing loss of one layer, Switch form, without its coefficient: 1 at perfect balance.

    E / (K T^2) * sum_i (sum_j P_ji) * Q_i over the T tokens of each `group` of sequences, averaged over groups.
    probs_BSE: float32 scores over ALL experts that sum to 1, which carry the gradient: the softmax, or under a sigmoid
    gate the sigmoids divided by their sum (DeepSeek-V3, Equation 19); load_BE: slots of each sequence sent to each
    expert, a count. A last group may be smaller (evaluation); training has whole groups only.
    """
    _, positions, n_expert = probs_BSE.shape
    losses = []
    for P_GE, Q_GE in zip(probs_BSE.sum(1).split(group), load_BE.to(probs_BSE.dtype).split(group), strict=True):
        tokens = len(P_GE) * positions
        losses.append((P_GE.sum(0) * Q_GE.sum(0)).sum() * (n_expert / (top_k * tokens**2)))
    return torch.stack(losses).mean()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Router z-loss of one layer, without its coefficient: the mean over tokens of (log sum_i e^logit_i)^2.

    ST-MoE (arXiv 2202.08906), Equation 5. A mean over tokens, so groups and micro-batches make no difference.
    """
    return logits_TE.logsumexp(-1).square().mean()


# --- permutation of slots; both directions are gathers, so sums are in a fixed order (no atomic additions)


class _Dispatch(torch.autograd.Function):
    """x_TD -> x_ND: the token of each slot, slots sorted by expert."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, place_N: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.top_k = top_k
        return x_TD.index_select(0, order_N // top_k)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        (place_N,) = ctx.saved_tensors
        return grad_ND.index_select(0, place_N).view(-1, ctx.top_k, grad_ND.shape[-1]).sum(1), None, None, None


class _Collect(torch.autograd.Function):
    """y_ND sorted by expert -> y_ND in the order of tokens."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, order_N: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(order_N)
        return y_ND.index_select(0, place_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (order_N,) = ctx.saved_tensors
        return grad_ND.index_select(0, order_N), None, None


class Routing(NamedTuple):
    """What a router did: balance loss and z-loss (scalars; 0 where z_coef is), slots by expert (a count, E), mean
    entropy in nats (scalar)."""

    balance: Tensor
    z: Tensor
    slots_E: Tensor
    entropy: Tensor


class Router(nn.Module):
    """The router (A.3): one logit an expert, linear in the token, in float32 whatever the precision around it.

    bfloat16 has 8 bits: near-equal logits would tie, and rounding would choose the experts. A module of its own, so
    that FSDP can leave its weight in float32.
    """

    bias: Tensor
    """With `bias_rate`: what is added to each expert's score where experts are chosen (E). A buffer: it is saved with
    the weights, and no gradient and no optimizer moves it."""

    def __init__(self, model: ModelSpec, moe: MoESpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(moe.n_expert, model.d_model))
        if moe.bias_rate:
            self.register_buffer("bias", torch.empty(moe.n_expert))

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, E)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.float(), self.weight.float())

    @torch.no_grad()
    def move_bias(self, slots_E: Tensor, rate: float) -> None:
        """Loss-free balancing (arXiv 2408.15664, Algorithm 1): b_i += rate x sign(mean load - load_i).

        slots_E: the loads of the update's whole batch, counts: so the sign is exact however many processes counted.
        """
        self.bias += rate * (slots_E.sum() - len(slots_E) * slots_E).sign().float()


class MoE(nn.Module):
    """E SwiGLU experts; each token goes to its K best by the router's float32 logits, and none is dropped.

    With `shared_expert`, every token's output has that of one more MLP added, with weight 1.
    """

    def __init__(self, model: ModelSpec, moe: MoESpec, kernels: Kernels) -> None:
        super().__init__()
        assert moe.gate is not None  # MoESpec resolves it
        self.moe, self.kernels, self.gate = moe, kernels, GATES[moe.gate]
        self.router = Router(model, moe)
        width = moe.expert_width(model)
        self.w_in = nn.Parameter(torch.empty(moe.n_expert, 2 * width, model.d_model))
        self.w_out = nn.Parameter(torch.empty(moe.n_expert, model.d_model, width))
        self.shared = MLP(model.d_model, moe.shared_width(model)) if moe.shared_expert else None

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Routing]:
        """Gate-weighted sum of each token's experts, and the shared ones', (B, S, D), and what the router did."""
        B, S, _ = x_BSD.shape
        K = self.moe.top_k
        x_TD = x_BSD.flatten(0, 1)
        logits_TE = self.router(x_TD)
        ids_TK, gates_TK, probs_TE, log_probs_TE = self._route(logits_TE)
        load_BE, routing = self._report(B, logits_TE, ids_TK, probs_TE, log_probs_TE)
        # Slots sorted by expert, tokens of an expert in their order: a stable sort gives the same bits at every run.
        # `order` maps sorted slot to slot, `place` is its inverse; having both makes each direction a gather.
        order_N = ids_TK.flatten().argsort(stable=True)
        place_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
        ends_E = load_BE.sum(0).cumsum(0, dtype=torch.int32)
        x_ND = _Dispatch.apply(x_TD, order_N, place_N, K)
        w_in, w_out = own(self.w_in).flatten(1, -2), own(self.w_out)
        y_ND = self.kernels.experts(_autocast(x_ND), ends_E, _autocast(w_in), _autocast(w_out))
        y_TKD = _Collect.apply(y_ND, order_N, place_N).view(B * S, K, -1)
        y_TD = (y_TKD * gates_TK.unsqueeze(-1)).sum(1)  # in float32, as the gates are
        y_BSD = y_TD.view_as(x_BSD)
        return y_BSD if self.shared is None else y_BSD + self.shared(x_BSD), routing

    def onto(self, residual_BSD: Tensor, x_BSD: Tensor) -> tuple[Tensor, Routing]:
        """`forward` of x added to the residual stream, by the C kernels, which dispatch and sum by themselves."""
        rows_TD, x_TD = residual_BSD.flatten(0, 1), x_BSD.flatten(0, 1)
        logits_TE = native.router_logits(x_TD, self.router.weight)
        if torch_routes(self.moe):
            route = self._route(logits_TE)
        else:
            assert self.moe.gate is not None
            route = native.route(logits_TE, self.moe.top_k, self.moe.gate)
        ids_TK, gates_TK, probs_TE, log_probs_TE = route
        _, routing = self._report(len(x_BSD), logits_TE, ids_TK, probs_TE, log_probs_TE)
        if self.shared is not None:
            rows_TD = native.added_mlp(rows_TD, x_TD, self.shared.w_in, self.shared.w_out)
        y_TD = native.experts(rows_TD, x_TD, gates_TK, ids_TK, self.w_in, self.w_out)
        return y_TD.view_as(residual_BSD), routing

    def _route(self, logits_TE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids and gates of each token's experts (T, K); scores over all experts that sum to 1 and their logarithms."""
        sigmoid = self.moe.gate == "sigmoid_topk_renormalised"
        log_probs_TE = (F.logsigmoid(logits_TE) if sigmoid else logits_TE).log_softmax(-1)
        probs_TE = log_probs_TE.exp()
        chosen_by_TE = logits_TE
        if self.moe.bias_rate:
            chosen_by_TE = (logits_TE.sigmoid() if sigmoid else probs_TE).detach() + self.router.bias
        ids_TK = chosen_by_TE.topk(self.moe.top_k, dim=-1).indices  # no gradient: gates and balance loss carry it
        return ids_TK, self.gate(logits_TE, ids_TK), probs_TE, log_probs_TE

    def _report(
        self, sequences: int, logits_TE: Tensor, ids_TK: Tensor, probs_TE: Tensor, log_probs_TE: Tensor
    ) -> tuple[Tensor, Routing]:
        """Slots of each sequence by expert (B, E), and what the router did."""
        group, E = self.moe.balance_group, self.moe.n_expert
        if self.training and sequences % group:
            raise ValueError(f"{sequences} sequences to train on are no whole number of balance groups ({group})")
        # By comparison: a bincount would wait for the device, to learn the size of its result.
        load_BE = (ids_TK.view(sequences, -1, 1) == torch.arange(E, device=ids_TK.device)).sum(1)
        probs_BSE = probs_TE.view(sequences, -1, E)
        balance = balance_loss(probs_BSE=probs_BSE, load_BE=load_BE, top_k=self.moe.top_k, group=group)
        z = z_loss(logits_TE) if self.moe.z_coef else torch.zeros_like(balance)
        with torch.no_grad():
            entropy = -(probs_TE * log_probs_TE).sum(-1).mean()
        return load_BE, Routing(balance, z, load_BE.sum(0), entropy)


def _autocast(x: Tensor) -> Tensor:
    """Cast as autocast would: it does not know grouped_mm."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
