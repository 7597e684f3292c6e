"""Tokens per second of a forward and backward pass on the CPU, dense and 8-expert top-2, at small shapes.

    python benchmarks/model_speed.py [--threads 1] [--seconds 3] [--experts auto] [--attention auto]

Median and best pass, by wall clock: on a machine that does other work only the best means anything.
Cross-entropy and balance loss are included, the optimizer's step is not.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec

SHAPES = ((2, 64, 4), (2, 64, 2), (3, 96, 6), (3, 96, 3))
BATCHES = ((4, 256), (8, 256), (4, 128), (8, 128))
VOCAB_SIZE = 1024


def tokens_per_second(model: Transformer, sequences: int, context: int, seconds: float) -> tuple[float, float]:
    """Median and best rate of forward and backward passes over random tokens."""
    ids = torch.randint(0, VOCAB_SIZE, (sequences, context + 1), generator=torch.Generator().manual_seed(0))
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 5:
        start = time.perf_counter()
        model.zero_grad()
        out = model(ids[:, :-1], ids[:, 1:])
        loss = out.loss + 1e-3 * out.balance
        loss.backward()
        times.append(time.perf_counter() - start)
    tokens = sequences * context
    return tokens / statistics.median(times[2:]), tokens / min(times[2:])


def main() -> None:
    """Print one line a model and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--experts", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} thread(s)")
    for n_layer, d_model, n_head in SHAPES:
        spec = ModelSpec(n_layer=n_layer, d_model=d_model, n_head=n_head, vocab_size=VOCAB_SIZE, context=256)
        kernels = choose_kernels(spec, {"attention": options.attention, "experts": options.experts})
        for name, moe in (("dense", None), ("moe8x2", MoESpec(n_expert=8, top_k=2, balance_group=4))):
            model = Transformer(spec, moe, kernels)
            init_weights(model, seed=0)
            for sequences, context in BATCHES:
                median, best = tokens_per_second(model, sequences, context, options.seconds)
                shape = f"({n_layer},{d_model}) {n_head} heads {sequences} x {context}"
                print(f"{name:7} {shape:26} {median:8,.0f} (best {best:8,.0f}) tokens/s", flush=True)


if __name__ == "__main__":
    main()
