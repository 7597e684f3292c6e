"""A checkout of its own for each test, with the finished test study or a copy of it."""

import shutil
from pathlib import Path

import pytest
from built_once import built_once
from checkouts import Checkout, make_checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Checkout:
    """The test study, run once for all processes. Tests only read it, and take a copy to run Snakemake in."""

    def build(folder: Path) -> None:
        make_checkout(folder / "checkout").run()

    return Checkout(built_once(tmp_path_factory, "finished", build) / "checkout")


@pytest.fixture
def checkout(finished, tmp_path) -> Checkout:
    """A copy of the finished study with Snakemake's records and dates, free to be changed."""
    root = tmp_path / "checkout"
    shutil.copytree(finished.root, root)
    return Checkout(root)
