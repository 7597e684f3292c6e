"""Records are read so that damage is one line that names the file."""

import pytest

from upcycle.errors import UserError
from upcycle.files import read_record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("folder", "Is a directory"),
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"null", "holds no JSON object"),
        (b"[{}]", "holds no JSON object"),
        (b"[" * 100_000, "is damaged"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, content, message):
    path = tmp_path / "record.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"record\.json.*{message}"):
        read_record(path)


def test_a_key_that_a_record_lacks_is_damage_of_its_file(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"a": {"b": 1}, "list": [{"c": 2}]}')
    record = read_record(path)
    assert record == {"a": {"b": 1}, "list": [{"c": 2}]}
    assert record.get("nothing") is None
    for part, key in ((record, "x"), (record["a"], "y"), (record["list"][0], "z")):
        with pytest.raises(UserError, match=rf"record\.json is damaged: it does not state `{key}`"):
            part[key]
