"""Expressions of a config: parsed and checked by planning, never run as code, refused in one line."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from upcycle.errors import UserError
from upcycle.study.columns import KINDS
from upcycle.study.expressions import DEEPEST, LONGEST, check, check_condition, parse

REPOSITORY = Path(__file__).parents[2]
STUDY = (REPOSITORY / "tests" / "workflow" / "config.yaml").read_text()

CODE = [
    '@pd.io.common.os.system("touch X") == 0',
    'D2.to_csv("X")',
    'D2.to_csv("X") == 1',
    '__import__("os").system("touch X") == 0',
    "().__class__.__base__.__subclasses__()",
    'open("X", "w") == 1',
    "exec(\"open('X', 'w')\") == 1",
    '[open("X", "w") for _ in (1,)]',
    '(lambda: open("X", "w"))() == 1',
    '(D2 := open("X", "w")) == 1',
    "f\"{open('X', 'w')}\" == model",
    "`D2`.T.to_csv('X')",
    "D2 > 1; import os; os.system('touch X')",
    "D2 > 1\nimport os",
    "log.__globals__",
    "log(D2).__class__ == 1",
    "@KINDS == 1",
]
"""What pandas' eval or Python's would run."""
HUGE = [
    "D2 > 9**9**9",
    "D2 > 10**400",
    "D2 > 1e999",
    "D2 > " + "9" * 5000,
    "D2 > 0x" + "f" * 5000,
    "D2 > 1 / 0",
    "D2 > 1 % 0",
    "D2 > (0 - 8) ** 0.5",
    "D2 > log(0)",
    "D2 > exp(1000)",
    "D2 ** (2 ** 9999) > 1",
    "model == 'a' * 9**9",
]
DEEP = [
    "(" * 3000 + "D2 > 1" + ")" * 3000,
    "-" * 9000 + "D2 > 1",
    "~" * 9000 + "(D2 > 1)",
    "not " * 2400 + "D2 > 1",
    "D2 > 1" + " + 1" * 2000,
    "2 ** " * 900 + "1 < D2",
    "D2" + "[0" * 150 + "]" * 150,
    "D2" + ".T" * 4000,
    "D2" + "()" * 3000,
    "(" * 99 + "D2 > 1" + ") + (1 < 2)" * 99,
    "x" * 1_000_000,
    "D2 > 1 or " * 200_000 + "D2 > 1",
    "model == '" + "x" * 100_000 + "'",
]
ODD = [
    "",
    "D2 >",
    "D2 > 1)",
    "D2 > '",
    "\x00",
    "D2 > 1\x00",
    "\ud800",
    "model == '\ud800'",
    "model == '\\d'",
    "1 if D2 else 2",
]


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        check_condition(parse(text, KINDS), KINDS)
    return str(error.value)


@pytest.mark.parametrize("text", [*CODE, *HUGE, *DEEP, *ODD], ids=lambda text: ascii(text[:40]))
def test_hostile_input_is_refused_in_one_short_line(text):
    message = refused(text)
    assert message.isprintable()
    assert len(message) < 1500


def test_the_time_to_check_is_linear_in_the_text():
    """Comparisons within comparisons: were a level looked at once for each item of its list, this would not end."""
    nested = "D2"
    for _ in range(45):
        nested = f"(({nested} < 1) in (0, 1, 2, 3, 4))"
    check_condition(parse(nested, KINDS), KINDS)


def test_limits_are_where_they_are_said_to_be():
    check_condition(parse("D2 > 1" + " + 1" * (DEEPEST - 3), KINDS), KINDS)
    assert f"more than {DEEPEST} levels" in refused("D2 > 1" + " + 1" * DEEPEST)
    check_condition(parse("id in (" + "'x'," * 2000 + ")", KINDS), KINDS)
    assert f"to {LONGEST:,}" in refused("D2 > 1" + " " * LONGEST + "+ 1")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("D2 / (6 * N1)", "number"),
        ("D2", "number"),
        ("D2 > 5e5 and seed == 0", "truth"),
        ("model == '0.1B' or gate in ('a', 'b')", "truth"),
        ("'layers=native' in kernels", "truth"),
        ("model", "words"),
        ("model == moe", "truth"),
        ("isna(loss) or notna(model)", "truth"),
        ("(D2 > 1) == (D1 > 1)", "truth"),
    ],
)
def test_the_kind_of_a_value_is_known_without_values(text, kind):
    assert check(parse(text, KINDS), KINDS) == kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("D3 > 1", "there is no column `D3`; did you mean `D"),
        ("learning_rate > 1", "there is no column `learning_rate`"),
        ("modle == 'tiny'", "did you mean `model`"),
        ("D2 > 1 and lg(D2) > 1", "there is no function `lg`; did you mean `log`"),
        ("D2", "must hold or not for each row"),
        ("D2 + 1", "must hold or not for each row"),
        ("model > 3", "`model` holds words, where a number is needed"),
        ("data_version == 1", "`data_version` holds words"),
        ("seed == '1'", "`seed` holds no words"),
        ("model < 'b'", "compare it by ==, != or in"),
        ("notna('a')", "takes a column"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_valid_name(text, words):
    assert words in refused(text)


@pytest.mark.parametrize(
    "where", ['@pd.io.common.os.system("touch X") == 0', 'D2.to_csv("X")', "D2 > 9**9**9", DEEP[1]]
)
def test_a_study_with_code_in_it_is_refused_before_anything_is_written(tmp_path, where):
    """`upcycle plan`: one line, exit code 2, no file."""
    escaped = where.replace('"', '\\"')
    text = STUDY.replace(
        "additive: {law: additive, sweep: upcycled}",
        f'additive: {{law: additive, sweep: upcycled, where: "{escaped}"}}',
    )
    assert text != STUDY
    (tmp_path / "config.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "upcycle.cli", "plan"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "fits.additive.where" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_nothing_in_the_package_evaluates_text():
    """No call of eval, exec, compile or of a table's query and eval in the source (`model.eval()` takes no text)."""
    found = []
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (node.args or node.keywords):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                if name in ("eval", "exec", "compile", "__import__") or method in ("eval", "query"):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []
