"""Corpora in many parts: the same tokens however they are divided, interrupted and sorted; rows that cannot be used."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, normalizers

from upcycle.data import making, spool
from upcycle.data.making import Making
from upcycle.data.parts import file_groups, making_steps
from upcycle.data.spool import Document, Spool, SpoolWriter, place_of
from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.errors import UserError

OPTIONS: dict[str, Any] = {"vocab_size": 300, "heldout_fraction": 0.1}
FILES = 6


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of 40 made-up words; every fifth is of another crawl, a few recur."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(500)]
    made = [
        {"text": " ".join(draw.choices(words, k=40)), "meta": {"set": "Books" if number % 5 == 0 else "Crawl"}}
        for number in range(count)
    ]
    return [*made, *made[:5]]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("text")
    return [write(folder / f"{number}.jsonl", rows(number, 60)) for number in range(FILES)]


@pytest.fixture(scope="module")
def whole(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token set that one step of a kind makes."""
    folder = tmp_path_factory.mktemp("tokens") / "whole"
    tokenize_corpus("made", folder, files=files, **OPTIONS)
    return folder


def in_parts(files: list[Path]) -> dict[str, Any]:
    return OPTIONS | {"files": files, "part_bytes": files[0].stat().st_size + 1}


def assert_same(folder: Path, whole: Path) -> None:
    """The same tokens in the same order, and the same counts."""
    one, other = TokenSet(whole), TokenSet(folder)
    other.verify()
    assert other.fingerprint == one.fingerprint
    for part in ("train", "heldout"):
        np.testing.assert_array_equal(getattr(other, part)[:], getattr(one, part)[:])
        for key in ("documents", "bytes", "tokens", "by_source", "sha256"):
            assert other.manifest["parts"][part][key] == one.manifest["parts"][part][key], key
    for key in ("removed", "rows", "sources"):
        assert other.manifest[key] == one.manifest[key], key


def test_files_are_grouped_as_neighbours_up_to_the_size_of_a_part(tmp_path: Path) -> None:
    sizes = [0, 3, 4, 9, 30, 0, 2, 8, 1]
    paths = [tmp_path / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"x" * size)
    assert file_groups(paths, 10) == [[0, 1, 2], [3], [4], [5, 6, 7], [8]]
    assert file_groups([], 10) == []
    assert [len(stage) for stage in making_steps(paths, 10)] == [5, 1, 6 + 1]
    assert [len(stage) for stage in making_steps(paths[:3])] == [1, 1, 2]


def test_tokens_do_not_depend_on_the_parts(files: list[Path], whole: Path, tmp_path: Path) -> None:
    assert [len(stage) for stage in making_steps(files, files[0].stat().st_size + 1)] == [FILES, 1, FILES + 1]
    tokenize_corpus("made", tmp_path / "parts", **in_parts(files))
    assert_same(tmp_path / "parts", whole)
    shards = TokenSet(tmp_path / "parts").manifest["parts"]["train"]["shards"]
    assert len(shards) == FILES
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == sorted(
        ["tokenizer.json", "manifest.json", "heldout-00000.bin", *(shard["file"] for shard in shards)]
    )


def test_tokens_do_not_depend_on_how_much_is_held(
    files: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of a few documents, and buckets that are read in several ranges."""
    monkeypatch.setattr(spool, "RUN_BYTES", 3000)
    monkeypatch.setattr(spool, "SORT_BYTES", 1000)
    monkeypatch.setattr(making, "BUCKETS", 2)
    tokenize_corpus("made", tmp_path / "small", files=files, **OPTIONS)
    assert_same(tmp_path / "small", whole)


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing runs and sorting a bucket of three and of twelve times the limit: as much memory."""
    limit = 2**20
    monkeypatch.setattr(spool, "RUN_BYTES", limit)
    monkeypatch.setattr(spool, "SORT_BYTES", limit)
    draw, peaks = random.Random(0), {}
    for times in (3, 12):
        folder = tmp_path / str(times)
        folder.mkdir()
        tracemalloc.start()
        writer = SpoolWriter(folder, "read", 1)
        for _ in range(times * limit // 4096):
            text = draw.randbytes(2048).hex().encode()
            writer.add(Document(hashlib.sha256(text).digest(), 0, text), heldout=False)
        writer.flush()
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        digests = [document.digest for document in Spool([folder / run for run in writer.runs], 1).documents(0)]
        peaks[times] = written, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(writer.runs) >= times
        assert [place_of(digest) for digest in digests] == sorted(map(place_of, digests))
        assert len(set(digests)) == times * limit // 4096
    for few, many in zip(peaks[3], peaks[12], strict=True):
        assert few < many < 4 * limit
        assert many < 1.3 * few


KILLED = """
import os, signal, sys
from pathlib import Path
from upcycle.data import making, tokens
write, left = making.write_atomic, int(sys.argv[3])
def dies(path, *content):
    global left
    write(path, *content)
    left -= path.suffix == ".json" and path.parent.name == "work"
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
making.write_atomic = dies
options = {"files": sys.argv[4:], "part_bytes": int(sys.argv[2]), "vocab_size": 300, "heldout_fraction": 0.1}
made = making.Making("made", Path(sys.argv[1]), **options)
for stage in made.stages:
    for step in stage:
        made.run(step)
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, FILES, FILES + 1, FILES + 4])
def test_after_a_kill_finished_steps_are_kept(steps: int, files: list[Path], whole: Path, tmp_path: Path) -> None:
    """The process dies right after a step: while reading, before and after `prepare`, while encoding."""
    options = in_parts(files)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "o"), str(options["part_bytes"]), str(steps)]
    assert subprocess.run([*command, *map(str, files)], check=False).returncode == -signal.SIGKILL
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "o/work").glob("*.json")}
    assert len(records) == steps
    with pytest.raises(UserError, match="is no token set"):
        TokenSet(tmp_path / "o")
    made = Making("made", tmp_path / "o", **options)
    for stage in made.stages:
        for step in stage:
            made.run(step)
    assert {path: path.stat().st_mtime_ns for path in records} == records
    made.merge()
    assert_same(tmp_path / "o", whole)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(files: list[Path], whole: Path, tmp_path: Path) -> None:
    """Killed at any moment with its workers at work, it is resumed by the next call."""
    code = "import os, sys, time; from pathlib import Path; from upcycle.data import tokens\n"
    code += "def slow(*arguments): os.write(1, b'at work\\n'); time.sleep(300)\n"
    code += "if __name__ == '__main__':\n"
    code += "    tokens.run_step = slow\n"
    code += "    tokens.tokenize_corpus('made', Path(sys.argv[1]), files=sys.argv[3:], part_bytes=int(sys.argv[2]), "
    code += "vocab_size=300, heldout_fraction=0.1)\n"
    (tmp_path / "slow.py").write_text(code)
    options = in_parts(files)
    command = [sys.executable, tmp_path / "slow.py", tmp_path / "o", str(options["part_bytes"]), *files]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "at work\n"
    workers = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert workers
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 300
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit
        time.sleep(0.05)
    tokenize_corpus("made", tmp_path / "o", **options)
    assert_same(tmp_path / "o", whole)


def test_shared_text_is_kept_where_it_is_asked_for(files: list[Path], tmp_path: Path) -> None:
    options = OPTIONS | {"files": files, "decontaminate": False}
    manifest = tokenize_corpus("made", tmp_path / "o", **options)
    assert set(manifest["removed"]) == {"empty document", "repeated document", "repeated passage"}
    assert manifest["removed"]["repeated document"]["documents"] == 5 * FILES
    tokenize_corpus("made", tmp_path / "p", **options, part_bytes=files[0].stat().st_size + 1)
    assert_same(tmp_path / "p", tmp_path / "o")


def test_text_that_changed_since_a_step_is_read_again(files: list[Path], tmp_path: Path) -> None:
    own = [write(tmp_path / file.name, rows(number, 60)) for number, file in enumerate(files)]
    options = in_parts(own)
    made = Making("made", tmp_path / "o", **options)
    made.run("read-0")
    assert made.record("read-0") is not None
    os.utime(own[3], ns=(1, 1))
    made = Making("made", tmp_path / "o", **options)
    assert made.record("read-0") is None
    with pytest.raises(UserError, match="o: step read-0 is not done, or its text has changed since"):
        made.run("prepare")
    with pytest.raises(UserError, match="o has no step 'read-9'; did you mean `read-"):
        made.run("read-9")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def test_damage_between_steps_is_found(files: list[Path], tmp_path: Path) -> None:
    made = Making("made", tmp_path / "o", **in_parts(files))
    for step in made.stages[0]:
        made.run(step)
    run = tmp_path / "o/work/read-00001-00000.run"
    flip(run)
    with pytest.raises(UserError, match=r"read-00001-00000.run: damaged \(.*\); remove the folder .*o/work"):
        made.run("prepare")
    flip(run)
    made.run("prepare")
    flip(tmp_path / "o/work/windows")
    with pytest.raises(UserError, match=r"work/windows: damaged; remove the folder .*o/work, and tokenise again"):
        made.run("encode-0")
    flip(tmp_path / "o/work/windows")
    for step in made.stages[2]:
        made.run(step)
    flip(tmp_path / "o/train-00002-00000.bin")
    with pytest.raises(UserError, match=r"train-00002-00000.bin: damaged in block 0 of 1"):
        made.merge()


# Files


def test_every_kind_of_file_gives_the_same_tokens(files: list[Path], whole: Path, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([json.loads(line) for line in files[4].read_text().splitlines()])
    kinds = [tmp_path / name for name in ("0.jsonl.gz", "1.jsonl.zst", "2.parquet", "3.arrow", "4.arrow", "5.json.gz")]
    lines = [file.read_bytes() for file in files]
    half = lines[0].index(b"\n", len(lines[0]) // 2)
    kinds[0].write_bytes(gzip.compress(lines[0][:half]) + gzip.compress(lines[0][half:]))  # two members
    kinds[1].write_bytes(zstandard.compress(lines[1]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(map(json.loads, lines[2].splitlines()))), kinds[2])
    for path, number, writer in ((kinds[3], 3, pyarrow.ipc.new_file), (kinds[4], 4, pyarrow.ipc.new_stream)):
        table = pyarrow.Table.from_pylist(list(map(json.loads, lines[number].splitlines())))
        with writer(path, table.schema) as out:
            out.write_table(table, max_chunksize=7)
    kinds[5].write_bytes(gzip.compress(lines[5]))
    manifest = tokenize_corpus("made", tmp_path / "o", files=kinds, **OPTIONS)
    assert manifest["fingerprint"] == TokenSet(whole).fingerprint
    kinds[0].write_bytes(kinds[0].read_bytes()[:-10])
    with pytest.raises(UserError, match=r"0.jsonl.gz: cut off, its last gzip member has no end"):
        tokenize_corpus("made", tmp_path / "p", files=kinds, **OPTIONS)
    kinds[4].write_bytes(b"x")
    with pytest.raises(UserError, match=r"4.arrow: not an arrow file"):
        tokenize_corpus("made", tmp_path / "p", files=kinds[4:], **OPTIONS)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "arrow"])
def test_a_filter_takes_the_rows_of_one_source(ending: str, tmp_path: Path) -> None:
    content = rows(0, 60)
    path = write(tmp_path / "a.jsonl", content).with_suffix(f".{ending}")
    table = pyarrow.Table.from_pylist(content)
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif ending == "arrow":
        with pyarrow.ipc.new_stream(path, table.schema) as out:
            out.write_table(table)
    crawl = write(tmp_path / "crawl.jsonl", [row for row in content if row["meta"]["set"] == "Crawl"])
    manifest = tokenize_corpus("made", tmp_path / "o", files=[path], where={"meta.set": ["Crawl"]}, **OPTIONS)
    assert manifest["fingerprint"] == tokenize_corpus("made", tmp_path / "p", files=[crawl], **OPTIONS)["fingerprint"]
    assert manifest["rows"] == {"read": 65, "left_out": 13, "bad": {}, "first": ""}
    with pytest.raises(UserError, match=r"source 'files' gave no new text: `where` leaves out 65 of 65 rows"):
        tokenize_corpus("made", tmp_path / "q", files=[path], where={"meta.set": ["crawl"]}, **OPTIONS)


BAD = [
    b"{",
    b'{"text": 1}',
    b'{"text": " "}',
    b"[]",
    b'{"id": 1}',
    b'{"text": "\xff"}',
    b'{"text": "\\ud800"}',
]


def test_unusable_rows_are_counted_and_refused_above_the_rate(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"text number {number}"}).encode() for number in range(700)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good[:300], *BAD, *good[300:]]))
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(good))
    options = OPTIONS | {"vocab_size": 260, "files": [tmp_path / "a.jsonl"]}
    manifest = tokenize_corpus("made", tmp_path / "o", max_bad=0.01, **options)
    assert manifest["rows"]["read"] == 707
    assert manifest["rows"]["bad"] == {"empty": 1, "no text": 2, "not JSON": 2, "not UTF-8": 2}
    assert manifest["rows"]["first"].startswith(f"{tmp_path / 'a.jsonl'}, line 301: not JSON")
    same = tokenize_corpus("made", tmp_path / "p", **options | {"files": [tmp_path / "good.jsonl"]})
    assert manifest["fingerprint"] == same["fingerprint"]
    message = (
        r"a.jsonl, line 301: not JSON .*; 7 of 707 rows cannot be used "
        r"\(1 empty, 2 no text, 2 not JSON, 2 not UTF-8\), and max_bad allows 0.100%: repair the text, or raise max_bad"
    )
    with pytest.raises(UserError, match=message):
        tokenize_corpus("made", tmp_path / "q", **options)


def test_a_wrong_column_is_refused_before_all_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"body": "a"}] * 5000)
    with pytest.raises(UserError, match=r"line 1: no column 'text'; there are body; 101 of 101 rows cannot be used"):
        tokenize_corpus("made", tmp_path / "o", files=[path], **OPTIONS)


def test_a_cell_in_another_encoding_is_one_bad_row(tmp_path: Path) -> None:
    cells = pyarrow.array([b"text", "é".encode("latin-1"), b"more text"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 2: column 'text' is not UTF-8; 1 of 3 rows"):
        tokenize_corpus("made", tmp_path / "o", files=[tmp_path / "a.parquet"], **OPTIONS)


# Tokenizers


def llama_like(path: Path, size: int) -> Path:
    """A tokenizer.json of Llama's kind: no pre-tokenizer, blanks as marks, bytes as a fallback; no piece 1000."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "ab", "▁a"]
    pieces += [f"▁▁{number}" for number in range(size - len(pieces) - 1)]
    vocabulary = {piece: number + (number >= 1000) for number, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("a", "b"), ("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(("size", "dtype"), [(32_000, "uint16"), (100_000, "uint32")])
def test_llama_and_large_vocabularies(size: int, dtype: str, files: list[Path], tmp_path: Path) -> None:
    path = llama_like(tmp_path / "tokenizer.json", size)
    options = OPTIONS | {"vocab_size": size, "tokenizer": str(path), "files": files}
    manifest = tokenize_corpus("made", tmp_path / "o", **options)
    assert (manifest["dtype"], manifest["end_of_text"]) == (dtype, 2)
    tokens = TokenSet(tmp_path / "o")
    tokens.verify()
    ids = tokens.heldout[:]
    first = ids[: ids.tolist().index(2)].tolist()
    texts = {json.loads(line)["text"] for file in files for line in file.read_text().splitlines()}
    assert tokens.tokenizer().decode(first) in texts
