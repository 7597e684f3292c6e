"""13-word windows: what is shared is found and dropped, on any side of a passage's end."""

import numpy as np
from shared_windows import shared_windows

from upcycle.data.mixing import mix64
from upcycle.data.windows import Windows, contains

WORDS = [f"w{number}" for number in range(100)]


def words(first: int, last: int) -> str:
    return " ".join(WORDS[first:last])


def test_a_window_is_thirteen_words_whatever_their_case_and_marks() -> None:
    assert list(shared_windows([words(0, 13).upper().replace(" ", ", ")], [f"x {words(0, 13)} y"])) == [words(0, 13)]
    assert not list(shared_windows([words(0, 12)], [words(0, 13)]))
    assert not list(shared_windows([f"{words(0, 12)} x"], [words(0, 13)]))


def test_windows_depend_on_the_order_of_words() -> None:
    reverse = " ".join(reversed(WORDS[:13]))
    assert not list(shared_windows([reverse], [words(0, 13)]))


def test_dropping_leaves_no_forbidden_window_and_no_more_is_dropped() -> None:
    windows = Windows()
    forbidden = windows.collect([words(20, 40)])
    text = "\n".join(["clean first line", f"a {words(22, 36)} b", "clean line between", words(30, 42), words(29, 41)])
    kept, dropped = windows.without(text, forbidden, "\n")
    # The last two lines hold ten and eleven words of the forbidden text in a row: too few for a window.
    assert dropped == 1
    assert kept == "\n".join(["clean first line", "clean line between", words(30, 42), words(29, 41)])


def test_windows_that_span_passages_are_found() -> None:
    windows = Windows()
    forbidden = windows.collect([words(0, 20)])
    kept, dropped = windows.without(f"{words(0, 7)}\n{words(7, 14)}\nx", forbidden, "\n")
    assert (kept, dropped) == ("x", 2)


def test_windows_that_appear_when_passages_are_dropped_go_too() -> None:
    """Two halves of a forbidden window become neighbours once the forbidden line between them is gone."""
    windows = Windows()
    forbidden = windows.collect([words(0, 14), words(50, 70)])
    kept, dropped = windows.without(f"{words(0, 7)}\n{words(50, 70)}\n{words(7, 14)}\nend", forbidden, "\n")
    assert not contains(forbidden, windows.of(kept)).any()
    assert (kept, dropped) == ("end", 3)


def test_the_mixing_function_is_splitmix64() -> None:
    """First outputs of SplitMix64 for seed 1234567, as published with its reference implementation."""
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_passage_that_holds_only_the_last_word_of_a_shared_window_goes_too():
    windows = Windows(size=3)
    forbidden = windows.collect(["one two three"])
    assert windows.without("zero one two|three four|five six", forbidden, "|") == ("five six", 2)
