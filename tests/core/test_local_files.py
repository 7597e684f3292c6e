"""A study's own files: what its patterns name."""

from pathlib import Path

import pytest

from upcycle.errors import UserError
from upcycle.workflow.texts import local_files


def test_patterns_name_files_sorted_in_the_home_folder_and_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "more").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "more/c.txt"):
        (tmp_path / "texts" / name).touch()
    assert local_files(["~/texts/*.txt"], "datasets.mine.files") == [
        tmp_path / "texts" / "a.txt",
        tmp_path / "texts" / "b.txt",
    ]
    assert local_files(["texts/**/c.txt"], "datasets.mine.files") == [Path("texts/more/c.txt")]
    with pytest.raises(UserError, match=r"datasets\.mine\.files: nothing matches `~/none\*`"):
        local_files(["~/none*"], "datasets.mine.files")
