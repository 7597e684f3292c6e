"""Arithmetic over columns: numpy's results, names as odd as tables have them, and nothing but arithmetic."""

import numpy as np
import pytest

from upcycle.errors import UserError
from upcycle.laws.tables.arithmetic import evaluate_expression, truths
from upcycle.study.expressions import parse

pytestmark = pytest.mark.slow

COLUMNS = {
    "N": np.array([1e6, 2e6, 4e6]),
    "C": np.array([1e15, 5e15, np.nan]),
    "Model Size": np.array([3.0, 5.0, 7.0]),
    "Model": np.array([1.0, 2.0, 3.0]),
    "Training FLOP": np.array([10.0, 20.0, 30.0]),
    "loss (nats)": np.array([3.0, 2.0, 1.0]),
    "a-b": np.array([100.0, 200.0, 300.0]),
    "a": np.array([1.0, 2.0, 3.0]),
    "b": np.array([1.0, 1.0, 1.0]),
    "for": np.array([8.0, 9.0, 10.0]),
    "0": np.array([-1.0, -2.0, -3.0]),
    "%": np.array([50.0, 60.0, 70.0]),
    "kind": np.array(["dense", "up", None], dtype=object),
    "final": np.array(["3.5", "diverged", None], dtype=object),
    "blank": np.full(3, np.nan),
    "done": np.array([True, False, True]),
}


def value(text):
    return evaluate_expression(parse(text, COLUMNS), COLUMNS)


def holds(text):
    return truths(parse(text, COLUMNS), COLUMNS).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C / (6 * N)", COLUMNS["C"] / (6 * COLUMNS["N"])),
        ("C/(6N)", COLUMNS["C"] / (6 * COLUMNS["N"])),
        ("C/6N", COLUMNS["C"] / (6 * COLUMNS["N"])),
        ("6 * N ** 2", 6 * COLUMNS["N"] ** 2),
        ("2e3N", 2e3 * COLUMNS["N"]),
        ("-N + 1e6", 1e6 - COLUMNS["N"]),
        ("-2 ** 2 * a", -4 * COLUMNS["a"]),
        ("a ** -b", 1 / COLUMNS["a"]),
        ("a % 2 + a // 2", COLUMNS["a"] % 2 + COLUMNS["a"] // 2),
        ("exp(log(a) / 2) - sqrt(a)", np.exp(np.log(COLUMNS["a"]) / 2) - np.sqrt(COLUMNS["a"])),
        ("Training FLOP", COLUMNS["Training FLOP"]),
        ("Training FLOP/(6*Model Size)", COLUMNS["Training FLOP"] / (6 * COLUMNS["Model Size"])),
        ("`Training FLOP` / `N`", COLUMNS["Training FLOP"] / COLUMNS["N"]),
        ("Model*Model Size", COLUMNS["Model"] * COLUMNS["Model Size"]),
        ("log(loss (nats))", np.log(COLUMNS["loss (nats)"])),
        ("a-b", COLUMNS["a-b"]),
        ("a - b", COLUMNS["a"] - COLUMNS["b"]),
        ("2 * for", 2 * COLUMNS["for"]),
        ("0", COLUMNS["0"]),
        ("%", COLUMNS["%"]),
        ("a * 0", 0 * COLUMNS["a"]),
        ("a + `0`", COLUMNS["a"] + COLUMNS["0"]),
        ("a % `%`", COLUMNS["a"] % COLUMNS["%"]),
        ("done + 1", np.array([2.0, 1.0, 2.0])),
        ("2 * final", np.array([7.0, np.nan, np.nan])),
        ("7e9", 7e9),
    ],
)
def test_arithmetic_is_numpys(text, expected):
    np.testing.assert_array_equal(value(text), expected)


@pytest.mark.parametrize("text", ["a / 0", "log(a - 2)", "a / (b - b)", "(a - 9) ** 0.5", "exp(1e9 * a)"])
def test_what_is_no_number_is_not_finite_and_stops_nothing(text):
    assert not np.isfinite(value(text)).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("N >= 2e6", [False, True, True]),
        ("1e6 < N <= 4e6", [False, True, True]),
        ("N > 1e6 and a < 3", [False, True, False]),
        ("(N > 1e6) & ~(a < 3) | (a == 1)", [True, False, True]),
        ("not N > 1e6 or a == 3", [True, False, True]),
        ("kind == 'up'", [False, True, False]),
        ('"up" != kind', [True, False, True]),
        ("kind in ('up', 'dense')", [True, True, False]),
        ("kind not in ['up']", [True, False, True]),
        ("a in (1, 3)", [True, False, True]),
        ("'ens' in kind", [True, False, False]),
        ("notna(kind) and isna(C) == (N < 0)", [True, True, False]),
        ("kind == ''", [False, False, True]),
        ("blank == ''", [True, True, True]),
        ("blank == 'up' or blank > 0", [False, False, False]),
        ("isna(C)", [False, False, True]),
        ("notna(final)", [True, True, False]),
        ("final < 4", [True, False, False]),
        ("final != 'diverged'", [True, False, True]),
        ("C > 0", [True, True, False]),
        ("done", [True, False, True]),
        ("done == True", [True, False, True]),
        ("done == 1", [True, False, True]),
        ("1 < 2", [True, True, True]),
        ("Training FLOP > 10 and Model Size < 7", [False, True, False]),
    ],
)
def test_conditions(text, expected):
    assert holds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "N.__class__",
        "N.sum()",
        "[x for x in N]",
        "lambda: 1",
        "N[0]",
        "N if True else a",
        "f'{N}'",
        "(n := 1)",
        "exp(*[N])",
        "open('file')",
        "eval('1')",
        "{'a': 1}",
        "N is a",
        "max(N, a)",
        "log(N, 2)",
        "1j * N",
        "None",
        "...",
    ],
)
def test_nothing_but_arithmetic_is_understood(text):
    with pytest.raises(UserError):
        value(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Traning FLOP", "did you mean `Training FLOP`"),
        ("n * 2", "no column `n`; did you mean `N`"),
        ("N * modle", "columns: N, C, Model Size"),
        ("`Model Siz` * 2", "no column `Model Siz`; did you mean `Model Size`"),
        ("lg(N)", "no function `lg`; did you mean `log`"),
        ("2 ^ a", r"write \*\* for a power"),
        ("6N**2", "write 6\\*N"),
        ("kind * 2", "`kind` holds words, where a number is needed"),
        ("log('3')", "holds words"),
        ("(N", "is no expression"),
        ("", "is no expression"),
        ("N +", "is no expression"),
    ],
)
def test_an_error_names_the_mend(text, words):
    with pytest.raises(UserError, match=words):
        value(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("N * 2", "must hold or not for each row"),
        ("N and a > 1", "`N` is no condition"),
        ("a > 1 & b < 2", "parentheses"),
        ("kind > 'a'", "by ==, != or in"),
        ("kind == 3", "`kind` holds words"),
        ("N == '3'", "`N` holds no words: compare it with a number"),
        ("kind in ('up')", "is no list"),
        ("kind = 'up'", "is no expression"),
    ],
)
def test_a_bad_condition_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        holds(text)


def test_columns_named_are_listed_in_order():
    assert parse("log(Training FLOP) / (6 * N) + N", COLUMNS).columns == ["Training FLOP", "N"]
