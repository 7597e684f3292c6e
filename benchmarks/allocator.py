"""What the allocator settings of training jobs (`upcycle.workflow.invocation.ALLOCATOR`) give on this machine.

    python benchmarks/allocator.py [--rounds 3]

Trains the default sweep's smallest shapes for some steps in fresh processes, with and without the settings in turn,
and prints the best rate of each and their ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from upcycle.workflow.invocation import ALLOCATOR

JOB = """
import time, torch
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.shape import ModelSpec, MoESpec
torch.set_num_threads(1)
moe = MoESpec(n_expert=8, top_k=2, balance_group=4) if {moe} else None
model = Transformer(ModelSpec(n_layer=2, d_model={width}, n_head=2, vocab_size=1024, context=128), moe)
init_weights(model, 0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
ids = torch.randint(0, 1024, (4, 129), generator=torch.Generator().manual_seed(0))
def step():
    optimizer.zero_grad(set_to_none=True)
    output = model(ids[:, :-1], ids[:, 1:])
    torch.autograd.backward(output.loss + 1e-3 * output.balance)
    optimizer.step()
for _ in range(10): step()
began = time.perf_counter()
for _ in range(60): step()
print(60 * 512 / (time.perf_counter() - began))
"""


def rate(width: int, moe: bool, settings: dict[str, str]) -> float:
    """Tokens per second of one fresh process."""
    clean = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    code = JOB.format(width=width, moe=moe)
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | settings, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Print one line a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'shape':<24}{'plain':>10}{'settings':>10}{'ratio':>8}   (tokens/s, best of {rounds})")
    for width in (32, 64):
        for moe in (False, True):
            pairs = [(rate(width, moe, {}), rate(width, moe, ALLOCATOR)) for _ in range(rounds)]
            plain, tuned = (max(column) for column in zip(*pairs, strict=True))
            name = f"(2, {width}) {'MoE 8 top-2' if moe else 'dense'}"
            print(f"{name:<24}{plain:>10,.0f}{tuned:>10,.0f}{tuned / plain:>8.2f}")


if __name__ == "__main__":
    main()
