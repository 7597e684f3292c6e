"""Tables of the shapes that people have, read to the last bit."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pandas as pd
import pytest

from upcycle.errors import UserError
from upcycle.laws.tables.table_files import read_table

RNG = np.random.default_rng(5)
NUMBERS = {"N": RNG.uniform(1e6, 1e9, 7), "loss": RNG.uniform(2, 4, 7)}
FRAME = pd.DataFrame({"name": [f"run {k}" for k in range(7)], **NUMBERS})


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def check(table, names=("name", "N", "loss")):
    assert list(table) == list(names)
    for name, column in NUMBERS.items():
        np.testing.assert_array_equal(table[name], column)
    if "name" in names:
        assert table["name"].tolist() == FRAME["name"].tolist()


CSV = FRAME.to_csv(index=False)
RECORDS = FRAME.to_dict("records")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.csv", CSV),
        ("t.CSV", CSV),
        ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("t.csv.bz2", bz2.compress(CSV.encode())),
        ("t.csv.xz", lzma.compress(CSV.encode())),
        ("bom.csv", "\ufeff" + CSV),
        ("windows.csv", CSV.replace("\n", "\r\n")),
        ("spaced.csv", CSV.replace(",", ", ")),
        ("semicolon.csv", CSV.replace(",", ";")),
        ("bar.txt", CSV.replace(",", "|")),
        ("tab.csv", CSV.replace(",", "\t")),
        ("t.tsv", CSV.replace(",", "\t")),
        ("comma.txt", CSV),
        ("quoted.csv", FRAME.to_csv(index=False, quoting=1)),
        ("blank.csv", "\n" + CSV.replace("\n", "\n\n")),
        ("t.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("t.ndjson", "\n".join(map(json.dumps, RECORDS)) + "\n\n"),
        ("t.jsonl.gz", gzip.compress("\n".join(map(json.dumps, RECORDS)).encode(), mtime=0)),
        ("lines.json", "\n".join(map(json.dumps, RECORDS))),
        ("records.json", json.dumps(RECORDS)),
        ("pandas.json", FRAME.to_json(double_precision=15)),
        ("lists.json", json.dumps(FRAME.to_dict("list"))),
    ],
)
def test_one_table_in_many_files(tmp_path, file, content):
    if file == "pandas.json":  # to_json rounds to 15 decimals
        table = read_table(write(tmp_path / file, content))
        np.testing.assert_allclose(table["loss"], NUMBERS["loss"], rtol=1e-14)
        return
    check(read_table(write(tmp_path / file, content)))


@pytest.mark.parametrize("spaces", ["{} {}\n", "{}   {}\n", "  {} {}  \n", "{}\t{} \n"])
@pytest.mark.parametrize("header", ["N loss\n", "", "# N loss\n", "# seed 3\n# N loss\n"])
def test_text_parted_by_spaces(tmp_path, spaces, header):
    """With a header, with one behind #, as numpy.savetxt writes it, or with none: then columns have numbers."""
    rows = "".join(spaces.format(repr(float(n)), repr(float(x))) for n, x in zip(*NUMBERS.values(), strict=True))
    table = read_table(write(tmp_path / "result.txt", header + rows))
    if not header:
        table = dict(zip(NUMBERS, table.values(), strict=True)) if list(table) == ["column1", "column2"] else {}
    check(table, ("N", "loss"))


def test_rows_without_a_header_that_hold_words_too(tmp_path):
    table = read_table(write(tmp_path / "result.txt", "8x0.1B 1e9 2e9 3.5\n8x0.1B 1e9 4e9 3.4\n"))
    assert table["column1"].tolist() == ["8x0.1B", "8x0.1B"]
    assert table["column4"].tolist() == [3.5, 3.4]


def test_numpys_own_text(tmp_path):
    np.savetxt(tmp_path / "t.txt", np.stack(list(NUMBERS.values()), axis=1), fmt="%.17g", header="N loss")
    check(read_table(tmp_path / "t.txt"), ("N", "loss"))


@pytest.mark.parametrize("index", [None, "name"])
def test_parquet(tmp_path, index):
    """Named indices are columns."""
    (FRAME if index is None else FRAME.set_index(index)).to_parquet(tmp_path / "t.parquet")
    check(read_table(tmp_path / "t.parquet"))


def test_kinds_of_columns(tmp_path):
    text = "n,mixed,missing,truth,words,none\n1,2,,True,a,\n2,diverged,NaN,False,NA,\n3,,7,true,b,null\n"
    table = read_table(write(tmp_path / "t.csv", text))
    assert table["n"].dtype == float
    assert table["mixed"].tolist() == ["2", "diverged", None]
    np.testing.assert_array_equal(table["missing"], [np.nan, np.nan, 7.0])
    assert table["truth"].tolist() == [True, False, True]
    assert table["truth"].dtype == bool
    assert table["words"].tolist() == ["a", None, "b"]
    assert np.isnan(table["none"]).all()


def test_records_may_lack_keys(tmp_path):
    table = read_table(write(tmp_path / "t.jsonl", '{"a": 1}\n{"b": "x", "a": null}\n{"a": 2.5, "c": true}\n'))
    np.testing.assert_array_equal(table["a"], [1.0, np.nan, 2.5])
    assert table["b"].tolist() == [None, "x", None]


def test_numbers_are_exact(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 2.0**53 - 1, 123456789012345678]
    table = read_table(write(tmp_path / "t.csv", "x\n" + "\n".join(map(repr, values))))
    assert table["x"].tolist() == [float(value) for value in values]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("t.csv", "", "holds no rows"),
        ("t.csv", "a,b\n", "holds no rows"),
        ("t.jsonl", "", "neither records|holds no rows"),
        ("t.xlsx", "x", r"read from .csv, .tsv"),
        ("t.pkl", "x", r"read from .csv, .tsv"),
        ("t", "x", r"read from .csv, .tsv"),
        ("t.csv", "a,a\n1,2\n", "several columns are named `a`"),
        ("t.csv", "a,b\n1,2\n\n3,4,5\n", "line 4 has 3 cells where the first row has 2"),
        ("t.csv", "a,b,c\n1,2\n", "names 3 columns and its rows have 2"),
        ("t.csv", b"a,b\n\xff\xfe\n", "UTF-8"),
        ("t.csv.gz", "a,b\n1,2\n", "t.csv.gz"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 9, mtime=0)[:-9], "damaged"),
        ("t.parquet", "PAR1", "damaged"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2 is no JSON"),
        ("t.json", '[{"a": 1}, ', "damaged"),
        ("t.json", "3", "neither records"),
        ("t.json", '{"a": [1, 2], "b": [1]}', "columns differ in length"),
    ],
)
def test_a_bad_file_is_named(tmp_path, file, content, words):
    path = write(tmp_path / file, content)
    with pytest.raises(UserError, match=words) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.csv: No such file"):
        read_table(tmp_path / "none.csv")
