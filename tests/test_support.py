"""The suite's own safeguards: no silent skips, nobody else's database, races that can be seen."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest

from tests.support import skips
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.server import clean_environment

Connection = psycopg.Connection[Any]
pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite with two skips, in a run that has the guard."""
    pytester.makepyfile(
        test_some="""
        import pytest

        def test_runs(): pass

        @pytest.mark.parametrize("n", [1, 2])
        def test_skips(n): pytest.skip("not today")
        """
    )
    monkeypatch.setattr(skips, "LIST", pytester.path / "allowed-skips")
    return pytester


@pytest.mark.parametrize(
    ("listed", "exit_status"),
    [
        ("", pytest.ExitCode.TESTS_FAILED),
        ("test_some.py::test_skips[1]  # a reason\n", pytest.ExitCode.TESTS_FAILED),
        ("# both\n\ntest_some.py::test_skips*  # a reason\n", pytest.ExitCode.OK),
    ],
)
def test_a_skip_that_is_not_listed_fails_the_run(
    suite: pytest.Pytester, listed: str, exit_status: pytest.ExitCode
) -> None:
    (suite.path / "allowed-skips").write_text(listed)
    result = suite.runpytest_inprocess("-p", "tests.support.skips", "-p", "no:cacheprovider")
    assert result.ret == exit_status
    assert ("skipped without leave" in result.stdout.str()) == (exit_status != pytest.ExitCode.OK)


def test_a_module_that_skips_itself_is_not_overlooked(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_other="import pytest; pytest.importorskip('no_such_module')")
    (suite.path / "allowed-skips").write_text("test_some.py::*  # a reason\n")
    result = suite.runpytest_inprocess("-p", "tests.support.skips", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_other.py  #*no_such_module*"])


def test_where_the_suite_only_partly_fits_nothing_has_to_be_listed(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skips, "GUARDED", False)
    result = suite.runpytest_inprocess("-p", "tests.support.skips", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=2)
    assert result.ret == pytest.ExitCode.OK


def test_a_listed_skip_needs_a_reason() -> None:
    assert skips.allowed("# text\n\na::b[1]  # why\n") == ["a::b[1]"]
    with pytest.raises(ValueError, match="line 2"):
        skips.allowed("a  # why\nb\n")


def test_the_environment_of_the_caller_does_not_reach_the_tests() -> None:
    names = ("PGFIFO_DSN", "DATABASE_URL", "PGHOST", "PGSERVICE", "PGFIFO_PG_BIN")
    with mock.patch.dict(os.environ, dict.fromkeys(names, "production"), PGFIFO_TEST_PG_BIN="/opt/pg/bin"):
        clean_environment()
        left = {name: text for name, text in os.environ.items() if name.startswith(("PG", "DATABASE_URL"))}
    assert left == {"PGFIFO_TEST_PG_BIN": "/opt/pg/bin", "PGFIFO_PG_BIN": "/opt/pg/bin"}


def test_the_tests_have_a_home_of_their_own() -> None:
    from pgfifo.embedded import default_data_dir

    assert default_data_dir() == Path(os.environ["PGFIFO_HOME"])


def test_a_background_function_gives_back_its_value_or_its_error() -> None:
    assert in_background(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0).result()
    with pytest.raises(AssertionError, match="in vain for the impossible"):
        wait_for(lambda: False, timeout=0.01, message="the impossible")


def test_a_blocked_session_is_seen(empty_dsn: str) -> None:
    with (
        psycopg.connect(empty_dsn, autocommit=True) as observer,
        psycopg.connect(empty_dsn) as holder,
        psycopg.connect(empty_dsn, autocommit=True) as other,
    ):
        holder.execute("select pg_advisory_xact_lock(1)")
        with pytest.raises(AssertionError, match="to be blocked"):
            wait_until_blocked(observer, other.info.backend_pid, timeout=0.05)
        waiting = in_background(lambda: other.execute("select pg_advisory_lock(1)").rowcount)
        wait_until_blocked(observer, other.info.backend_pid)
        assert not waiting.done
        holder.commit()
        assert waiting.result() == 1


def test_each_test_begins_with_a_clean_database_first(
    conn: Connection, connect: Callable[..., Connection]
) -> None:
    leave_a_mess(conn, connect)


def test_each_test_begins_with_a_clean_database_second(
    conn: Connection, connect: Callable[..., Connection]
) -> None:
    leave_a_mess(conn, connect)


def leave_a_mess(conn: Connection, connect: Callable[..., Connection]) -> None:
    """Find nothing, and leave rows and a prepared transaction that holds locks."""
    assert conn.execute("select count(*) from pgfifo.executions").fetchone() == (0,)
    others = (
        "select count(*) from pg_stat_activity where datname = current_database() and usename is not null"
    )
    # Also who has thrown them out is gone; that takes a moment after he has hung up.
    wait_for(lambda: conn.execute(others).fetchone() == (1,), message="this session to be the only one")
    conn.execute("select pgfifo.enqueue('deploy', '{}')")
    assert conn.execute("select count(*) from pgfifo.executions").fetchone() == (1,)
    undecided = connect(autocommit=False)
    undecided.execute("select pg_advisory_xact_lock(1)")
    undecided.execute("prepare transaction 'left behind'")


def test_a_fresh_database_has_the_schema_and_nobody_in_it(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        assert conn.execute("select count(*) from pgfifo.executions").fetchone() == (0,)
        conn.execute("select pgfifo.enqueue('deploy', '{}')")
