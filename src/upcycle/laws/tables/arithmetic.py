"""Evaluates expressions over the columns of a table (`upcycle.study.expressions` parses and checks them)."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upcycle.laws.tables.table_files import Cells, as_number
from upcycle.study.expressions import ARITHMETIC, COMPARISONS, FUNCTIONS, Expression, Kind, check, check_condition

Value = Cells | float | str | bool
"""Of an expression: a value for each row, or one for all."""

_LOGIC: dict[type, Callable[[Any, Any], Any]] = {
    **dict.fromkeys((ast.And, ast.BitAnd), np.logical_and),
    **dict.fromkeys((ast.Or, ast.BitOr), np.logical_or),
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {name: getattr(np, name) for name in FUNCTIONS}


def evaluate_expression(expression: Expression, columns: Mapping[str, Cells]) -> Value:
    """The value of an expression over a table: numbers or truths [N], a column of words as it is, or a constant.

    Raises `UserError` as `check` does.
    """
    check(expression, _kinds(expression, columns))
    return _value(expression, columns)


def truths(
    expression: Expression, columns: Mapping[str, Cells], kinds: Mapping[str, Kind] | None = None
) -> NDArray[np.bool_]:
    """Whether a condition holds in each row [N]; no comparison holds with a missing number, except `!=`.

    `kinds`: of the columns; None: as their values are. Raises `UserError` as `evaluate_expression` does, and if the
    expression is no condition.
    """
    check_condition(expression, kinds or _kinds(expression, columns))
    held = np.asarray(_value(expression, columns))
    return np.array(np.broadcast_to(held, len(next(iter(columns.values())))))


def _value(expression: Expression, columns: Mapping[str, Cells]) -> Value:
    with np.errstate(all="ignore"):  # NaN and infinity are found where the values are used
        return _Evaluator(expression.named, columns).value(expression.tree)


def _kinds(expression: Expression, columns: Mapping[str, Cells]) -> dict[str, Kind]:
    """Kinds of the columns that an expression names; the others, which make a message only, are not looked at."""
    named = set(expression.columns)
    return {name: kind_of(cells) if name in named else "number" for name, cells in columns.items()}


def kind_of(cells: Cells) -> Kind:
    """What a column holds."""
    if cells.dtype == bool:
        return "truth"
    found = numbers(cells)
    if cells.dtype == object:
        return "mixed" if np.isfinite(found).any() else "words"
    return "blank" if np.isnan(found).all() else "number"


def numbers(value: Value) -> NDArray[np.float64] | float:
    """A value as numbers; NaN where a word is none."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return np.array([as_number(cell) for cell in value], dtype=np.float64)
        return value.astype(np.float64)
    return float(value) if isinstance(value, bool | np.bool_) else as_number(value)


@dataclass(frozen=True)
class _Evaluator:
    """Of expressions that passed `check`: each part is evaluated once."""

    named: Mapping[str, str]
    columns: Mapping[str, Cells]

    def value(self, node: ast.expr) -> Value:
        """Of any expression."""
        match node:
            case ast.Constant(value=bool() | str() | int() | float() as constant):
                return constant if isinstance(constant, bool | str) else float(constant)
            case ast.Name():
                return self.columns[self.named.get(node.id, node.id)]
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                return _LOGIC[type(node.op)](self.value(node.left), self.value(node.right))
            case ast.BinOp():
                return ARITHMETIC[type(node.op)](np.float64(1) * self.number(node.left), self.number(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -self.number(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.number(node.operand)
            case ast.UnaryOp():
                return np.logical_not(self.value(node.operand))
            case ast.BoolOp():
                return reduce(_LOGIC[type(node.op)], map(self.value, node.values))
            case ast.Compare():
                return self.comparison(node)
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                return self.call(name, argument)
        raise AssertionError(f"{ast.dump(node)} passed the check")

    def number(self, node: ast.expr) -> NDArray[np.float64] | float:
        """A value for arithmetic: cells that are no numbers become NaN."""
        return numbers(self.value(node))

    def call(self, name: str, argument: ast.expr) -> Value:
        """A function of one argument."""
        value = self.value(argument)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](numbers(value))
        if isinstance(value, np.ndarray) and value.dtype == object:
            there = np.array([cell is not None for cell in value])
        else:
            there = ~np.isnan(np.asarray(value, dtype=np.float64))
        return there if name == "notna" else ~there

    def comparison(self, node: ast.Compare) -> Any:
        """A chain of comparisons."""
        held: Any = True
        left = self.value(node.left)
        for relation, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(relation, (ast.In, ast.NotIn)):
                one = self.membership(left, right)
                held = np.logical_and(held, one if isinstance(relation, ast.In) else np.logical_not(one))
            else:
                value = self.value(right)
                held = np.logical_and(held, compared(relation, left, value))
                left = value
        return held

    def membership(self, left: Value, right: ast.expr) -> Any:
        """A value in a list of values, or a word within the words of a column."""
        if isinstance(right, (ast.Tuple, ast.List, ast.Set)):
            held: Any = np.False_
            for item in right.elts:
                held = np.logical_or(held, compared(ast.Eq(), left, self.value(item)))
            return held
        return np.array([cell is not None and left in cell for cell in np.asarray(self.value(right))])


def compared(relation: ast.cmpop, a: Value, b: Value) -> Any:
    """One comparison: of words if one side is a word or both are columns of words, else of numbers."""
    compare: Callable[[Any, Any], Any] = COMPARISONS[type(relation)]
    worded = any(isinstance(value, str) for value in (a, b)) or all(
        isinstance(value, np.ndarray) and value.dtype == object for value in (a, b)
    )
    if worded:
        return np.asarray(compare(_words(a), _words(b)), dtype=bool)
    return compare(numbers(a), numbers(b))


def _words(value: Value) -> Any:
    """Words to compare; a missing one equals the empty one."""
    if not isinstance(value, np.ndarray):
        return np.asarray(value, dtype=object)
    return np.array([cell if isinstance(cell, str) else "" for cell in value], dtype=object)
