"""Every refusal has a class of its own, in SQL and in Python, on any connection of the process."""

import asyncio
import json
import pickle
import re
from pathlib import Path

import psycopg
import pytest

import pgfifo
from pgfifo import errors
from pgfifo.errors import PgfifoError

BY_CODE = {
    "QF001": "QueueFull",
    "QF002": "ConcurrencyLimit",
    "QF003": "RateLimit",
    "QF004": "QuotaExceeded",
    "QF005": "ActionClosed",
    "QF006": "UnknownAction",
    "QF007": "GroupMismatch",
    "QF008": "GroupTooLong",
    "QF009": "PayloadTooLarge",
    "QF010": "LeaseLost",
    "QF011": "AlreadyHeld",
    "QF012": "SlotTimeout",
    "QF013": "SlotLost",
    "QF014": "ExecutionFailed",
    "QF015": "SchemaMissing",
    "QF016": "SchemaMismatch",
    "QF017": "CommitUnknown",
    "QF018": "InTransaction",
    "QF019": "IsolationLevel",
    "QF020": "TooManyLanes",
    "QF021": "UnknownExecution",
    "QF022": "InvalidValue",
    "QF023": "Busy",
    "QF024": "WaitTimeout",
    "QF025": "InvalidPayload",
    "QF026": "NotPermitted",
    "QF027": "EventsGone",
}
RAISE = """
    do $$ begin
      raise exception using errcode = '%s',
        message = 'it is full', detail = '{"action":"deploy","limit":10}', hint = 'wait';
    end $$
"""


def public() -> list[type[PgfifoError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, PgfifoError) and not kind.__name__.startswith("_")
    ]


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    drawn = dict(re.findall(r"─ (\w+) +(QF\d{3}|40001)", errors.__doc__ or ""))
    assert drawn == {kind.__name__: kind.sqlstate for kind in public() if kind is not PgfifoError}
    assert {code: name for name, code in drawn.items() if code != "40001"} == BY_CODE


@pytest.mark.parametrize(("code", "name"), BY_CODE.items())
def test_psycopg_raises_our_class_for_our_sqlstate(conn: psycopg.Connection, code: str, name: str) -> None:
    """Hold the keyword ``code=`` of psycopg's errors, which its documentation does not mention."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        conn.execute(RAISE % code)
    error = caught.value
    assert type(error) is getattr(pgfifo, name)
    assert isinstance(error, PgfifoError)
    assert error.sqlstate == code
    assert error.message == "it is full"
    assert error.detail == {"action": "deploy", "limit": 10}
    assert error.hint == "wait"
    assert str(error) == "it is full\nHINT: wait"


def test_psycopg_raises_our_class_in_pipeline_mode_and_from_asyncio_too(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn, pytest.raises(pgfifo.QueueFull), conn.pipeline():
        conn.execute(RAISE % "QF001")

    async def ask() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            with pytest.raises(pgfifo.QueueFull):
                await conn.execute(RAISE % "QF001")

    asyncio.run(ask())


def test_an_error_tells_its_values() -> None:
    error = pgfifo.QueueFull("full", detail={"action": "deploy", "limit": 10, "current": 12, "index": 0})
    assert (error.action, error.limit, error.current, error.index, error.group) == ("deploy", 10, 12, 0, None)
    assert str(error) == "full"


def test_what_a_timeout_or_a_wrong_value_is_to_python_it_is_here_too() -> None:
    assert isinstance(pgfifo.SlotTimeout("late", detail={"timeout": 3.0}), TimeoutError)
    assert isinstance(pgfifo.InvalidValue("odd"), ValueError)


@pytest.mark.parametrize("kind", public(), ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_to_another_process(kind: type[PgfifoError]) -> None:
    error = kind("it broke", detail={"action": "deploy"}, hint="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.detail, again.hint) == ("it broke", {"action": "deploy"}, "mend it")
    assert str(again) == str(error)


def test_an_error_of_the_server_survives_the_way_to_another_process(conn: psycopg.Connection) -> None:
    with pytest.raises(pgfifo.QueueFull) as caught:
        conn.execute(RAISE % "QF001")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.action, again.sqlstate, again.diag.message_hint) == ("deploy", "QF001", "wait")


def test_a_detail_that_is_no_json_is_kept_as_text() -> None:
    class Said:
        message_primary, message_detail, message_hint = "it broke", "Key (a)=(1) is there", None

    assert errors._parsed(Said.message_detail) == {"text": "Key (a)=(1) is there"}
    assert errors._parsed("[1]") == {"text": "[1]"}
    assert errors._parsed(None) == {}


def test_other_peoples_serialization_failures_stay_theirs(conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        conn.execute("do $$ begin raise exception 'x' using errcode = '40001'; end $$")
    assert not isinstance(caught.value, PgfifoError)
    mine = errors.translated(caught.value)
    assert isinstance(mine, pgfifo.SnapshotTooOld)
    assert mine.sqlstate == "40001"


def test_a_database_without_pgfifo_is_told_from_a_mistake_in_other_sql(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for query in ("select pgfifo.enqueue('x')", "select from pgfifo.queue_stats"):
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(query)
            missing = errors.translated(caught.value, database="app")
            assert isinstance(missing, pgfifo.SchemaMissing)
            assert "'app'" in str(missing)
            assert "pgfifo install" in str(missing)
            assert missing.server == caught.value.diag.message_primary
            assert str(missing.server) in str(missing)
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("select from nothing")
        assert errors.translated(caught.value) is caught.value


def test_every_sqlstate_in_the_sql_has_a_class() -> None:
    found = set()
    for path in (Path(__file__).parents[1] / "sql").rglob("*.sql"):
        found |= set(re.findall(r"errcode = '(QF\d+)'", path.read_text()))
    assert found
    assert found <= set(BY_CODE), "SQL raises something that Python has no class for"


def test_every_detail_in_the_sql_is_json() -> None:
    """A detail is for programs; it is made by json_build_object or jsonb, never put together as text."""
    for path in (Path(__file__).parents[1] / "sql").rglob("*.sql"):
        for detail in re.findall(r"detail = ([a-z_(]+)", path.read_text()):
            assert detail.startswith(
                ("json", "(v_detail", "v_detail", "(jsonb", "(p_detail", "pg_exception_detail")
            ), f"{path.name}: {detail}"


def test_schema_mismatch_says_which_side_to_upgrade() -> None:
    from pgfifo import compatibility

    with pytest.raises(pgfifo.SchemaMismatch) as caught:
        compatibility.check(compatibility.NEEDS_SCHEMA - 1, 0, "app")
    assert "pgfifo upgrade" in str(caught.value)
    assert caught.value.version == compatibility.NEEDS_SCHEMA - 1
    with pytest.raises(pgfifo.SchemaMismatch) as caught:
        compatibility.check(compatibility.NEEDS_SCHEMA + 9, compatibility.CLIENT + 1)
    assert "pip install" in str(caught.value)
    compatibility.check(compatibility.NEEDS_SCHEMA + 9, compatibility.CLIENT)
    assert json.dumps(caught.value.detail)
