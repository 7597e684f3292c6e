"""What a rolling state costs the training thread: `python benchmarks/save_speed.py`, half a minute.

Side by side in one process, for a model of about 100 MB of state (weights and both moments, float32): the save as it
was before (serialise, hash, write, fsync, all on the training thread) and the snapshot of today, after which a thread
does the rest. The training thread meanwhile does what training does, matrix products, so that what the background
takes from it (a core, the memory bus, the interpreter's lock) is seen too: `products slowed` is their time during
background saves over their time alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from upcycle.train.states.checkpoint import digest, safetensors_parts, write_parts
from upcycle.train.states.saving import Saver

ROUNDS = 12
PARAMETERS = 8_700_000
NOTES = {"id": "benchmark"}


def state() -> dict[str, torch.Tensor]:
    """Forty matrices with two moments each, 104 MB."""
    generator = torch.Generator().manual_seed(0)
    names = [f"{kind}.blocks.{i}.w" for kind in ("model", "exp_avg", "exp_avg_sq") for i in range(40)]
    return {name: torch.randn(PARAMETERS // 40 // 512, 512, generator=generator) for name in names}


def save_in_line(folder: Path, tensors: dict[str, torch.Tensor], step: int) -> float:
    """Seconds of the training thread for a save that is done when it returns."""
    import safetensors.torch

    begun = time.perf_counter()
    data = safetensors.torch.save(tensors, metadata={"notes": json.dumps(NOTES)})
    write_parts(folder / f"step-{step:09d}-{digest([data])}.safetensors", [data])
    return time.perf_counter() - begun


def products(matrix: torch.Tensor, count: int) -> float:
    """Seconds of `count` matrix products."""
    begun = time.perf_counter()
    for _ in range(count):
        matrix @ matrix
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    tensors, matrix = state(), torch.randn(384, 384)
    size = sum(tensor.nbytes for tensor in tensors.values())
    products(matrix, 100)
    alone, before, snapshots, background, beside = [], [], [], [], []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name, Saver() as saver:
        for step in range(ROUNDS):
            (folder := Path(name) / str(step)).mkdir()
            before.append(save_in_line(folder, tensors, step))
            alone.append(products(matrix, 300))
            begun = time.perf_counter()
            saver.save(folder, step, tensors, NOTES, before=lambda: None, after=background.append)
            snapshots.append(time.perf_counter() - begun)
            beside.append(products(matrix, 300))
            saver.wait()
    parts = safetensors_parts(tensors)
    begun = time.perf_counter()
    digest(parts)
    hashing = time.perf_counter() - begun
    first, snapshots = snapshots[0], snapshots[1:]
    print(
        f"state {size / 1e6:.0f} MB, {ROUNDS} rounds, one thread of {os.cpu_count()} cores, in {tempfile.gettempdir()}"
    )
    print("seconds                            best     median")
    print(f"save in line (before)          {min(before):8.4f}   {median(before):8.4f}")
    print(f"snapshot (training thread now) {min(snapshots):8.4f}   {median(snapshots):8.4f}   (the first, {first:.4f})")
    print(f"background                     {min(background):8.4f}   {median(background):8.4f}   (hash {hashing:.4f})")
    print(f"lost by the training thread: {min(before) / min(snapshots):.1f} times less (best), ", end="")
    print(f"{median(before) / median(snapshots):.1f} times (median)")
    print(f"products slowed by the background: {median(beside) / median(alone):.2f} times (medians)")


if __name__ == "__main__":
    main()
