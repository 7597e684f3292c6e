"""Token sets: deterministic, whole or not there, refused when changed, and their text comes back."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upcycle.data import making
from upcycle.data.provenance import text_fingerprint
from upcycle.data.shards import Shard, ShardedTokens, ShardWriter, token_dtype
from upcycle.data.tokenizer import END_OF_TEXT
from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.errors import UserError

VOCAB = 300


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents of 30 made-up words each."""
    random_ = random.Random(0)
    vocabulary = ["".join(random_.choices("abcdefgh", k=random_.randint(2, 9))) for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "made.jsonl"
    rows = [{"text": " ".join(random_.choices(vocabulary, k=30))} for _ in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(text_file: Path, out_dir: Path, **options: Any) -> dict[str, Any]:
    """A token set of the made-up text."""
    options = {"vocab_size": VOCAB, "heldout_fraction": 0.2} | options
    return tokenize_corpus("made", out_dir, files=[text_file], **options)


@pytest.fixture(scope="module")
def made(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished token set; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("tokens") / "made"
    make(text_file, folder)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def documents(folder: Path, part: str) -> list[str]:
    """Text of each document of a part, decoded."""
    tokens = TokenSet(folder)
    ids = getattr(tokens, part)[:].tolist()
    assert ids[-1] == tokens.manifest["end_of_text"]
    text = tokens.tokenizer().decode(ids, skip_special_tokens=False)
    return text.split(END_OF_TEXT)[:-1]


def test_every_document_comes_back_from_one_of_the_parts(made: Path, text_file: Path) -> None:
    raw = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    assert sorted(documents(made, "train") + documents(made, "heldout")) == sorted(raw)


def test_the_manifest_counts_what_the_files_hold(made: Path, text_file: Path) -> None:
    tokens = TokenSet(made)
    manifest = tokens.manifest
    for part in ("train", "heldout"):
        record = manifest["parts"][part]
        ids = getattr(tokens, part)
        assert record["tokens"] == len(ids) == manifest[f"{part}_tokens"] == record["by_source"]["files"]["tokens"]
        texts = documents(made, part)
        assert record["documents"] == len(texts) == (ids[:] == manifest["end_of_text"]).sum()
        assert record["bytes"] == sum(len(text.encode()) for text in texts)
        assert record["bytes_per_token"] == record["bytes"] / record["tokens"]
        assert ids[:].max() < tokens.vocab_size == VOCAB
    assert manifest["dtype"] == "uint16"
    (file,) = manifest["sources"][0]["files"]
    assert file == {
        "file": str(text_file),
        "bytes": text_file.stat().st_size,
        "mtime_ns": text_file.stat().st_mtime_ns,
        "sha256": hashlib.sha256(text_file.read_bytes()).hexdigest(),
    }


def test_the_tokenizer_learns_from_the_training_part_alone(tmp_path: Path) -> None:
    """A word that fills the held-out files, and is in no training text, becomes no piece."""
    (tmp_path / "train.txt").write_text("banana bandana " * 500)
    (tmp_path / "heldout.txt").write_text("zyzzyva " * 500)
    tokenize_corpus(
        "t", tmp_path / "o", files=[tmp_path / "train.txt"], heldout_files=[tmp_path / "heldout.txt"], vocab_size=265
    )
    pieces = TokenSet(tmp_path / "o").tokenizer().get_vocab()
    assert any("ban" in piece for piece in pieces)
    assert not any("zy" in piece for piece in pieces)
    assert "zyzzyva" in documents(tmp_path / "o", "heldout")[0]


def test_equal_text_gives_equal_tokens_in_any_process_with_any_threads(
    made: Path, text_file: Path, tmp_path: Path
) -> None:
    for threads, seed in (("1", "1"), ("2", "2")):
        out = tmp_path / threads
        code = (
            "import sys; from pathlib import Path; from upcycle.data.tokens import tokenize_corpus; "
            "tokenize_corpus('made', Path(sys.argv[1]), files=[sys.argv[2]], vocab_size=300, heldout_fraction=0.2)"
        )
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", code, str(out), str(text_file)], check=True, env=environment)
        assert TokenSet(out).fingerprint == TokenSet(made).fingerprint
        assert (out / "train-00000.bin").read_bytes() == (made / "train-00000.bin").read_bytes()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Token sets are cut into shards of 1,000 tokens, until it is undone."""
    monkeypatch.setattr(making, "ShardWriter", partial(ShardWriter, shard_tokens=1000))
    return monkeypatch


@pytest.mark.usefixtures("small_shards")
def test_shards_are_one_array_and_do_not_change_the_fingerprint(made: Path, text_file: Path, tmp_path: Path) -> None:
    make(text_file, tmp_path / "sharded")
    whole, sharded = TokenSet(made), TokenSet(tmp_path / "sharded")
    assert len(sharded.manifest["parts"]["train"]["shards"]) > 5
    assert sharded.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(sharded.train[:], whole.train[:])
    for span in (slice(990, 1010), slice(1000, 2000), slice(5, 5), slice(-3, None), slice(999, 3001)):
        np.testing.assert_array_equal(sharded.train[span], whole.train[:][span])
    with pytest.raises(IndexError, match="contiguous"):
        sharded.train[::2]


def test_the_fingerprint_follows_the_tokenizer_and_both_parts() -> None:
    parts = {"train": {"sha256": "1"}, "heldout": {"sha256": "2"}}
    changed = [
        text_fingerprint("b", parts),
        *(text_fingerprint("a", parts | {part: {"sha256": "3"}}) for part in parts),
    ]
    assert len({text_fingerprint("a", parts), *changed}) == 4


def test_shards_made_before_are_gone_when_fewer_are_made(
    text_file: Path, tmp_path: Path, small_shards: pytest.MonkeyPatch
) -> None:
    make(text_file, tmp_path)
    assert len(list(tmp_path.glob("train-*.bin"))) > 5
    small_shards.undo()
    make(text_file, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "heldout-00000.bin",
        "manifest.json",
        "tokenizer.json",
        "train-00000.bin",
    ]


def test_ids_beyond_sixteen_bits_take_thirty_two(tmp_path: Path) -> None:
    assert token_dtype(2**16) == np.dtype("<u2")
    dtype = token_dtype(2**16 + 1)
    with ShardWriter(tmp_path, "train", dtype, shard_tokens=2) as writer:
        writer.add(np.array([1, 70_000, 3], dtype))
    shards = [Shard(tmp_path / shard["file"], shard, dtype, 2**20) for shard in writer.record()["shards"]]
    assert ShardedTokens(shards, dtype)[:].tolist() == [1, 70_000, 3]


def test_an_error_while_writing_leaves_no_shard_behind_its_name(tmp_path: Path) -> None:
    def write() -> None:
        with ShardWriter(tmp_path, "train", token_dtype(10)) as writer:
            writer.add(np.arange(5))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.slow
def test_the_default_token_set_keeps_its_fingerprint(tmp_path: Path) -> None:
    """Runs that are finished were trained on these tokens: a change of the code must not change them."""
    manifest = tokenize_corpus("english", tmp_path, vocab_size=1024)
    assert manifest["fingerprint"] == "5e363fd20b469471bc670a37ec2dbd7cc047c5bae2807c6eeeebdc5f91f4ae75"
    assert (manifest["train_tokens"], manifest["heldout_tokens"]) == (5_265_849, 65_159)


def test_another_sets_tokenizer_serves_a_second_set(made: Path, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": f"abc def {n}"}) + "\n" for n in range(20)))
    make(tmp_path / "other.jsonl", tmp_path / "borrowed", tokenizer_from=made, heldout_fraction=0.5)
    make(tmp_path / "other.jsonl", tmp_path / "by_path", tokenizer=str(made / "tokenizer.json"), heldout_fraction=0.5)
    for name in ("borrowed", "by_path"):
        manifest = TokenSet(tmp_path / name).manifest
        assert manifest["tokenizer"]["sha256"] == TokenSet(made).manifest["tokenizer"]["sha256"]
    assert TokenSet(tmp_path / "borrowed").fingerprint == TokenSet(tmp_path / "by_path").fingerprint


def test_an_evaluation_set_has_no_training_tokens(made: Path, text_file: Path, tmp_path: Path) -> None:
    make(text_file, tmp_path, tokenizer_from=made, heldout_fraction=1)
    tokens = TokenSet(tmp_path)
    assert (len(tokens.train), tokens.manifest["train_tokens"]) == (0, 0)
    assert len(tokens.heldout) > 0
    tokens.verify()
    with pytest.raises(UserError, match=r"'openwebtext-excerpts' is for evaluation only.*give tokenizer_from"):
        tokenize_corpus("openwebtext-excerpts", tmp_path / "none", vocab_size=VOCAB)


def test_text_that_spells_the_end_of_text_ends_nothing(made: Path, tmp_path: Path) -> None:
    (tmp_path / "trick.txt").write_text(f"abc {END_OF_TEXT} def")
    tokenize_corpus(
        "trick",
        tmp_path / "o",
        files=[tmp_path / "trick.txt"],
        vocab_size=VOCAB,
        tokenizer_from=made,
        heldout_fraction=1,
    )
    tokens = TokenSet(tmp_path / "o")
    assert np.flatnonzero(tokens.heldout[:] == tokens.manifest["end_of_text"]).tolist() == [len(tokens.heldout) - 1]


def test_held_out_files_are_the_held_out_part_and_win_over_training_copies(tmp_path: Path) -> None:
    lines = [f"document number {n} says {n * n} and {n * n * n}" for n in range(50)]
    for name, part in (("train", lines), ("valid", lines[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in part))
    options: dict[str, Any] = {"files": [tmp_path / "train.jsonl"], "heldout_files": [tmp_path / "valid.jsonl"]}
    manifest = tokenize_corpus("own", tmp_path / "o", vocab_size=270, **options)
    assert sorted(documents(tmp_path / "o", "heldout")) == sorted(lines[:5])
    assert sorted(documents(tmp_path / "o", "train")) == sorted(lines[5:])
    assert manifest["removed"]["repeated document"]["documents"] == 5
    with pytest.raises(UserError, match="held-out files of its own: leave heldout_fraction out"):
        tokenize_corpus("own", tmp_path / "p", vocab_size=270, heldout_fraction=0.5, **options)


def test_a_part_that_would_be_empty_is_refused(made: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"200 documents for training and 0 held out with heldout_fraction 1e-09"):
        make(text_file, tmp_path / "o", heldout_fraction=1e-9)
    with pytest.raises(UserError, match="heldout_fraction 2 is not a share"):
        make(text_file, tmp_path / "o", heldout_fraction=2)
    with pytest.raises(UserError, match="every training document repeats held-out text"):
        make(text_file, tmp_path / "o", heldout_fraction=None, heldout_files=[text_file], tokenizer_from=made)
    (tmp_path / "blank.jsonl").write_text('{"text": "\\u0000"}\n')
    with pytest.raises(UserError, match="source 'files' gave no new text"):
        make(tmp_path / "blank.jsonl", tmp_path / "o")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, "vocab_size 256: a byte-level tokenizer needs at least 257"),
        ({"vocab_size": 50_000}, r"vocab_size 50000: the text gives only \d+ pieces"),
        ({"tokenizer": "none.json"}, "tokenizer none.json: no such file; give `bpe`, or the path of a tokenizer.json"),
        ({"tokenizer_from": Path("none")}, "none is no token set"),
    ],
)
def test_bad_settings_are_refused_and_leave_no_token_set(
    options: dict[str, Any], message: str, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make(text_file, tmp_path, **options)
    with pytest.raises(UserError, match="is no token set"):
        TokenSet(tmp_path)


def test_a_tokenizer_of_another_size_or_without_an_end_is_refused(made: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 300 pieces, but vocab_size is 301"):
        make(text_file, tmp_path / "o", tokenizer_from=made, vocab_size=301)
    changed = tmp_path / "tokenizer.json"
    changed.write_text((made / "tokenizer.json").read_text().replace(END_OF_TEXT, "<|unknown|>"))
    with pytest.raises(UserError, match="no end-of-text piece"):
        make(text_file, tmp_path / "o", tokenizer=str(changed))
    changed.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
        make(text_file, tmp_path / "o", tokenizer=str(changed))


def test_an_unfinished_set_is_no_token_set(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"is no token set: it has no manifest.json \(unfinished\?\)"):
        TokenSet(copy)
