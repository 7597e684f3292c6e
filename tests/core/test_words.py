"""`git grep` of the field's own word finds the one file that defines it."""

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "upcycle"

LABELS = {
    **{f"Equation {n}": "laws/forms/tokens.py" for n in (1, 3, 7, 8, 9, 10, 16)},
    **{f"Equation {n}": "laws/forms/configuration.py" for n in (11, 17, 18)},
    **{f"Equation {n}": "laws/forms/joint.py" for n in (12, 19)},
    **{f"Equation {n}": "decisions/thresholds.py" for n in (2, 13)},
    "Equation 14": "decisions/allocation.py",
    "Equation 15": "model/moe.py",
    "Figure 1": "paper/figures_summary.py",
    **{f"Figure {n}": "paper/figures_data.py" for n in (3, 4, 12)},
    **{f"Figure {n}": "paper/figures_configuration.py" for n in (5, 13)},
    **{f"Figure {n}": "paper/figures_joint.py" for n in (6, 14)},
    **{f"Figure {n}": "paper/figures_decisions.py" for n in (15, 16)},
    "Table 1": "paper/tables_data.py",
    "Table 2": "paper/tables_joint.py",
    **{f"Table {n}": "paper/tables_settings.py" for n in (3, 4, 5, 6)},
}
"""The paper's items: the one docstring that starts with the label."""

NAMES = {
    "wsd": ("wsd_decay", "train/schedule.py"),
    "decay": ("wsd_decay", "train/schedule.py"),
    "cosine": ("cosine", "train/schedule.py"),
    "warm-up": ("warm_up", "train/schedule.py"),
    "trunk": ("trunk_point", "study/sweep.py"),
    "router": ("Router", "model/moe.py"),
    "mixture of experts": ("MoE", "model/moe.py"),
    "balance loss": ("balance_loss", "model/moe.py"),
    "copy": ("copy", "model/upcycling_methods.py"),
    "upcycle": ("upcycle", "model/upcycling.py"),
    "attention": ("Attention", "model/attention.py"),
    "rope": ("rope_tables", "model/rope.py"),
    "transformer": ("Transformer", "model/transformer.py"),
    "swiglu": ("swiglu", "model/torch_kernels.py"),
    "d_star": ("d_star", "decisions/thresholds.py"),
    "leave one out": ("leave_one_out", "laws/certificate/validate.py"),
    "bootstrap": ("bootstrap", "laws/certificate/validate.py"),
    "chinchilla": ("chinchilla", "laws/forms/tokens.py"),
    "multiplicative": ("multiplicative", "laws/forms/tokens.py"),
    "additive": ("additive", "laws/forms/tokens.py"),
    "huber": ("huber", "laws/solver/solve.py"),
    "flops per token": ("flops_per_token", "study/counting.py"),
    "losses.csv": ("collect_losses", "laws/tables/losses.py"),
    "advise": ("run_advise", "decisions/advice/advice.py"),
}
"""The field's word: the function or class that is the thing, and its file."""


def files_with(pattern: str) -> list[str]:
    """Files of the source with a line that matches, as `git grep -l -E` lists them."""
    expression = re.compile(pattern, re.MULTILINE)
    return [
        str(path.relative_to(SOURCE)) for path in sorted(SOURCE.rglob("*.py")) if expression.search(path.read_text())
    ]


@pytest.mark.parametrize(("label", "file"), LABELS.items())
def test_an_item_of_the_paper_has_one_file(label: str, file: str) -> None:
    assert files_with(rf'"""{label}\. ') == [file]


@pytest.mark.parametrize(("word", "name", "file"), [(word, *place) for word, place in NAMES.items()])
def test_a_word_of_the_field_has_one_file(word: str, name: str, file: str) -> None:
    assert files_with(rf"^(def|class) {name}\b") == [file], word
