"""What planning reads of the laws' source is what the laws are."""

import pytest

from upcycle.laws.forms import LAWS
from upcycle.model.upcycling_methods import METHODS
from upcycle.study.methods import UpcyclingSpec
from upcycle.study.registry import law_names, method_parameters, moving_methods


def test_every_law_is_found():
    assert set(law_names()) == set(LAWS)


@pytest.mark.parametrize("name", LAWS)
def test_a_laws_names_are_read_from_its_source(name):
    read, law = law_names()[name], LAWS[name]
    assert read.inputs == law.inputs
    assert sorted(read.parameters) == sorted(law.names)
    assert read.of_fits == (law.source is not None)


def test_methods_and_the_defaults_of_their_parameters_are_found():
    """All are fields of a run's identity, and every such field belongs to a method."""
    assert set(method_parameters()) == set(METHODS)
    for name, method in METHODS.items():
        assert method_parameters()[name] == (method.make.__kwdefaults__ or {})
    own = {field for fields in method_parameters().values() for field in fields}
    assert own | {"optimizer"} == set(UpcyclingSpec.model_fields)
    assert set(moving_methods()) == {name for name, method in METHODS.items() if method.moves}
