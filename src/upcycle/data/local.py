"""A user's own files as documents: txt, jsonl, jsonl.zst and parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from upcycle.errors import UserError

PIECE_CHARACTERS = 10_000
"""Plain text has no documents: files are cut at blank lines into pieces of about this size."""


def read_local(paths: Sequence[Path], text_key: str) -> Iterator[str]:
    """Documents of the files, by their endings. `text_key` names the text column of jsonl and parquet.

    Raises UserError for a missing file, an unknown ending, a missing column or a row without text.
    """
    for path in paths:
        yield from _reader_of(path)(path, text_key)


def check_files(paths: Sequence[Path]) -> Sequence[Path]:
    """The same paths; UserError if one is missing or its ending unknown."""
    for path in paths:
        _reader_of(path)
    return paths


def _reader_of(path: Path) -> Callable[[Path, str], Iterator[str]]:
    if not path.is_file():
        near = ", ".join(sorted(item.name for item in path.parent.glob("*"))[:10]) if path.parent.is_dir() else ""
        raise UserError(
            f"{path}: no such file" + (f"; its folder holds {near}" if near else "; nor is there its folder")
        )
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            return reader
    raise UserError(f"{path}: unknown kind of file; known endings are {', '.join(READERS)}")


def _txt(path: Path, text_key: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    if not text.strip():
        raise UserError(f"{path}: no text in it")
    piece: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        size += len(paragraph)
        if size >= PIECE_CHARACTERS:
            yield "\n\n".join(piece)
            piece, size = [], 0
    if piece:
        yield "\n\n".join(piece)


def _jsonl(path: Path, text_key: str) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _json_lines(path, file, text_key)


def _jsonl_zst(path: Path, text_key: str) -> Iterator[str]:
    import zstandard

    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        try:
            yield from _json_lines(path, io.BufferedReader(stream), text_key)
        except zstandard.ZstdError as error:
            raise UserError(f"{path}: not a Zstandard file, or a damaged one ({error})") from None


def _json_lines(path: Path, lines: Iterable[bytes], text_key: str) -> Iterator[str]:
    empty = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        empty = False
        try:
            row = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            raise UserError(f"{path}, line {number}: not JSON in UTF-8 ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object but a {type(row).__name__}")
        if text_key not in row:
            raise UserError(f"{path}, line {number}: no column {text_key!r}; there are {', '.join(row) or 'none'}")
        yield _text(path, f"line {number}", text_key, row[text_key])
    if empty:
        raise UserError(f"{path}: no rows in it")


def _parquet(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file ({error})") from None
    with file:
        if text_key not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {text_key!r}; there are {', '.join(file.schema_arrow.names)}")
        if not file.metadata.num_rows:
            raise UserError(f"{path}: no rows in it")
        number = 0
        for rows in file.iter_batches(columns=[text_key]):
            for value in rows.column(0).to_pylist():
                number += 1
                yield _text(path, f"row {number}", text_key, value)


def _text(path: Path, where: str, text_key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}, {where}: column {text_key!r} holds a {type(value).__name__}, not text")
    if not value.strip():
        raise UserError(f"{path}, {where}: column {text_key!r} is empty; drop such rows first")
    return value


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".jsonl.zst": _jsonl_zst,
    ".parquet": _parquet,
}
"""Reader by the ending of a file's name."""
