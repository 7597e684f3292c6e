"""YAML read strictly: plain data in which every word has one meaning.

Layer 0. Of YAML this takes mappings with text keys, sequences, scalars, anchors and aliases; tags and merge keys are
errors. What YAML 1.1 and 1.2 read differently is text here (`60:00`, `yes`, `010`, `2024-01-01`), so that a field of
numbers refuses it by name. Size, nesting and what aliases expand to have limits: no file takes long to refuse.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from upcycle.errors import UserError, brief
from upcycle.files import check_regular
from upcycle.study.values import NAME_LENGTH, parse_number

MAX_BYTES = 128 * 1024
MAX_DEPTH = 20
MAX_KEY = 100
MAX_VALUES = 50_000
"""Values of a file once its aliases are written out."""
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf"), float("inf")),
    "-.inf": -float("inf"),
    ".nan": float("nan"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what changes the direction of text or is not seen, and surrogates."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises `UserError` naming the file, the line and how to fix it, in one line.
    """
    check_regular(path)
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"study file {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES // 1024} KiB; a study is a file that people write")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_yaml(text: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; raises `UserError` naming the line."""
    try:
        root = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{line}not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError("holds no settings: it must be a mapping of `key: value` lines")
    return _Builder().mapping(root, depth=1)


class _Composer(yaml.SafeLoader):
    """Text to nodes; values are built by `_Builder`, so none of PyYAML's constructors and resolvers is used."""

    depth = 0
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name; plain scalars stay text

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{_line(event)}: tag {brief(event.tag)}; a study is plain data, leave the tag out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UserError(f"{_line(event)}: more than {MAX_DEPTH} levels of nesting")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Builder:
    """Nodes to plain data, aliases written out."""

    def __init__(self) -> None:
        self.values = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise UserError(f"{_line(node)}: more than {MAX_VALUES:,} values, aliases written out")
        if depth > MAX_DEPTH:
            raise UserError(f"{_line(node)}: more than {MAX_DEPTH} levels of nesting, aliases written out")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{_line(key_node)}: a key is a name, not a list or a mapping")
            key = _scalar(key_node)
            if not isinstance(key, str):
                raise UserError(f"{_line(key_node)}: key `{key_node.value}` is no text; put a name like it in quotes")
            if not key.isprintable():
                raise UserError(f"{_line(key_node)}: key {brief(key)} holds a character that cannot be printed")
            if len(key) > MAX_KEY:
                raise UserError(
                    f"{_line(key_node)}: a key of {len(key):,} characters; a name has at most {NAME_LENGTH}"
                )
            if key == "<<":
                raise UserError(f"{_line(key_node)}: merge keys (`<<`) are not read; write the settings out")
            if key in built:
                raise UserError(f"{_line(key_node)}: key `{key}` is given twice")
            built[key] = self.value(value_node, depth + 1)
        return built


def _scalar(node: yaml.ScalarNode) -> str | float | bool | None:
    """A quoted scalar is text; a plain one a word of YAML's, a number in decimal, or text."""
    text: str = node.value
    if node.style is None:
        if text in _WORDS:
            return _WORDS[text]
        if (number := parse_number(text)) is not None:
            return number
    if _CONTROL.search(text):
        raise UserError(f"{_line(node)}: {brief(text)} holds a character that cannot be printed")
    return text


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"
