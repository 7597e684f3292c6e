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
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The figures to show, in order, each with its options."""
    tables: tuple[str, ...] = ()
    total_runs: int | None = None
    """Runs that the study plans, trunk points included; None: unknown."""

    @property
    def timing(self) -> dict[str, Any] | None:
        """Sums of seconds over the invocations that trained or drew anything; None where none was recorded.

        `core_seconds`: wall seconds times cores. `useful_seconds`: those in which a run trained or was evaluated.

        Raises `UserError` when timing.json is damaged.
        """
        path = self.out / "timing.json"
        if not path.exists():
            return None
        entries = read_record(path)["invocations"]
        if not isinstance(entries, list):
            raise UserError(f"{path} is damaged: `invocations` is not a list; delete it")
        return {
            "invocations": len(entries),
            "cores": sorted({int(entry["cores"]) for entry in entries}),
            "wall_seconds": sum(entry["wall_seconds"] for entry in entries),
            "core_seconds": sum(entry["wall_seconds"] * entry["cores"] for entry in entries),
            "useful_seconds": sum(entry[f"run_{stage}_seconds"] for stage in ("train", "eval") for entry in entries),
        }

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


def read_csv(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A product's table, which must have these columns.

    Raises `UserError` naming the file when it is missing or damaged.
    """
    try:
        frame = pd.read_csv(path)
        if missing := [column for column in columns if column not in frame]:
            raise ValueError(f"no column `{missing[0]}`")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `snakemake {path}` makes it") from None
    except ValueError as error:  # empty, cut, not UTF-8, or another table
        raise UserError(f"{path} is damaged: {error}; delete it, and `snakemake {path}` makes it again") from None
    return frame
