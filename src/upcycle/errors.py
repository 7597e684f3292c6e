"""The one exception that a user of upcycle is meant to read, and the parts of its messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, found before any work starts: the message names the key, file or value, and how to fix it.

    The command line prints its message alone, without a traceback, and exits with its code.
    """

    exit_code = 2


MOST = 12
"""Valid names that a message lists."""


def nearest(name: str, valid: Iterable[object]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or the first of all when none is near."""
    names = sorted(str(item) for item in valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    if not names:
        return "there is none"
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return "valid: " + ", ".join(f"`{item}`" for item in names[:MOST]) + more


def brief(value: object, length: int = 60) -> str:
    """A value as a message shows it: its `repr`, which is one line, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
