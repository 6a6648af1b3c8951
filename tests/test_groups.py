"""Groups go to SQL as text, come back as a mapping, and are shown as env=prod."""

import json
import math

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgfifo import groups
from pgfifo.errors import InvalidValue

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**15), 10**15),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)

ODD = st.sampled_from(["true", "null", '"a"', " 1", "1e5", "-0.0", "\u00a01"])
NUMBERS = st.one_of(st.integers(-999, 999).map(str), ODD)


def test_a_mapping_becomes_json_and_text_stays_text() -> None:
    assert groups.to_text({"env": "prod", "n": 1}) == '{"env":"prod","n":1}'
    assert groups.to_text("prod") == "prod"
    assert groups.to_text(None) is None


@pytest.mark.parametrize("given", [7, ["env"], ("env", "prod"), b"prod"])
def test_what_is_no_group_is_refused_with_an_example(given: object) -> None:
    with pytest.raises(InvalidValue, match="mapping or text") as caught:
        groups.to_text(given)  # type: ignore[arg-type]
    assert '{"env": "prod"}' in (caught.value.hint or "")


def test_the_item_of_a_bad_group_in_a_batch_is_named() -> None:
    with pytest.raises(InvalidValue) as caught:
        groups.to_text({"env": math.nan}, 3)
    assert caught.value.detail["index"] == 3


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["env=prod"], {"env": "prod"}),
        (["env=prod", "target.region=eu"], {"env": "prod", "target.region": "eu"}),
        (["n=1"], {"n": 1}),
        (['n="1"'], {"n": "1"}),
        (["flag=true", "gone=null"], {"flag": True, "gone": None}),
        (["url=http://a?b=c"], {"url": "http://a?b=c"}),
        (["empty="], {"empty": ""}),
        (["odd=NaN"], {"odd": "NaN"}),
        (["prod"], "prod"),
        (['{"env":"prod"}'], '{"env":"prod"}'),
    ],
)
def test_a_command_line_gives_a_group_pair_by_pair_or_as_it_is(pairs: list[str], expected: object) -> None:
    assert groups.from_pairs(pairs) == expected


@pytest.mark.parametrize("pairs", [["env=prod", "raw"], ["=x", "a=b"], ["env=prod", "env=test"]])
def test_pairs_that_make_no_group_are_refused(pairs: list[str]) -> None:
    with pytest.raises(InvalidValue):
        groups.from_pairs(pairs)


def test_a_group_is_shown_as_people_read_it() -> None:
    assert groups.display('{"env":"prod","target.region":"eu"}') == "env=prod,target.region=eu"
    assert groups.display('{"n":1,"x":null}') == "n=1,x=null"
    assert groups.display("free key") == "free key"
    assert groups.display("{no json") == "{no json"
    assert groups.display("") == ""
    assert groups.lane("deploy", '{"env":"prod"}') == "deploy env=prod"
    assert groups.lane("deploy", "") == "deploy"


def test_text_that_reads_as_something_else_is_shown_in_quotes() -> None:
    for text in ("1", "-0", "1.5e3", "true", "null", '"x"', " 1 "):
        shown = groups.display(json.dumps({"n": text}))
        assert shown == f"n={json.dumps(text)}"
        assert shown != groups.display(f'{{"n":{text}}}')
    for text in ("01", "1.", "+1", "True", "nil", "1 2", "NaN", "", "[1]"):
        assert groups.display(json.dumps({"n": text})) == f"n={text}"


@given(st.dictionaries(st.sampled_from(["env", "a.b", "ä"]), st.one_of(SCALARS, NUMBERS), min_size=1))
def test_a_group_that_is_shown_can_be_given_again(group: dict[str, object]) -> None:
    shown = [groups.display(json.dumps({path: value})) for path, value in group.items()]
    again = groups.from_pairs(shown)
    assert again == group
    assert isinstance(again, dict)
    assert [type(again[path]) for path in group] == [type(value) for value in group.values()]


def test_a_canonical_group_comes_back_as_a_mapping() -> None:
    assert groups.parse('{"env":"prod"}') == {"env": "prod"}
    assert groups.parse("free key") == "free key"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["env", "a.b", "ä", "Z", "n_1"]), st.one_of(SCALARS, NUMBERS), max_size=4)
)
def test_python_and_sql_show_a_group_alike(conn: psycopg.Connection, group: dict[str, object]) -> None:
    row = conn.execute(
        "select t, pgfifo.format_group(t) from (select pgfifo.group_text('anything', '{}', %s) as t) g",
        (groups.to_text(group),),
    ).fetchone()
    assert row is not None
    canonical, shown = row
    assert groups.parse(canonical) == group
    assert groups.display(canonical) == shown
