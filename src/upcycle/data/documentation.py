"""Prose of software documentation: pages in reStructuredText, and the descriptions in schemas of web services."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from upcycle.data.readers import plain_text
from upcycle.data.sources import members

LONG_WORDS = 16
"""Shorter descriptions are templates ("Output only. The name of the resource."): they are left out."""

_DIRECTIVE = re.compile(r"\.\. (?:\|[^|]+\| )?(?P<name>[\w:+.-]+)::(?: |$)")
_NO_PROSE = re.compile(
    "code|code-block|sourcecode|parsed-literal|literalinclude|highlight|doctest|testcode|testoutput|raw|math|"
    "table|list-table|csv-table|flat-table|tabularcolumns|image|figure|graphviz|digraph|uml|(block|seq|nw|act)diag|"
    "toctree|contents|sidebar|include|changelog_imports|index|only|meta|rst-class|role|default-role|replace|snippet|"
    "templatefield|module|currentmodule|auto(module|class|function|attribute|method)"
)
"""Directives whose blocks hold no sentences; of all others the text is kept."""
_FIELD = re.compile(r":[\w ./-]+:(?: |$)")
_RULE = re.compile(r"([^\w\s])\1{2,}$|[=+ -]{4,}$|[|+].*[|+]$")
"""Under- and overlines of titles; borders and rows of tables."""
_ITEM = re.compile(r"(?:[-*+#]|\(?\w{1,2}[.)])\.? ")
_TITLED = re.compile(r"(?::[\w:+.-]+:)?`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_ROLE = re.compile(r":[\w:+.-]+:`(?:~(?:[^`]*\.)?|[!.]?)([^`]*)`")
_PLAIN = re.compile(r"``(.+?)``|`([^`]+)`_{0,2}|\*\*([^*]+)\*\*")


def documentation_pages(archive: Path, pattern: str) -> Iterator[str]:
    """The prose of each page in reStructuredText whose name, in an sdist, matches the glob."""
    for _, content in members(archive, pattern):
        yield rst_prose(content.decode("utf-8", errors="replace"))


def aws_descriptions(archive: Path) -> Iterator[str]:
    """Botocore's descriptions of services: a document for each service, operation and shape."""
    for _, content in members(archive, "botocore/data/*/service-2.json.gz"):
        service = json.loads(gzip.decompress(content))
        yield _sentences([(service["metadata"]["serviceFullName"], service.get("documentation"))])
        for kind in ("operations", "shapes"):
            for name, item in service[kind].items():
                fields = {"": item, **item.get("members", {})}
                yield _sentences((field or name, part.get("documentation")) for field, part in fields.items())


def google_descriptions(archive: Path) -> Iterator[str]:
    """Google's discovery documents: a document for each method and schema."""
    for _, content in members(archive, "googleapiclient/discovery_cache/documents/*.json"):
        api = json.loads(content)
        for name, item in (*_methods(api), *api.get("schemas", {}).items()):
            fields = {"": item, **item.get("parameters", {}), **item.get("properties", {})}
            yield _sentences((field or name, part.get("description")) for field, part in fields.items())


def _methods(resource: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from resource.get("methods", {}).items()
    for inner in resource.get("resources", {}).values():
        yield from _methods(inner)


def _sentences(described: Iterable[tuple[str, str | None]]) -> str:
    """`name: description`, a line each, without templates."""
    texts = ((name, " ".join(plain_text(description or "").split())) for name, description in described)
    return "\n".join(f"{name}: {text}" for name, text in texts if text.count(" ") + 1 >= LONG_WORDS)


def rst_prose(source: str) -> str:
    """Titles, paragraphs and items of lists of a document, each on one line; code, tables and directives go."""
    paragraphs: list[list[str]] = [[]]
    for line in _prose_lines(source):
        text = line.strip()
        if not text or _RULE.match(text):
            paragraphs.append([])
        elif not _FIELD.match(text):
            if _ITEM.match(text):
                paragraphs.append([])
            paragraphs[-1].append(text)
    return "\n".join(_inline(" ".join(paragraph)) for paragraph in paragraphs if paragraph)


def _prose_lines(source: str) -> Iterator[str]:
    """The lines outside blocks of code, comments and directives without prose."""
    skipped: int | None = None  # lines that are indented further than this are left out
    for line in source.expandtabs().splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if skipped is not None and text:
            skipped = skipped if indent > skipped else None
        if skipped is not None:
            yield ""
            continue
        if text.startswith(".. "):
            directive = _DIRECTIVE.match(text)
            if directive is None or _NO_PROSE.fullmatch(directive["name"]):
                skipped = indent
            yield ""
        elif text.endswith("::"):
            skipped = indent
            yield line.rstrip().removesuffix("::").rstrip() + (":" if text != "::" else "")
        else:
            yield line


def _inline(text: str) -> str:
    """A paragraph without roles, targets of links, and marks of literals and emphasis."""
    text = _ROLE.sub(r"\1", _TITLED.sub(r"\1", text))
    return _PLAIN.sub(lambda found: found[1] or found[2] or found[3], text)
