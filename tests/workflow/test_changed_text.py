"""A user's text that changed under the same name, and damaged tokens, stop an invocation before anything starts."""

import os
import subprocess

import pytest
from checkouts import SNAKEMAKE, Checkout

pytestmark = pytest.mark.workflow


def upcycle(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    command = [SNAKEMAKE.with_name("upcycle"), *words]
    return subprocess.run(
        command, cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False
    )


def test_changed_text_is_found_when_an_invocation_starts(checkout):
    path = checkout.root / "heldout.jsonl"
    text = path.read_text()
    os.utime(path)
    assert checkout.jobs() == {}
    path.write_text(text.replace("a", "e", 1))
    message = (
        "heldout.jsonl changed since token set words-1-bpe300 was made; restore what was, or give the changed data"
    )
    for done in (checkout.run(check=False), upcycle(checkout, "plan"), upcycle(checkout, "tokenize", "words-1-bpe300")):
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert upcycle(checkout, "plan").returncode == 2
    checkout.edit("config.yaml", "vocab_size: 300", "vocab_size: 300, version: '2'")  # one of the two ways out
    assert checkout.jobs()["tokenize"] == 2
    checkout.edit("config.yaml", ", version: '2'", "")
    path.write_text(text)
    assert checkout.jobs() == {}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_damaged_tokens_stop_a_run_and_made_again_they_are_the_same(part, checkout):
    tokens = checkout.root / "results/tokens/words-1-bpe300"
    run = next((checkout.root / "results/runs").glob("dense-*")).name
    path = tokens / f"{part}-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = upcycle(checkout, "train", run, "--fresh")
    assert done.returncode == 2
    message = f"upcycle train: results/tokens/words-1-bpe300/{part}-00000.bin: damaged in block 0 of 1"
    assert done.stderr.splitlines()[-1].startswith(message)
    assert upcycle(checkout, "tokenize", "words-1-bpe300").returncode == 0
    assert path.read_bytes() == whole
    assert upcycle(checkout, "train", run).returncode == 0
