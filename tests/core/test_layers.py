"""Layers import downwards only. Each is imported in a process of its own, and what came with it is looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "upcycle"
HEAVY = ("torch", "matplotlib", "pandas", "scipy", "transformers", "snakemake")


def modules(*folders: str) -> list[str]:
    """Dotted names of the modules directly in these folders of src/upcycle."""
    names = []
    for folder in folders:
        for path in sorted((SOURCE / folder).glob("*.py")):
            if path.stem != "__init__":
                names.append(".".join(["upcycle", *filter(None, folder.split("/")), path.stem]))
    return names


def loaded_by(names: list[str]) -> set[str]:
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("layer", "names", "forbidden"),
    [
        ("L0 planning", modules("", "study"), HEAVY),
        ("L1 data", modules("data"), ("torch", "matplotlib", "upcycle.model", "upcycle.train", "upcycle.laws")),
        ("L1 model", modules("model"), ("matplotlib", "upcycle.data", "upcycle.train", "upcycle.laws", "transformers")),
        ("L2 train", modules("train"), ("matplotlib", "upcycle.laws", "upcycle.paper", "transformers")),
        (
            "L3 laws",
            modules("laws", "laws/forms"),
            ("torch", "matplotlib", "upcycle.model", "upcycle.train", "upcycle.paper", "upcycle.decisions"),
        ),
        (
            "L3 decisions",
            modules("decisions"),
            # A study's plan brings the catalogue of figures (names alone), but no figure.
            ("torch", "matplotlib", "upcycle.model", "upcycle.train", "upcycle.paper.inputs", "upcycle.paper.style"),
        ),
        ("L4 paper", modules("paper"), ("torch", "upcycle.model", "upcycle.train", "upcycle.report")),
        ("L4 report", modules("report"), ("torch", "upcycle.model", "upcycle.train")),
    ],
)
def test_a_layer_imports_downwards_only(layer, names, forbidden):
    assert names, f"{layer} has no modules"
    loaded = loaded_by(names)
    assert not sorted(loaded & set(forbidden)), f"{layer} imports upwards"


def test_the_fork_servers_client_starts_light():
    """The client of a training job imports neither pydantic nor numpy, let alone torch."""
    loaded = loaded_by(["upcycle.cli", "upcycle.train.processes.forkserver"])
    assert not loaded & {"torch", "numpy", "pydantic", "yaml"}
