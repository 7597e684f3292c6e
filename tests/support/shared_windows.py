"""The windows of words that two sets of documents share, as words: a second way to what `Windows` finds by hashes."""

import re
from collections.abc import Iterable, Iterator

from upcycle.data.windows import WINDOW_WORDS


def _windows(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - WINDOW_WORDS + 1):
        yield " ".join(words[start : start + WINDOW_WORDS])


def shared_windows(texts: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """The windows of `texts` that also occur in `others`, in order."""
    known = {hash(window) for text in others for window in _windows(text)}
    return (window for text in texts for window in _windows(text) if hash(window) in known)
