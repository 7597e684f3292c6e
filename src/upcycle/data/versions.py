"""Sources that no hash pins: the version that is here is a part of the data set's version, hence of a run's id."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable

from upcycle.data.debian import debian_record

UNPINNED: dict[str, Callable[[], str]] = {
    "python-stdlib": lambda: f"py{platform.python_version().rstrip('+')}",
    "japanese-man": lambda: f"deb{re.sub('[^A-Za-z0-9.]', '.', debian_record('manpages-ja')['version'])}",
}
"""Version of the source as it is here, by data set."""


def full_version(dataset: str, version: str) -> str:
    """A data set's version with that of its source: `1_py3.11.7` for `1` of the standard library.

    A version that has one already is left as it is, and so is that of any other data set. Raises `AbsentTextError`
    where the source is not on this machine.
    """
    if dataset not in UNPINNED or "_" in version:
        return version
    return f"{version}_{UNPINNED[dataset]()}"


def recipe_version(dataset: str, version: str) -> str:
    """The version without that of the source."""
    return version.partition("_")[0] if dataset in UNPINNED else version
