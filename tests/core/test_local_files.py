"""A study's own files: what its patterns name."""

from pathlib import Path

import pytest

from upcycle.errors import UserError
from upcycle.study.texts import LocalDataset
from upcycle.workflow.texts import files_of


def test_patterns_name_files_sorted_in_the_home_folder_and_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "more").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "more/c.txt"):
        (tmp_path / "texts" / name).touch()
    both = LocalDataset(files=["~/texts/*.txt"], heldout_files=["texts/**/c.txt"])
    assert files_of(both, "mine", "files") == [tmp_path / "texts" / "a.txt", tmp_path / "texts" / "b.txt"]
    assert files_of(both, "mine", "heldout_files") == [Path("texts/more/c.txt")]
    with pytest.raises(UserError, match=r"datasets\.mine\.files: nothing matches `~/none\*`"):
        files_of(LocalDataset(files=["~/none*"]), "mine", "files")
