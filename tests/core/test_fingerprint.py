"""Code fingerprints: an edit of what a product uses changes it; a comment, a docstring or a neighbour does not."""

import pytest

from upcycle import fingerprint as module

FIGURES = '''
"""Module docstring."""
from upcycle.style import colour

SIZE = 3


def figure_1(inputs):
    """Figure 1. Caption."""
    return _axes(inputs, SIZE)


def figure_2(inputs):
    return inputs


def _axes(inputs, size):
    return colour(inputs) * size
'''
STYLE = "def colour(x):\n    return x + 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the real one; returns a function that rewrites a file and empties the caches."""
    monkeypatch.setattr(module, "PACKAGE_ROOT", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            tmp_path.joinpath(f"{name}.py").write_text(text)
        forget()

    write(figures=FIGURES, style=STYLE)
    yield write
    forget()


def forget() -> None:
    for cached in (module.module_path, module._source):
        cached.cache_clear()


def prints() -> tuple[str, str]:
    return module.fingerprint("upcycle.figures:figure_1"), module.fingerprint("upcycle.figures:figure_2")


def test_comments_docstrings_and_blank_lines_change_nothing(package):
    before = prints()
    edited = FIGURES.replace('"""Figure 1. Caption."""', '"""Figure 1. Another caption."""\n\n    # a comment')
    package(figures=edited)
    assert prints() == before


@pytest.mark.parametrize(
    "edit", [("SIZE = 3", "SIZE = 4"), ("* size", "+ size"), ("_axes(inputs, SIZE)", "_axes(inputs, SIZE + 1)")]
)
def test_an_edit_reaches_the_functions_that_use_it(package, edit):
    """A constant, a private function or the body of figure 1 changes figure 1 and leaves figure 2."""
    before = prints()
    package(figures=FIGURES.replace(*edit))
    after = prints()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_an_imported_module_counts_whole_and_only_where_used(package):
    before = prints()
    package(style=STYLE.replace("+ 1", "+ 2"))
    after = prints()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_function_that_is_not_there_is_an_error(package):
    with pytest.raises(KeyError, match="figure_3"):
        module.fingerprint("upcycle.figures:figure_3")
