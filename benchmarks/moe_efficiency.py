"""Time of a mixture of experts per active FLOP, over that of the dense MLP: forward and backward, one thread, float32.

    python benchmarks/moe_efficiency.py [--widths 128,192,256] [--tokens 2048,4096] [--layers auto] [--rounds 20]

Both are whole layers as they stand in a block: norm, MLP or router, dispatch, experts, combination, balance loss, and
the residual sum. FLOPs are those of the matrix products (the router's included). The two take turns; the fastest round
of each counts, and the median of the ratios by round is printed beside it. 8 experts, top-2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from upcycle.model.kernels import choose_kernels
from upcycle.model.native import layers as native
from upcycle.model.transformer import Block, Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

CONTEXT = 256
MIXTURE = MoESpec(n_expert=8, top_k=2, balance_group=8)


def second_layer(block: Block) -> Callable[[Tensor], Tensor]:
    """What a block does after its attention; the balance loss comes into the sum that is differentiated."""
    whole, spec = block.kernels.native, block.model

    def dense(x: Tensor) -> Tensor:
        if not whole:
            return x + block.mlp(block.mlp_norm(x))
        return native.mlp_layer(x, block.mlp_norm.weight, block.mlp.w_in, block.mlp.w_out, spec)

    def sparse(x: Tensor) -> Tensor:
        if not whole:
            y, routing = block.moe(block.mlp_norm(x))
            return x + y + routing.balance * 1e-3
        y, routing = block.moe.onto(x, native.norm(x, block.mlp_norm.weight, spec.norm_eps))
        return y + routing.balance * 1e-3

    return sparse if block.sparse else dense


def seconds(layer: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, gradient: Tensor) -> float:
    """One forward and backward pass."""
    began = time.perf_counter()
    torch.autograd.grad(layer(x), [x, *parameters], gradient, allow_unused=True)
    return time.perf_counter() - began


def measure(d_model: int, tokens: int, layers: str, rounds: int) -> tuple[float, float]:
    """Time per FLOP of the mixture over the dense MLP's: by fastest rounds, and the median over rounds."""
    spec = ModelSpec(n_layer=1, d_model=d_model, n_head=d_model // 32, vocab_size=16, context=CONTEXT)
    flops = {"dense": 6 * 12 * d_model**2, "moe": 6 * (24 * d_model**2 + MIXTURE.n_expert * d_model)}
    cases = {}
    for name, moe in (("dense", None), ("moe", MIXTURE)):
        model = Transformer(spec, moe, choose_kernels(spec, {"layers": layers}))
        init_weights(model, seed=0)
        (block,) = model.blocks
        cases[name] = (second_layer(block), list(block.mlp.parameters() if moe is None else block.moe.parameters()))
    x = torch.randn(tokens // CONTEXT, CONTEXT, d_model, requires_grad=True)
    gradient = torch.randn_like(x)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 2):
        for name, (layer, parameters) in cases.items():
            times[name].append(seconds(layer, parameters, x, gradient) / flops[name])
    ratios = [sparse / dense for sparse, dense in zip(times["moe"][2:], times["dense"][2:], strict=True)]
    return min(times["moe"]) / min(times["dense"]), statistics.median(ratios)


def main() -> None:
    """One line a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="128,192,256")
    parser.add_argument("--tokens", default="2048,4096")
    parser.add_argument("--layers", default="auto")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, layers {options.layers}: time per active FLOP, mixture / dense")
    for d_model in map(int, options.widths.split(",")):
        for tokens in map(int, options.tokens.split(",")):
            fastest, median = measure(d_model, tokens, options.layers, options.rounds)
            print(f"d_model {d_model:4}, {tokens:5} tokens: {fastest:.2f} by fastest rounds, {median:.2f} median")


if __name__ == "__main__":
    main()
