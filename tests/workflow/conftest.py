"""A checkout of its own for each test, with the finished test study or a copy of it."""

import shutil

import pytest
from checkouts import Checkout, make_checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Checkout:
    """The test study, run once from nothing; tests that change anything take a copy."""
    checkout = make_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    checkout.run()
    return checkout


@pytest.fixture
def checkout(finished, tmp_path) -> Checkout:
    """A copy of the finished study with Snakemake's records and dates, free to be changed."""
    root = tmp_path / "checkout"
    shutil.copytree(finished.root, root)
    return Checkout(root)
