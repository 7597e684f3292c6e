"""Every change that mutate.py makes to the source still applies: its text is there, and so are its tests."""

import mutate


def test_every_mutation_still_applies() -> None:
    gone = [each.name for each in mutate.MUTATIONS if each.old not in (mutate.SOURCE / each.file).read_text()]
    assert not gone, "renew these lines of tests/support/mutate.py"


def test_every_mutation_names_tests_that_exist() -> None:
    named = {name for each in mutate.MUTATIONS for name in each.tests}
    assert [name for name in sorted(named) if not (mutate.TESTS / name).exists()] == []
