"""What run folders hold: a specification, a result, a state to resume from. A run with a result or a state has begun.

Layer 0: names and small files only; contents are verified when a run is trained or read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from upcycle.errors import UserError
from upcycle.files import read_record
from upcycle.manifest import MANIFEST, STATE, WEIGHTS, DamagedError, read_file, read_manifest, removed_files
from upcycle.study.spec import RunSpec
from upcycle.study.study import describe_error

log = logging.getLogger(__name__)

SPEC = "spec.json"
SAVED = re.compile(r"step-(\d{9})-[0-9a-f]{64}(\.safetensors)?")
"""A rolling state in `resume/`, one file or a folder, renamed into place when it is whole (train/states/rolling.py)."""
TRUNK = re.compile(r"((?:dense|moe|up|cont)-.+)-[^-]+-(s\d+)-[0-9a-f]{10}")
"""A trunk point's id: shape, tokens, seed, digest (`RunSpec.id`)."""


def stated_spec(run_dir: Path) -> RunSpec | None:
    """The spec.json of a run folder, or None where there is none.

    Raises `DamagedError` when it is no specification, or makes another id than it states.
    """
    path = run_dir / SPEC
    content = read_file(path)
    if content is None:
        return None
    try:
        fields = json.loads(content)
        stated = fields.pop("id")
        run = RunSpec.model_validate(fields)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        fix = "restore it from a copy, or move the folder away to train the run anew"
        raise DamagedError(f"{path} is damaged ({describe_error(error)}); {fix}") from None
    if run.id != stated:
        raise DamagedError(f"{path}: makes the id {run.id} but states {stated}: edited by hand, or of another version")
    return run


def recorded_spec(run_dir: Path) -> RunSpec | None:
    """As `stated_spec`, of a folder that has its run's name; `DamagedError` when it belongs to another run too."""
    run = stated_spec(run_dir)
    if run is not None and run.id != run_dir.name:
        raise DamagedError(f"{run_dir / SPEC} describes run {run.id}, not {run_dir.name}; move the folder away")
    return run


def is_finished(run_dir: Path) -> bool:
    """Whether a run's metrics.json, written last, is there."""
    return (run_dir / "metrics.json").exists()


def is_removed(run_dir: Path, *names: str) -> bool:
    """Whether a study's `keep` removed one of these files of a run; of no finished run it has.

    Raises `DamagedError` for a damaged manifest.
    """
    return (run_dir / MANIFEST).exists() and not removed_files(read_manifest(run_dir)).keys().isdisjoint(names)


def saved_step(run_dir: Path) -> int | None:
    """The newest rolling state's step. (A damaged one is found on loading, which falls back to the one before.)"""
    resume = run_dir / "resume"
    names = [path.name for path in resume.iterdir()] if resume.is_dir() else []
    return max((int(match[1]) for name in names if (match := SAVED.fullmatch(name))), default=None)


def is_simulated(run_dir: Path) -> bool:
    """Whether a run's loss was drawn from a law (`upcycle rehearse`)."""
    return is_finished(run_dir) and bool(read_record(run_dir / "metrics.json").get("simulated"))


def check_trained(run_dir: Path) -> None:
    """Raise UserError for a simulated run, which nothing that is trained may start from."""
    if is_simulated(run_dir):
        raise UserError(
            f"{run_dir}: its loss is simulated (`upcycle rehearse`), so no training starts from it; move the folder "
            "away and train the run"
        )


def is_trained(run_dir: Path) -> bool:
    """Whether nothing is left to train: finished, or only metrics.json is gone, which its manifest restores."""
    return is_finished(run_dir) or (run_dir / MANIFEST).exists()


def has_begun(run_dir: Path) -> bool:
    """Whether a run is trained or has a state to resume from: then it keeps the parent that its spec.json records."""
    return is_trained(run_dir) or saved_step(run_dir) is not None


class RunFolders:
    """The folders under results/runs as one plan sees them: listed once, each spec.json read at most once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._specs: dict[str, RunSpec | None] = {}

    @cached_property
    def names(self) -> set[str]:
        """Ids of all runs that have a folder."""
        return {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()

    @cached_property
    def _trunks(self) -> dict[tuple[str, str], list[str]]:
        """Names of trunk points by what a recipe shows in an id: shape and seed."""
        trunks: dict[tuple[str, str], list[str]] = {}
        for name in sorted(self.names):
            if match := TRUNK.fullmatch(name):
                trunks.setdefault((match[1], match[2]), []).append(name)
        return trunks

    def begun(self, run_id: str) -> RunSpec | None:
        """The recorded spec of a run that is trained or has a state; None for any other.

        Raises `UserError` when its spec.json is damaged.
        """
        if run_id not in self._specs:
            here = run_id in self.names and has_begun(self.root / run_id)
            self._specs[run_id] = recorded_spec(self.root / run_id) if here else None
        return self._specs[run_id]

    def trained(self, run_id: str | None) -> bool:
        """Whether nothing of a run is left to train."""
        return run_id in self.names and is_trained(self.root / str(run_id))

    def continuable(self, run_id: str) -> bool:
        """Whether a run that has begun has, or will have, weights and moments to continue from.

        A damaged manifest counts as one that has: whoever continues from it names the damage.
        """
        try:
            return not is_removed(self.root / run_id, WEIGHTS, STATE)
        except DamagedError:
            return True

    def finished(self, run_id: str) -> bool:
        """Whether a run has its result."""
        return run_id in self.names and is_finished(self.root / run_id)

    def like(self, trunk: RunSpec) -> Iterator[RunSpec]:
        """Trunk points that have begun and whose ids have this one's shape and seed; the recipe may differ."""
        match = TRUNK.fullmatch(trunk.id)
        assert match is not None
        for name in self._trunks.get((match[1], match[2]), []):
            try:
                spec = self.begun(name)
            except UserError as error:  # the study does not name this run: it can do without
                log.warning("%s (until then no trunk continues from it)", error)
            else:
                if spec is not None:
                    yield spec
