"""A user's own files as documents: txt, jsonl, jsonl.zst and parquet. Anything wrong in a file is a UserError."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import AnyStr, BinaryIO

from upcycle.errors import UserError
from upcycle.files import check_regular

PIECE_CHARACTERS = 10_000
"""Plain text has no documents: files are cut at blank lines into pieces of about this size."""
Reader = Callable[[Path, BinaryIO, str], Iterator[str]]
"""Documents of an open file; its path is for messages, the last argument is the text's key."""
LONGEST = 2**26
"""Longest line of jsonl in bytes, and longest paragraph of plain text in characters. Reading stops there."""
CHUNK = 2**23
"""Bytes that are read at once. A long piece is joined and searched again for each chunk, so chunks are large."""
ZSTD_CHUNK = 2**12
"""Compressed bytes that are decompressed at once: Zstandard makes at most 2^15 times as many of them, 128 MiB."""


def read_local(paths: Sequence[Path], text_key: str) -> Iterator[str]:
    """Documents of the files, by their endings. `text_key` names the text column of jsonl and parquet.

    Raises UserError for a missing, unreadable or damaged file, an unknown ending, a missing column or a row without
    text.
    """
    for path in paths:
        reader = _reader_of(path)
        try:
            with path.open("rb") as file:
                yield from reader(path, file, text_key)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or _one_line(error)})") from None


def check_files(paths: Sequence[Path]) -> Sequence[Path]:
    """The same paths; UserError if one is missing or its ending unknown."""
    for path in paths:
        _reader_of(path)
    return paths


def _reader_of(path: Path) -> Reader:
    check_regular(path)
    if not path.is_file():
        near = ", ".join(sorted(item.name for item in path.parent.glob("*"))[:10]) if path.parent.is_dir() else ""
        raise UserError(
            f"{path}: no such file" + (f"; its folder holds {near}" if near else "; nor is there its folder")
        )
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            return reader
    raise UserError(f"{path}: unknown kind of file; known endings are {', '.join(READERS)}")


def _one_line(error: Exception) -> str:
    """A library's message as a part of ours."""
    return " ".join(str(error).split())


def _chunks(file: BinaryIO, size: int = CHUNK) -> Iterator[bytes]:
    return iter(partial(file.read, size), b"")


def _pieces(path: Path, chunks: Iterable[AnyStr], mark: AnyStr, name: str) -> Iterator[AnyStr]:
    """The text between marks, wherever chunks end; never more than a chunk and LONGEST of a piece is held.

    `name` is the word for a piece in the UserError about a piece that is longer.
    """
    rest, number = mark[:0], 1
    for chunk in chunks:
        pieces = (rest + chunk).split(mark)
        for place, piece in enumerate(pieces):
            if len(piece) > LONGEST:
                unit = "bytes" if isinstance(piece, bytes) else "characters"
                raise UserError(f"{path}, {name} {number + place}: longer than {LONGEST:,} {unit}; divide it")
        rest = pieces.pop()
        number += len(pieces)
        yield from pieces
    yield rest


def _txt(path: Path, file: BinaryIO, text_key: str) -> Iterator[str]:
    piece, size, blank = list[str](), 0, True
    for paragraph in _pieces(path, _decoded(path, _chunks(file)), "\n\n", "paragraph"):
        if size >= PIECE_CHARACTERS:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph)
        size += len(paragraph)
        blank = blank and not paragraph.strip()
    if blank:
        raise UserError(f"{path}: no text in it")
    yield "\n\n".join(piece)


def _decoded(path: Path, chunks: Iterable[bytes]) -> Iterator[str]:
    """Text of the bytes, line ends of any kind as one newline each."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    given = first = 0  # bytes: so far, and up to those that the decoder holds back, with which its next input begins
    try:
        for chunk in chunks:
            yield lines.decode(chunk)
            given += len(chunk)
            first = given - len(decoder.getstate()[0])
        yield lines.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {first + error.start}; convert it first") from None


def _jsonl(path: Path, file: BinaryIO, text_key: str) -> Iterator[str]:
    return _json_lines(path, _chunks(file), text_key)


def _jsonl_zst(path: Path, file: BinaryIO, text_key: str) -> Iterator[str]:
    return _json_lines(path, _decompressed(path, _chunks(file, ZSTD_CHUNK)), text_key)


def _decompressed(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Content of Zstandard frames. (The library's own reader takes a frame that is cut off for a whole one.)"""
    import zstandard

    frame = None
    try:
        for chunk in chunks:
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise UserError(f"{path}: not a Zstandard file, or a damaged one ({_one_line(error)})") from None
    if frame is not None:
        raise UserError(f"{path}: cut off, its last Zstandard frame has no end; restore the file")


def _json_lines(path: Path, chunks: Iterable[bytes], text_key: str) -> Iterator[str]:
    empty = True
    for number, line in enumerate(_pieces(path, chunks, b"\n", "line"), start=1):
        if not line.strip():
            continue
        empty = False
        try:
            row = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            raise UserError(f"{path}, line {number}: not JSON in UTF-8 ({error})") from None
        except RecursionError:
            raise UserError(f"{path}, line {number}: JSON nested too deeply; drop all keys but {text_key!r}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object but a {type(row).__name__}")
        if text_key not in row:
            raise UserError(f"{path}, line {number}: no column {text_key!r}; there are {_named(row)}")
        yield _text(path, f"line {number}", text_key, row[text_key])
    if empty:
        raise UserError(f"{path}: no rows in it")


def _named(columns: Iterable[str]) -> str:
    """Columns in words, fit for one line of a terminal."""
    return " ".join(", ".join(columns).encode(errors="replace").decode().split())[:200] or "none"


def _parquet(path: Path, handle: BinaryIO, text_key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(handle, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({_one_line(error)})") from None
    with file:
        if text_key not in file.schema_arrow.names:
            raise UserError(f"{path}: no column {text_key!r}; there are {_named(file.schema_arrow.names)}")
        if not file.metadata.num_rows:
            raise UserError(f"{path}: no rows in it")
        number = 0
        try:
            for rows in file.iter_batches(columns=[text_key]):
                for value in rows.column(0).to_pylist():
                    number += 1
                    yield _text(path, f"row {number}", text_key, value)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: damaged after row {number} ({_one_line(error)}); restore it, or write it anew"
            ) from None


def _text(path: Path, where: str, text_key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}, {where}: column {text_key!r} holds a {type(value).__name__}, not text")
    if not value.strip():
        raise UserError(f"{path}, {where}: column {text_key!r} is empty; drop such rows first")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a pair
            half = value[error.start].encode("unicode_escape").decode()
            raise UserError(f"{path}, {where}: column {text_key!r} holds {half}, half a character") from None
    return value


READERS: dict[str, Reader] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".jsonl.zst": _jsonl_zst,
    ".parquet": _parquet,
}
"""Reader by the ending of a file's name."""
