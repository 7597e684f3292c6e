"""Cleaning: canonical text without invisible characters, and no long passage twice."""

import pytest

from upcycle.data.cleaning import RepeatedPassages, clean


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("cafe\u0301", "caf\u00e9"),  # NFC
        ("a\x00b\x07c\u200bd\ufeff", "abcd"),  # control and invisible characters
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),  # line ends
        ("  a \t b\u00a0\u00a0c  \n   d ", "a b c\nd"),  # blanks
        ("\n\na\n\n\n\n\nb\n", "a\n\nb"),  # gaps
        ("a\n \n\t\n \nb", "a\n\nb"),  # lines of blanks are gaps
    ],
)
def test_prose_is_made_canonical(raw: str, cleaned: str) -> None:
    assert clean(raw, "prose") == cleaned


def test_verbatim_text_keeps_its_indentation() -> None:
    assert (
        clean("\ndef f():  \r\n\treturn  1\n    # x\n\n\n\nf()\n", "verbatim")
        == "def f():\n\treturn  1\n    # x\n\nf()"
    )


@pytest.mark.parametrize("layout", ["prose", "verbatim"])
def test_cleaning_twice_changes_nothing(layout: str) -> None:
    raw = " \n\ta  b\u0301 \x0b\x0c \n\n \n\n c\u2029\u200b\n \n"
    once = clean(raw, layout)  # type: ignore[arg-type]
    assert clean(once, layout) == once  # type: ignore[arg-type]


def test_long_lines_are_kept_once_and_short_ones_always() -> None:
    repeated = RepeatedPassages("prose")
    long = "this line has more than eight words in it"
    assert repeated.drop(f"Serve hot.\n{long}") == f"Serve hot.\n{long}"
    assert repeated.drop(f"Other.\n{long}\nServe hot.") == "Other.\nServe hot."
    assert (repeated.passages, repeated.bytes) == (1, len(long) + 1)
