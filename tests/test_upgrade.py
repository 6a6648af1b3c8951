"""A new schema, or the same one anew, is installed while producers and workers of the old package go on."""

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import pgfifo
from pgfifo import Actions, Execution, errors, schema
from tests.support.cli import program
from tests.support.database import Background, in_background, wait_for
from tests.support.engine import Engine
from tests.test_worker import working

Connection = psycopg.Connection[Any]

STEP = """
do $$
begin
  if to_regclass('pgfifo.installation') is not null and (select i.version from pgfifo.installation i) = 1 then
    alter table pgfifo._executions add column new_in_2 integer;
    alter table pgfifo.runs add column new_in_2 integer default 7;
    alter table pgfifo.ledger add column new_in_2 text;
    create table pgfifo.new_in_2 (id bigint primary key);
    update pgfifo.installation set version = 2;
  end if;
end $$;
"""


def next_version(min_client: int = 1) -> str:
    """Return the install script of a version 2 that there is not yet: with other tables."""
    text = schema.sql_text()
    for old, new in (
        ("if v_installed > 1 then", "if v_installed > 2 then"),
        ("-- Steps from older versions\n", f"-- Steps from older versions\n{STEP}"),
        ("values (1, 1) on conflict", f"values (2, {min_client}) on conflict"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text += f"update pgfifo.installation set min_client = {min_client};\n"
    return text.replace(schema.script_hash(), "of version 2")


def install(dsn: str, text: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(text.encode())


def reinstall(dsn: str) -> None:
    """Install the same version anew, as a patch release of the package does."""
    install(dsn, schema.sql_text())


def trying(dsn: str, text: str) -> "tuple[Background[None], Callable[[], bool]]":
    """Begin to install; also return whether somebody is in its way."""
    begun = in_background(lambda: install(make_conninfo(dsn, application_name="installer"), text))

    def waits() -> bool:
        with psycopg.connect(dsn, autocommit=True) as conn:
            query = (
                "select count(*) from pg_stat_activity where application_name = 'installer'"
                " and wait_event in ('relation', 'PgSleep')"
            )
            return conn.execute(query).fetchone() == (1,)

    return begun, waits


@pytest.mark.parametrize(
    "text", [schema.sql_text(), next_version()], ids=["the same version", "the next one"]
)
def test_durability_an_open_transaction_is_not_chosen_as_the_victim_of_an_install(
    fresh_dsn: str, text: str
) -> None:
    """It has enqueued, so the installer waits for it; what it does next would wait for the installer."""
    with psycopg.connect(fresh_dsn) as producer, pgfifo.Client(fresh_dsn) as fifo:
        fifo.enqueue("other", {})
        first = fifo.enqueue("deploy", {}, connection=producer)
        installing, waits = trying(fresh_dsn, text)
        wait_for(waits, message="the installer to be in the way")
        # All that a client may do, in tables and views that its transaction has not touched yet.
        engine = Engine(producer)
        for view in (
            "executions",
            "queue_stats",
            "lane_stats",
            "workers",
            "slots",
            "schedules",
            "audit",
            "minutes",
        ):
            engine.rows(f"select * from pgfifo.{view}")
        engine.policy("deploy", max_concurrent=2)
        worker = engine.worker("other")
        assert len(engine.claim(worker, 1, ["other"])) == 1
        second = fifo.enqueue("deploy", {}, connection=producer)
        assert engine.check() == []
        assert not installing.done
        producer.commit()
        installing.result()
        assert [each.id for each in fifo.executions(action="deploy")] == [second.id, first.id]


def test_an_install_gives_up_when_somebody_does_not_end(fresh_dsn: str) -> None:
    text = schema.sql_text()
    assert text.count("interval '60 s'") >= 1
    with psycopg.connect(fresh_dsn) as producer, pgfifo.Client(fresh_dsn) as fifo:
        fifo.enqueue("deploy", {}, connection=producer)
        with pytest.raises(errors.Busy, match="long transaction") as told:
            install(fresh_dsn, text.replace("v_begun + interval '60 s'", "v_begun + interval '0.1 s'"))
        assert told.value.detail == {"pids": [producer.info.backend_pid]}
        fifo.enqueue("deploy", {}, connection=producer)
        producer.commit()
        assert fifo.stats("deploy").queue_length == 2


def test_order_and_outcomes_of_old_clients_while_new_versions_are_installed(fresh_dsn: str) -> None:
    actions = Actions()
    begun: dict[str, list[int]] = {}

    @actions.action("deploy", group_by=["g"])
    def deploy(execution: Execution) -> None:
        begun.setdefault(execution.group_text, []).append(execution.id)

    stop = threading.Event()

    def produce(number: int) -> list[int]:
        made: list[int] = []
        with pgfifo.Client(fresh_dsn) as fifo, psycopg.connect(fresh_dsn) as mine:
            while not stop.is_set():
                made.append(fifo.enqueue("deploy", {"g": len(made) % 3}).id)
                with mine.transaction():
                    made += [fifo.enqueue("deploy", {"g": number}, connection=mine).id for _ in range(2)]
                stop.wait(0.005)
        return made

    with pgfifo.Client(fresh_dsn) as fifo, working(fresh_dsn, actions), working(fresh_dsn, actions):
        producers = [in_background(lambda n=n: produce(n)) for n in range(3)]  # type: ignore[misc]
        wait_for(lambda: len(begun) == 3, message="the load to begin")
        reinstall(fresh_dsn)
        install(fresh_dsn, next_version())
        assert fifo.schema_info().version == 2
        done = sum(map(len, begun.values()))
        wait_for(lambda: sum(map(len, begun.values())) > done + 20, message="old clients to go on")
        stop.set()
        made = [id_ for producer in producers for id_ in producer.result()]
        wait_for(lambda: fifo.stats("deploy").total_succeeded == len(made), 30, "the end of all")
        assert sorted(id_ for lane in begun.values() for id_ in lane) == sorted(made)
        assert all(lane == sorted(lane) for lane in begun.values())
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        Engine(conn).assert_promises()


def test_a_schema_that_is_too_new_or_too_old_says_which_side_to_upgrade(
    fresh_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(fresh_dsn, next_version(min_client=2))
    actions = Actions()
    actions.action("deploy")(lambda _: None)
    with pgfifo.Client(fresh_dsn) as fifo:
        with pytest.raises(errors.SchemaMismatch, match="wants clients of version 2") as told:
            fifo.enqueue("deploy", {})
        assert "Upgrade the package" in (told.value.hint or "")
        with pytest.raises(errors.SchemaMismatch, match="newer than this package"):
            fifo.upgrade()
    with pytest.raises(errors.SchemaMismatch, match="wants clients of version 2"):
        pgfifo.Worker(fresh_dsn, actions).run()
    done = subprocess.run(
        [program(), "stats", "--dsn", fresh_dsn], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert "Upgrade the package" in done.stderr
    monkeypatch.setattr("pgfifo.compatibility.NEEDS_SCHEMA", 3)
    with (
        pgfifo.Client(fresh_dsn) as fifo,
        pytest.raises(errors.SchemaMismatch, match="needs 3 or newer") as told,
    ):
        fifo.stats()
    assert "Upgrade the schema" in (told.value.hint or "")


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_every_promise_holds_while_versions_are_installed(fresh_dsn: str) -> None:
    """The same version again and again, the next one in between; workers are killed meanwhile."""
    size = ["--duration", "30", "--producers", "4", "--workers", "3", "--chaos", "kill", "--yes"]
    with subprocess.Popen(
        [program(), "verify", "--dsn", fresh_dsn, "--json", *size],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        installed = 0
        while process.poll() is None:
            threading.Event().wait(2)
            if installed < 4:
                reinstall(fresh_dsn)
            else:
                install(fresh_dsn, next_version())  # the first time with its step
            installed += 1
        out, err = process.communicate()
    assert process.returncode == 0, err.decode() + out.decode()
    assert installed > 8
    assert json.loads(out)["done"]["kills"] >= 1
