"""docs/your-own-losses.md: every command runs as it stands, and prints what the page shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_data import TRUTH

from upcycle.laws.forms import LAWS

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "your-own-losses.md").read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What all commands of the page printed, in order, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "results").symlink_to(REPOSITORY / "results")
    make_tables(folder)
    upcycle = folder / "bin" / "upcycle"
    upcycle.parent.mkdir()
    upcycle.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m upcycle.cli "$@"\n')
    upcycle.chmod(0o755)
    environment = os.environ | {"PATH": f"{upcycle.parent}:{os.environ['PATH']}"}
    printed = {}
    for command in "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines():
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed[command] = done.stdout
    return printed, folder


def make_tables(folder):
    """The reader's own tables that the page names."""
    N, D = (axis.ravel() for axis in np.meshgrid([5e7, 2e8, 8e8], 1e9 * 2.0 ** np.arange(5)))
    loss = LAWS["chinchilla"].predict(TRUTH["chinchilla"], {"N": N, "D": D})
    loss *= np.exp(1e-3 * np.random.default_rng(3).standard_normal(len(N)))
    pd.DataFrame({"Model Size": N, "Training FLOP": 6 * N * D, "loss": loss}).to_csv(folder / "points.csv", index=False)
    runs = [
        {"run_name": f"Model-512x{k}", "width": 512, "params": n + 50304 * 512, "tokens": d, "final_loss": x}
        for k, (n, d, x) in enumerate(zip(N, D, loss, strict=True))
    ]
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    D1, D2 = (axis.ravel() for axis in np.meshgrid(2.0 ** np.arange(3), 2.0 ** np.arange(5)))
    loss = 2 + D1**-0.2 + D2**-0.3
    theirs = {"Size": 0.0147456, "Experts": 8, "Active": 2, "Dense": D1, "Tokens": D2, "Final": loss}
    pd.DataFrame(theirs).to_csv(folder / "theirs.csv", index=False)


def is_said(line, said):
    """Whether a line is among what was printed; shares of draws within 1 %, as a draw may fall otherwise elsewhere."""
    share = r"(\d+(?:\.\d+)?) %"
    parts = re.split(share, line)
    words, shares = parts[::2], [float(part) for part in parts[1::2]]
    found = re.search(share.join(map(re.escape, words)), said)
    return found is not None and [float(group) for group in found.groups()] == pytest.approx(shares, abs=1)


def test_every_command_runs_and_prints_what_is_shown(ran):
    """Each shown line begins a line that the commands of the block before printed, or goes on in the next one."""
    printed, _ = ran
    blocks = re.findall(r"```(bash|text)\n(.*?)```", PAGE, re.DOTALL)
    shown = 0
    for (_, commands), (kind, output) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "text":
            continue
        said = re.sub(r"\s+", " ", "".join(printed[command] for command in commands.splitlines()))
        for line in output.splitlines():
            assert is_said(re.sub(r"\s+", " ", line), said), line
            shown += 1
    assert shown >= 8


def test_the_page_is_of_one_table(ran):
    """The advice takes the fits of the page, which belong together."""
    _, folder = ran
    scratch, up = (json.loads((folder / "fits" / f"{name}.json").read_text()) for name in ("scratch", "up"))
    assert up["floor"]["data_sha256"] == scratch["data_sha256"]
    assert (up["lineage"], up["n_expert"], up["top_k"], up["n"]) == ("up", 8, 2, 31)
    assert [group["lineage"] for group in scratch["groups"]] == ["dense", "moe"]


def test_every_key_named_exists(ran):
    """In the tables of the JSON and in the list of the certificate; and no field of a fit is left out."""
    _, folder = ran
    content = json.loads((folder / "fits" / "up.json").read_text())
    table = PAGE[PAGE.index("## What the JSON holds") : PAGE.index("With `--by` there are")]
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    assert named <= set(content)
    rest = {"response", "simulated", "floor", "by"}  # of no use to a reader of the page
    assert set(content) - named <= rest
    certificate = set(re.findall(r"`([a-z_0-9]+)`", PAGE[PAGE.index("## How to read the certificate") :]))
    of_studies = {"loo_rms_by_seeds"}  # the page's own table repeats no run; tests/laws/test_seeds.py has one that does
    assert certificate <= keys_of(content["certificate"]) | set(content) | of_studies


def keys_of(content: object) -> set[str]:
    """Every key of a JSON object and of the objects within."""
    if not isinstance(content, dict):
        return set()
    return set(content).union(*map(keys_of, content.values()))
