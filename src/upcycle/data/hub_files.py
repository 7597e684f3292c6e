"""Files of a data set of the Hugging Face hub, fetched at one commit into the hub's cache by its own library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upcycle.data.local import has_reader
from upcycle.errors import UserError, nearest

CARD = "README.md"


def fetch_hub_files(
    repository: str,
    revision: str,
    patterns: Mapping[str, Sequence[str]],
    splits: Mapping[str, str],
    config: str | None = None,
) -> dict[str, list[Path]]:
    """Paths of the files by role (`files`, `heldout_files`), each downloaded unless the cache has it.

    `patterns` are globs in the repository; `splits` names splits of `config`, whose files the data set's card lists.
    `revision` is a full commit. Credentials, cache and offline mode are the hub's own: HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE. Raises UserError for what is not there, what has no reader, and what the hub answers.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    what = f"{repository} of the Hugging Face hub at {revision[:12]}"
    try:
        names = _names(repository, revision)
        wanted = dict(patterns)
        if splits:
            if CARD not in names:
                raise UserError(f"{what}: it has no {CARD} that lists its splits; name `files` in place of `split`")
            card = huggingface_hub.hf_hub_download(repository, CARD, repo_type="dataset", revision=revision)
            data = huggingface_hub.DatasetCard(Path(card).read_text(encoding="utf-8")).data
            wanted |= {role: split_patterns(what, data.to_dict(), config, split) for role, split in splits.items()}
        found = {role: _matching(what, names, globs) for role, globs in wanted.items()}
        exact = [name.replace("[", "[[]") for files in found.values() for name in files]
        folder = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=exact
        )
    except UserError:
        raise
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{what} cannot be fetched: {' '.join(str(error).split())[:300]}") from None
    paths = {role: [Path(folder) / name for name in files] for role, files in found.items()}
    for path in (path for each in paths.values() for path in each):
        if not path.is_file():
            raise UserError(f"{what}: {path} is not in the hub's cache; fetch it where the network is")
    return paths


def _names(repository: str, revision: str) -> list[str]:
    """All files of the repository; offline those that the cache has."""
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return list(huggingface_hub.HfApi().list_repo_files(repository, repo_type="dataset", revision=revision))
    except OfflineModeIsEnabled:
        cached = [
            commit
            for repo in huggingface_hub.scan_cache_dir().repos
            if (repo.repo_type, repo.repo_id) == ("dataset", repository)
            for commit in repo.revisions
            if commit.commit_hash == revision
        ]
        return [str(file.file_path.relative_to(each.snapshot_path)) for each in cached for file in each.files]


def split_patterns(what: str, card: Mapping[str, Any], config: str | None, split: str) -> list[str]:
    """Globs of a split from the `configs` of a card's metadata. UserError naming what the card has instead."""
    configs = {str(each["config_name"]): each for each in card.get("configs") or []}
    if not configs:
        raise UserError(f"{what}: its card lists no `configs`; name `files` in place of `split`")
    first = [name for name, each in configs.items() if each.get("default") or name == "default" or len(configs) == 1]
    name = config or (first[0] if first else "")
    if name not in configs:
        asked = f"has no config {name!r}" if name else "has several configs, and none is the default"
        raise UserError(f"{what} {asked}; {nearest(name, configs)}")
    splits: dict[str, list[str]] = {}
    files = configs[name].get("data_files", [])
    for each in [files] if isinstance(files, str) else files:
        entry = {"split": "train", "path": each} if isinstance(each, str) else each
        globs = entry["path"]
        splits.setdefault(str(entry["split"]), []).extend([globs] if isinstance(globs, str) else globs)
    if split not in splits:
        raise UserError(f"{what}: config {name!r} has no split {split!r}; {nearest(split, splits)}")
    folder = str(configs[name].get("data_dir") or "").strip("/")
    return [f"{folder}/{glob}" if folder else glob for glob in splits[split]]


def _matching(what: str, names: Sequence[str], globs: Sequence[str]) -> list[str]:
    """Names that a glob matches, sorted. UserError for a glob without any, and for a name that has no reader."""
    found: set[str] = set()
    for glob in globs:
        matches = [name for name in names if _glob(glob).fullmatch(name)]
        if not matches:
            raise UserError(f"{what}: nothing matches `{glob}`; there are {', '.join(sorted(names)[:10])}")
        found.update(matches)
    for name in sorted(found):
        if not has_reader(name):
            raise UserError(f"{what}: {name} is of no kind that is read; name other `files`")
    return sorted(found)


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside of a folder, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    meant = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meant.get(part) or re.escape(part) for part in parts))
