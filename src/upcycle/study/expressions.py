"""Arithmetic and conditions over a table's columns, such as C / (6 * N) or D >= 1e9 and lineage == 'up'.

A Python expression, of which only what is listed here is understood: no attribute, no call but of `FUNCTIONS`, no name
that is not a column. This module parses it and checks it against the kinds of the columns, without their values, so
that a study's `where` is refused before anything starts. `upcycle.laws.tables.arithmetic` evaluates what passed.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from upcycle.errors import UserError, nearest

Kind = Literal["number", "truth", "words", "mixed", "blank"]
"""What a column holds: numbers, truths, words, words of which some are numbers, or no value at all."""
ValueKind = Literal["number", "truth", "words", "mixed", "blank", "word"]
"""What a part of an expression is: as a column, or a single word."""

FUNCTIONS: dict[str, Callable[[float], float]] = {"log": math.log, "exp": math.exp, "sqrt": math.sqrt}
"""Functions of numbers; beside them notna(column) and isna(column)."""
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
LONGEST = 10_000
"""Characters of an expression."""
DEEPEST = 100
"""Levels of nesting; a sum of n terms has n."""
SHOWN = 100
"""Characters of an expression, or of a part, that a message quotes."""
_PRODUCT = (
    r"(?<![\w.])(?P<number>\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?)(?P<name>(?![eE][+-]?\d)[A-Za-z]\w*)(?P<power>\s*\*\*)?"
)
"""A number right before a name, such as 6N; not 1e6."""
_STAND_IN = "__column"
_WORDS_OF_LOGIC = ("and", "or", "not", "in", "is", "True", "False", "None")


@dataclass(frozen=True)
class Expression:
    """A parsed expression over the columns of a table."""

    text: str
    tree: ast.expr
    named: Mapping[str, str]
    """Column by the identifier that replaces it in the tree."""

    @property
    def columns(self) -> list[str]:
        """Columns that it names, in order."""
        calls = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name) and id(node) not in calls]
        names.sort(key=lambda node: node.col_offset)
        return list(dict.fromkeys(self.named.get(node.id, node.id) for node in names))


def parse(text: str, columns: Iterable[str]) -> Expression:
    """An expression over columns of these names.

    A text that is a column's name is that column. Elsewhere a name that is no identifier (`Training FLOP`) may stand as
    it is, the longest first, or in backquotes. Raises `UserError` for bad syntax, and for an expression that is too
    long or nested too deeply.
    """
    text, columns = text.strip(), list(columns)
    if text in columns:
        return Expression(text, ast.Name(_STAND_IN + "0", col_offset=0), {_STAND_IN + "0": text})
    if len(text) > LONGEST:
        raise UserError(f"`{shown(text)}` has {len(text):,} characters; shorten it to {LONGEST:,}")
    named: dict[str, str] = {}
    source = _substitute(text, columns, named)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # Python's doubts, such as of `1if x`, are errors here
            warnings.simplefilter("error", DeprecationWarning)
            tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"`{shown(text)}` is no expression ({what}); {of_columns(text, columns)}") from None
    except (RecursionError, MemoryError):  # what the parser raises at its own depth
        raise _too_deep(text) from None
    if _is_too_deep(tree):
        raise _too_deep(text)
    return Expression(text, tree, named)


def _too_deep(text: str) -> UserError:
    return UserError(f"`{shown(text)}` is nested more than {DEEPEST} levels deep; write fewer terms or parentheses")


def _is_too_deep(tree: ast.expr) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def shown(text: str) -> str:
    """A text as a message quotes it: one line of printable characters, cut at `SHOWN`."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= SHOWN else line[:SHOWN] + "..."


def _substitute(text: str, columns: list[str], named: dict[str, str]) -> str:
    """The text with an identifier in place of each name that is none, and 6N written out as (6*N)."""
    odd = [
        name
        for name in sorted(columns, key=len, reverse=True)
        if re.search(r"[^\W\d]", name)
        and not _is_number(name)
        and (not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name))
        and name not in _WORDS_OF_LOGIC
    ]
    patterns = [
        (r"(?<![\w.])" if re.match(r"\w", name) else "")
        + re.escape(name)
        + (r"(?!\w)" if re.search(r"\w$", name) else "")
        for name in odd
    ]
    tokens = re.compile(
        r"(?P<string>'[^']*'|\"[^\"]*\")|`(?P<quoted>[^`]*)`"
        + (f"|(?P<odd>{'|'.join(patterns)})" if patterns else "|(?P<odd>(?!))")
        + f"|{_PRODUCT}"
    )

    def replace(match: re.Match[str]) -> str:
        if match["string"] is not None:
            return match[0]
        if match["number"] is not None:
            if match["power"]:
                raise UserError(
                    f"`{shown(text)}` is no expression: write {match['number']}*{match['name']} with its sign"
                )
            return f"({match['number']}*{match['name']})"
        column = match["odd"] if match["odd"] is not None else match["quoted"]
        stand_in = f"{_STAND_IN}{len(named)}"
        named[stand_in] = column
        return f" {stand_in} "

    return tokens.sub(replace, text)


def _is_number(name: str) -> bool:
    try:
        return not math.isnan(float(name))
    except ValueError:
        return False


def of_columns(name: str, columns: Iterable[str]) -> str:
    """The end of a message about an unknown column: the nearest one, and all."""
    columns = list(columns)
    near = [column for column in columns if column.lower() == name.lower()]
    near += difflib.get_close_matches(name[:SHOWN], columns, n=1, cutoff=0.5)
    return (f"did you mean `{near[0]}`? " if near else "") + f"columns: {', '.join(columns)}"


def check(expression: Expression, kinds: Mapping[str, Kind]) -> ValueKind:
    """What an expression is, over columns of these kinds.

    Raises `UserError` for an unknown column or function, for words where numbers are needed, for arithmetic on
    constants that has no finite result, and for anything else that `upcycle.laws.tables.arithmetic` could not evaluate.
    """
    try:
        return _Checker(expression.named, kinds).value(expression.tree)
    except UserError as error:
        raise UserError(f"`{shown(expression.text)}`: {error}") from None


def check_condition(expression: Expression, kinds: Mapping[str, Kind]) -> None:
    """Raise `UserError` as `check` does, and for an expression that does not hold or not for each row."""
    if check(expression, kinds) != "truth":
        raise UserError(f"`{shown(expression.text)}` must hold or not for each row, as D >= 1e9 does")


@dataclass(frozen=True)
class _Checker:
    named: Mapping[str, str]
    kinds: Mapping[str, Kind]

    def value(self, node: ast.expr) -> ValueKind:
        """Of any expression."""
        match node:
            case ast.Constant(value=bool()):
                return "truth"
            case ast.Constant(value=str()):
                return "word"
            case ast.Constant(value=int() | float()):
                self.constant(node)
                return "number"
            case ast.Name():
                return self.column(node)
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                self.number(node.left)
                self.number(node.right)
                self.constant(node)
                return "number"
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                return self.truths(node.left, node.right)
            case ast.BinOp(op=ast.BitXor()):
                raise UserError("write ** for a power")
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                self.number(node.operand)
                return "number"
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                return self.truths(node.operand)
            case ast.BoolOp():
                return self.truths(*node.values)
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
        raise UserError(
            f"`{self.source(node)}` is not understood; there are + - * / // % **, comparisons, and, or, not, in, "
            f"{', '.join(FUNCTIONS)}, notna, isna"
        )

    def source(self, node: ast.AST) -> str:
        """A part of the expression as the user wrote it, about."""
        text = re.sub(rf"\b{_STAND_IN}\d+\b", lambda match: self.named.get(match[0], match[0]), ast.unparse(node))
        return shown(text)

    def column(self, node: ast.Name) -> Kind:
        """A column by name."""
        name = self.named.get(node.id, node.id)
        if name not in self.kinds:
            raise UserError(f"there is no column `{shown(name)}`; {of_columns(name, self.kinds)}")
        return self.kinds[name]

    def number(self, node: ast.expr) -> None:
        """A value for arithmetic."""
        self.is_number(node, self.value(node))

    def is_number(self, node: ast.expr, kind: ValueKind) -> None:
        """Raise `UserError` for a part that holds words."""
        if kind in ("words", "word"):
            raise UserError(f"`{self.source(node)}` holds words, where a number is needed")

    def constant(self, node: ast.expr) -> float | None:
        """The value of arithmetic on constants alone, None for any other; it is finite."""
        try:
            match node:
                case ast.Constant(value=int() | float() as value):
                    found = float(value)
                case ast.UnaryOp(op=ast.USub() | ast.UAdd()) if (one := self.constant(node.operand)) is not None:
                    found = -one if isinstance(node.op, ast.USub) else one
                case ast.BinOp() if (
                    type(node.op) in ARITHMETIC
                    and (left := self.constant(node.left)) is not None
                    and (right := self.constant(node.right)) is not None
                ):
                    found = ARITHMETIC[type(node.op)](left, right)
                case ast.Call(func=ast.Name(id=name), args=[of]) if (
                    name in FUNCTIONS and (argument := self.constant(of)) is not None
                ):
                    found = FUNCTIONS[name](argument)
                case _:
                    return None
        except (ArithmeticError, ValueError):
            found = math.nan
        if isinstance(found, complex) or not math.isfinite(found):
            raise UserError(f"`{self.source(node)}` is no finite number")
        return found

    def truths(self, *nodes: ast.expr) -> ValueKind:
        """Conditions."""
        for node in nodes:
            if self.value(node) != "truth":
                raise UserError(
                    f"`{self.source(node)}` is no condition: compare it, and put comparisons in parentheses"
                )
        return "truth"

    def call(self, node: ast.Call) -> ValueKind:
        """A function of one argument."""
        name = node.func.id if isinstance(node.func, ast.Name) else self.source(node.func)
        if name not in (*FUNCTIONS, "notna", "isna"):
            raise UserError(f"there is no function `{shown(name)}`; {nearest(name, (*FUNCTIONS, 'notna', 'isna'))}")
        if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
            raise UserError(f"`{self.source(node)}`: {name} takes one argument")
        if name in FUNCTIONS:
            self.number(node.args[0])
            self.constant(node)
            return "number"
        if self.value(node.args[0]) == "word":
            raise UserError(f"`{self.source(node)}`: {name} takes a column")
        return "truth"

    def comparison(self, node: ast.Compare) -> ValueKind:
        """A chain of comparisons, each part of it checked once (nested ones would take time without bound)."""
        left, kind = node.left, self.value(node.left)
        for relation, right in zip(node.ops, node.comparators, strict=True):
            if not isinstance(relation, (ast.In, ast.NotIn)):
                right_kind = self.value(right)
                self.compared(relation, left, kind, right, right_kind)
                left, kind = right, right_kind
            elif right is not node.comparators[-1]:
                raise UserError(f"`{self.source(node)}`: put the part with `in` in parentheses")
            else:
                self.membership(left, kind, right)
        return "truth"

    def compared(self, relation: ast.cmpop, left: ast.expr, a: ValueKind, right: ast.expr, b: ValueKind) -> None:
        """One comparison, of kinds `a` and `b`: of numbers, or of words by == and !=."""
        if type(relation) not in COMPARISONS:
            raise UserError("`is` is not understood; write ==, or notna(column) and isna(column)")
        if not compares_words(a, b):
            self.is_number(left, a)
            self.is_number(right, b)
            return
        for kind, side, other in ((a, left, right), (b, right, left)):
            if kind in ("number", "truth"):
                wrong = f"`{self.source(side)}` holds no words"
                raise UserError(f"{wrong}: compare it with a number, not with {self.source(other)}")
        if not isinstance(relation, (ast.Eq, ast.NotEq)):
            raise UserError(f"`{self.source(left)}` holds words: compare it by ==, != or in")

    def membership(self, left: ast.expr, kind: ValueKind, right: ast.expr) -> None:
        """A value in a list of values, or a word within the words of a column."""
        if isinstance(right, (ast.Tuple, ast.List, ast.Set)):
            for item in right.elts:
                self.compared(ast.Eq(), left, kind, item, self.value(item))
        elif kind != "word" or self.value(right) not in ("words", "mixed"):
            raise UserError(f"`{self.source(right)}` is no list: write in ('a', 'b'), or == for one value")


def compares_words(a: ValueKind, b: ValueKind) -> bool:
    """Whether values of these kinds are compared as words: one is a word, or both are columns of words."""
    return "word" in (a, b) or all(kind in ("words", "mixed") for kind in (a, b))
