"""Tokens of Megatron-LM are read where they are, verified, and refused by name where they do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_files import write_megatron
from tokenizers import Tokenizer, models

from upcycle.data import megatron
from upcycle.data.local import check_files
from upcycle.data.megatron import index_tokens
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError

END = 0


def documents(seed: int, count: int, vocab: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[*draw.integers(1, vocab, draw.integers(3, 40)).tolist(), END] for _ in range(count)]


def tokenizer(folder: Path, size: int) -> Path:
    path = folder / "mine.json"
    Tokenizer(models.BPE({"</s>": 0, **{f"p{number}": number for number in range(1, size)}}, [])).save(str(path))
    return path


def index(folder: Path, train: list[Path], heldout: Path, size: int) -> dict[str, Any]:
    parts = {"train": train, "heldout": [heldout]}
    return index_tokens("mine", folder / "set", parts, vocab_size=size, tokenizer=tokenizer(folder, size), version="1")


@pytest.mark.parametrize(("size", "code"), [(300, 8), (70_000, 4)])
def test_tokens_are_read_in_place(size: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "BLOCK_TOKENS", 64)
    texts = [documents(seed, 20, size) for seed in range(3)]
    paths = [write_megatron(tmp_path / f"{number}.bin", text, code) for number, text in enumerate(texts)]
    manifest = index(tmp_path, paths[:2], paths[2], size)
    tokens = TokenSet(tmp_path / "set")
    tokens.verify()
    flat = [token for text in texts[:2] for document in text for token in document]
    assert tokens.train[:].tolist() == flat
    assert tokens.heldout[:].tolist() == [token for document in texts[2] for token in document]
    assert [manifest["parts"][part]["documents"] for part in ("train", "heldout")] == [40, 20]
    assert (manifest["train_tokens"], manifest["end_of_text"]) == (len(flat), END)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "heldout-00000.bin",
        "manifest.json",
        "tokenizer.json",
        "train-00000.bin",
        "train-00001.bin",
    ]
    assert (tmp_path / "set/train-00001.bin").readlink() == paths[1]
    data = bytearray(paths[1].read_bytes())
    data[-8] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(UserError, match=rf"train-00001.bin: damaged in block .*; restore {paths[1]}$"):
        TokenSet(tmp_path / "set").verify()


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    good = write_megatron(tmp_path / "good.bin", documents(0, 8, 300))

    def refused(train: Path, size: int = 300) -> str:
        with pytest.raises(UserError) as error:
            index(tmp_path, [train], good, size)
        assert not (tmp_path / "set/manifest.json").exists()
        return str(error.value)

    path = tmp_path / "bad.bin"
    write_megatron(path, documents(1, 8, 400))
    assert "is none of the tokenizer's 300 pieces; name its own" in refused(path)
    endless = documents(2, 8, 300)
    endless[6][-1] = 7
    assert "ends with token 7" in refused(write_megatron(path, endless))
    assert "preprocess it with --append-eod" in refused(path)
    assert "holds tokens of type 4 of Megatron-LM's (4: int32, 8: uint16), and a vocabulary of 300" in refused(
        write_megatron(path, documents(3, 8, 300), 4)
    )
    write_megatron(path, documents(4, 8, 300))
    path.write_bytes(path.read_bytes()[:-2])
    assert "bytes, and its index lists" in refused(path)
    for data in (b"", b"MMIDIDX\x00\x00" + bytes(25), good.with_suffix(".idx").read_bytes()[:-8]):
        path.with_suffix(".idx").write_bytes(data)
        assert "bad.idx: damaged, or no index of Megatron-LM (version 1)" in refused(path)


def test_text_and_tokens_do_not_mix(tmp_path: Path) -> None:
    good = write_megatron(tmp_path / "good.bin", documents(0, 8, 300))
    (tmp_path / "a.txt").write_text("text")
    assert check_files([good]) == [good]
    (tmp_path / "alone.bin").write_bytes(b"")
    for path in ("a.txt", "alone.bin"):
        with pytest.raises(UserError, match=rf"{path}: files of tokens are `.bin`, each with an `.idx`"):
            check_files([good, tmp_path / path])
