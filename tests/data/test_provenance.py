"""A user's files that are no longer what a token set was made of are found, and what only looks changed is not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from upcycle.data import making, provenance
from upcycle.data.provenance import check_unchanged, read_token_manifest
from upcycle.data.tokens import tokenize_corpus
from upcycle.errors import UserError


def write(path: Path, first: int, count: int = 40) -> Path:
    path.write_text("".join(json.dumps({"text": f"abc {n} {n * n}"}) + "\n" for n in range(first, first + count)))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training files and one held-out file, and a token set of them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        write(Path(f"{name}.jsonl"), first)
    tokenize_corpus("own", Path("set"), vocab_size=260, files=["a.jsonl", "b.jsonl"], heldout_files=["c.jsonl"])
    return tmp_path


def check(files: str = "a b", heldout: str = "c", text_key: str = "text") -> None:
    now = {"files": files, "heldout_files": heldout}
    paths = {kind: [Path(f"{name}.jsonl") for name in names.split()] for kind, names in now.items()}
    check_unchanged(Path("set"), {**paths, "tokenizer": []}, text_key=text_key, where={})


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed."""
    seen: list[str] = []
    sha256_file = provenance.sha256_file

    def watched(path: Path) -> str:
        seen.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(provenance, "sha256_file", watched)
    return seen


def test_unchanged_files_are_not_read(root: Path, hashed: list[str]) -> None:
    check()
    check_unchanged(root / "set", {"files": [root / "a.jsonl", root / "b.jsonl"]}, text_key="text", where={})
    assert hashed == []


def test_a_file_that_was_touched_or_moved_is_hashed_once(root: Path, hashed: list[str]) -> None:
    os.utime("a.jsonl")
    check()
    check()
    assert hashed == ["a.jsonl"]
    Path("b.jsonl").rename("d.jsonl")
    check("a d")
    check("a d")
    assert hashed == ["a.jsonl", "d.jsonl"]
    os.utime("a.jsonl")
    check("a d")
    assert hashed == ["a.jsonl", "d.jsonl", "a.jsonl"]


def change(path: str, old: str, new: str) -> None:
    Path(path).write_text(Path(path).read_text().replace(old, new))


OUT = (
    r" since token set set was made; restore what was, or give the changed data another `version`, "
    r"or, if nothing was trained on them, remove set$"
)
CHANGES: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "longer": (lambda: change("a.jsonl", "abc 1 ", "abcd 1 "), "a b", "c", "a.jsonl changed"),
    "of the same size": (lambda: change("b.jsonl", "abc 101", "abd 101"), "a b", "c", "b.jsonl changed"),
    "held out": (lambda: change("c.jsonl", "abc 201", "abd 201"), "a b", "c", "c.jsonl changed"),
    "new": (lambda: write(Path("d.jsonl"), 300), "a b d", "c", "d.jsonl is new, or changed,"),
    "new, of equal size": (lambda: write(Path("d.jsonl"), 110), "a b d", "c", "d.jsonl is new, or changed,"),
    "twice": (lambda: shutil.copy("a.jsonl", "d.jsonl"), "a b d", "c", "d.jsonl is new, or changed,"),
    "gone": (lambda: Path("a.jsonl").unlink(), "b", "c", r"\S+/a.jsonl is gone,"),
    "changed sides": (lambda: None, "a c", "b", "c.jsonl is new, or changed,"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_with_the_ways_out(name: str, root: Path) -> None:
    edit, files, heldout, message = CHANGES[name]
    edit()
    for _ in range(2):  # notes of what was hashed do not hide it
        with pytest.raises(UserError, match=f"^{message}{OUT}"):
            check(files, heldout)


def test_a_change_that_keeps_the_modification_time_but_not_the_size_is_found(root: Path) -> None:
    before = Path("a.jsonl").stat()
    change("a.jsonl", "abc 1 ", "ab 1 ")
    os.utime("a.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"a\.jsonl changed"):
        check()


def test_raw_text_may_go_once_it_is_tokenised(root: Path) -> None:
    check("", "")
    check("", "c")
    check("a b", "")


def test_another_column_is_another_text(root: Path) -> None:
    with pytest.raises(UserError, match=r"token set set was made of column 'text', the study has `text: body`;"):
        check(text_key="body")


def test_a_tokenizer_that_was_given_by_path_is_a_file_of_the_user(root: Path) -> None:
    shutil.copy("set/tokenizer.json", "mine.json")
    tokenize_corpus(
        "own", Path("other"), vocab_size=260, files=["a.jsonl"], heldout_files=["c.jsonl"], tokenizer="mine.json"
    )
    assert [file["file"] for file in read_token_manifest(Path("other"))["tokenizer"]["files"]] == ["mine.json"]
    now = {"files": [Path("a.jsonl")], "tokenizer": [Path("mine.json")]}
    check_unchanged(Path("other"), now, text_key="text", where={})
    pieces = json.loads(Path("mine.json").read_text())
    pieces["model"]["vocab"] |= {"a": pieces["model"]["vocab"]["b"], "b": pieces["model"]["vocab"]["a"]}
    Path("mine.json").write_text(json.dumps(pieces))
    with pytest.raises(UserError, match=r"^mine\.json changed since token set other was made"):
        check_unchanged(Path("other"), now, text_key="text", where={})


def test_a_file_that_changes_while_it_is_read_makes_no_token_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = making.spool_text

    def slow(*arguments: object) -> object:
        count = read(*arguments)  # type: ignore[arg-type]
        write(Path("a.jsonl"), 0, count=41)
        return count

    monkeypatch.setattr(making, "spool_text", slow)
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was read; tokenise again once it is whole"):
        tokenize_corpus("own", Path("late"), vocab_size=260, files=["a.jsonl", "b.jsonl"], heldout_files=["c.jsonl"])
    with pytest.raises(UserError, match="late is no token set"):
        read_token_manifest(Path("late"))


def test_another_filter_makes_other_tokens(root: Path) -> None:
    with pytest.raises(UserError, match=r"^token set set was made with another `where`; .*another `version`"):
        check_unchanged(Path("set"), {}, text_key="text", where={"meta.set": ["Crawl"]})


def test_comparing_files_loads_no_heavy_library() -> None:
    import subprocess
    import sys

    heavy = ["numpy", "pyarrow", "tokenizers", "torch"]
    code = f"import sys, upcycle.workflow.texts; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
