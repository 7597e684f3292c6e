"""Figures and tables are found by name, without importing them."""

import subprocess
import sys

import pytest

from upcycle.errors import UserError
from upcycle.study import catalogue


def test_the_paper_s_items_and_ours_are_found_with_label_title_and_caption():
    of_the_paper = {f"figure{n}" for n in (1, 3, 4, 5, 6, 12, 13, 14, 15, 16)}
    assert set(catalogue.figures()) == of_the_paper | {"overview", "residuals", "thresholds"}
    numbered = {"table1", "table2", "table3", "table4", "table5", "table6", "table8"}
    assert set(catalogue.tables()) == numbered | {"laws", "audit"}
    item = catalogue.find("figure4")
    assert (item.label, item.function, item.parameters) == ("Figure 4", "figure_4", ("sweep", "model"))
    assert item.title.startswith("Loss against D2")
    assert "Equation 10" in item.caption
    assert catalogue.find("overview").label == ""


def test_names_are_found_without_importing_matplotlib_pandas_or_torch():
    code = (
        "import sys; from upcycle.study import catalogue; catalogue.find('figure3');"
        "heavy = {'matplotlib', 'pandas', 'torch', 'numpy', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_item_loads_what_it_names():
    for name, item in catalogue.catalogue().items():
        assert item.load().__name__ == item.function, name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="no figure `figure7`; did you mean `figure"):
        catalogue.find("figure7", "figure")


def test_a_table_is_no_figure():
    with pytest.raises(UserError, match="no figure `table1`"):
        catalogue.find("table1", "figure")


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"figures.figure4.sweeps: unknown option; did you mean `sweep`"):
        catalogue.find("figure4").check({"sweeps": "upcycled"})


def test_a_name_defined_twice_is_refused(tmp_path):
    text = 'def figure_4(inputs: Inputs) -> Figure:\n    """Figure 4. A."""\n'
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text(text)
    with pytest.raises(ValueError, match=r"`figure4` is already in a\.py"):
        catalogue.catalogue(tmp_path)
