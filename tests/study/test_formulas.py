"""Formulas of laws are read from their text."""

import pytest

from upcycle.study.formulas import Base, Factor, read_formula


def test_each_kind_of_factor():
    formula = read_formula("L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln(1 + D1)) + B (1 + N)^-beta + E")
    D1 = Base("D1", one_plus=True)
    assert formula.terms == (
        (
            Factor("A"),
            Factor("alpha1", Base("D1")),
            Factor("alpha2", Base("D2", one_plus=True, offset="D0"), "alpha3", D1),
        ),
        (Factor("B"), Factor("beta", Base("N", one_plus=True))),
        (Factor("E"),),
    )
    assert formula.inputs == ("D1", "D2", "N")
    assert formula.parameters == ("A", "alpha1", "alpha2", "alpha3", "D0", "B", "beta", "E")


@pytest.mark.parametrize("text", ["L = A (D + 1)^-alpha", "L = A D^-alpha - E", "L = A D^-alpha * 2"])
def test_what_is_no_product_of_powers_is_named(text):
    with pytest.raises(ValueError, match="is not a product of powers"):
        read_formula(text)
