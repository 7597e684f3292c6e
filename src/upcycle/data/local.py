"""A user's own files as documents: txt, jsonl (plain, .zst, .gz), parquet and arrow, streamed.

Rows without usable text are counted (`Rows`). A file that cannot be read to its end is a UserError.
"""

from __future__ import annotations

import codecs
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, AnyStr, BinaryIO

from upcycle.data.rows import Rows, named_columns
from upcycle.errors import UserError
from upcycle.files import check_regular

PIECE_CHARACTERS = 10_000
"""Plain text has no documents: files are cut at blank lines into pieces of about this size."""
Reader = Callable[[Path, BinaryIO, Rows], Iterator[str]]
"""Documents of an open file; its path is for messages."""
LONGEST = 2**26
"""Longest line of jsonl in bytes, and longest paragraph of plain text in characters. Reading stops there."""
CHUNK = 2**23
"""Bytes that are read at once. A long piece is joined and searched again for each chunk, so chunks are large."""
ZSTD_CHUNK = 2**12
"""Compressed bytes that are decompressed at once: Zstandard makes at most 2^15 times as many of them, 128 MiB."""
GZIP_CHUNK = 2**16
"""The same for gzip, which makes at most about 1,030 times as many."""
BATCH_ROWS = 512
"""Rows of a parquet or arrow file that are decoded at once."""


def read_local(path: Path, rows: Rows) -> Iterator[str]:
    """Documents of a file, by its ending, that `rows` takes; it counts them.

    Raises UserError for a missing, unreadable or damaged file, an unknown ending or column, a file without rows, and
    too many rows without text.
    """
    reader = _reader_of(path)
    try:
        with path.open("rb") as file:
            yield from reader(path, file, rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or _one_line(error)})") from None


def check_files(paths: Sequence[Path]) -> Sequence[Path]:
    """The same paths; UserError if one is missing or its ending unknown, or if tokens and text are mixed."""
    if hold_tokens(paths):
        for path in paths:
            if path.suffix != TOKENS_ENDING or not path.with_suffix(".idx").is_file():
                raise UserError(f"{path}: files of tokens are `.bin`, each with an `.idx` of its name beside it")
        return paths
    for path in paths:
        _reader_of(path)
    return paths


def has_reader(name: str) -> bool:
    """Whether a file of this name can be read as text."""
    return name.endswith(tuple(READERS))


def hold_tokens(paths: Sequence[Path]) -> bool:
    """Whether the files are tokens of Megatron-LM, not text."""
    return any(path.suffix == TOKENS_ENDING for path in paths)


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


def _txt(path: Path, file: BinaryIO, rows: Rows) -> Iterator[str]:
    piece, size, blank = list[str](), 0, True
    for paragraph in _pieces(path, _decoded(path, _chunks(file)), "\n\n", "paragraph"):
        if size >= PIECE_CHARACTERS:
            rows.read += 1
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph)
        size += len(paragraph)
        blank = blank and not paragraph.strip()
    if blank:
        raise UserError(f"{path}: no text in it")
    rows.read += 1
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


def _jsonl(path: Path, file: BinaryIO, rows: Rows) -> Iterator[str]:
    return _json_lines(path, _chunks(file), rows)


def _jsonl_zst(path: Path, file: BinaryIO, rows: Rows) -> Iterator[str]:
    return _json_lines(path, _decompressed(path, _chunks(file, ZSTD_CHUNK)), rows)


def _jsonl_gz(path: Path, file: BinaryIO, rows: Rows) -> Iterator[str]:
    return _json_lines(path, _gunzipped(path, _chunks(file, GZIP_CHUNK)), rows)


def _gunzipped(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Content of gzip members, one after the other."""
    member = None
    try:
        for chunk in chunks:
            while chunk:
                member = member or zlib.decompressobj(zlib.MAX_WBITS | 16)
                yield member.decompress(chunk)
                chunk = member.unused_data
                member = None if member.eof else member
    except zlib.error as error:
        raise UserError(f"{path}: not a gzip file, or a damaged one ({error})") from None
    if member is not None:
        raise UserError(f"{path}: cut off, its last gzip member has no end; restore the file")


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


def _json_lines(path: Path, chunks: Iterable[bytes], rows: Rows) -> Iterator[str]:
    before = rows.read
    for number, line in enumerate(_pieces(path, chunks, b"\n", "line"), start=1):
        if not line.strip():
            continue
        rows.read += 1
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            rows.refuse("not UTF-8", f"{where}: not UTF-8 ({error})")
        except ValueError as error:
            rows.refuse("not JSON", f"{where}: not JSON ({error})")
        except RecursionError:
            rows.refuse("not JSON", f"{where}: JSON nested too deeply; drop all keys but {rows.text_key!r}")
        else:
            yield from _json_text(where, row, rows)
    if rows.read == before:
        raise UserError(f"{path}: no rows in it")


def _json_text(where: str, row: Any, rows: Rows) -> Iterator[str]:
    if not isinstance(row, dict):
        rows.refuse("not JSON", f"{where}: not a JSON object but a {type(row).__name__}")
    elif rows.takes(row):
        if rows.text_key in row:
            yield from _text(where, row[rows.text_key], rows)
        else:
            rows.refuse("no text", f"{where}: no column {rows.text_key!r}; there are {named_columns(row)}")


def _parquet(path: Path, handle: BinaryIO, rows: Rows) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(handle, page_checksum_verification=True, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({_one_line(error)})") from None
    with file:
        columns = [rows.text_key, *rows.where]
        yield from _table_rows(path, file.schema_arrow, file.iter_batches(BATCH_ROWS, columns=columns), rows)


def _arrow(path: Path, handle: BinaryIO, rows: Rows) -> Iterator[str]:
    """An arrow file or stream; the `datasets` library keeps streams."""
    import pyarrow

    try:
        try:
            file = pyarrow.ipc.open_file(handle)
            batches = map(file.get_batch, range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            handle.seek(0)
            batches = file = pyarrow.ipc.open_stream(handle)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not an arrow file ({_one_line(error)})") from None
    yield from _table_rows(path, file.schema, batches, rows)


def _table_rows(path: Path, schema: Any, batches: Iterable[Any], rows: Rows) -> Iterator[str]:
    """Text of batches of rows in columns. Text is decoded here, so that a row in another encoding is one bad row."""
    import pyarrow

    before = rows.read
    for column in (rows.text_key, *(key.partition(".")[0] for key in rows.where)):
        if column not in schema.names:
            raise UserError(f"{path}: no column {column!r}; there are {named_columns(schema.names)}")
    try:
        for batch in batches:
            texts = batch.column(rows.text_key)
            if pyarrow.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
            if not pyarrow.types.is_null(texts.type):
                texts = texts.cast(pyarrow.large_binary())
            others = batch.select([name for name in batch.schema.names if name != rows.text_key])
            selected = others.to_pylist() if rows.where else [{}] * len(texts)
            for value, row in zip(texts, selected, strict=True):
                rows.read += 1
                if rows.takes(row):
                    yield from _text(f"{path}, row {rows.read - before}", _decoded_cell(value.as_py()), rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: damaged after row {rows.read - before} ({_one_line(error)}); restore it, or write it anew"
        ) from None
    if rows.read == before:
        raise UserError(f"{path}: no rows in it")


def _decoded_cell(value: bytes | None) -> str | bytes | None:
    """The text of a cell; what is not UTF-8 stays as it is."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _text(where: str, value: object, rows: Rows) -> Iterator[str]:
    """The value of the text's column, if it is text."""
    column = f"{where}: column {rows.text_key!r}"
    if isinstance(value, bytes):
        rows.refuse("not UTF-8", f"{column} is not UTF-8")
    elif not isinstance(value, str):
        rows.refuse("no text", f"{column} holds a {type(value).__name__}, not text")
    elif not value.strip():
        rows.refuse("empty", f"{column} is empty")
    elif not value.isascii() and (half := _half_character(value)):
        rows.refuse("not UTF-8", f"{column} holds {half}, half a character")
    else:
        yield value


def _half_character(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a pair
        return text[error.start].encode("unicode_escape").decode()
    return ""


TOKENS_ENDING = ".bin"
READERS: dict[str, Reader] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".jsonl.zst": _jsonl_zst,
    ".jsonl.gz": _jsonl_gz,
    ".json.gz": _jsonl_gz,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Reader by the ending of a file's name."""
