"""Which database is meant, and that no message shows its password."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgfifo import dsn
from pgfifo.errors import InvalidValue

HERE = {"PGFIFO_DSN": "host=first", "DATABASE_URL": "postgres://second/db", "PGHOST": "third"}


def test_the_argument_wins_over_each_variable() -> None:
    assert dsn.resolve("host=zero", HERE) == dsn.Dsn("host=zero", "argument")


def test_pgfifos_variable_wins_over_the_frameworks_and_that_over_libpqs() -> None:
    assert dsn.resolve(None, HERE) == dsn.Dsn("host=first", "PGFIFO_DSN")
    without = {name: value for name, value in HERE.items() if name != "PGFIFO_DSN"}
    assert dsn.resolve(None, without) == dsn.Dsn("postgresql://second/db", "DATABASE_URL")
    assert dsn.resolve(None, {"PGHOST": "third"}) == dsn.Dsn("", "libpq")
    assert dsn.resolve(None, {"PGFIFO_DSN": "", "DATABASE_URL": ""}) == dsn.Dsn("", "default")
    assert dsn.resolve("", {}).source == "default"


@pytest.mark.parametrize(
    "written",
    [
        "postgres://bob@db:5433/app",
        "postgresql://bob@db:5433/app",
        "postgresql+psycopg://bob@db:5433/app",
        "postgresql+asyncpg://bob@db:5433/app",
        "POSTGRES://bob@db:5433/app",
        "host=db port=5433 dbname=app user=bob",
    ],
)
def test_each_way_to_write_a_database_is_understood(written: str) -> None:
    assert conninfo_to_dict(dsn.normalise(written)) == {
        "user": "bob",
        "host": "db",
        "port": "5433",
        "dbname": "app",
    }


SECRETS = [
    "postgresql://bob:s3cret@db/app",
    "postgres://bob:s3cret@db:nonsense/app",
    "postgresql+psycopg://bob:s3cret@db/app?unknown=1",
    "postgres://bob:pre@s3cret@db/app",
    "postgres://bob:pre/s3cret@db/app",
    "postgres://bob:pre?s3cret@db/app",
    "postgres://bob:pre#s3cret@db/app",
    "postgres://bob:pre:s3cret@db/app",
    "postgresql://db/app?user=bob&password=s3cret&unknown=1",
    "host=db password=s3cret",
    "host=db password='s3cret",
    "host=db password='pre s3cret' unknown=1",
    r"host=db password='pre\' s3cret' unknown=1",
    "host=db password = s3cret unknown=1",
    "host=db sslpassword=s3cret unknown=1",
    "host=db passwort=s3cret",
    "bob:s3cret@db",
    "mysql://bob:s3cret@db/app",
    "host=db pre s3cret",
]


@pytest.mark.parametrize("written", SECRETS)
def test_no_message_and_no_repr_shows_a_password(written: str) -> None:
    try:
        found = dsn.resolve(written, {})
        shown = f"{found} {found!r}"
    except InvalidValue as error:
        shown = f"{error} {error!r} {error.detail} {error.hint}"
    assert "s3cret" not in shown


def test_several_dsns_in_one_text_are_all_redacted() -> None:
    text = "from postgres://a:s3cret@h/db to 'host=x password=s3cret'"
    assert dsn.redact(text) == "from postgres://a:***@h/db to 'host=x password=***'"


def test_what_cannot_be_read_names_where_it_came_from() -> None:
    with pytest.raises(InvalidValue, match="PGFIFO_DSN") as caught:
        dsn.resolve(None, {"PGFIFO_DSN": "mysql://db/app"})
    assert "postgresql://" in (caught.value.hint or "")
    with pytest.raises(InvalidValue, match='"ssl"'):
        dsn.resolve("postgresql+asyncpg://db/app?ssl=require", {})


def test_a_database_is_described_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert dsn.describe("postgresql://bob:x@db:5433/app") == "app on db:5433 as bob"
    assert dsn.describe("host=/tmp/s port=5433 dbname=app") == "app on /tmp/s"
    assert dsn.describe("") == "the default database"
    monkeypatch.setenv("PGHOST", "there")
    monkeypatch.setenv("PGUSER", "eve")
    assert dsn.describe("") == "eve on there as eve"


def test_own_connections_notice_a_dead_peer_and_the_callers_settings_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    monkeypatch.delenv("PGSERVICE", raising=False)
    given = conninfo_to_dict(dsn.with_defaults("postgresql://db/app?keepalives_idle=99"))
    assert given["keepalives_idle"] == "99"
    assert given["connect_timeout"] == "10"
    assert given["tcp_user_timeout"] == "30000"
    assert given["fallback_application_name"] == "pgfifo"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    assert "connect_timeout" not in conninfo_to_dict(dsn.with_defaults("host=db"))


@pytest.mark.parametrize(
    "written",
    [
        "postgresql://db:99999/app",
        "postgresql://db:nonsense/app",
        "postgresql://db/app?port=0",
        "host=db port=-1",
        "host=db port=5432x",
        "host=a,b port=5432,x",
        "host=db port=" + "9" * 5000,
    ],
)
def test_a_port_that_cannot_be_is_no_fault_of_the_host(written: str) -> None:
    with pytest.raises(InvalidValue, match="the port in PGFIFO_DSN is no number from 1 to 65535"):
        dsn.resolve(None, {"PGFIFO_DSN": written})
    with pytest.raises(InvalidValue, match="PGPORT is no number"):
        dsn.resolve(None, {"PGPORT": "x"})
    for right in ("host=a,b port=5432,", "host=db port=1", "host=db port=65535"):
        assert dsn.normalise(right) == right
