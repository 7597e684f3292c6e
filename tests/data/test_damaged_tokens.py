"""Damaged token sets: no damaged token, tokenizer or manifest is ever used, and nothing whole is hashed twice."""

import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upcycle.data import shards
from upcycle.data.batches import batch, heldout_batches
from upcycle.data.provenance import FORMAT, manifest_bytes, read_token_manifest, text_fingerprint
from upcycle.data.shards import ShardWriter, token_dtype
from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.data.verified import VERIFIED
from upcycle.errors import UserError

BLOCK = 256
WAY_OUT = r"restore the file, or `upcycle tokenize \w+` makes the same tokens"


def write(folder: Path, seed: int = 0) -> Path:
    """A token set of 5,000 training tokens in two shards of twelve and eight blocks, and 600 held-out ones in three."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    parts = {}
    for part, count in {"train": 5000, "heldout": 600}.items():
        with ShardWriter(folder, part, token_dtype(300), shard_tokens=12 * BLOCK, block_tokens=BLOCK) as writer:
            for piece in np.array_split(draw.integers(0, 300, count), 7):
                writer.add(piece)
        parts[part] = writer.record()
    tokenizer = {"sha256": hashlib.sha256(b"").hexdigest()}
    content = {"fingerprint": text_fingerprint(tokenizer["sha256"], parts), "vocab_size": 300, "tokenizer": tokenizer}
    (folder / "manifest.json").write_bytes(manifest_bytes(content | {"parts": parts}))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "made")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(file, block) of every block that is hashed, in order."""
    seen: list[tuple[str, int]] = []
    verify = shards.Shard._verify

    def watched(shard: shards.Shard, block: int) -> None:
        seen.append((shard.path.name, block))
        verify(shard, block)

    monkeypatch.setattr(shards.Shard, "_verify", watched)
    return seen


def read_all(folder: Path, part: str) -> Any:
    return getattr(TokenSet(folder), part)[:]


def flip(path: Path, count: int, seed: int = 0) -> None:
    data, draw = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(count):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def exchange(path: Path) -> None:
    """Two tokens change places."""
    data = np.fromfile(path, "<u2")
    other = int(np.flatnonzero(data != data[0])[0])
    data[[0, other]] = data[[other, 0]]
    data.tofile(path)


def zero(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(bytes(64))


def shift(path: Path) -> None:
    np.roll(np.fromfile(path, "<u2"), 1).tofile(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "200 bits flipped": lambda path: flip(path, 200),
    "one bit flipped": lambda path: flip(path, 1),
    "zeroed": zero,
    "exchanged tokens": exchange,
    "moved by one": shift,
}


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.bin", "heldout-00000.bin"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_token_is_handed_out(damage: str, name: str, made: Path) -> None:
    """Its size is right, so opening cannot tell. The message names file, block and what to do."""
    part = name.partition("-")[0]
    read_all(made, part)
    DAMAGES[damage](made / name)
    with pytest.raises(UserError, match=rf"{name}: damaged in block \d+ of \d+ \(tokens .*\).*; {WAY_OUT}"):
        read_all(made, part)


def test_any_flipped_bit_is_found_by_who_reads_its_block_and_by_nobody_else(made: Path) -> None:
    draw = random.Random(1)
    whole = {path.name: path.read_bytes() for path in made.glob("*.bin")}
    for _ in range(200):
        name = draw.choice(sorted(whole))
        byte = draw.randrange(len(whole[name]))
        data = bytearray(whole[name])
        data[byte] ^= 1 << draw.randrange(8)
        (made / name).write_bytes(data)
        tokens = getattr(TokenSet(made), name.partition("-")[0])
        first = 0 if "00000" in name else 12 * BLOCK
        block = byte // 2 // BLOCK
        start = first + block * BLOCK
        tokens[first:start], tokens[start + BLOCK :]
        with pytest.raises(UserError, match=f"{name}: damaged in block {block} of"):
            tokens[start : start + 1]
        (made / name).write_bytes(whole[name])


def test_batches_and_held_out_sequences_are_verified(made: Path) -> None:
    flip(made / "train-00000.bin", 3000)
    flip(made / "heldout-00000.bin", 200)
    tokens = TokenSet(made)
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged"):
        batch(tokens.train, context=16, batch=64, step=0, seed=0)
    with pytest.raises(UserError, match=r"heldout-00000\.bin: damaged"):
        heldout_batches(tokens.heldout, 16)


def test_cut_missing_and_exchanged_files_are_named(made: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=1)
    first, second = made / "train-00000.bin", made / "train-00001.bin"
    kept = first.read_bytes()
    os.truncate(first, len(kept) - 2)
    with pytest.raises(UserError, match=rf"{first.name} has 6,142 bytes, the manifest lists 6,144 bytes; {WAY_OUT}"):
        TokenSet(made)
    first.unlink()
    with pytest.raises(UserError, match=rf"{first.name} is missing, the manifest lists 6,144 bytes; {WAY_OUT}"):
        TokenSet(made)
    first.mkdir()
    with pytest.raises(UserError, match=rf"{first.name}: cannot be read \(Is a directory\); {WAY_OUT}"):
        TokenSet(made)
    first.rmdir()
    shutil.copy(other / first.name, first)  # another set's file of the same size
    with pytest.raises(UserError, match=f"{first.name}: damaged in block 0 of 12"):
        read_all(made, "train")
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    with pytest.raises(UserError, match=r"train-0000\d.bin has [\d,]+ bytes, the manifest lists"):
        TokenSet(made)


def test_a_manifest_is_what_was_written_to_the_byte(made: Path, tmp_path: Path) -> None:
    path = made / "manifest.json"
    whole, draw = path.read_bytes(), random.Random(2)
    for _ in range(200):
        data = bytearray(whole)
        if draw.random() < 0.8:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)) :]
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"manifest\.json: damaged, not the manifest that was") as error:
            TokenSet(made)
        assert "\n" not in str(error.value)
    for content in (b"[]", b"null", b"[" * 100_000, b'{"format": 2}', "\ud800".encode(errors="surrogatepass")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"manifest\.json: damaged"):
            TokenSet(made)
    path.write_bytes(manifest_bytes({"format": 1}))
    with pytest.raises(UserError, match=rf"has format 1, this code reads {FORMAT}; `upcycle tokenize made` makes"):
        TokenSet(made)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(Is a directory\)"):
        TokenSet(made)


def test_a_damaged_tokenizer_is_refused_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a b c {n} {n * n}"}) + "\n" for n in range(50)))
    options: dict[str, Any] = {"files": [tmp_path / "a.jsonl"], "vocab_size": 260, "heldout_fraction": 0.3}
    tokenize_corpus("own", tmp_path / "lender", **options)
    path = tmp_path / "lender" / "tokenizer.json"
    pieces = json.loads(path.read_text())
    vocabulary = pieces["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(pieces))
    message = r"tokenizer\.json: damaged, not the tokenizer that was written; restore it, or `upcycle tokenize lender`"
    for use in (
        TokenSet(tmp_path / "lender").tokenizer,
        TokenSet(tmp_path / "lender").verify,
        lambda: tokenize_corpus("own", tmp_path / "borrower", tokenizer_from=tmp_path / "lender", **options),
    ):
        with pytest.raises(UserError, match=message):
            use()
    assert not (tmp_path / "borrower").exists()
    vocabulary["a"] = 5000  # no piece of a model with 260
    path.write_text(json.dumps(pieces))
    with pytest.raises(UserError, match=r"has 5001 pieces, but vocab_size is 260"):
        tokenize_corpus("own", tmp_path / "o", tokenizer=str(path), **options)


# Notes


def test_a_block_is_hashed_once_by_the_jobs_that_follow_one_another(made: Path, hashed: list[tuple[str, int]]) -> None:
    one = TokenSet(made)
    one.train[0:300]
    one.train[250:260], one.train[100:512]
    assert hashed == [("train-00000.bin", 0), ("train-00000.bin", 1)]
    one.remember()
    hashed.clear()
    two = TokenSet(made)
    two.train[0 : 3 * BLOCK], two.train[12 * BLOCK : 12 * BLOCK + 1]
    assert hashed == [("train-00000.bin", 2), ("train-00001.bin", 0)]
    two.remember()
    hashed.clear()
    three = TokenSet(made)
    three.train[0 : 3 * BLOCK], three.train[12 * BLOCK : 13 * BLOCK]
    assert hashed == []
    modified = (made / VERIFIED).stat().st_mtime_ns
    three.remember()
    assert (made / VERIFIED).stat().st_mtime_ns == modified  # nothing new to note


def test_held_out_tokens_are_hashed_at_every_start(made: Path, hashed: list[tuple[str, int]]) -> None:
    for _ in range(2):
        tokens = TokenSet(made)
        tokens.heldout[:], tokens.heldout[:]
        assert hashed == [("heldout-00000.bin", block) for block in range(3)]
        tokens.remember()
        hashed.clear()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_note_does_not_cover_a_file_that_changed(damage: str, made: Path) -> None:
    """Also if the size is the same and somebody put the old modification time back."""
    path = made / "train-00000.bin"
    tokens = TokenSet(made)
    tokens.train[:]
    tokens.remember()
    before = path.stat()
    DAMAGES[damage](path)
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged"):
        read_all(made, "train")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged"):
        read_all(made, "train")


def test_a_note_covers_no_copy(made: Path, tmp_path: Path, hashed: list[tuple[str, int]]) -> None:
    tokens = TokenSet(made)
    tokens.train[:]
    tokens.remember()
    copy = Path(shutil.copytree(made, tmp_path / "copy"))  # notes and modification times too
    hashed.clear()
    read_all(copy, "train")
    assert len(hashed) == 20


def test_damaged_notes_cost_hashing_and_nothing_else(made: Path, hashed: list[tuple[str, int]]) -> None:
    tokens = TokenSet(made)
    tokens.train[:BLOCK]
    tokens.remember()
    path, draw = made / VERIFIED, random.Random(3)
    whole = path.read_bytes()
    for content in (b"", b"{}", b"null", b'{"sha256": 1}', b"[" * 100_000, None, None, None):
        data = bytearray(whole if content is None else content)
        if content is None:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        hashed.clear()
        read_all(made, "train")
        assert len(hashed) == 20
    tokens.remember()
    assert path.read_bytes() == whole


def test_jobs_that_note_at_once_lose_no_note_for_good(made: Path, hashed: list[tuple[str, int]]) -> None:
    jobs = [TokenSet(made) for _ in range(10)]
    barrier = threading.Barrier(len(jobs))

    def job(number: int) -> None:
        jobs[number].train[2 * number * BLOCK : 2 * (number + 1) * BLOCK]
        for _ in range(3):
            barrier.wait()
            jobs[number].remember()

    running = [threading.Thread(target=job, args=(number,)) for number in range(len(jobs))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for each in jobs:  # one after the other, as at their next saves: whatever the race took away is noted again
        each.remember()
    hashed.clear()
    read_all(made, "train")
    assert hashed == []


def test_a_set_that_cannot_be_written_is_used_all_the_same(
    made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("upcycle.data.verified.write_atomic", refuse)
    tokens = TokenSet(made)
    assert len(tokens.train[:]) == 5000
    tokens.remember()
    tokens.remember()
    assert "verified.json: cannot be written (Read-only file system); the next job hashes again" in caplog.text
    assert len(caplog.records) == 1


def test_blocks_are_of_a_shard_and_do_not_change_the_fingerprint(made: Path, tmp_path: Path) -> None:
    record = read_token_manifest(made)["parts"]["train"]
    assert [len(shard["blocks"]) for shard in record["shards"]] == [12, 8]
    assert TokenSet(made).fingerprint == TokenSet(write(tmp_path / "again")).fingerprint
    for shard in record["shards"]:
        data = (made / shard["file"]).read_bytes()
        pieces = [data[start : start + 2 * BLOCK] for start in range(0, len(data), 2 * BLOCK)]
        assert [hashlib.sha256(piece).hexdigest() for piece in pieces] == shard["blocks"]
