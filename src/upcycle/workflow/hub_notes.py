"""Data sets of the Hugging Face hub: `upcycle fetch` downloads their files and notes where they are.

The plan reads the note, so neither jobs nor planning need the network or the hub's library.
"""

from __future__ import annotations

import json
from pathlib import Path

from upcycle.errors import UserError, nearest
from upcycle.files import write_atomic
from upcycle.manifest import json_bytes
from upcycle.study.study import StudyConfig
from upcycle.study.texts import LocalDataset
from upcycle.workflow.paths import RESULTS

KEYS = ("heldout_files", "files")


def fetch_job(study: StudyConfig, name: str) -> None:
    """`upcycle fetch`: download what is missing of a hub's data set. Raises `UserError` for a name that is none."""
    from upcycle.data.hub_files import fetch_hub_files

    of_hub = {key: local for key, local in study.datasets.items() if local.hub is not None}
    if name not in of_hub:
        raise UserError(f"`{name}` is no data set under `datasets` with the key `hub`; {nearest(name, of_hub)}")
    local = of_hub[name]
    hub, patterns = local.hub, {key: getattr(local, key) for key in KEYS if getattr(local, key)}
    assert hub is not None
    files = fetch_hub_files(hub.id, hub.revision, patterns, hub.splits(), hub.config)
    paths = {key: [str(path.absolute()) for path in files.get(key, [])] for key in KEYS}
    write_atomic(_note(name), json_bytes({"asked": _asked(local), "files": paths}))
    each = [path for key in KEYS for path in files.get(key, [])]
    print(f"{name}: {len(each)} files, {sum(path.stat().st_size for path in each) / 1e6:,.1f} MB, in the hub's cache")


def fetched_files(local: LocalDataset, name: str) -> dict[str, list[Path]]:
    """Files of a hub's data set by key. Raises `UserError` naming the command where they were not fetched."""
    files = noted_files(local, name)
    fix = f"`upcycle fetch {name}` downloads them, where the network is"
    if not files:
        raise UserError(f"datasets.{name}.hub: files of {local.hub and local.hub.id} were not fetched; {fix}")
    for path in (path for each in files.values() for path in each):
        if not path.exists():
            raise UserError(f"datasets.{name}.hub: {path} was fetched and is gone; {fix}")
    return files


def noted_files(local: LocalDataset, name: str) -> dict[str, list[Path]]:
    """Files as `upcycle fetch` noted them; none before, or if the study now asks for others."""
    try:
        note = json.loads(_note(name).read_bytes())
    except FileNotFoundError:
        return {}
    if note["asked"] != _asked(local):
        return {}
    return {key: list(map(Path, paths)) for key, paths in note["files"].items()}


def _note(name: str) -> Path:
    return RESULTS / ".hub" / f"{name}.json"


def _asked(local: LocalDataset) -> object:
    return local.model_dump(include={"hub", *KEYS})
