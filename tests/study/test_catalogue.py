"""Figures and tables are found by name, without importing them."""

import subprocess
import sys

import pytest

from upcycle.errors import UserError
from upcycle.study import catalogue


def test_the_paper_s_items_and_ours_are_found_with_label_title_and_caption():
    of_the_paper = {f"figure{n}" for n in range(1, 17) if n != 2}
    assert set(catalogue.catalogue("figure")) == of_the_paper | {
        "continued",
        "forecast_errors",
        "learning_rates",
        "methods",
        "overview",
        "residuals",
        "routing",
        "thresholds",
    }
    numbered = {f"table{n}" for n in range(1, 9)}
    assert set(catalogue.catalogue("table")) == numbered | {
        "audit",
        "crossings",
        "floors",
        "forecasts",
        "laws",
        "methods_compared",
        "methods_law",
        "parameters",
    }
    item = catalogue.find_item("figure4")
    assert (item.label, item.function, list(item.parameters)) == ("Figure 4", "figure_4", ["sweep", "model"])
    assert item.title.startswith("Loss against D2")
    assert "Equation 10" in item.caption
    assert catalogue.find_item("overview").label == ""
    assert catalogue.find_item("figure11").defaults == {"sweeps": ("japanese", "code"), "model": None}


def test_names_are_found_without_importing_matplotlib_pandas_or_torch():
    code = (
        "import sys; from upcycle.study import catalogue; catalogue.find_item('figure3');"
        "heavy = {'matplotlib', 'pandas', 'torch', 'numpy', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_item_loads_what_it_names():
    for name, item in catalogue.catalogue().items():
        assert item.load().__name__ == item.function, name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="no figure `figure2`; did you mean `figure"):
        catalogue.find_item("figure2", "figure")


def test_a_table_is_no_figure():
    with pytest.raises(UserError, match="no figure `table1`"):
        catalogue.find_item("table1", "figure")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("figure4", {"sweeps": "upcycled"}, r"figures\.figure4\.sweeps: unknown option; did you mean `sweep`"),
        ("figure4", {"sweep": ["a"]}, r"figures\.figure4\.sweep: .* valid string \(given: \['a'\]\)"),
        ("figure4", {"sweep": {"a": 1}}, r"figures\.figure4\.sweep: .* valid string"),
        ("figure4", {"model": 1}, r"figures\.figure4\.model: .* valid string \(given: 1\)"),
        ("figure15", {"sizes": 1e9}, r"figures\.figure15\.sizes: .* valid list"),
        ("figure15", {"sizes": []}, r"figures\.figure15\.sizes: .* at least 1 item"),
        ("figure15", {"sizes": [1e9, "big"]}, r"figures\.figure15\.sizes\.1: 'big' is not a number"),
        ("figure15", {"sizes": [0]}, r"figures\.figure15\.sizes\.0: .* greater than 0"),
        ("figure15", {"sizes": [True]}, r"figures\.figure15\.sizes\.0: True is not a number"),
        ("table6", {"sweeps": "auxiliary"}, r"tables\.table6\.sweeps: .* valid list"),
        ("audit", {"everything": "yes"}, r"tables\.audit\.everything: .* valid boolean"),
    ],
)
def test_an_option_that_cannot_be_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        catalogue.find_item(name).read(options)


def test_options_are_read_as_the_annotation_says():
    """YAML leaves `1e9` a string."""
    assert catalogue.find_item("figure15").read({"sizes": ["1e9", 7]}) == {"sizes": [1e9, 7.0]}
    assert catalogue.find_item("figure4").read({"sweep": None, "model": "tiny"}) == {"sweep": None, "model": "tiny"}


def test_every_option_has_a_type_that_a_study_is_checked_for():
    for item in catalogue.catalogue().values():
        for option in item.parameters:
            with pytest.raises(UserError, match=rf"{item.kind}s\.{item.name}\.{option}"):
                item.read({option: object()})


def test_an_option_of_a_type_that_nothing_checks_is_the_author_s_mistake(tmp_path):
    text = 'def figure_4(inputs: Inputs, colours: dict[str, str]) -> Figure:\n    """Figure 4. A."""\n'
    (tmp_path / "figures_a.py").write_text(text)
    with pytest.raises(ValueError, match=r"cannot be of type `dict\[str, str\]`"):
        catalogue.catalogue(folder=tmp_path)["figure4"].read({"colours": {}})


def test_an_item_that_reads_no_losses_is_the_same_for_every_study():
    assert [name for name, item in catalogue.catalogue().items() if not item.of_study] == ["audit"]


def test_a_name_defined_twice_is_refused(tmp_path):
    text = 'def figure_4(inputs: Inputs) -> Figure:\n    """Figure 4. A."""\n'
    (tmp_path / "figures_a.py").write_text(text)
    (tmp_path / "figures_b.py").write_text(text)
    with pytest.raises(ValueError, match=r"`figure4` is already in figures_a\.py"):
        catalogue.catalogue(folder=tmp_path)
