"""Golden losses: twenty steps of a dense, a MoE and an upcycled run, in float32 on one thread.

`python tests/support/golden.py` writes tests/golden/*.txt anew. Do that only for a change that is meant to change
numerics (and then raise the component's `engine` number), never to make a test pass.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from small_runs import EXECUTION, MOE, rows_of, small_run, train_in, upcycled_run, write_tokens

from upcycle.train.record import hardware

GOLDEN = Path(__file__).parent.parent / "golden"
N_STEPS = 20
Losses = list[np.float32]


def machine() -> dict[str, str]:
    """What exact equality of float32 sums depends on."""
    found = hardware("cpu")
    return {
        "torch": torch.__version__,
        "capability": found["capability"],
        "cpu": found["cpu"],
        "threads": str(torch.get_num_threads()),
    }


def train_golden(root: Path, tokens_dir: Path, **execution: object) -> dict[str, Losses]:
    """Losses by step of the three runs, by torch's kernels; the upcycled one starts from the dense one."""
    dense = small_run(end_step=N_STEPS)
    runs = {
        "dense": dense,
        "moe": small_run(end_step=N_STEPS, moe=MOE),
        "upcycled": upcycled_run(dense, end_step=N_STEPS, optim={"lr": 4e-3, "batch": 4}),
    }
    settings = EXECUTION.model_copy(update={"layers": "composed"} | execution)
    folders = {name: train_in(root, tokens_dir, run, settings) for name, run in runs.items()}
    return {
        name: [np.float32(row["loss"]) for row in rows_of(folder) if "loss" in row] for name, folder in folders.items()
    }


def read(name: str) -> tuple[dict[str, str], Losses]:
    """The machine and the losses of a golden file."""
    lines = (GOLDEN / f"{name}.txt").read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return header, [np.float32(line.split()[1]) for line in lines if not line.startswith("#")]


def write(name: str, losses: Losses) -> None:
    """A golden file: header, then `step loss`, the shortest decimals that give the float32 back."""
    header = [f"# {key}: {value}" for key, value in machine().items()]
    rows = [f"{step} {loss!s}" for step, loss in enumerate(losses, start=1)]
    (GOLDEN / f"{name}.txt").write_text("\n".join(header + rows) + "\n")


def main() -> None:
    """Write all golden files."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tokens_dir = Path(folder) / "tokens"
        tokens_dir.mkdir()
        for name, losses in train_golden(Path(folder), write_tokens(tokens_dir)).items():
            write(name, losses)


if __name__ == "__main__":
    main()
