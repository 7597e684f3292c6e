"""What planning reads of the laws' source is what the laws are."""

import pytest

from upcycle.laws.forms import LAWS
from upcycle.study.registry import law_names, method_names


def test_every_law_is_found():
    assert set(law_names()) == set(LAWS)


@pytest.mark.parametrize("name", LAWS)
def test_a_laws_names_are_read_from_its_source(name):
    read, law = law_names()[name], LAWS[name]
    assert read.inputs == law.inputs
    assert sorted(read.parameters) == sorted(law.names)
    assert read.of_fits == (law.source is not None)


def test_methods_are_found():
    from upcycle.model.upcycling import METHODS

    assert set(method_names()) == set(METHODS)
