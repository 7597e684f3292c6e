"""For all tests: one thread of linear algebra, and one of torch, as the jobs have; token sets and simulated studies.

What a session fixture makes is read and never changed. Imports are in the fixtures: most tests need none of them.
"""

import os
from collections import Counter
from pathlib import Path

import pytest
from built_once import built_once

# Before anything imports numpy or torch.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes each takes one file after the other: files with the most costly tests come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        costly = Counter(item.path for item in items for mark in ("slow", "workflow") if item.get_closest_marker(mark))
        items.sort(key=lambda item: -costly[item.path])


@pytest.fixture(scope="session")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token set of 64 pieces with structure to learn."""
    from small_runs import write_tokens

    return write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """(results folder, plan) of the simulated sweep with all five fits."""
    import simulated_sweep

    return built_once(tmp_path_factory, "sweep", simulated_sweep.write_results), simulated_sweep.plan_of()


@pytest.fixture(scope="session")
def ablations(tmp_path_factory):
    """A study of every ablation, all of whose arms have the same losses but for noise."""
    import simulated_ablations

    return simulated_ablations.read_inputs(built_once(tmp_path_factory, "ablations", simulated_ablations.write_results))


@pytest.fixture(scope="session")
def joint_inputs(tmp_path_factory):
    """Several sizes and mixtures by the paper's laws, with the fits that joint laws and decisions need."""
    import simulated_study

    return simulated_study.read_study(built_once(tmp_path_factory, "joint", simulated_study.write_study))
