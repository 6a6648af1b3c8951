"""The mutations themselves: each still applies, and its tests exist. `make mutations` runs them."""

import ast

import pytest

from pgfifo.schema import sql_text
from tests.mutations import MUTATIONS, ROOT, Mutation

REQUIRED = {"enqueue lock", "read after lock", "attempt check", "mark on completion"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_still_applies_exactly_once(mutation: Mutation) -> None:
    assert mutation.apply(sql_text()) != sql_text()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_tests_that_must_notice_it_exist(mutation: Mutation) -> None:
    for test in mutation.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name in names, test


def test_the_four_safeguards_that_count_are_among_them() -> None:
    assert {mutation.name for mutation in MUTATIONS} >= REQUIRED


def test_a_text_that_is_not_there_exactly_once_is_an_error() -> None:
    mutation = Mutation("twice", "order", (("a", "b"),), ())
    with pytest.raises(ValueError, match="2 times"):
        mutation.apply("a a")
    with pytest.raises(ValueError, match="0 times"):
        mutation.apply("b")
