"""Imports point down only: between rooms (folders), inside them, and to other people's libraries."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "upcycle"
HEAVY = ("torch", "matplotlib", "pandas", "scipy", "transformers", "snakemake")

LAYERS = (
    ("errors",),
    ("files", "leave", "bars"),
    ("fingerprint", "manifest"),
    ("data",),
    ("study",),
    ("laws.terms",),
    ("laws.law",),
    ("laws.registry",),
    ("laws.forms",),
    ("laws.result", "laws.solver"),
    ("laws.certificate",),
    ("laws.tables",),
    ("laws",),
    ("model.rope", "model.stacks"),
    ("model.native",),
    ("model",),
    ("decisions.published",),
    ("decisions",),
    ("decisions.advice", "decisions.design"),
    ("train.processes",),
    ("train.states",),
    ("train",),
    ("audit.printed", "audit.verdict"),
    ("audit.items",),
    ("audit",),
    ("paper",),
    ("advisor", "report"),
    ("workflow",),
    ("views",),
    ("arguments",),
    ("cli",),
)
"""Rooms and files from the ground up. The longest name that fits a module is its room. Rooms of one line are beside
each other: they do not import one another."""

STRANGERS = (("laws", "model"), ("decisions", "train"), ("laws", "train"), ("decisions", "model"))
"""Rooms that meet in files alone (`metrics.json` to `losses.csv`), though one stands above the other in the list."""

LIBRARIES = {
    "arguments": set(),
    "cli": set(),
    "errors": set(),
    "files": set(),
    "fingerprint": set(),
    "leave": set(),
    "bars": {"rich"},
    "manifest": set(),
    "study": {"pydantic", "yaml"},
    "data": {"huggingface_hub", "numpy", "pyarrow", "tokenizers", "zstandard"},
    "model": {"safetensors", "torch"},
    "laws": {"numpy", "pandas", "pydantic", "scipy"},
    "decisions": {"numpy", "pandas", "scipy"},
    "train": {"datasets", "jinja2", "lm_eval", "numpy", "safetensors", "tokenizers", "torch", "transformers"},
    "advisor": {"bokeh", "jinja2", "markupsafe", "numpy", "pandas"},
    "audit": {"numpy", "pandas", "scipy"},
    "paper": {"matplotlib", "numpy", "pandas", "pydantic", "scipy"},
    "report": {"jinja2", "markupsafe", "pandas"},
    "workflow": {
        "pandas",
        "pydantic",
        "snakemake_executor_plugin_slurm",
        "snakemake_interface_common",
        "snakemake_interface_executor_plugins",
    },
    "views": {"rich"},
}
"""Other people's libraries by room, also where an import is inside a function."""

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imported(module: str) -> tuple[set[str], set[str]]:
    """Our own modules and the libraries that a module imports, anywhere in it."""
    ours, theirs = set(), set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: an import by dots"
            names = [f"{node.module}.{each.name}" for each in node.names]
            names = [name if name.removeprefix("upcycle.") in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "upcycle":
                ours.add(rest)
            elif top not in sys.stdlib_module_names:
                theirs.add(top)
    return ours, theirs


IMPORTS = {module: imported(module) for module in MODULES}


def place(module: str) -> tuple[int, str]:
    """Height and name of a module's room."""
    heights = {name: height for height, names in enumerate(LAYERS) for name in names}
    fitting = [name for name in heights if module == name or module.startswith(f"{name}.")]
    assert fitting, f"{module}: in no room of LAYERS"
    room = max(fitting, key=len)
    return heights[room], room


@pytest.mark.parametrize("module", sorted(set(MODULES) - {""}))
def test_every_arrow_points_down(module: str) -> None:
    height, room = place(module)
    for other in sorted(IMPORTS[module][0] - {""}):
        below, its_room = place(other)
        assert its_room == room or below < height, f"{module} imports {other}, which is not below it"
        pair = tuple(sorted((module.split(".")[0], other.split(".")[0])))
        assert pair not in STRANGERS, f"{module} imports {other}: they meet in files alone"


def test_no_circle_of_files() -> None:
    """Not inside a room either, and no package imports what it holds."""
    try:
        list(TopologicalSorter({module: ours for module, (ours, _) in IMPORTS.items()}).static_order())
    except CycleError as circle:
        pytest.fail(f"imports in a circle: {circle.args[1]}")


def test_every_library_has_its_rooms() -> None:
    used = defaultdict(set)
    for module, (_, theirs) in IMPORTS.items():
        used[module.split(".")[0]] |= theirs
    assert used.pop("") == set()
    assert dict(used) == LIBRARIES


def test_one_name_one_thing() -> None:
    """No two public classes or functions of one name."""
    places = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def loaded_by(names: list[str]) -> set[str]:
    """What is in sys.modules of a new process that imports these, which holds what libraries bring along too."""
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_planning_loads_nothing_heavy() -> None:
    """Every SLURM job parses the Snakefile again: no torch, no matplotlib, no pandas."""
    planning = [f"upcycle.{name}" for name in MODULES if name.split(".")[0] in ("study", "views", "data")]
    parsed = ["upcycle.workflow.dag", "upcycle.workflow.invocation", "upcycle.workflow.needs", "upcycle.workflow.texts"]
    assert not loaded_by([*planning, *parsed]) & set(HEAVY)


def test_laws_and_decisions_load_no_torch() -> None:
    names = [f"upcycle.{name}" for name in MODULES if name.split(".")[0] in ("laws", "decisions", "audit")]
    assert not loaded_by(names) & {"torch", "matplotlib"}


def test_the_fork_servers_client_starts_light() -> None:
    """The client of a training job imports neither pydantic nor numpy, let alone torch."""
    loaded = loaded_by(["upcycle.cli", "upcycle.train.processes.forkserver"])
    assert not loaded & {"torch", "numpy", "pydantic", "yaml"}
