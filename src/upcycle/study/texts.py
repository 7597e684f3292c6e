"""Your own text in a study: files on this machine, or a data set of the Hugging Face hub at a pinned commit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from upcycle.data.parts import PART_BYTES
from upcycle.data.rows import MAX_BAD
from upcycle.study.shape import Frozen
from upcycle.study.values import Count, Paths, Share, Texts


class HubConfig(Frozen):
    """A data set of the Hugging Face hub. `upcycle fetch NAME` downloads its files."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
    """`owner/name`."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    """The commit, all 40 digits: branches and tags move."""
    config: str | None = None
    """A configuration that the data set's card lists; none: its default."""
    split: str | None = None
    """A split of the configuration, for training; none: `files` are patterns in the repository."""
    heldout_split: str | None = None
    """A split to hold out; none: `heldout_files`, or documents are split off."""

    def splits(self) -> dict[str, str]:
        """Splits by the key of the files that they stand for."""
        named = {"heldout_files": self.heldout_split, "files": self.split}
        return {key: split for key, split in named.items() if split is not None}


class LocalDataset(Frozen):
    """A user's own text: txt, jsonl (plain, .zst, .gz), parquet or arrow files. Or Megatron-LM's tokens: .bin files."""

    hub: HubConfig | None = None
    """The files are those of a data set of the Hugging Face hub."""
    files: Paths = []
    """Paths or glob patterns, from the folder that Snakemake runs in; with `hub`, in its repository."""
    heldout_files: Paths = []
    """Files of a validation set of their own; none: documents are split off `files`."""
    text: str = "text"
    """Key or column that holds the text."""
    where: dict[str, Texts] = {}
    """Rows to take: the values that a key or column may have, `meta.redpajama_set_name: RedPajamaCommonCrawl`."""
    max_bad: Share = MAX_BAD
    """Largest share of rows without usable text (not JSON, not UTF-8, no text, empty); above it the text is refused."""
    part_bytes: Count = PART_BYTES
    """Bytes of files, as they are on disk, for each job that reads and each that encodes; changes no token."""

    @model_validator(mode="after")
    def _named_once(self) -> LocalDataset:
        splits = self.hub.splits() if self.hub else {}
        for key in ("files", "heldout_files"):
            if key in splits and getattr(self, key):
                raise ValueError(f"`{key}` and a split of `hub` are given: leave one out")
        if not self.files and "files" not in splits:
            raise ValueError("no `files`" + (" and no `hub.split`" if self.hub else "") + ": name the text")
        return self
