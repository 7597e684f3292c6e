"""The paper's decoder, dense or with a mixture of experts in place of every MLP (A.2, A.3), and other Llamas'.

Shapes: B sequences, S positions, D d_model, M width of the MLP, V vocabulary, L layers, E experts.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upcycle.model.attention import Attention, Tree
from upcycle.model.kernels import Kernels
from upcycle.model.mlp import MLP
from upcycle.model.moe import MoE, Routing
from upcycle.model.native import layers as native
from upcycle.model.norm import RMSNorm
from upcycle.study.shape import ModelSpec, MoESpec, default_init_std


class RouterStats(NamedTuple):
    """Routing by layer, without gradient: slots by expert (a count, L, E), mean router entropy in nats (L)."""

    slots_LE: Tensor
    entropy_L: Tensor

    @property
    def load_LE(self) -> Tensor:
        """Share of each layer's slots by expert."""
        return self.slots_LE / self.slots_LE.sum(-1, keepdim=True)


class Output(NamedTuple):
    """What a forward pass gives: logits, or with targets the loss, which some kernels compute without whole logits."""

    logits_BSV: Tensor | None
    loss: Tensor | None
    """Mean cross-entropy in nats, float32; with `per_token` of every token, (B, S)."""
    balance: Tensor
    """Sum over layers of the unscaled balance loss; 0 if dense."""
    z: Tensor
    """Sum over layers of the unscaled router z-loss; 0 where `z_coef` is."""
    stats: RouterStats | None


class Vocabulary(nn.Module):
    """A (V, D) matrix: the embedding by row, or the head by product; of a tied model both."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.vocab_size, model.d_model))


class Block(nn.Module):
    """Pre-norm residual block: attention, then the MLP or the mixture of experts."""

    def __init__(self, model: ModelSpec, moe: MoESpec | None, kernels: Kernels) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(model.d_model, model.norm_eps, kernels)
        self.attn = Attention(model, kernels)
        self.mlp_norm = RMSNorm(model.d_model, model.norm_eps, kernels)
        if moe is None:
            self.mlp = MLP(model.d_model, model.mlp_width)
        else:
            self.moe = MoE(model, moe, kernels)
        self.model, self.kernels, self.sparse = model, kernels, moe is not None

    def forward(self, x_BSD: Tensor, tree: Tree | None = None) -> tuple[Tensor, Routing | None]:
        """The residual stream after this block, and the router's report if there is one."""
        if self.kernels.native:
            return self._whole_layers(x_BSD, tree)
        x_BSD = x_BSD + self.attn(self.attn_norm(x_BSD), tree)
        if self.sparse:
            y_BSD, routing = self.moe(self.mlp_norm(x_BSD))
            return x_BSD + y_BSD, routing
        return x_BSD + self.mlp(self.mlp_norm(x_BSD)), None

    def _whole_layers(self, x_BSD: Tensor, tree: Tree | None) -> tuple[Tensor, Routing | None]:
        """The same by the C kernels, which compute norm, layer and residual sum in one, and know no tree."""
        attn, norm = self.attn, self.mlp_norm.weight
        if tree is None:
            x_BSD = native.attention_layer(x_BSD, self.attn_norm.weight, attn.wqkv, attn.wo, self.model)
        else:
            x_BSD = x_BSD + attn(self.attn_norm(x_BSD), tree)
        if self.sparse:
            return self.moe.onto(x_BSD, native.norm(x_BSD, norm, self.model.norm_eps))
        return native.mlp_layer(x_BSD, norm, self.mlp.w_in, self.mlp.w_out, self.model), None


class Transformer(nn.Module):
    """Llama-like decoder: RMSNorm, RoPE, SwiGLU; `moe` replaces every MLP.

    Parameters are left unset: `init_weights` or `load_state_dict` gives them values.
    """

    def __init__(self, model: ModelSpec, moe: MoESpec | None = None, kernels: Kernels | None = None) -> None:
        super().__init__()
        kernels = kernels or Kernels()
        self.model, self.moe, self.kernels = model, moe, kernels
        self.recompute = False
        """Activation checkpointing: keep each block's input alone, compute its inside again in the backward pass."""
        self.embed = Vocabulary(model)
        self.blocks = nn.ModuleList(Block(model, moe, kernels) for _ in range(model.n_layer))
        self.norm = RMSNorm(model.d_model, model.norm_eps, kernels)
        if not model.tied:
            self.head = Vocabulary(model)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, D): the head's, or of a tied model the embedding's."""
        return self.embed.weight if self.model.tied else self.head.weight

    @property
    def mixtures(self) -> list[MoE]:
        """The mixture of experts of each layer, in order; none if dense."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def forward(self, ids_BS: Tensor, targets_BS: Tensor | None = None, *, per_token: bool = False) -> Output:
        """Next-token logits of every position, or the loss on `targets_BS`; balance loss and routing of every layer."""
        x_BSD, layers = self._stream(ids_BS)
        logits_BSV = loss = None
        if targets_BS is None:
            logits_BSV = F.linear(self.norm(x_BSD), self.head_weight)
        elif self.kernels.native:
            whole = native.token_losses if per_token else native.loss
            loss = whole(x_BSD, self.norm.weight, self.head_weight, targets_BS, self.model)
        else:
            kernel = self.kernels.token_cross_entropy if per_token else self.kernels.cross_entropy
            loss = kernel(self.norm(x_BSD), self.head_weight, targets_BS)
        if not layers:
            none = x_BSD.new_zeros((), dtype=torch.float32)
            return Output(logits_BSV, loss, none, none, None)
        balance, z, slots_LE, entropy_L = (torch.stack(column) for column in zip(*layers, strict=True))
        return Output(logits_BSV, loss, balance.sum(), z.sum(), RouterStats(slots_LE, entropy_L))

    def _stream(self, ids_BS: Tensor, tree: Tree | None = None) -> tuple[Tensor, list[Routing]]:
        """The residual stream after the last block, and the routers' reports."""
        x_BSD = F.embedding(ids_BS, self.embed.weight)
        layers: list[Routing] = []
        for block in self.blocks:
            x_BSD, routing = checkpoint(block, x_BSD, use_reentrant=False) if self.recompute else block(x_BSD, tree)
            if routing is not None:
                layers.append(routing)
        return x_BSD, layers

    def logits_at(self, ids_BS: Tensor, chosen_BS: Tensor, tree: Tree | None = None) -> Tensor:
        """Next-token logits of the chosen places (a mask), (N, V), in the order of rows and places."""
        x_BSD, _ = self._stream(ids_BS, tree)
        return F.linear(self.norm(x_BSD[chosen_BS]), self.head_weight)

    def logits(self, ids_BS: Tensor) -> Tensor:
        """Next-token logits of every position, (B, S, V)."""
        logits_BSV = self(ids_BS).logits_BSV
        assert logits_BSV is not None
        return logits_BSV


# --- initial weights


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> None:
    """Set every parameter, and every bias of a router, to its `initial_weight`."""
    for name, weight in model.state_dict().items():
        weight.copy_(initial_weight(name, weight.shape, model.model, model.moe, seed))


def initial_weight(name: str, shape: torch.Size, spec: ModelSpec, moe: MoESpec | None, seed: int) -> Tensor:
    """One parameter, on the CPU: drawn by its own generator, so that it does not depend on what else exists.

    | parameter                     | initial value                                                             |
    |-------------------------------|---------------------------------------------------------------------------|
    | embed, head, wqkv, w_in       | normal, std `ModelSpec.weight_std` (Table 5: sqrt(2 / (5 d_model)))       |
    | wo, w_out                     | normal, std `ModelSpec.output_std` (inferred: over sqrt(2 n_layer) more)  |
    | router                        | normal, std `MoESpec.router_std` (A.6: sqrt(2 / (5 d_model)))             |
    | norms                         | 1                                                                         |
    | bqkv, router bias             | 0                                                                         |

    Expert 0 is drawn as the dense model's MLP of the same seed, the others each by their own name.
    """
    match name.rsplit(".", 2)[-2:]:
        case ["router", "weight"]:
            assert moe is not None
            return router_weight(spec, moe, name.removesuffix(".weight"), seed)
        case ["moe", ("w_in" | "w_out") as matrix]:
            std = spec.weight_std if matrix == "w_in" else spec.output_std
            experts = torch.empty(shape, device="cpu")
            for expert, weight in enumerate(experts):
                weight.copy_(normal(weight.shape, std, expert_name(name, expert), seed))
            return experts
        case [_, "wo" | "w_out"]:
            return normal(shape, spec.output_std, name, seed)
        case ["embed" | "head", "weight"] | [_, "wqkv" | "w_in"]:
            return normal(shape, spec.weight_std, name, seed)
        case ["attn_norm" | "mlp_norm" | "norm" | "q_norm" | "k_norm", "weight"]:
            return torch.ones(shape, device="cpu")
        case [_, "bqkv"] | ["router", "bias"]:
            return torch.zeros(shape, device="cpu")
        case _:
            raise ValueError(f"the init table has no row for {name}")


def router_weight(model: ModelSpec, moe: MoESpec, name: str, seed: int) -> Tensor:
    """A fresh router (E, D), the same for a MoE from scratch and an upcycled one: N(0, 2 / (5 d_model)) (A.6)."""
    std = moe.router_std if moe.router_std is not None else default_init_std(model.d_model)
    return normal((moe.n_expert, model.d_model), std, name, seed)


def expert_name(name: str, expert: int) -> str:
    """The name that seeds one expert of `blocks.{i}.moe.w_in` or `w_out`: expert 0 bears the dense MLP's."""
    return name.replace(".moe.", ".mlp.") if expert == 0 else f"{name}.{expert}"


def normal(shape: tuple[int, ...], std: float, name: str, seed: int) -> Tensor:
    """Normal float32 numbers on the CPU, a pure function of shape, std, name and seed."""
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator_of(name, seed))


def generator_of(name: str, seed: int) -> torch.Generator:
    """A generator of random numbers on the CPU for what bears this name."""
    # Not `torch.manual_seed` and one stream: a layer or an expert more would change every weight drawn after it.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
