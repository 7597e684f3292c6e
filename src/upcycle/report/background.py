"""What the report reads of a study beyond its losses: settings, times, texts, and the products to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.files import read_record


@dataclass(frozen=True)
class Background:
    """Everything that the report reads apart from `Inputs`."""

    study: str
    """`default`, or the name of config/<study>.yaml."""
    out: Path
    """The study's results folder: figures/<name>.svg, tables/<name>.csv, evaluations.csv, timing.json."""
    tokens: Path
    """The folder of token sets, each with a manifest.json."""
    title: str = ""
    command: str = "make sweep"
    """What reproduces the study."""
    figures: tuple[str, ...] = ()
    """Names of the figures to show, in order."""
    tables: tuple[str, ...] = ()
    total_runs: int | None = None
    """Runs that the study plans, trunk points included; None: unknown."""

    @property
    def timing(self) -> Timing | None:
        """The times of the invocations that made the results; None where none was recorded."""
        path = self.out / "timing.json"
        return Timing.read(path) if path.exists() else None

    def manifests(self, fingerprints: set[str]) -> list[dict[str, Any]]:
        """Manifests of the token sets that runs were trained on, by fingerprint.

        Raises `UserError` naming a fingerprint that no token set has.
        """
        found = {}
        for path in sorted(self.tokens.glob("*/manifest.json")):
            manifest = read_record(path)
            if manifest["fingerprint"] in fingerprints:
                found[manifest["fingerprint"]] = manifest
        if missing := fingerprints - set(found):
            raise UserError(
                f"{self.tokens}: no token set has fingerprint {min(missing)[:16]}, which runs were trained on; "
                "`upcycle tokenize` makes it"
            )
        return list(found.values())


@dataclass(frozen=True)
class Timing:
    """timing.json: `invocations`, one entry for each that trained or drew anything, seconds everywhere."""

    invocations: tuple[Mapping[str, float], ...] = field(default_factory=tuple)
    """Each with started, wall_seconds, cores, runs, run_train_seconds, run_eval_seconds, run_startup_seconds,
    run_wall_seconds (the last four summed over the runs that it finished)."""

    @classmethod
    def read(cls, path: Path) -> Timing:
        """Read timing.json.

        Raises `UserError` when it is damaged.
        """
        entries = read_record(path)["invocations"]
        if not isinstance(entries, list):
            raise UserError(f"{path} is damaged: `invocations` is not a list; delete it")
        return cls(tuple(entries))

    def total(self, key: str) -> float:
        """Sum of one entry over the invocations."""
        return sum(entry[key] for entry in self.invocations)

    @property
    def cores(self) -> list[int]:
        """The different numbers of cores of the invocations."""
        return sorted({int(entry["cores"]) for entry in self.invocations})

    @property
    def core_seconds(self) -> float:
        """Wall seconds times cores."""
        return sum(entry["wall_seconds"] * entry["cores"] for entry in self.invocations)

    @property
    def useful_seconds(self) -> float:
        """Seconds in which a run trained or was evaluated."""
        return self.total("run_train_seconds") + self.total("run_eval_seconds")

    @property
    def overhead(self) -> float:
        """Share of the core seconds in which no run trained or was evaluated."""
        return 1 - self.useful_seconds / self.core_seconds


def read_csv(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A product's table, which must have these columns.

    Raises `UserError` naming the file when it is missing or damaged.
    """
    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `snakemake {path}` makes it") from None
    except ValueError as error:  # empty, cut, or not UTF-8
        raise UserError(f"{path} is damaged: {error}; delete it, and `snakemake {path}` makes it again") from None
    if missing := [column for column in columns if column not in frame]:
        raise UserError(
            f"{path} is damaged: no column `{missing[0]}`; delete it, and `snakemake {path}` makes it again"
        )
    return frame
