"""The frozen plan: what an invocation planned when it started, for all its jobs.

Layer 0. A config that is edited while jobs queue does not reach them. Each job of a cluster reads the file twice, so
reading costs little: a run is validated when it is asked for, and most jobs ask for one or two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.study.plan import Plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig, describe_error, validated_study


@dataclass(frozen=True)
class FrozenPlan:
    """What `freeze` writes and `thaw` reads."""

    study: StudyConfig
    plan: Plan
    keys: dict[str, str] = field(default_factory=dict)
    """Key of each product, by its name."""


class FrozenRuns(Mapping[str, RunSpec]):
    """Runs by id, each validated when it is asked for.

    Raises `UserError` then for a run that this version of the code names otherwise.
    """

    def __init__(self, path: Path, fields_by_id: Mapping[str, Any]) -> None:
        self._path, self._fields = path, fields_by_id
        self._runs: dict[str, RunSpec] = {}

    def __getitem__(self, run_id: str) -> RunSpec:
        if run_id not in self._runs:
            try:
                run = RunSpec.model_validate(self._fields[run_id])
                if run.id != run_id:
                    raise ValueError(f"run {run_id} is now named {run.id}")
            except ValueError as error:
                raise _damaged(self._path, describe_error(error)) from None
            self._runs[run_id] = run
        return self._runs[run_id]

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def freeze(frozen: FrozenPlan, results: Path) -> Path:
    """Write study, plan and keys to results/.plans/<hash>.json (once) and return the path."""
    # Of the many settings the defaults are left out; the job that reads the file runs the same code.
    plan = {each.name: getattr(frozen.plan, each.name) for each in fields(Plan)}
    plan["runs"] = {run_id: run.model_dump(mode="json", exclude_defaults=True) for run_id, run in plan["runs"].items()}
    study = frozen.study.model_dump(mode="json", exclude_defaults=True)
    data = json.dumps({"study": study, "plan": plan, "keys": frozen.keys}, separators=(",", ":")).encode()
    path = results / ".plans" / f"{_digest(data)}.json"
    if not path.exists():
        write_atomic(path, data)
    return path


def thaw(path: Path) -> FrozenPlan:
    """Read a frozen plan.

    Raises `UserError` when the file is missing or is not what `freeze` wrote.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"plan {path}: {error.strerror}; start Snakemake again, which writes it") from None
    if _digest(data) != path.stem:
        raise _damaged(path, "its content does not match its name")
    content = json.loads(data)
    try:
        study = validated_study(content["study"])
    except ValueError as error:  # of another version of the code
        raise _damaged(path, describe_error(error)) from None
    plan = Plan(**content["plan"])
    runs = FrozenRuns(path, content["plan"]["runs"])
    names = {run_id: (model, moe) for run_id, (model, moe) in plan.names.items()}  # JSON has no tuples
    return FrozenPlan(study, replace(plan, runs=runs, names=names), content["keys"])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"plan {path} is damaged ({reason}); delete it and start Snakemake again")
