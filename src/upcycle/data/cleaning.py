"""Cleaning of single documents, and passages: the pieces of a document that may be dropped by themselves."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Layout = Literal["prose", "verbatim"]

# Control and invisible formatting characters, except tab and line end.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffe\uffff]"
)
_LINE_END = re.compile("\r\n?|[\u2028\u2029\x0b\x0c\x85]")
_BLANKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")  # any run of blanks but the single space, which is most of them
_ODD = re.compile(f"{_CONTROL.pattern}|{_LINE_END.pattern}")
_GAP = re.compile(r"\n{3,}")


def clean(text: str, layout: Layout) -> str:
    """Text in NFC with plain line ends, without control characters and needless whitespace.

    `prose` makes one space of every run of blanks, and trims lines; `verbatim` only trims their right ends, so
    that indentation stays. Both leave one blank line at most, and none at either end.
    """
    text = unicodedata.normalize("NFC", text)
    if _ODD.search(text):
        text = _CONTROL.sub("", _LINE_END.sub("\n", text))
    if layout == "prose":
        text = _BLANKS.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n").strip()
    else:
        text = "\n".join(map(str.rstrip, text.split("\n"))).strip("\n")
    return _GAP.sub("\n\n", text) if "\n\n\n" in text else text


def separator(layout: Layout) -> str:
    """The text between passages: a line end in prose, a blank line in code and other verbatim text."""
    return "\n" if layout == "prose" else "\n\n"


class RepeatedPassages:
    """Drops passages that occurred before, within a document or in an earlier one; counts what it drops.

    Only passages of `min_words` words and more: short ones ("Serve hot.") are language, long ones are templates.
    """

    def __init__(self, layout: Layout, min_words: int = 8) -> None:
        self.separator = separator(layout)
        self.min_words = min_words
        self.seen: set[str] = set()
        self.passages = 0
        self.bytes = 0

    def drop(self, text: str) -> str:
        """The document without its passages that were seen before."""
        kept = []
        for passage in text.split(self.separator):
            if passage.count(" ") + 1 >= self.min_words:
                if passage in self.seen:
                    self.passages += 1
                    self.bytes += len((passage + self.separator).encode())
                    continue
                self.seen.add(passage)
            kept.append(passage)
        return self.separator.join(kept)
