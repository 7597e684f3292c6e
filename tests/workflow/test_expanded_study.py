"""A study whose mixtures grow out of smaller ones, without a dense model: its jobs, and a kill between them."""

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import Checkout, make_checkout, wait_for

pytestmark = pytest.mark.workflow

SWEEPS = """\
sweeps:
  small: {kind: moe, model: tiny, moe: 4x2, steps: 20}
  grown: {kind: upcycled, method: expand, parents: small, model: tiny, moe: 8x2, steps: [1000, 1200]}
"""


def upcycle(checkout: Checkout, *words: str) -> subprocess.Popen[str]:
    """`upcycle words`, as a job calls it."""
    command = [Path(sys.executable).with_name("upcycle"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=checkout.root, env=checkout.environment(), **pipes)


def test_a_mixture_is_trained_then_expanded_and_a_kill_costs_no_bit(tmp_path: Path) -> None:
    """Jobs by rule; then the expanded run again, killed outright and continued: the bits of the undisturbed one."""
    checkout = make_checkout(tmp_path / "checkout")
    text = (checkout.root / "config.yaml").read_text()
    text = text.replace("  4x2: {", "  8x2: {n_expert: 8, top_k: 2, balance_group: 4}\n  4x2: {")
    text = text.replace("save_seconds: 3600", "save_seconds: 0.05")
    (checkout.root / "config.yaml").write_text(text[: text.index("sweeps:")] + SWEEPS)
    jobs = checkout.jobs("sweep_grown")
    assert jobs == {"tokenize": 1, "pretrain_moe": 1, "upcycle": 2, "decay": 3}
    checkout.run("sweep_grown")
    [first] = [path for path in (checkout.root / "results/runs").glob("up-*") if (path / "receipt.json").exists()]
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.glob("*.safetensors")}
    assert before.keys() == {"weights.safetensors", "state.safetensors"}
    shutil.rmtree(first)
    job = upcycle(checkout, "train", first.name)
    wait_for(lambda: any((first / "resume").glob("step-*")), "a state to resume from")
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert not (first / "metrics.json").exists()
    job = upcycle(checkout, "train", first.name)
    output, _ = job.communicate()
    assert job.returncode == 0, output
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.glob("*.safetensors")} == before
