"""The committed schema is the typed config's."""

from pathlib import Path

from upcycle.study.schema import SCHEMA, schema_text

REPOSITORY = Path(__file__).parents[2]


def test_the_schema_file_is_in_sync():
    """If this fails: `python -m upcycle.study.schema`."""
    assert (REPOSITORY / SCHEMA).read_text() == schema_text()
