"""The folder `resume/`: names of rolling states, which are kept, which are set aside.

What a state holds is in `rolling` (one process) and `sharded` (several).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Set
from pathlib import Path

from upcycle.files import TEMPORARY, sync_folder
from upcycle.manifest import DamagedError
from upcycle.train.states.checkpoint import RESUME, remove

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{64})(\.safetensors)?")
KEPT = 2
DAMAGED = ".damaged"
"""End of the name of a state that was set aside."""


def states_in(folder: Path) -> list[Path]:
    """Rolling states of either kind, valid or not, newest step first; not those set aside."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)


def put_aside(damaged: list[Path]) -> None:
    """Take damaged states out of those that count."""
    for path in damaged:
        aside = path.with_name(path.name + DAMAGED)
        if aside.exists():  # the run came by its step twice, and was killed before it removed the first
            _remove(aside)
        path.rename(aside)
        log.warning("%s: set aside until the next state is saved, as %s", path, aside.name)


def set_aside(folder: Path) -> list[Path]:
    """States that were found damaged when the run was last resumed."""
    return sorted(folder.glob(f"step-*{DAMAGED}"))


def make_folder(folder: Path) -> None:
    """Make `resume/` durably, so that a power cut cannot take a published state with its folder."""
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def prune(folder: Path) -> None:
    """Remove all rolling states but the newest, two in all, and those set aside: a new good one makes up for them."""
    for path in [*states_in(folder)[KEPT:], *set_aside(folder)]:
        _remove(path)


def _remove(path: Path) -> None:
    # The rename is atomic, removing a folder is not: a kill between leaves no state of which half the files are gone.
    remove(path.rename(path.with_name(path.name + TEMPORARY)))


def clear_temporaries(run_dir: Path) -> None:
    """Remove what a killed writer left half written. Call under the lease."""
    for folder in (run_dir, run_dir / RESUME):
        for path in folder.glob(f"*{TEMPORARY}"):
            remove(path)


def check_tensor_names(path: Path, saved: Set[str], wanted: Mapping[str, object]) -> None:
    """DamagedError naming a tensor that a state has and the run has not, or the other way round."""
    surplus, missing = sorted(saved - wanted.keys()), sorted(wanted.keys() - saved)
    if surplus or missing:
        words = [f"`{name}` too many" for name in surplus[:1]] + [f"no `{name}`" for name in missing[:1]]
        raise DamagedError(
            f"{path}: holds other tensors than this run: {', '.join(words)}; continue with the version that saved it, "
            "or begin anew with --fresh"
        )
