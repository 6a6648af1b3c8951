"""Calls with arguments of every kind: each ends well or with an error in words, and no lane is left broken.

Short and the same every time in the suite. ``make fuzz`` takes longer, and goes other ways each time.
"""

import json
import math
import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.types.json import set_json_loads

import pgfifo
from pgfifo.jsontext import JsonText
from tests.support.calls import HOSTILE, Connection, Function, functions, plausible
from tests.support.cli import CommandLine
from tests.support.engine import Engine

EXAMPLES = int(os.environ.get("PGFIFO_TEST_FUZZ", "0"))


def examples(count: int) -> settings:
    """Return the settings of one test: how many examples in the suite."""
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        # Shrinking replays calls whose effects are there already.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# What PostgreSQL itself says of a value that is none of its type. `work` reads its items in one go.
WRONG_TYPE = {"22P02", "22003", "22007", "22008", "22023"}
ATTRIBUTES = [
    *[
        "max_concurrent",
        "ordering",
        "max_queue_length",
        "max_attempts",
        "failure_mode",
        "backoff",
        "backoff_base",
    ],
    *[
        "backoff_cap",
        "jitter",
        "on_exhausted",
        "on_limit",
        "timeout",
        "kill_after",
        "max_wait",
        "retention",
        "rate",
    ],
    *[
        "lane_retention",
        "max_payload",
        "burst",
        "spacing",
        "gap",
        "quota",
        "group_by",
        "max_action_queue_length",
    ],
    *["actions", "packs", "everything", "lanes", "limit", "group", "nonsense", "", *HOSTILE[:3]],
]
WORDS = [
    *[
        "",
        " ",
        "deploy",
        "ship",
        "Deploy",
        "api",
        "nightly",
        "null",
        "{}",
        "[]",
        '{"env":',
        '{"env": "a"}',
        "[1]",
        '"a"',
    ],
    *[
        "-1",
        "NaN",
        "infinity",
        "-infinity",
        "1/s",
        "0/s",
        "999999999/ms",
        "9/day UTC",
        "0/month nowhere",
        "unlimited",
    ],
    *[
        "1 s",
        "178000000 years",
        "2026-01-01",
        "4714-11-24 BC",
        "99999-01-01",
        "UTC",
        "0 3 * * *",
        "strict",
        "relaxed",
    ],
    *[
        "hold",
        "yield",
        "tail",
        "succeeded",
        "failed",
        "running",
        "waiting",
        "%",
        "_",
        "\\",
        "x" * 1100,
        "x" * 20_000,
    ],
    *["é\u0301\u202e\U0001f642", "\U0010ffff", "\uffff", "\u00a0", "\x01\x7f\x1b[31m", *HOSTILE],
]

text = st.sampled_from(WORDS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)
numbers = st.sampled_from(
    [0, -1, 1, 2, 64, 100, 1000, 10_000, 2**31 - 1, -(2**31), 2**31, 2**53, 2**63 - 1, -(2**63)]
)
leaves = st.none() | st.booleans() | numbers | st.sampled_from([0.5, -0.5, 1e308, 10**40]) | text
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ATTRIBUTES) | text, inner, max_size=3)
    ),
    max_leaves=6,
)
documents = st.one_of(
    values.map(json.dumps),
    st.sampled_from(
        ["[" * 3000 + "]" * 3000, "1" * 100_000, "1e131071", "1e-16383", '"' + "x" * 200_000 + '"']
    ),
    st.just(json.dumps({str(n): n for n in range(3000)})),
)
policies = st.dictionaries(
    st.sampled_from(ATTRIBUTES), leaves | st.lists(leaves, max_size=2), max_size=2
).map(json.dumps)
scopes = st.fixed_dictionaries(
    {}, optional={key: st.dictionaries(st.sampled_from(["deploy", "x", ""]), values) | values
                  for key in ("everything", "packs", "actions", "limit", "x")}
).map(json.dumps)  # fmt: skip
filters = st.fixed_dictionaries(
    {"action": st.just("deploy") | leaves},
    optional=dict.fromkeys(
        ["group", "state", "tags", "enqueued_since", "finished_before", "from_id", "to_id", "nonsense"],
        values,
    ),
).map(json.dumps)
items = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(1, 60) | numbers,
            "attempt": st.sampled_from([1, 2, 0, -1]),
            "outcome": st.sampled_from(["succeeded", "failed", "released", "cancelled", "", "x", None]),
        },
        optional={
            "error": text,
            "result": values,
            "retry": st.booleans(),
            "after": numbers,
            "result_error": text,
        },
    ),
    max_size=3,
).map(json.dumps)
declared = st.dictionaries(
    st.sampled_from(["deploy", "ship", ""]),
    st.lists(
        st.fixed_dictionaries({"name": text, "cron": text}, optional={"payload": values, "missed": text})
    )
    | values,
    max_size=2,
).map(json.dumps)
STRUCTURED = {
    "p_values": policies,
    "p_policies": scopes,
    "p_filter": filters,
    "p_finished": items,
    "p_schedules": declared,
}

FAR_AWAY = ["178000000 years", "-178000000 years"]
BY_TYPE: dict[str, st.SearchStrategy[object]] = {
    "text": text,
    "jsonb": documents,
    "boolean": st.booleans(),
    "bigint": numbers,
    "integer": numbers.filter(lambda n: abs(n) < 2**31),
    "double precision": st.sampled_from([0.0, -0.0, 0.5, -1.0, 1e308, 5e-324, math.nan, math.inf, -math.inf]),
    "interval": st.sampled_from(
        ["0", "-1 s", "1 us", "1 s", "1 mon", "-1 day 23:00", "2147483647 days", *FAR_AWAY]
    ),
    "timestamp with time zone": st.sampled_from(
        [
            "infinity",
            "-infinity",
            "4714-11-24Z BC",
            "0001-01-01Z",
            "1970-01-01Z",
            "9999-12-31Z",
            "294276-12-31Z",
        ]
    ),
}
LITERALS = {
    "bigint[]": "[2:3]={1,2}",
    "text[]": "[5:6]={deploy,b}",
    "jsonb[]": "[3:4]={1,2}",
    "integer[]": "[0:1]={1,2}",
}


def hostile(type_: str, name: str) -> st.SearchStrategy[object]:
    """Return values for a parameter: those of its type, and of its meaning."""
    if type_.endswith("[]"):
        inner = hostile(type_.removesuffix("[]"), name)
        lists: st.SearchStrategy[object] = st.lists(inner, max_size=3)
        several = st.lists(inner, min_size=2, max_size=2).map(lambda pair: [[pair[0]], [pair[1]]])
        many = inner.map(lambda one: [one] * (2000 if len(str(one)) < 100 else 1))
        return lists | st.none() | several | many | st.just(LITERALS.get(type_, "{}"))
    own = BY_TYPE[type_] | st.none()
    return STRUCTURED[name] | own if name in STRUCTURED else own


def readable(document: str | bytes) -> object:
    """Read JSON as far as Python can: jsonb has integers of a hundred thousand digits."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return document


class Bench:
    """A database with a little of everything in it, and calls to make there."""

    def __init__(self, conn: Connection, dsn: str) -> None:
        self.conn = conn
        self.dsn = dsn
        self.functions = [each for each in functions(conn) if each.name not in ("advance", "create_roles")]
        self.engine = Engine(conn)
        self.ids: dict[str, Any] = {}
        self.pid = conn.info.backend_pid
        set_json_loads(readable, conn)
        conn.execute("set statement_timeout = '20 s'")

    def prepare(self) -> None:
        """Have a worker, a holder of slots, and executions in all states, whatever was called before."""
        for query in (
            "select pgfifo.open('deploy'), pgfifo.resume('deploy')",
            "select pgfifo.set_policy('ship', '{\"group_by\": [\"env\"]}')",
            "select pgfifo.enqueue('deploy')",
            "select pgfifo.enqueue('deploy', p_delay => '1 h')",
            "select pgfifo.enqueue('ship', '{\"env\": \"a\"}')",
            "select pgfifo.set_schedule('nightly', 'deploy', '0 3 * * *')",
            "select pgfifo.import_start('deploy', 'file', 'x')",
        ):
            try:
                self.conn.execute(query.encode())
            except pgfifo.PgfifoError:
                continue  # a call before has closed, limited or paused something
        worker = self.engine.worker("deploy")
        slots = "select pgfifo.worker_start('s', 'h', 1, null, 1, p_locked => false, p_kind => 'slot')"
        self.ids = {"p_worker": worker, "slots": self.engine.one(slots), "p_attempt": 1, "p_import": 1}
        self.conn.execute("select kind from pgfifo.work(%s, '{deploy}', 2)", [worker])
        self.ids["last"] = self.engine.one("select last_value from pgfifo.execution_ids")

    def call(self, function: Function, arguments: dict[str, object]) -> None:
        """Make a call; fail unless it ends well or is refused in words."""
        try:
            function.call(self.conn, arguments)
        except pgfifo.PgfifoError:
            return
        except psycopg.Error as error:
            state = error.sqlstate or ""
            shown = {name: repr(value)[:300] for name, value in arguments.items()}
            # Without a context it is the argument itself that PostgreSQL could not read, before our code.
            if error.diag.context is None and state[:2] in ("22", "42", "54"):
                return
            if function.name == "work" and state in WRONG_TYPE:
                return
            raise AssertionError(
                f"{function.name}({shown}): {state} {error}\n{error.diag.context}"
            ) from error

    def assert_sound(self) -> None:
        """Everything can be read and works, and nothing is broken."""
        assert self.conn.info.backend_pid == self.pid, "the server's process is another one"
        assert [each for each in self.engine.check() if each[0] == "violation"] == []
        with pgfifo.Client(self.dsn) as fifo:
            (
                fifo.executions(limit=10_000),
                fifo.stats(),
                fifo.lanes("deploy"),
                fifo.schedules(),
                fifo.overrides(),
            )
            (
                fifo.workers(),
                fifo.shared_limits(),
                fifo.audit(limit=10_000),
                fifo.slots(),
                fifo.export_policies(),
            )
            (
                fifo.policy_history(limit=10_000),
                fifo.grants(),
                fifo.pace("deploy"),
                fifo.effective_policy("deploy"),
            )

    def assert_goes_on(self) -> None:
        """After all limits are taken away, every lane runs empty, in order."""
        conn = self.conn
        conn.execute("select pgfifo.worker_stop(id) from pgfifo._workers where state = 'alive'")
        conn.execute("delete from pgfifo._overrides")
        with pgfifo.Client(self.dsn) as fifo:
            for limit in fifo.shared_limits():
                fifo.drop_shared_limit(limit.name)
            fifo.apply_policies({}, prune=True, force=True)
            fifo.resume_everything()
            for stats in fifo.stats():
                conn.execute("select pgfifo.open(%s), pgfifo.resume(%s)", [stats.action, stats.action])
            for lane in conn.execute(
                "select action, group_text from pgfifo.lane_stats where paused"
            ).fetchall():
                conn.execute("select pgfifo.resume(%s, %s)", lane)
            conn.execute("select pgfifo.pause_schedule(name) from pgfifo.schedules")
            names = [stats.action for stats in fifo.stats()]
        self.engine.tick(3)
        # What was told to be tried again in a hundred years holds its slot until then.
        held = "select pgfifo.cancel_many(array(select id from pgfifo.executions where state = 'held'))"
        conn.execute(held)
        worker = self.engine.worker(*names, concurrency=1000)
        self.engine.drain(worker, names, limit=1000)
        stuck = "select action, group_text, queue_length from pgfifo.lane_stats where queue_length > 0"
        why = "select pgfifo.explain(min(id))::text from pgfifo.executions where state = 'waiting'"
        assert conn.execute(stuck).fetchall() == [], conn.execute(why).fetchall()
        assert [each for each in self.engine.check() if each[0] == "violation"] == []


@pytest.fixture
def bench(fresh_dsn: str) -> Iterator[Bench]:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        yield Bench(conn, fresh_dsn)


def test_fuzz_sql_functions_take_or_refuse_any_arguments(bench: Bench) -> None:
    done = 0

    @examples(300)
    @given(st.data())
    def calls(data: st.DataObject) -> None:
        nonlocal done
        if done % 50 == 0:
            bench.prepare()
        done += 1
        function = data.draw(st.sampled_from(bench.functions))
        known = bench.ids | {"p_id": 1 + data.draw(st.integers(0, 999)) % bench.ids["last"], "p_to": "nobody"}
        if function.name.startswith("slot_"):
            known["p_worker"] = bench.ids["slots"]
        arguments = plausible(function, known)
        if function.parameters:
            for each in data.draw(st.lists(st.sampled_from(function.parameters), min_size=1, max_size=3)):
                arguments[each.name] = data.draw(hostile(each.type, each.name))
        if "p_locked" in arguments:
            arguments["p_locked"] = False  # its locks would stay with this session
        bench.call(function, arguments)

    bench.prepare()
    calls()
    bench.assert_sound()
    bench.assert_goes_on()


payloads = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.text(max_size=300) | st.sampled_from(WORDS)


def test_fuzz_python_client_takes_or_refuses_any_arguments(bench: Bench) -> None:
    bench.prepare()
    seconds = st.floats() | st.integers()
    with pgfifo.Client(bench.dsn) as fifo:

        @examples(40)
        @given(
            names, payloads, st.none() | names | st.dictionaries(names, payloads, max_size=2), seconds, names
        )
        def calls(action: str, payload: object, group: Any, delay: float, key: str) -> None:
            for call in (
                lambda: fifo.enqueue("deploy", payload),
                lambda: fifo.enqueue(action, {"n": 1}, group=group),
                lambda: fifo.enqueue_many("deploy", [payload, {"n": 1}], tags=[key]),
                lambda: fifo.enqueue("deploy", 1, delay=delay, dedup_key=key),
                lambda: fifo.enqueue("deploy", 1, item_key=key, headers={key: payload}),
                lambda: fifo.stats(action),
                lambda: fifo.set_policy(action, max_concurrent=delay, timeout=delay),  # type: ignore[arg-type]
                lambda: fifo.set_policy("deploy", rate=key, spacing=delay),
                lambda: fifo.pause(action, group, reason=key),
                lambda: fifo.executions(action=action, limit=3),
            ):
                try:
                    call()
                except (pgfifo.PgfifoError, TypeError):  # the latter: Python's word for no possible type
                    continue
            bench.conn.execute("select pgfifo.resume('deploy')")
            fifo.set_policy("deploy", spacing=None, rate=None)

        calls()
    bench.assert_sound()
    bench.assert_goes_on()


def test_fuzz_command_line_takes_or_refuses_any_arguments(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.prepare()
    cli = CommandLine(bench.dsn, monkeypatch, capsys)
    words = st.sampled_from(WORDS) | st.text(max_size=10)

    @examples(6)
    @given(words, words, words, st.integers() | st.floats())
    def calls(one: str, two: str, three: str, number: float) -> None:
        for line in (
            ["enqueue", one, two],
            ["enqueue", "deploy", "{}", "--group", two, "--tag", three],
            ["enqueue", "deploy", "--set", f"{one}={two}", "--delay", f"{number}s"],
            ["show", str(number)],
            ["list", one, "--state", two, "--limit", str(number), "--json"],
            ["cancel", str(number), "--reason", three],
            ["policy", "set", one, "--max-concurrent", str(number), "--rate", two],
            ["pause", one, "--group", two],
            ["stats", one, "--json"],
        ):
            said = cli(*line)
            assert said.code in (0, 1, 2), (line, said)
            assert "Traceback" not in said.all, line
            assert "\x1b[31m" not in said.out, f"{line}: what others have written commands the terminal"

    calls()
    bench.assert_sound()


@pytest.mark.parametrize(
    "stored",
    ["[" * 3000 + "]" * 3000, "1" * 5000, '{"a": ' * 600 + "1" + "}" * 600, "1e400", f"{10**400}.5"],
    ids=["deep list", "long integer", "deep object", "huge", "huge fraction"],
)
def test_fuzz_a_payload_that_python_cannot_read_keeps_nobody_from_reading_the_list(
    bench: Bench, stored: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Put in with plain SQL it may be anything that jsonb takes; only its own handler gets into trouble."""
    [(poison,)] = bench.conn.execute("select pgfifo.enqueue('deploy', %s::jsonb)", [stored]).fetchall()
    [(plain,)] = bench.conn.execute("select pgfifo.enqueue('deploy', '{}')").fetchall()
    with pgfifo.Client(bench.dsn) as fifo:
        read = {each.id: each.payload for each in fifo.executions()}
        assert isinstance(read[poison], JsonText | int)
        assert (
            Decimal(read[poison]) == Decimal(stored)
            if stored[0] == "1"
            else read[poison] == stored.replace("  ", " ")
        )
        assert read[plain] == {}
    cli = CommandLine(bench.dsn, monkeypatch, capsys)
    listed = json.loads(cli("list", "--json").out, parse_constant=pytest.fail)
    assert {each["id"] for each in listed} == {poison, plain}
    actions = pgfifo.Actions()
    seen: list[object] = []
    actions.add("deploy", lambda execution: seen.append(execution.payload), max_attempts=1)
    pgfifo.Worker(bench.dsn, actions, until_empty=True).run()
    assert seen[-1] == {}
    assert [each for each in bench.engine.check() if each[0] == "violation"] == []
