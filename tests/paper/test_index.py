"""docs/paper.md and the labels in the source say the same."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from upcycle.study.registry import law_names
from upcycle.study.study import load_study

ROOT = Path(__file__).parents[2]
LABEL = re.compile(r"^(Equation \d+|Figure \d+|Table \d+|Requirement \d+|Section [A-F](?:\.\d+)?)\. ")
ROW = re.compile(r"^\| (\S+ \S+) \| (.+?) \| (\S+) \| (.+?) \|$", re.MULTILINE)
POINTER = re.compile(r"^`(upcycle[\w.]*)::(\w+)`$")
SMALL_STUDIES = ["config.yaml", "config/ablations.yaml", "config/chance.yaml"]
"""Studies of small models that are trained for real."""
SECTIONS = {"A": 10, "C": 3, "D": 2, "E": 3, "F": 3}
ITEMS = {
    *(f"Equation {n}" for n in range(1, 20)),
    *(f"Figure {n}" for n in range(1, 17)),
    *(f"Table {n}" for n in range(1, 9)),
    *(f"Requirement {n}" for n in range(1, 5)),
    *(f"Section {letter}.{n}" for letter, count in SECTIONS.items() for n in range(1, count + 1)),
    "Section B",
}


def labels_in(source: Path, root: Path) -> list[tuple[str, str]]:
    """(label, module::symbol) of each function, class and documented constant of a module or its classes."""
    module = ".".join(source.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    found = []
    tree = ast.parse(source.read_text(encoding="utf-8"))
    scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in (scope.body for scope in scopes):
        for node, following in zip(body, [*body[1:], None], strict=False):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name, text = node.name, ast.get_docstring(node) or ""
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                name, text = ast.unparse(target), str(following.value.value) if documented else ""
            else:
                continue
            if match := LABEL.match(text):
                found.append((match.group(1), f"{module}::{name}"))
    return found


@cache
def all_labels() -> list[tuple[str, str]]:
    root = ROOT / "src"
    return [label for source in sorted(root.rglob("*.py")) for label in labels_in(source, root)]


def rows() -> list[tuple[str, str, str, str]]:
    """(item, what it is, how far it was run, where it is) of each row."""
    return ROW.findall((ROOT / "docs" / "paper.md").read_text(encoding="utf-8"))


def index() -> list[tuple[str, str, str]]:
    return [(item, what, where) for item, what, _, where in rows()]


def test_every_item_of_the_paper_has_one_row():
    assert Counter(item for item, _, _ in index()) == Counter(ITEMS)


def test_no_label_is_used_twice():
    places: dict[str, list[str]] = {}
    for label, place in all_labels():
        places.setdefault(label, []).append(place)
    assert {label: where for label, where in places.items() if len(where) > 1} == {}


def test_every_label_of_the_source_is_where_the_index_says():
    pointed = {item: "::".join(match.groups()) for item, _, where in index() if (match := POINTER.match(where))}
    assert {label: place for label, place in all_labels() if pointed.get(label) != place} == {}


def test_every_pointer_of_the_index_exists_and_carries_its_label():
    labelled = set(all_labels())
    missing = [
        (item, where)
        for item, _, where in index()
        if "::" in where
        and ((match := POINTER.match(where)) is None or (item, "::".join(match.groups())) not in labelled)
    ]
    assert missing == []


def test_every_row_without_a_pointer_says_why():
    reasons = ("Not reproduced: ", "See ")
    assert [item for item, _, where in index() if "::" not in where and not where.startswith(reasons)] == []


def test_a_label_is_found_in_functions_classes_and_documented_constants(tmp_path):
    source = tmp_path / "pkg" / "part.py"
    source.parent.mkdir()
    text = 'def f():\n    """Equation 3. A law."""\nLAW = 1\n"""Table 2. A table."""\n'
    source.write_text(text + '# Figure 1. No.\nX = "Figure 1. No."\n')
    assert labels_in(source, tmp_path) == [("Equation 3", "pkg.part::f"), ("Table 2", "pkg.part::LAW")]


def test_how_far_an_item_was_run_is_what_the_studies_say():
    """Laws and products of the small studies are run for real, those of config/paper.yaml alone are rehearsed."""
    small, paper = ([load_study(ROOT / path) for path in paths] for paths in (SMALL_STUDIES, ["config/paper.yaml"]))
    claimed = {item: run for item, _, run, _ in rows()}
    assert set(claimed.values()) == {"small", "rehearsed", "neither"}
    checked = set()
    for item, _, run, where in rows():
        pointer = POINTER.match(where)
        if pointer and pointer[1].startswith("upcycle.paper."):
            name = pointer[2].replace("_", "")
            in_study = [
                any(name in study.figures or name in study.tables for study in studies) for studies in (small, paper)
            ]
        elif pointer and pointer[2] in law_names() and not law_names()[pointer[2]].of_fits:
            in_study = [
                pointer[2] in {fit.law for study in studies for fit in study.fits.values()}
                for studies in (small, paper)
            ]
        elif where.startswith("Not reproduced"):
            in_study = [False, False]
        elif same := re.fullmatch(r"See (\S+ \d+)", where):
            assert run == claimed[same[1]], item
            checked.add(item)
            continue
        else:
            continue
        assert run == ("small" if in_study[0] else "rehearsed" if in_study[1] else "neither"), item
        checked.add(item)
    assert len(checked) > 40
