"""The mutations themselves: each still applies, and its tests exist. `make mutations` runs them."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutations import PAGE, rows
from tests.safeguards import MUTATIONS, ROOT, Mutation

REQUIRED = {"enqueue lock", "read after lock", "attempt check", "mark on completion"}

each_of_them = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@cache
def names_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@each_of_them
def test_each_mutation_still_applies_exactly_once(mutation: Mutation) -> None:
    text = (ROOT / mutation.path).read_text()
    assert mutation.apply(text) != text


@each_of_them
def test_the_tests_that_must_notice_it_exist(mutation: Mutation) -> None:
    assert mutation.nodes
    for node in mutation.nodes:
        path, _, name = node.partition("::")
        assert not name or name in names_in(ROOT / path), node


def test_each_has_a_name_of_its_own_and_the_four_that_count_are_among_them() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    assert set(names) >= REQUIRED


def test_the_table_in_the_documentation_has_each_of_them_with_a_test_that_it_names() -> None:
    """As `make mutations` has written it: by a run in which each was noticed."""
    table = rows(PAGE.read_text())
    assert set(table) == {mutation.name for mutation in MUTATIONS}
    for mutation in MUTATIONS:
        _, _, promise, without, path, red, _ = (column.strip() for column in table[mutation.name].split("|"))
        assert (promise, without, path) == (mutation.promise, mutation.without, f"`{mutation.path}`")
        files = [ROOT / node.partition("::")[0] for node in mutation.nodes]
        named = {node.partition("::")[2] for node in mutation.nodes} - {""}
        assert red.strip("`") in (named or set().union(*map(names_in, files))), mutation.name


def test_a_text_that_is_not_there_exactly_once_is_an_error() -> None:
    mutation = Mutation("twice", "order", "", "", (("a", "b"),), ())
    with pytest.raises(ValueError, match="2 times"):
        mutation.apply("a a")
    with pytest.raises(ValueError, match="0 times"):
        mutation.apply("b")
