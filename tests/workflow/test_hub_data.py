"""A data set of the Hugging Face hub, from a server that stands for it: fetched once, pinned, then read offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_up_text import write_texts
from small_hub import COMMIT, small_hub

from upcycle.data.hub_files import split_patterns
from upcycle.data.provenance import read_token_manifest
from upcycle.data.tokens import tokenize_corpus
from upcycle.errors import UserError
from upcycle.study.study import load_study

REPOSITORY = "someone/words"
CARD = """---
configs:
- config_name: small
  data_files: {split: train, path: "none/*.jsonl"}
- config_name: whole
  default: true
  data_files:
  - {split: train, path: "data/train-*.parquet"}
  - {split: validation, path: [data/validation.jsonl]}
---
# Words
"""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The repository: two parquet files, a validation file, and a file that nothing asks for."""
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    write_texts(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    for number in range(2):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[number::2]), folder / f"data/train-{number}.parquet")
    (tmp_path / "heldout.jsonl").rename(folder / "data/validation.jsonl")
    (folder / "data/other.bin").write_bytes(b"other")
    (folder / "README.md").write_text(CARD)
    return folder


def write_study(root: Path, hub: dict[str, str], **more: object) -> None:
    model = {"n_layer": 1, "d_model": 16, "n_head": 2, "batch": 4, "warmup_steps": 2, "lr": 0.01, "lr_moe": 0.01}
    study = {
        "study": "default",
        "data": {"dataset": "words", "vocab_size": 300},
        "datasets": {"words": {"hub": {"id": REPOSITORY, "revision": COMMIT, **hub}, **more}},
        "context": 32,
        "execution": {"device": "cpu"},
        "models": {"tiny": model},
        "sweeps": {"dense": {"kind": "dense", "model": "tiny", "steps": [20]}},
    }
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_text(json.dumps(study))


def upcycle(root: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    command = [sys.executable, "-m", "upcycle.cli", *words]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_splits_of_a_hub_data_set_are_fetched_once_and_read_offline(published: Path, tmp_path: Path) -> None:
    root, offline = tmp_path / "study", {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    write_study(root, {"split": "train", "heldout_split": "validation"})
    missing = upcycle(root, "tokenize", "words-1-bpe300", **offline)
    assert missing.returncode == 2
    assert "datasets.words.hub: files of someone/words were not fetched; `upcycle fetch words`" in missing.stderr
    with small_hub(published, REPOSITORY) as (address, downloaded):
        fetched = upcycle(root, "fetch", "words", HF_ENDPOINT=address)
        assert fetched.returncode == 0, fetched.stderr
        assert fetched.stdout.startswith("words: 3 files, 0.1 MB")
        wanted = ["README.md", "data/train-0.parquet", "data/train-1.parquet", "data/validation.jsonl"]
        assert sorted(downloaded) == wanted
        assert upcycle(root, "fetch", "words", HF_ENDPOINT=address).returncode == 0
        assert sorted(downloaded) == wanted
    made = upcycle(root, "tokenize", "words-1-bpe300", **offline)
    assert made.returncode == 0, made.stderr
    manifest = read_token_manifest(root / "results/tokens/words-1-bpe300")
    files = {"files": sorted(published.glob("data/*.parquet")), "heldout_files": [published / "data/validation.jsonl"]}
    assert manifest["fingerprint"] == tokenize_corpus("words", tmp_path / "o", vocab_size=300, **files)["fingerprint"]
    assert manifest["sources"][1]["description"] == f"{REPOSITORY} of the Hugging Face hub, commit {COMMIT}"
    # The cache is enough to fetch again without a network, as on a cluster that it was copied to.
    (root / "results/.hub/words.json").unlink()
    again = upcycle(root, "fetch", "words", **offline)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_named(published: Path, tmp_path: Path) -> None:
    root = tmp_path / "study"
    with small_hub(published, REPOSITORY) as (address, _):
        for hub, more, message in (
            ({}, {"files": ["data/none*"]}, "nothing matches `data/none*`; there are README.md, data/other.bin"),
            ({}, {"files": ["data/*"]}, "data/other.bin is of no kind that is read"),
            ({"split": "test"}, {}, "config 'whole' has no split 'test'; valid: `train`, `validation`"),
            (
                {"id": "someone/else", "split": "train"},
                {},
                "someone/else of the Hugging Face hub at 0123456789ab cannot",
            ),
        ):
            write_study(root, hub, **more)
            failed = upcycle(root, "fetch", "words", HF_ENDPOINT=address)
            assert failed.returncode == 2, failed.stdout + failed.stderr
            assert message in failed.stderr
            assert failed.stderr.count("\n") == 1


def test_splits_are_those_of_the_card() -> None:
    configs = [
        {"config_name": "a", "data_files": "a/*.jsonl"},
        {"config_name": "b", "data_dir": "b", "data_files": ["x"]},
    ]
    card = {"configs": configs}
    assert split_patterns("it", card, "a", "train") == ["a/*.jsonl"]
    assert split_patterns("it", card, "b", "train") == ["b/x"]
    with pytest.raises(UserError, match="it has several configs, and none is the default"):
        split_patterns("it", card, None, "train")
    with pytest.raises(UserError, match="its card lists no `configs`; name `files`"):
        split_patterns("it", {}, None, "train")


@pytest.mark.parametrize(
    ("hub", "more", "message"),
    [
        ({"revision": "main", "split": "train"}, {}, "datasets.words.hub.revision"),
        ({"split": "train"}, {"files": ["a"]}, "`files` and a split of `hub` are given"),
        ({}, {}, "no `files` and no `hub.split`"),
    ],
)
def test_a_hub_data_set_is_pinned_and_its_files_are_named_once(
    hub: dict[str, str], more: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_study(tmp_path, hub, **more)
    with pytest.raises(UserError, match=message):
        load_study(tmp_path / "config.yaml")
