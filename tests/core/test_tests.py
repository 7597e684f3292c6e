"""No test needs another: shared code is in tests/support, so any files can be run together or alone."""

import ast
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
FILES = sorted(TESTS.rglob("*.py"))
SUPPORT = {path.stem for path in FILES if path.parent.name == "support"}
SCRIPTS = [*FILES, *sorted((REPOSITORY / "benchmarks").glob("*.py"))]


def imports(tree: ast.Module) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import by dots"
            found.add(str(node.module))
    return found


def written(tree: ast.Module) -> set[str]:
    """Dotted names as they are written, `sys.path` for one."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_file_imports_no_test_and_edits_no_path(path: Path) -> None:
    tree = ast.parse(path.read_text())
    others = {path.stem for path in FILES} - SUPPORT | {"tests"}
    assert not {name.partition(".")[0] for name in imports(tree)} & others
    assert not {name for name in written(tree) if name == "sys.path" or name.endswith(".syspath_prepend")}


def test_names_of_test_files_are_unique() -> None:
    names = Counter(path.name for path in FILES if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    assert list(TESTS.rglob("__init__.py")) == []
