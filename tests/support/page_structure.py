"""Tags, addresses, ids and text of an HTML page."""

import re
from html import unescape
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}

MISSPELT = [
    r"\b1 (points|degrees|runs|seeds|starts|rows|models|upcycled runs)\b",
    r"from ([−+\d.]+) (?:nats )?at ([^.;]+?) to \1 at \2",
    r"(?<![\d.])([\d.]+[kM]?) to \1\b(?![.\d])",
    r"`",
    r"\bNone\b|\bnan\b",
    r"\.\.|,\.| \.",
    r"\(0,\d\)",
]
"""What no sentence of a report holds: singulars in the plural, ranges of one value, unset words and ends."""


class Structure(HTMLParser):
    """Open tags must close in order; collects addresses and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(html: str) -> str:
    """The text of a page on one line, `|` between its elements."""
    text = re.sub(r"</?(b|i|code|sub|sup|span|a)\b[^>]*>", "", html)
    text = unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " | ", text, flags=re.DOTALL))
    return re.sub(r"(\| ?)+", "| ", " ".join(text.split()))
