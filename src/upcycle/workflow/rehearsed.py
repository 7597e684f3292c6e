"""A job of a rehearsal: it writes what Snakemake waits for, with the loss that was drawn when the invocation started.

`upcycle rehearse` (`rehearsal`) starts such a job for each run of a study, so it must start in a tenth of a second: it
imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import read_record, write_atomic

REHEARSAL_VARIABLE = "UPCYCLE_REHEARSAL"
SIMULATED = Path("results") / "simulated"
"""Where each study has a folder for everything that is simulated of it."""


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed, by which laws and with which noise."""

    study: str
    noise: float
    """Standard deviation of a loss, nats."""
    seed: int
    laws: tuple[str, ...] = ()
    """Of losses, in place of the paper's: as `decisions.simulated.choose_world` takes them."""

    @property
    def folder(self) -> Path:
        """The folder of everything that it writes; in it, as in results/, runs, tokens, losses.csv, fits and so on."""
        return SIMULATED / self.study

    @property
    def draws(self) -> Path:
        """The drawn losses and the specifications of all runs."""
        return self.folder / "draws.json"

    @property
    def command(self) -> str:
        """What a user types for it."""
        laws = "".join(f" --law {shlex.quote(law)}" for law in self.laws)
        return f"upcycle rehearse --study {self.study} --noise {self.noise:g} --seed {self.seed}{laws}"

    def state(self) -> str:
        """Itself as text, for jobs' environment."""
        return json.dumps(asdict(self))


def rehearsal_now() -> Rehearsal | None:
    """The rehearsal that this process is a part of, if it is one."""
    text = os.environ.get(REHEARSAL_VARIABLE)
    return Rehearsal(**json.loads(text)) if text else None


def rehearse_job(rehearsal: Rehearsal, verb: str, name: str) -> None:
    """In place of `upcycle tokenize` or `upcycle train`: their outputs, marked as simulated.

    Raises UserError for a run that was not drawn, and if what the job needs is not there: the DAG would be wrong.
    """
    if verb == "tokenize":
        _write(rehearsal.folder / "tokens" / name / "manifest.json", {"simulated": True, "name": name})
        return
    runs = read_record(rehearsal.draws)["runs"]
    if name not in runs:
        raise UserError(f"{rehearsal.draws} has no run `{name}`: `{rehearsal.command}` draws it")
    drawn, folder = runs[name], rehearsal.folder / "runs"
    needed = [rehearsal.folder / "tokens" / drawn["tokens"] / "manifest.json"]
    if drawn["spec"]["parent"] is not None:
        needed.append(folder / drawn["spec"]["parent"] / "metrics.json")
    for path in needed:
        if not read_record(path).get("simulated"):
            raise UserError(f"{path} is not simulated: a rehearsal does not mix with what was trained")
    _write(folder / name / "spec.json", {"id": name, **drawn["spec"]})
    noise = {"laws": rehearsal.laws, "noise": rehearsal.noise, "seed": rehearsal.seed}
    _write(folder / name / "metrics.json", {"id": name, "simulated": True, "loss": drawn["loss"], **noise})


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=1) + "\n")
