"""Payloads are turned into JSON once, and refused in words where jsonb would refuse them."""

import copy
import json
import math
import pickle
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgfifo.errors import InvalidValue
from pgfifo.jsontext import JsonText, array, dumps, dumps_each

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def loop() -> list[object]:
    result: list[object] = []
    result.append(result)
    return result


def deep() -> list[object]:
    result: list[object] = []
    for _ in range(100_000):
        result = [result]
    return result


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
        ({"a": {1, 2}}, "set"),
        (math.nan, "NaN"),
        ([math.inf], "infinity"),
        ({"a": "b\0c"}, "NUL"),
        ({"a\0": 1}, "NUL"),
        ("\ud800", "surrogate"),
        (loop(), "Circular"),
        ({(1, 2): 3}, "keys must be"),
    ],
)
def test_what_jsonb_cannot_store_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(InvalidValue, match=reason) as caught:
        dumps_each([1, value], "payload")
    assert caught.value.detail["index"] == 1
    assert "payload of item 1" in str(caught.value)


def test_endless_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(InvalidValue, match="nested too deeply"):
        dumps(deep())


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert json.loads(dumps("\\u0000")) == "\\u0000"


def test_text_that_is_json_already_is_sent_as_it_is() -> None:
    assert dumps(JsonText('{"n": 1.00}')) == '{"n": 1.00}'
    assert dumps('{"n": 1.00}') == r'"{\"n\": 1.00}"'


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.lists(st.one_of(TEXT, st.none(), st.just("null"), st.just("NULL"), st.just('"')), max_size=5))
def test_an_array_arrives_as_it_was(conn: psycopg.Connection, texts: list[str | None]) -> None:
    assert conn.execute("select %s::text[]", (array(texts),)).fetchone() == (texts,)


def test_the_item_with_a_nul_character_is_named() -> None:
    for texts in (["a", "b\0"], ["a", "b\0", None]):
        with pytest.raises(InvalidValue, match="NUL") as caught:
            array(texts)
        assert caught.value.detail["index"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{bad", "column 2"),
        ("", "column 1"),
        ("NaN", "NaN is not JSON"),
        ('"\\u0000"', "u0000"),
        ('"\\ud800"', "surrogate"),
        ('"\ud800"', "surrogate"),
        ("1e999999", "out of range"),
        ("[" * 600 + "]" * 600, "nested"),
        ("'single'", "column 1"),
    ],
)
def test_text_that_is_no_json_is_refused_where_it_is_called_so(text: str, reason: str) -> None:
    with pytest.raises(InvalidValue, match=reason) as caught:
        JsonText(text)
    assert caught.value.hint or "nested" in reason


@pytest.mark.parametrize("odd", [5, None, b"{}", {"a": 1}])
def test_what_is_no_text_is_no_json_text(odd: object) -> None:
    with pytest.raises(InvalidValue, match=f"no text but a {type(odd).__name__}"):
        JsonText(odd)  # type: ignore[arg-type]


def test_json_text_survives_being_copied() -> None:
    text = JsonText('{"n": 1.00}')
    assert [copy.deepcopy(text), pickle.loads(pickle.dumps(text))] == [text, text]
    assert type(copy.copy(text)) is JsonText
