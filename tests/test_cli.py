"""Every command: what it does, what it says, how it ends, and that it takes bad input in words."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgfifo import Actions, Client, Worker
from pgfifo.cli.hints import IN_SHELL, in_shell
from pgfifo.embedded import PrivateServer
from pgfifo.scheduling import Cron
from tests.support.cli import CommandLine, program, run_program
from tests.support.database import wait_for

Connection = psycopg.Connection[Any]


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a clean database, whose first execution will be number 1."""
    return CommandLine(dsn, monkeypatch, capsys)


@pytest.fixture
def empty_cli(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """The command line on a database without the schema."""
    return CommandLine(empty_dsn, monkeypatch, capsys)


def started(*words: str, dsn: str) -> "subprocess.Popen[str]":
    """Start the installed program."""
    env, pipe = os.environ | {"PGFIFO_DSN": dsn}, subprocess.PIPE
    return subprocess.Popen([program(), *words], env=env, stdout=pipe, stderr=pipe, text=True)


def newest(conn: Connection) -> int:
    """The execution that was enqueued last."""
    row = conn.execute("select max(id) from pgfifo.executions").fetchone()
    assert row is not None
    return int(row[0])


# The program itself


def test_help_lists_every_command(cli: CommandLine) -> None:
    said = cli("--help")
    assert said.code == 0
    families = (
        "install upgrade uninstall sql embedded demo",
        "enqueue wait",
        "worker",
        "show list events position explain pace stats lanes workers metrics audit",
        "cancel retry reschedule release finish pause resume close open policy schedule check",
    )
    for command in " ".join(families).split():
        assert re.search(rf"\b{command}\b", said.out), command
        assert "--help" in cli.ok(command, "--help").out


def test_version(cli: CommandLine) -> None:
    import pgfifo

    assert cli.ok("--version").out == f"{pgfifo.__version__}\n"


def test_no_command_shows_the_help() -> None:
    said = run_program()
    assert "Usage" in said.all
    assert said.code in (0, 2)  # typer's own choice, which has changed between versions


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["enqeue", "x"], "enqueue"),
        (["stats", "--jsn"], "--json"),
        (["policy", "sett"], "set"),
        (["embedded", "strat"], "start"),
    ],
)
def test_unknown_words_suggest_the_nearest(cli: CommandLine, words: list[str], hint: str) -> None:
    said = cli(*words)
    assert said.code == 2
    assert hint in said.err


def test_help_answers_before_anything_slow_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['pgfifo', '--version']\n"
        "from pgfifo.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "slow = 'rich', 'pgfifo.importing', 'pgfifo.embedded', 'pgfifo.demo.story'\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_module_is_the_program_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgfifo", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == run_program("--version").out


# Which database


def test_dsn_option_wins_over_the_environment(cli: CommandLine, dsn: str) -> None:
    cli.use("postgresql://nobody@127.0.0.1:1/nowhere")
    cli.ok("stats", "--dsn", dsn)


def test_database_url_counts_after_pgfifo_dsn(
    cli: CommandLine, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.use(None)
    monkeypatch.setenv("DATABASE_URL", dsn.replace("postgresql://", "postgres://"))
    cli.ok("stats")
    cli.use("postgresql://nobody@127.0.0.1:1/nowhere")
    assert cli("stats").code == 3


def test_libpq_variables_count(cli: CommandLine, server: PrivateServer, dsn: str) -> None:
    cli.use(None)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    env = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PGDATABASE": str(name)}
    assert run_program("stats", env=env).code == 0


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://nobody@127.0.0.1:1/nowhere",
        "host=/nowhere dbname=x",
        "postgresql://no-such-host.invalid/x",
    ],
)
@pytest.mark.parametrize(
    "words", [["stats"], ["enqueue", "x"], ["install"], ["worker", "--action", "x", "--", "cat"]]
)
def test_unreachable_server_is_3(cli: CommandLine, address: str, words: list[str]) -> None:
    said = cli(words[0], "--dsn", address, *words[1:])
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("Error: ")


def test_unknown_database_and_role_are_3(cli: CommandLine, server: PrivateServer) -> None:
    assert cli("stats", "--dsn", server.dsn("nowhere")).code == 3
    assert cli("stats", "--dsn", server.dsn().replace("postgres@", "nobody@", 1)).code == 3


@pytest.mark.parametrize(
    "address",
    [
        "mysql://u:geheim@h/x",
        "postgresql://u:geheim@[",
        "nonsense",
        "password='geheim",
        "postgresql://u:geheim@h:99999/x",
        "postgresql://u:geheim/x",
        "",
        " ",
    ],
)
def test_dsn_that_cannot_be_read_is_2_and_keeps_its_password(cli: CommandLine, address: str) -> None:
    said = cli("stats", "--dsn", address)
    assert said.code == 2
    assert "geheim" not in said.err


def test_password_is_never_shown(cli: CommandLine) -> None:
    said = cli("stats", "--dsn", "postgresql://nobody:geheim@127.0.0.1:1/x")
    assert said.code == 3
    assert "geheim" not in said.all


def test_missing_schema_is_4_with_the_command_to_run(empty_cli: CommandLine) -> None:
    reading = [
        ["stats"],
        ["list"],
        ["show", "1"],
        ["workers"],
        ["check"],
        ["policy", "show", "x"],
        ["position", "1"],
        ["explain", "1"],
        ["pace", "x"],
    ]
    changing = [
        ["enqueue", "x"],
        ["cancel", "1"],
        ["pause", "x"],
        ["close", "x"],
        ["policy", "set", "x", "--max-attempts", "2"],
    ]
    for words in [*reading, *changing, ["upgrade"], ["lanes", "x"], ["worker", "--action", "x", "--", "cat"]]:
        said = empty_cli(*words)
        assert (said.code, said.out) == (4, ""), (words, said)
        assert "pgfifo install" in said.err


def test_schema_of_another_time_is_4(fresh_dsn: str, cli: CommandLine) -> None:
    cli.use(fresh_dsn)
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("update pgfifo.installation set min_client = 99")
        for words in (["stats"], ["list"], ["list", "--json"], ["lanes", "x"]):
            said = cli(*words)
            assert (said.code, said.out) == (4, ""), words
            assert "pip install --upgrade pgfifo" in said.err
        conn.execute("update pgfifo.installation set min_client = 1, version = 99, script_hash = ''")
        assert cli("install").code == 4


def test_role_whose_default_is_serializable_can_do_everything(fresh_dsn: str, cli: CommandLine) -> None:
    cli.use(fresh_dsn)
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set default_transaction_isolation = 'serializable'")
    cli.ok("policy", "set", "x", "--max-queue-length", "5")
    cli.ok("enqueue", "x")
    cli.ok("enqueue", "x", "--file", "-", stdin='{"a":1}\n')
    cli.ok("pause", "x")
    cli.ok("resume", "x")
    cli.ok("close", "x")
    cli.ok("open", "x")
    cli.ok("cancel", "1")
    cli.ok("check", "--repair")
    cli.ok("worker", "--action", "x", "--until-empty", "--", "true")


def test_role_without_rights_is_told_so(fresh_dsn: str, cli: CommandLine) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("drop role if exists guest")
        conn.execute("create role guest login")
    cli.use(fresh_dsn.replace("postgres@", "guest@", 1))
    said = cli("enqueue", "x")
    assert said.code in (1, 4)
    assert "permission denied" in said.err or "not installed" in said.err
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("drop role guest")


# schedules


def test_schedules_are_set_listed_paused_and_removed(cli: CommandLine, conn: Connection) -> None:
    said = cli.ok(
        *("schedule", "set", "nightly", "backup", "30 2 * * mon-fri", '{"kind":"full"}'),
        *("-z", "Europe/Berlin", "--missed", "all", "-g", "g", "--tag", "a", "--header", "n=1"),
    )
    assert "Set the schedule nightly, for backup." in said.err
    assert "Undo: pgfifo schedule remove nightly" in said.err
    assert re.search(r"It ticks next at (\d{4}-\d\d-\d\d \d\d:30(, |\.)){3}", said.err)
    [listed] = json.loads(cli.ok("schedule", "list", "--json").out)
    assert (listed["cron"], listed["time_zone"], listed["missed"]) == (
        "30 2 * * mon-fri",
        "Europe/Berlin",
        "all",
    )
    assert (listed["payload"], listed["headers"], listed["tags"]) == ({"kind": "full"}, {"n": 1}, ["a"])
    coming = Cron("30 2 * * mon-fri", "Europe/Berlin").after(datetime.now(UTC))
    assert datetime.fromisoformat(listed["next_at"]) == next(coming), "no worker has been there yet"
    assert "Nothing to do" in cli.ok(*undone(cli, "set", "nightly", "backup", "@daily")).err
    assert re.search(r"nightly +backup +30 2 ", cli.ok("schedule", "list", "backup").out)
    said = cli.ok("schedule", "pause", "nightly", "--reason", "incident 12")
    assert "Undo: pgfifo schedule resume nightly" in said.err
    assert "paused already" in cli.ok("schedule", "pause", "nightly").err
    assert " paused " in cli.ok("schedule", "list").out
    assert json.loads(cli.ok("schedule", "list", "--json").out)[0]["next_at"] is None
    assert "Resumed" in cli.ok("schedule", "resume", "nightly").err
    assert "not paused" in cli.ok("schedule", "resume", "nightly").err
    conn.execute("update pgfifo._schedules set last_error = 'the line is full'")
    assert "nightly: the line is full" in cli.ok("schedule", "list").err
    cli.ok(*undone(cli, "remove", "nightly"))
    assert len(json.loads(cli.ok("schedule", "list", "--json").out)) == 1
    cli.ok("schedule", "remove", "nightly")
    assert "No schedules." in cli.ok("schedule", "list").err


def undone(cli: CommandLine, *words: str) -> list[str]:
    """Change a schedule, undo that with the command that is named, and return it."""
    said = cli.ok("schedule", *words)
    [undo] = [
        line.removeprefix("Undo: pgfifo ") for line in said.err.splitlines() if line.startswith("Undo:")
    ]
    cli.ok(*shlex.split(undo))
    return shlex.split(undo)


def test_schedules_of_code_are_told_apart(cli: CommandLine, dsn: str) -> None:
    actions = Actions()
    actions.add("backup", print)
    actions.schedule("@daily", name="nightly")(print)
    with Client(dsn) as fifo:
        fifo.declare(actions)
    assert re.search(r"nightly .* code ", cli.ok("schedule", "list").out)
    said = cli.ok("schedule", "set", "nightly", "backup", "@hourly")
    assert "Code declares one of this name" in said.err
    assert "Undo: pgfifo schedule remove nightly" in said.err
    cli.ok("schedule", "remove", "nightly")
    with Client(dsn) as fifo:
        fifo.declare(actions)
    said = cli.ok("schedule", "remove", "nightly")
    assert "pgfifo schedule pause nightly" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set", "nightly", "backup", "daily"], "is no cron expression (it has to have five fields)"),
        (["set", "nightly", "backup", "0 0 30 2 *"], "is no cron expression"),
        (["set", "nightly", "backup", "@daily", "-z", "Mars"], "is no time zone"),
        (["set", "nightly", "backup", "@daily", "--missed", "some"], "--missed"),
        (["set", "two words", "backup", "@daily"], "name"),
        (["set", "nightly", "backup", "@daily", "{"], "payload cannot be enqueued"),
        (["set", "nightly"], "ACTION"),
    ],
)
def test_schedule_bad_input_is_2(cli: CommandLine, words: list[str], message: str) -> None:
    said = cli("schedule", *words)
    assert said.code == 2, said.all
    assert message in said.err


@pytest.mark.parametrize("command", ["remove", "pause", "resume"])
def test_unknown_schedule_is_1_and_says_how_to_see_those_there_are(cli: CommandLine, command: str) -> None:
    said = cli("schedule", command, "nightly")
    assert (said.code, said.out) == (1, "")
    assert "there is no schedule 'nightly'\nFor all there are: pgfifo schedule list\n" in said.err
    cli.ok("schedule", "set", "nigthly", "backup", "@daily")
    said = cli("schedule", command, "nightly")
    assert said.code == 1
    assert "Did you mean 'nigthly'?" in said.err


# What is said

_LIBRARY_ONLY = {
    "pgfifo.worker_start",  # a worker that has no registration; the worker itself sees to it
    "pgfifo.installation",  # the clock of tests has no command
    "pgfifo.cancel_where",  # remove_action has no command
}


def test_hints_speak_of_commands_and_not_of_functions() -> None:
    root = Path(__file__).parent.parent
    sql = "".join(path.read_text() for path in (root / "sql").rglob("*.sql")).replace("''", "'")
    python = "".join(path.read_text() for path in (root / "pgfifo").glob("*.py"))
    for words in IN_SHELL:
        assert words in sql or words in python, f"no hint says {words!r} any more"
    hints = re.findall(r"hint = .*?'[^\n]*?(?:;|,)?\n", sql)
    assert len(hints) > 50
    for hint in hints:
        text = in_shell(hint, {}) or ""
        leaked = set(re.findall(r"pgfifo\.[a-z]\w*(?![\w(])", text)) - _LIBRARY_ONLY
        assert not leaked, (leaked, text)


# install, upgrade, uninstall, sql


def test_install_for_testing_is_refused_where_it_is_in_use(empty_cli: CommandLine, empty_dsn: str) -> None:
    empty_cli.ok("install", "--testing")
    empty_cli.ok("install", "--testing")
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("select testing from pgfifo.installation").fetchone() == (True,)
        conn.execute("update pgfifo.installation set testing = false")
    empty_cli.ok("enqueue", "x")
    said = empty_cli("install", "--testing")
    assert said.code == 2
    assert "is in use, and is not for testing" in said.err


def test_install_twice_and_uninstall(empty_cli: CommandLine) -> None:
    first = empty_cli.ok("install")
    assert "Installed" in first.err
    assert "Undo: pgfifo uninstall\n" in first.err, "no command that can be pasted"
    assert "Nothing to do" in empty_cli.ok("install").err
    assert "Nothing to do" in empty_cli.ok("upgrade").err
    empty_cli.ok("enqueue", "x")
    assert "1 unfinished execution" in empty_cli.ok("uninstall", "--yes").err
    assert empty_cli("stats").code == 4
    assert "Nothing to do" in empty_cli.ok("uninstall").err


def test_uninstall_asks(cli: CommandLine) -> None:
    said = cli("uninstall")
    assert said.code == 2
    assert "--yes" in said.err
    cli.ok("stats")


def test_sql_is_the_whole_script(empty_cli: CommandLine, empty_dsn: str) -> None:
    script = empty_cli.ok("sql").out
    with psycopg.connect(empty_dsn) as conn:
        conn.execute(script.encode())
    empty_cli.ok("stats")


# enqueue


def test_enqueue_prints_the_id_and_how_to_undo_it(cli: CommandLine) -> None:
    said = cli.ok("enqueue", "deliver", '{"customer":1}')
    assert said.out == "1\n"
    assert "Enqueued in deliver" in said.err
    assert "Undo: pgfifo cancel 1" in said.err


def test_enqueue_takes_everything(cli: CommandLine, conn: Connection) -> None:
    cli.ok("policy", "set", "deploy", "--group-by", "env,target.region")
    said = cli.ok(
        *(
            "enqueue",
            "deploy",
            '{"sha":"abc"}',
            "--set",
            "env=prod",
            "--set",
            "target.region=eu",
            "--set",
            "n=1",
        ),
        *("--tag", "a", "--tag", "b", "--header", "trace=xyz", "--header", "n=2", "--json"),
    )
    group = '{"env":"prod","target.region":"eu"}'
    assert json.loads(said.out) == {"id": 1, "created": True, "action": "deploy", "group_text": group}
    row = conn.execute("select payload, headers, tags, group_text from pgfifo.executions").fetchone()
    payload = {"sha": "abc", "env": "prod", "target": {"region": "eu"}, "n": 1}
    assert row == (payload, {"trace": "xyz", "n": 2}, ["a", "b"], group)


def test_enqueue_of_a_request_that_was_made_before_says_so(cli: CommandLine) -> None:
    first = cli.ok("enqueue", "x", "--request-id", "r")
    assert first.undo
    again = cli.ok("enqueue", "x", '{"n":2}', "--request-id", "r")
    assert again.out == first.out
    assert "Nothing was enqueued" in again.err
    assert not again.undo
    said = json.loads(cli.ok("enqueue", "x", "--request-id", "r", "--json").out)
    assert said == {"id": int(first.out), "created": False, "action": "x", "group_text": ""}
    refused = cli("enqueue", "x", "--file", "-", "--request-id", "r", stdin="{}")
    assert refused.code == 2
    assert "--request-id" in refused.err


def test_enqueue_of_what_is_there_already_says_what_became_of_it(cli: CommandLine, conn: Connection) -> None:
    first = cli.ok("enqueue", "x", '{"a":1}', "--item-key", "k")
    again = cli.ok("enqueue", "x", '{"b":2}', "--item-key", "k")
    assert again.out == first.out
    assert "was there already" in again.err
    patched = cli.ok("enqueue", "x", '{"b":2}', "--item-key", "k", "--on-item", "merge_patch")
    assert "patched" in patched.err
    assert conn.execute("select payload from pgfifo.executions").fetchall() == [({"a": 1, "b": 2},)]
    cli.ok("enqueue", "x", '{"c":3}', "--item-key", "k", "--on-item", "replace")
    assert conn.execute("select payload from pgfifo.executions").fetchall() == [({"c": 3},)]
    one = cli.ok("enqueue", "x", "--dedup-key", "d")
    assert cli.ok("enqueue", "x", "--dedup-key", "d").out == one.out != first.out
    assert cli("enqueue", "x", "--on-item", "replace").code == 2
    assert cli("enqueue", "x", "--item-key", "k", "--on-item", "overwrite").code == 2
    both = cli("enqueue", "x", "--item-key", "k", "--dedup-key", "k")
    assert both.code == 2
    assert "exclude" in both.err


@pytest.mark.parametrize("payload", ["12", '"text"', "[1,2]", "null", "true", '{"a":{"b":[]}}'])
def test_enqueue_takes_any_json(cli: CommandLine, conn: Connection, payload: str) -> None:
    cli.ok("enqueue", "x", payload)
    assert conn.execute("select payload from pgfifo.executions").fetchone() == (json.loads(payload),)


def test_enqueue_group_given(cli: CommandLine) -> None:
    cli.ok("policy", "set", "deploy", "--group-by", "env")
    assert (
        json.loads(cli.ok("enqueue", "deploy", "-g", "env=prod", "--json").out)["group_text"]
        == '{"env":"prod"}'
    )
    assert (
        json.loads(cli.ok("enqueue", "deploy", "-g", "prod", "--json").out)["group_text"] == '{"env":"prod"}'
    )
    raw = '{"env": "prod"}'
    assert json.loads(cli.ok("enqueue", "deploy", "-g", raw, "--json").out)["group_text"] == '{"env":"prod"}'
    said = cli("enqueue", "deploy", "-g", "environment=prod")
    assert said.code == 1
    assert "env" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--timeout", "5s"], "--timeout belongs to --wait"),
        (["x", "--wait", "--file", "-"], "not to --file"),
        (["x", "--wait", "--timeout", "soon"], "not a duration"),
        (["x", "{customer:1}"], "payload cannot be enqueued"),
        (["x", '{"a":NaN}'], "NaN is not JSON"),
        (
            ["x", '{"a":"\\u0000"}'],
            "a NUL character, \\u0000, which PostgreSQL's jsonb cannot keep\nIt is JSON, but",
        ),
        (["x", "--delay", "-5s"], "'-5s' is negative"),
        (["x", '"\\ud800"'], "surrogate"),
        (["x", "[" * 600 + "]" * 600], "nested"),
        (["x", "--set", "a"], "no key and value"),
        (["x", "--set", "=1"], "no key and value"),
        (["x", "--set", "a=1", "--set", "a=2"], "given twice"),
        (["x", "--set", "a.b=1", "--set", "a=2"], "--set a and --set a.b exclude each other"),
        (["x", "--set", "a=1", "--set", "a.b=2"], "--set a and --set a.b exclude each other"),
        (["x", "--tag="], "cannot be empty"),
        (["x", "[1]", "--set", "a=1"], "needs a payload that is an object"),
        (["x", '{"a":1}', "--set", "a.b=1"], "'a' is not an object"),
        (["x", "--header", "a"], "no key and value"),
        (["x", "-g", "a=1", "-g", "a=2"], "twice"),
        (["x", "-g", "a=1", "-g", "b"], "no part of a group"),
        (["x", "{}", "--file", "-"], "exclude each other"),
        (["x", "--set", "a=1", "--file", "-"], "exclude each other"),
        (["x", "--skip-bad"], "belong to --file"),
        (["x", "--commit-every", "5"], "belong to --file"),
        (["x", "--file", "-", "--commit-every", "0"], "--commit-every"),
        (["x", "--file", "/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["x", "--file", "/"], "cannot read /"),
        (["with space"], ""),
        ([""], ""),
        (["x" * 300], ""),
        ([], "ACTION"),
    ],
)
def test_enqueue_bad_input_is_2(cli: CommandLine, words: list[str], message: str) -> None:
    said = cli("enqueue", *words)
    assert (said.code, said.out) == (2, ""), said
    assert message in said.err
    assert cli.ok("list", "--quiet").out == ""


def test_arguments_that_are_no_text_are_2(cli: CommandLine) -> None:
    said = cli("enqueue", "caf\udce9")
    assert said.code == 2
    assert "UTF-8" in said.err


def test_wait_prints_the_result_and_tells_other_ends_apart(
    cli: CommandLine, dsn: str, conn: Connection
) -> None:
    actions = Actions()
    actions.add("double", lambda execution: 2 * execution.payload, max_attempts=1)
    with Worker(dsn, actions, poll_interval=0.05):
        said = cli.ok("enqueue", "double", "4", "--wait", "--timeout", "15s")
        assert said.out == "8\n"
        assert "Enqueued execution" in said.err
        assert cli.ok("wait", newest(conn)).out == "8\n"
        done = json.loads(cli.ok("wait", newest(conn), "--json").out)
        assert done == {"id": newest(conn), "outcome": "succeeded", "result": 8, "error": None}
        said = cli("enqueue", "double", "{}", "--wait")
        assert said.code == 1
        assert "(double) failed: TypeError" in said.err
    cli.ok("enqueue", "double", "5")
    cli.ok("cancel", newest(conn), "--reason", "not tonight")
    said = cli("wait", newest(conn), "--json")
    assert said.code == 1
    done = json.loads(said.out)
    assert done == {"id": newest(conn), "outcome": "cancelled", "result": None, "error": "not tonight"}
    cli.ok("enqueue", "double", "5")
    for words in (["wait", newest(conn)], ["enqueue", "double", "--wait"]):
        said = cli(*words, "--timeout", "0.05")
        assert said.code == 5
        assert "was still waiting after 0.05 s. No living worker serves double; " in said.err
    late = json.loads(cli("wait", newest(conn), "--timeout", "0.05", "--json").out)
    assert (late["outcome"], late["reasons"]) == (None, ["no_worker", "ahead"])
    assert late["explanation"].startswith(f"Execution {newest(conn)} (double) is waiting")
    assert cli("wait", 4711).code == 1


def test_enqueue_refused_is_1(cli: CommandLine) -> None:
    cli.ok("policy", "set", "x", "--max-queue-length", "1")
    cli.ok("enqueue", "x")
    said = cli("enqueue", "x")
    assert (said.code, said.out) == (1, "")
    assert "1" in said.err


# show, list, position, cancel, release


def test_show(cli: CommandLine) -> None:
    cli.ok("enqueue", "x", '{"a":1}', "--tag", "t")
    said = cli.ok("show", 1)
    assert re.search(r"^state +waiting$", said.out, re.MULTILINE)
    assert re.search(r"^position +1$", said.out, re.MULTILINE)
    shown = json.loads(cli.ok("show", 1, "--json").out)
    assert (shown["id"], shown["payload"], shown["state"], shown["position"]) == (1, {"a": 1}, "waiting", 1)


def test_show_lists_the_attempts_before_the_last_which_its_other_lines_tell_of(
    cli: CommandLine, conn: Connection
) -> None:
    cli.ok("policy", "set", "x", "--failure-mode", "yield", "--backoff-initial", "0s", "--max-attempts", "2")
    cli.ok("enqueue", "x")
    claim(conn)
    conn.execute("select pgfifo.finish(1, 1, 'failed', p_error => 'no 1', p_after => '0s')")
    assert conn.execute("select from pgfifo.work(1, array['x'], 2, 1)").rowcount == 1
    conn.execute("select pgfifo.finish(1, 2, 'failed', p_error => 'no 2')")
    shown = json.loads(cli.ok("show", 1, "--json").out)
    assert [(each["attempt"], each["error"]) for each in shown["attempts"]] == [(1, "no 1")]
    assert (shown["state"], shown["attempt"], shown["error"]) == ("failed", 2, "no 2")
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in cli.ok("show", 1).out.splitlines())
    assert "attempts" not in lines
    assert re.fullmatch(r"1 failed at \S+ \S+ after \S+ on worker 1: no 1", lines["earlier attempts"])
    assert lines["error"] == "no 2"


@pytest.mark.parametrize(
    "words", [["show", "99"], ["position", "99"], ["explain", "99"], ["cancel", "99"], ["release", "99"]]
)
def test_unknown_execution_is_1(cli: CommandLine, words: list[str]) -> None:
    said = cli(*words)
    assert said.code == 1
    assert "99" in said.err


@pytest.mark.parametrize("command", ["show", "position", "release"])
@pytest.mark.parametrize("id_", ["x", "0", "-1", "1.5", "9" * 30])
def test_ids_that_are_none_are_refused(cli: CommandLine, command: str, id_: str) -> None:
    said = cli(command, "--", id_)
    assert said.code in (1, 2)
    assert "job.id" not in said.err


def test_list_filters(cli: CommandLine) -> None:
    cli.ok("policy", "set", "a", "--group-by", "c")
    for payload in ('{"c":1}', '{"c":2}', '{"c":1}'):
        cli.ok("enqueue", "a", payload)
    cli.ok("enqueue", "b", "--tag", "t")
    cli.ok("cancel", 2)

    def ids(*words: str) -> list[int]:
        return [int(line) for line in cli.ok("list", "--quiet", *words).out.split()]

    assert ids() == [4, 3, 2, 1]
    assert ids("--oldest") == [1, 2, 3, 4]
    assert ids("a") == [3, 2, 1]
    assert ids("a", "--group", "c=1") == [3, 1]
    assert ids("--state", "cancelled") == [2]
    assert ids("-s", "waiting", "-s", "cancelled", "a") == [3, 2, 1]
    assert ids("--state", "finished") == [2]
    assert ids("--state", "active") == []
    assert ids("--tag", "t") == [4]
    assert ids("--ids", "2..3") == [3, 2]
    assert ids("--ids", "3..") == [4, 3]
    assert ids("--ids", "..1") == [1]
    assert ids("--ids", "2") == [2]
    assert ids("--limit", "1") == [4]
    assert ids("--limit", "1", "--all") == [4, 3, 2, 1]


def test_list_formats(cli: CommandLine) -> None:
    assert cli.ok("list", "--json").out == "[]\n"
    assert cli.ok("list").out == ""
    cli.ok("enqueue", "x", '{"name":"Zoë\\n日本"}')
    cli.ok("enqueue", "x")
    rows = json.loads(cli.ok("list", "--json").out)
    assert [row["id"] for row in rows] == [2, 1]
    assert rows[1]["payload"] == {"name": "Zoë\n日本"}
    table = cli.ok("list").out.splitlines()
    assert len(table) == 3
    assert table[0].split()[:2] == ["id", "action"]
    assert "The newest 1" in cli.ok("list", "--limit", 1).err


@pytest.mark.parametrize(
    "words",
    [
        ["--state", "done"],
        ["--ids", "x"],
        ["--ids", "1..x"],
        ["--ids", "9..1"],
        ["--ids", ".."],
        ["--ids", ""],
        ["--ids", "-5"],
        ["--ids", "1" * 30],
        ["--tag="],
        ["--limit", "-1"],
        ["--limit", "0"],
        ["--group", "a=1"],
    ],
)
def test_list_bad_input_is_2(cli: CommandLine, words: list[str]) -> None:
    assert cli("list", *words).code == 2


def test_list_puts_its_pages_together(
    cli: CommandLine, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgfifo.cli import executions

    monkeypatch.setattr(executions, "_AT_ONCE", 7)
    conn.execute("select count(*) from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[20]))")

    def ids(*words: object) -> list[int]:
        return [int(line) for line in cli.ok("list", "--quiet", *words).out.splitlines()]

    assert ids("--all") == list(range(20, 0, -1))
    assert ids("--all", "--oldest") == list(range(1, 21))
    assert ids("--limit", 14) == list(range(20, 6, -1))
    assert ids("--limit", 15, "--ids", "3..") == list(range(20, 5, -1))
    assert len(json.loads(cli.ok("list", "--all", "--json").out)) == 20


def test_list_cuts_long_payloads_off_in_the_table_only(cli: CommandLine) -> None:
    payload = {"text": "x" * 500}
    cli.ok("enqueue", "x", json.dumps(payload))
    line = cli.ok("list").out.splitlines()[1]
    assert line.endswith("xxx…")
    assert len(line.partition("{")[2]) < 80
    assert json.loads(cli.ok("list", "--json").out)[0]["payload"] == payload
    assert "x" * 500 in cli.ok("show", 1).out
    for text in ("null", '"hello"', "[1, 2]", "7"):
        cli.ok("enqueue", "x", text)
        assert cli.ok("list", "--limit", 1).out.splitlines()[1].endswith(f"  {text}")


def test_commands_that_are_printed_can_be_run_as_they_are(dsn: str, tmp_path: Path) -> None:
    """Called by its path, it names that path; where its name will do, its name."""
    system, here = "/usr/bin:/bin", str(Path(program()).parent)
    relative = os.path.relpath(program(), tmp_path)
    for called, path, shown in (
        (program(), system, program()),
        (relative, system, relative),
        (program(), f"{here}:{system}", "pgfifo"),
        ("pgfifo", f"{here}:{system}", "pgfifo"),
    ):
        options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
        options |= {"env": os.environ | {"PGFIFO_DSN": dsn, "PATH": path}}
        said = subprocess.run(["/bin/sh", "-c", f"{called} enqueue x"], check=True, **options)
        [undo] = [line.removeprefix("Undo: ") for line in said.stderr.splitlines() if "Undo: " in line]
        assert undo.startswith(f"{shown} cancel ")
        subprocess.run(["/bin/sh", "-c", undo], check=True, **options)


def test_list_of_an_unknown_action_or_lane_is_1(cli: CommandLine) -> None:
    cli.ok("enqueue", "deliver")
    said = cli("list", "delivr")
    assert said.code == 1
    assert "deliver" in said.err
    assert cli("list", "deliver", "--group", "nobody").code == 1


def test_position(cli: CommandLine) -> None:
    for _ in range(3):
        cli.ok("enqueue", "x")
    assert cli.ok("position", 3).out == "3\n"
    assert json.loads(cli.ok("position", 2, "--json").out) == {
        "id": 2,
        "state": "waiting",
        "position": 2,
        "exact": True,
        "eta_seconds": None,
        "eta_basis": None,
    }
    cli.ok("cancel", 1)
    assert cli.ok("position", 3).out == "2\n"
    assert cli.ok("position", 1).out == "-\n"


def test_position_says_when_it_will_probably_start(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    conn.execute("select pgfifo.worker_start('w', 'h', 1, '{x}', 1, '1 hour', false)")
    conn.execute(
        "insert into pgfifo._minutes (action_id, minute, measured, run_seconds)"
        " select id, pgfifo._minute(pgfifo._now()), 4, 40 from pgfifo.actions"
    )
    cli.ok("enqueue", "x")
    said = cli.ok("position", 2)
    assert said.out == "2\n"
    assert "It will start in about 10s, as its action's have run of late." in said.err
    place = json.loads(cli.ok("position", 2, "--json").out)
    assert (place["eta_seconds"], place["eta_basis"]) == (10, "action")


def test_pace(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    said = cli.ok("pace", "x")
    assert re.search(r"^started per minute +0$", said.out, re.MULTILINE)
    assert json.loads(cli.ok("pace", "x", "--minutes", "60", "--json").out)["enqueued"] == 0
    assert cli("pace", "y").code == 1
    assert cli("pace", "x", "--minutes", "0").code == 2


def test_explain(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    cli.ok("enqueue", "x")
    cli.ok("pause", "x", "--reason", "line\tbreak")
    said = cli.ok("explain", 2).out
    assert said.startswith("Execution 2 (x) is waiting, enqueued at ")
    assert said.count("\n") == 1
    assert 'by postgres: "line\\tbreak". No living worker serves x. One is ahead of it' in said
    data = json.loads(cli.ok("explain", 2, "--json").out)
    assert data["reasons"] == ["paused", "no_worker", "ahead"]
    assert data["ahead"] == [1]
    cli.ok("cancel", 1)
    assert json.loads(cli.ok("explain", 1, "--json").out)["reasons"] == ["finished"]


def test_explain_fits_a_terminal(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pgfifo.cli import output

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_paragraph("one two three " * 20)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_cancel_many_and_from_stdin(cli: CommandLine, conn: Connection) -> None:
    for _ in range(4):
        cli.ok("enqueue", "x")
    assert "Cancelled executions 1, 2." in cli.ok("cancel", 1, 2, "--reason", "test").err
    cli.ok("cancel", "-", stdin="3\n\n4\n")
    assert cli.ok("list", "--state", "waiting", "--quiet").out == ""
    assert "Nothing to do" in cli.ok("cancel", "-", stdin="").err
    assert cli("cancel", "x").code == 2
    assert cli("cancel").code == 2
    assert cli("cancel", "-", stdin="1\nx\n").code == 2


def test_cancel_of_thousands_counts_them_and_names_only_the_first_that_were_refused(
    cli: CommandLine, conn: Connection
) -> None:
    conn.execute("select count(*) from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[2500]))")
    cli.ok("cancel", 1, 2)
    said = cli.ok("cancel", "-", stdin="\n".join(map(str, range(1, 2401))))
    assert "Cancelled 2,400 executions." in said.err
    said = cli("cancel", "-", stdin="\n".join(map(str, range(2401, 2531))))
    assert said.code == 1
    assert "Cancelled 100 executions." in said.err
    assert said.err.count("there is no execution") == 20
    assert "… 30 refusals in all: 30 unknown." in said.err
    assert cli.ok("list", "--state", "waiting", "--quiet").out == ""


def test_cancel_that_meets_what_is_no_id_says_how_far_it_came(cli: CommandLine, conn: Connection) -> None:
    conn.execute("select count(*) from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[1500]))")
    said = cli("cancel", "-", stdin="\n".join([*map(str, range(1, 1401)), "x"]))
    assert said.code == 2
    assert "'x' is no id of an execution; the first 1,000 ids given are done (1,000 cancelled)" in said.err
    assert "It does no harm to give the same ids again." in said.err
    waiting = conn.execute("select count(*) from pgfifo.executions where state = 'waiting'").fetchone()
    assert waiting == (500,)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_cancel_that_is_interrupted_says_how_far_it_came(
    conn: Connection, dsn: str, number: signal.Signals, code: int
) -> None:
    query = "select id from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[1500]))"
    ids = [id_ for (id_,) in conn.execute(query)]
    env, pipe = os.environ | {"PGFIFO_DSN": dsn}, subprocess.PIPE
    with subprocess.Popen(
        [program(), "cancel", "-"], env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f"{id_}\n" for id_ in ids[:1400]))
        process.stdin.flush()  # it goes on waiting for the end of its input
        left = "select count(*) from pgfifo.executions where state = 'waiting'"
        wait_for(lambda: conn.execute(left).fetchone() == (500,), 60, "the first part to be cancelled")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    # The answer to the last part, or to all of them, had perhaps not come yet.
    known = re.search(r"the first (1,000|\d+) ids given are done \(\1 cancelled\)", err)
    assert known or "nothing is done, except perhaps the next 1,000" in err
    assert "Traceback" not in err


def test_cancel_beside_a_lane_that_somebody_keeps_does_the_others(
    cli: CommandLine, conn: Connection, connect: Callable[..., Connection]
) -> None:
    cli.ok("enqueue", "x", "--group", "a")
    cli.ok("enqueue", "x", "--group", "b")
    holder = connect(autocommit=False)
    holder.execute(
        "select pg_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, lane_id::integer)"
        " from pgfifo.executions where id = 1"
    )
    said = cli("cancel", 1, 2)
    assert said.code == 1
    assert "another transaction holds the lane of execution 1" in said.err
    assert "Cancelled execution 2." in said.err


def test_cancel_goes_on_after_one_that_it_cannot_find(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    said = cli("cancel", 99, 1)
    assert said.code == 1
    assert "Cancelled execution 1." in said.err


def test_cancel_of_what_is_over_is_1(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    cli.ok("worker", "--action", "x", "--until-empty", "--", "true")
    said = cli("cancel", 1)
    assert said.code == 1
    assert "has succeeded already" in said.err


def test_cancel_of_a_running_one_asks_its_worker(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    claim(conn)
    assert "Asked the worker" in cli.ok("cancel", 1).err


def claim(conn: Connection) -> None:
    conn.execute("select pgfifo.worker_start('test', 'here', 1, array['x'], 1)")
    conn.execute("select from pgfifo.work(1, array['x'], 1, 1)")


def test_show_says_how_far_it_is(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    claim(conn)
    assert "progress" not in cli.ok("show", 1).out
    conn.execute("select pgfifo.progress(1, 1, 0.425, 'uploading')")
    assert re.search(r"^progress +42%$", cli.ok("show", 1).out, re.MULTILINE)
    assert re.search(r"^progress message +uploading$", cli.ok("show", 1).out, re.MULTILINE)
    assert json.loads(cli.ok("show", 1, "--json").out)["progress"] == 0.425


def test_release_gives_back_but_not_from_under_a_living_worker(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    assert "only running ones" in cli("release", 1).err
    claim(conn)
    said = cli("release", 1)
    assert said.code == 1
    assert "worker test" in said.err
    cli.ok("release", 1, "--yes")
    assert json.loads(cli.ok("show", 1, "--json").out)["state"] == "waiting"


# policy, pause, resume


def test_policy_set_says_what_changed_and_the_undo_works(cli: CommandLine) -> None:
    said = cli.ok("policy", "set", "x", "--max-concurrent", 3, "--retention", "2d")
    assert said.out.splitlines() == ["x: max_concurrent inherited → 3", "x: retention inherited → 2d"]
    said = cli.ok("policy", "set", "x", "--max-concurrent", 5, "--backoff-cap", "90s")
    assert said.undo == [
        ["policy", "set", "x", "--max-concurrent", "3"],
        ["policy", "unset", "x", "backoff_cap"],
    ]
    for words in said.undo:
        cli.ok(*words)
    values = {
        row["attribute"]: row["value"] for row in json.loads(cli.ok("policy", "show", "x", "--json").out)
    }
    assert (values["max_concurrent"], values["backoff_cap"], values["retention"]) == (3, 300, 172800)
    assert "Nothing to do" in cli.ok("policy", "set", "x", "--max-concurrent", 3).err


def test_policy_every_attribute_can_be_set_and_unset(cli: CommandLine) -> None:
    from pgfifo.policies import Policy

    given = {
        "group_by": "a,b.c",
        "max_concurrent": "2",
        "ordering": "relaxed",
        "max_queue_length": "unlimited",
        "max_action_queue_length": "100",
        "on_limit": "cancel",
        "rate": "5/2h",
        "burst": "3",
        "spacing": "1s",
        "gap": "2s",
        "quota": "1000/day Europe/Berlin",
        "max_wait": "1h",
        "timeout": "5m",
        "kill_after": "30s",
        "max_attempts": "3",
        "failure_mode": "yield",
        "backoff": "constant",
        "backoff_initial": "250ms",
        "backoff_factor": "1.5",
        "backoff_cap": "1h30m",
        "backoff_jitter": "0.5",
        "on_exhausted": "pause",
        "retention": "unlimited",
        "lane_retention": "12h",
        "max_payload": "1000",
    }
    of_everything = {"declared_actions_only", "audit_retention"}
    assert given.keys() | of_everything == Policy.__annotations__.keys(), (
        "an attribute without an option, or the other way round"
    )
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    cli.ok("policy", "set", "x", *words)
    shown = {line.split()[0]: line.split()[1:] for line in cli.ok("policy", "show", "x").out.splitlines()}
    assert {name: shown[name] for name in given} == {
        name: [*value.split(), "action", "x"] for name, value in given.items()
    }
    cli.ok("policy", "unset", "x", *given)
    assert not any("action" in line.split() for line in cli.ok("policy", "show", "x").out.splitlines())


def test_policy_of_the_audit_is_how_long_it_is_kept(cli: CommandLine) -> None:
    def shown() -> list[str]:
        lines = cli.ok("policy", "show", "--default").out.splitlines()
        return next(line.split() for line in lines if line.startswith("audit_retention"))

    assert shown() == ["audit_retention", "365d", "default", "-"]
    said = cli.ok("policy", "set", "--default", "--audit-retention", "90d")
    assert "everything: audit_retention inherited → 90d" in said.out
    assert shown() == ["audit_retention", "90d", "everything", "-"]
    refused = cli("policy", "set", "--default", "--audit-retention", "1h")
    assert (refused.code, "at least" in refused.err) == (2, True)
    refused = cli("policy", "set", "x", "--audit-retention", "90d")
    assert (refused.code, "belongs to everything" in refused.err) == (2, True)
    cli.ok(*said.undo[0])
    assert shown() == ["audit_retention", "365d", "default", "-"]


def test_policy_only_declared_actions_take_executions_where_that_is_said(cli: CommandLine) -> None:
    def shown(*words: str) -> list[str]:
        lines = cli.ok("policy", "show", *words).out.splitlines()
        return next(line.split() for line in lines if line.startswith("declared_actions_only"))

    assert shown("--default") == ["declared_actions_only", "no", "default", "-"]
    said = cli.ok("policy", "set", "--default", "--declared-actions-only")
    assert "everything: declared_actions_only inherited → yes" in said.out
    assert said.undo == [["policy", "unset", "--default", "declared_actions_only"]]
    refused = cli("enqueue", "delpoy")
    assert (refused.code, "there is no action 'delpoy'" in refused.err) == (1, True)
    cli.ok("policy", "set", "deploy", "--max-concurrent", 1)
    cli.ok("enqueue", "deploy")
    assert shown("deploy") == ["declared_actions_only", "yes", "everything", "-"]
    said = cli.ok("policy", "set", "--default", "--no-declared-actions-only")
    [undo] = said.undo
    assert undo == ["policy", "set", "--default", "--declared-actions-only"]
    cli.ok("enqueue", "delpoy")
    cli.ok(*undo)
    cli.ok("policy", "unset", "--default", "declared-actions-only")
    assert shown("--default") == ["declared_actions_only", "no", "default", "-"]


def test_policy_override_wins_for_a_time_and_the_undo_works(cli: CommandLine, conn: Connection) -> None:
    cli.ok("policy", "set", "core.x", "--max-concurrent", 2)

    def shown(*words: str) -> list[str]:
        lines = cli.ok("policy", "show", "core.x", *words).out.splitlines()
        return next(line.split() for line in lines if line.startswith("max_concurrent"))

    said = cli.ok("policy", "override", "core.x", "--max-concurrent", 5, "--for", "1h", "--reason", "sale")
    assert said.out.startswith("core.x: max_concurrent as set → 5, until 20")
    assert said.undo == [["policy", "override", "core.x", "--end", "max_concurrent"]]
    assert shown()[:5] == ["max_concurrent", "5", "override", "action", "core.x,"]
    conn.execute("select pgfifo.advance('30 min')")
    assert re.search(r"for another (29m 5\ds|30m)$", " ".join(shown()))
    row = cli.ok("policy", "overrides").out.splitlines()[1].split()
    assert row[:4] == ["action", "core.x", "max_concurrent", "5"]
    assert row[-1] == "sale"
    [row] = json.loads(cli.ok("policy", "overrides", "--json").out)
    assert 1700 < row["remaining"] <= 1800
    said = cli.ok(*said.undo[0])
    assert said.out == "core.x: the override of max_concurrent, 5, has ended\n"
    assert shown() == ["max_concurrent", "2", "action", "core.x"]
    [undo] = said.undo
    assert undo[:6] == ["policy", "override", "core.x", "--max-concurrent", "5", "--for"]
    cli.ok(*undo)
    assert shown()[1] == "5"
    conn.execute("select pgfifo.advance('30 min')")
    assert shown() == ["max_concurrent", "2", "action", "core.x"]
    assert "No overrides." in cli.ok("policy", "overrides").err


def test_policy_override_that_replaces_one_is_undone_by_that_one(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    cli.ok("policy", "override", "x", "--max-concurrent", 5, "--for", "1h")
    conn.execute("select pgfifo.advance('30 min')")
    said = cli.ok("policy", "override", "x", "--max-concurrent", 7, "--max-attempts", 2, "--for", "2h")
    end, again = said.undo
    assert end == ["policy", "override", "x", "--end", "max_attempts"]
    assert again[:5] == ["policy", "override", "x", "--max-concurrent", "5"]
    cli.ok(*end)
    cli.ok(*again)
    [row] = json.loads(cli.ok("policy", "overrides", "--json").out)
    assert (row["attribute"], row["value"]) == ("max_concurrent", 5)
    assert 1700 < row["remaining"] <= 1800


def test_policy_override_has_scopes_and_all_of_one_can_be_ended(cli: CommandLine) -> None:
    cli.ok("enqueue", "core.x", "--group", "k")
    lane, pack = ["core.x", "--group", "k"], ["--pack", "core"]
    for words in (lane, ["core.x"], pack, ["--default"]):
        said = cli.ok("policy", "override", *words, "--rate", "5/s", "--max-attempts", 3, "--for", "90s")
        assert ("not a cap" in said.err) is (words in (pack, ["--default"]))
    assert len(json.loads(cli.ok("policy", "overrides", "--json").out)) == 8
    for words in (pack, lane, ["--default"], ["core.x"]):
        assert len(cli.ok("policy", "override", *words, "--end").out.splitlines()) == 2
    assert "Nothing to do" in cli.ok("policy", "override", "core.x", "--end").err
    assert "Nothing to do" in cli.ok("policy", "override", "core.x", "--end", "rate").err
    assert json.loads(cli.ok("policy", "overrides", "--json").out) == []


def test_policy_set_says_that_an_override_is_in_the_way(cli: CommandLine) -> None:
    cli.ok("policy", "set", "x", "--max-concurrent", 2)
    cli.ok("policy", "override", "x", "--max-concurrent", 5, "--for", "1h")
    said = cli.ok("policy", "set", "x", "--max-concurrent", 3)
    assert "An override of max_concurrent holds until 20" in said.err


def test_policy_history_and_audit_say_who_changed_what(cli: CommandLine) -> None:
    cli.ok("policy", "set", "core.x", "--rate", "5/s", "--gap", "90s")
    cli.ok("policy", "set", "core.x", "--group", "k", "--rate", "6/s")
    cli.ok("policy", "set", "--pack", "core", "--rate", "7/s")
    cli.ok("policy", "set", "--default", "--rate", "8/s")
    cli.ok("policy", "override", "core.x", "--rate", "9/s", "--for", "1h", "--reason", "sale")
    cli.ok("policy", "unset", "core.x", "gap")
    cli.ok("pause", "core.x", "--reason", "lunch")

    def seen(*words: str) -> list[tuple[object, ...]]:
        rows = json.loads(cli.ok("policy", "history", "--json", *words).out)
        return [(row["scope"], row["attribute"], row["old"], row["new"]) for row in rows]

    assert seen()[:3] == [
        ("action", "gap", 90, None),
        ("action", "rate", None, "9/s"),
        ("everything", "rate", None, "8/s"),
    ]
    assert len(seen("core.x")) == 5
    assert seen("core.x", "--group", "k") == [("lane", "rate", None, "6/s")]
    assert seen("--pack", "core") == [("pack", "rate", None, "7/s")]
    assert seen("--default") == [("everything", "rate", None, "8/s")]
    assert len(seen("--limit", "2")) == 2
    table = cli.ok("policy", "history", "core.x").out
    assert re.search(r"action +core\.x +gap +1m30s +- ", table)
    assert re.search(r"lane +core\.x k +rate +- +6/s ", table)
    assert "No changes" in cli.ok("policy", "history", "--pack", "none").err
    entries = json.loads(cli.ok("audit", "--json").out)
    assert [entry["what"] for entry in entries][:3] == ["pause", "set_policy", "override_policy"]
    assert "lunch" in cli.ok("audit", "core.x", "--what", "pause").out
    assert cli("audit", "nobody").code == 1
    assert "Nothing is on record." in cli.ok("audit", "--what", "cancel").err


def test_policy_export_and_apply_keep_limits_in_a_file(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    cli.ok("policy", "set", "deploy", "--group-by", "env", "--max-concurrent", 2, "--spacing", "1m30s")
    cli.ok("policy", "set", "deploy", "--group", "env=prod", "--max-concurrent", 1)
    cli.ok("policy", "set", "--pack", "web", "--rate", "100/s")
    cli.ok("policy", "set", "--default", "--declared-actions-only")
    assert f"Wrote {file}" in cli.ok("policy", "export", file).err
    text = file.read_text("utf-8")
    assert cli.ok("policy", "export").out == text
    assert 'group = { env = "prod" }' in text
    assert 'spacing = "1m30s"' in text
    assert json.loads(cli.ok("policy", "export", "--json").out)["packs"] == {"web": {"rate": "100/s"}}
    for words in ([], ["--dry-run"], ["--check"], ["--prune", "--check"]):
        assert "Nothing to do" in cli.ok("policy", "apply", *words, file).err

    file.write_text(text.replace("max_concurrent = 1", "max_concurrent = 3").replace('"100/s"', '"5/s"'))
    lines = ["pack web: rate 100/s → 5/s", "deploy env=prod: max_concurrent 1 → 3"]
    said = cli.ok("policy", "apply", "--dry-run", file)
    assert said.out.splitlines() == lines
    assert f"To apply it: pgfifo policy apply {file}" in said.err
    said = cli("policy", "apply", "--check", file)
    assert (said.code, said.out.splitlines()) == (1, lines)
    assert cli.ok("policy", "export").out == text, "a look changed something"
    said = cli.ok("policy", "apply", file)
    assert said.out.splitlines() == lines
    assert cli.ok("policy", "export").out == file.read_text("utf-8")
    for undo in said.undo:
        cli.ok(*undo)
    assert cli.ok("policy", "export").out == text, "the undo did not work"

    file.write_text("[actions.deploy]\nmax_concurrent = 2\n")
    assert "Nothing to do" in cli.ok("policy", "apply", file).err
    said = cli("policy", "apply", "--prune", "--check", "--json", file)
    assert said.code == 1
    assert {row["attribute"]: row["old"] for row in json.loads(said.out)} == {
        "declared_actions_only": True,
        "rate": "100/s",
        "group_by": ["env"],
        "spacing": 90,
        "max_concurrent": 1,
    }
    assert f"pgfifo policy apply --prune {file}" in cli("policy", "apply", "--prune", "--check", file).err
    cli.ok("policy", "apply", "--prune", file)
    assert cli.ok("policy", "export").out.splitlines()[2:] == ["[actions.deploy]", "max_concurrent = 2"]


def test_policy_apply_reads_stdin(cli: CommandLine) -> None:
    said = cli.ok("policy", "apply", "-", stdin="[everything]\nmax_attempts = 2\n")
    assert said.out == "everything: max_attempts inherited → 2\n"
    assert "this is no TOML" in cli("policy", "apply", "-", stdin=b"\xff").err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[everything]\nmax_concurent = 2", "line 2, everything.max_concurent"),
        ("[everything]\nmax_concurrent = 0", "line 2, everything.max_concurrent: max_concurrent cannot be 0"),
        ("[evrything]\nmax_concurrent = 1", "line 1, evrything is no part"),
        ("[everything", "this is no TOML"),
        ('[actions.x]\nquota = "5/day Nowhere"', "time zone"),
    ],
)
def test_policy_apply_says_where_a_file_is_wrong(
    cli: CommandLine, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(text)
    said = cli("policy", "apply", file)
    assert said.code == 2
    assert message in said.err
    assert cli("policy", "apply", tmp_path / "none").code == 1
    assert cli("policy", "export", tmp_path / "no" / "folder").code == 1


def test_policy_scopes(cli: CommandLine) -> None:
    cli.ok("enqueue", "core.http.get")

    def slots(*words: str) -> tuple[int, str]:
        rows = json.loads(cli.ok("policy", "show", "core.http.get", "--json", *words).out)
        (found,) = [(row["value"], row["source"]) for row in rows if row["attribute"] == "max_concurrent"]
        return found

    assert slots() == (1, "default")
    wide = cli.ok("policy", "set", "--default", "--max-concurrent", 2)
    assert "not a cap" in wide.err
    assert slots() == (2, "everything")
    assert "not a cap" in cli.ok("policy", "set", "--pack", "core.http", "--max-concurrent", 3).err
    assert slots() == (3, "pack")
    said = cli.ok("policy", "set", "--pack", "web", "--max-action-queue-length", 3, "--quota", "5/day").err
    assert "default for each action below pack web" in said
    assert "one for all of pack web together" in said
    assert "not a cap" not in said
    assert "not a cap" not in cli.ok("policy", "set", "core.http.get", "--max-concurrent", 4).err
    assert slots() == (4, "action")
    cli.ok("policy", "set", "core.http.get", "--group", "k", "--max-concurrent", 5)
    assert slots("--group", "k") == (5, "lane")
    assert slots() == (4, "action")
    cli.ok("policy", "unset", "core.http.get", "max_concurrent")
    cli.ok("policy", "unset", "--pack", "core.http", "--", "--max-concurrent")
    cli.ok("policy", "unset", "--default", "max-concurrent")
    assert slots() == (1, "default")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set", "x"], "nothing to set"),
        (["set", "--max-concurrent", "1"], "name one scope"),
        (["set", "x", "--pack", "p", "--max-concurrent", "1"], "name one scope"),
        (["set", "x", "--default", "--max-concurrent", "1"], "name one scope"),
        (["set", "--pack", "p", "--group", "a=1", "--max-concurrent", "1"], "--group needs the action"),
        (["set", "--default", "--group-by", "a"], "belongs to an action"),
        (["set", "x", "--max-concurrent", "0"], "from 1 to"),
        (["set", "x", "--max-concurrent", "2000000"], "from 1 to"),
        (["set", "x", "--max-concurrent", "many"], "--max-concurrent"),
        (["set", "x", "--max-queue-length", "some"], "unlimited"),
        (["set", "x", "--backoff-cap", "soon"], "soon"),
        (["set", "x", "--backoff-jitter", "2"], "from 0 to 1"),
        (["set", "x", "--ordering", "random"], "relaxed"),
        (["set", "x", "--rate", "fast"], "10/min"),
        (["set", "x", "--quota", "3/week"], "Europe/Berlin"),
        (["set", "x", "--failure-mode", "drop"], "yield"),
        (["set", "x", "--on-limit", "drop"], "cancel"),
        (["set", "x", "--timeout", "0"], "at least"),
        (["set", "x", "--group-by", "a..b"], "path"),
        (["set", "x", "--max-concurent", "1"], "--max-concurrent"),
        (["unset", "x"], "nothing to unset"),
        (["unset", "x", "max_concurent"], "Did you mean 'max_concurrent'?"),
        (["unset", "x", "qqq"], "There are:"),
        (["unset", "--default", "group_by"], "belongs to an action"),
        (["override", "x", "--max-concurrent", "1"], "--for 1h"),
        (["override", "x", "--for", "1h"], "nothing to override"),
        (["override", "--max-concurrent", "1", "--for", "1h"], "name one scope"),
        (["override", "x", "--max-concurrent", "1", "--for", "soon"], "soon"),
        (["override", "x", "--max-concurrent", "0", "--for", "1h"], "from 1 to"),
        (["override", "x", "rate", "--max-concurrent", "1", "--for", "1h"], "'rate' is too much"),
        (["override", "x", "--end", "--max-concurrent", "1"], "--end ends"),
        (["override", "x", "--end", "rato"], "Did you mean 'rate'?"),
        (
            ["override", "--default", "--max-wait", "1h", "--for", "1h"],
            "max_wait cannot be overridden for a time",
        ),
        (
            ["override", "--default", "--declared-actions-only", "--for", "1h"],
            "declared_actions_only cannot be overridden for a time",
        ),
        (["history", "x", "--default"], "name one scope"),
        (["history", "--group", "a=1"], "--group needs the action"),
        (["show"], "ACTION"),
        (["show", "x", "--default"], "name one scope"),
        (["show", "--default", "--group", "a=1"], "--group needs the action"),
        (["set", "x", "--declared-actions-only"], "belongs to everything, not to an action"),
        (["set", "--pack", "p", "--no-declared-actions-only"], "belongs to everything, not to a pack"),
    ],
)
def test_policy_bad_input_is_2(cli: CommandLine, words: list[str], message: str) -> None:
    said = cli("policy", *words)
    assert said.code == 2, said
    assert message in said.err


def test_policy_of_an_unknown_action_or_a_wrong_group_is_1(cli: CommandLine) -> None:
    cli.ok("policy", "set", "deploy", "--group-by", "env")
    said = cli("policy", "show", "deplo")
    assert (said.code, said.out) == (1, "")
    assert "Did you mean 'deploy'?" in said.err
    said = cli("policy", "show", "deploy", "--group", "customer=1")
    assert (said.code, said.out) == (1, "")


def test_policy_group_by_is_not_changed_over_what_waits(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    said = cli("policy", "set", "x", "--group-by", "a")
    assert said.code == 1
    assert "pgfifo policy set x --group-by a --force. Or let its workers drain it first." in said.err
    cli.ok("policy", "set", "x", "--group-by", "a", "--force")
    said = cli("policy", "unset", "x", "group_by")
    assert said.code == 1
    assert "pgfifo policy unset x group_by --force." in said.err


def test_policy_override_of_what_cannot_be_says_why(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    said = cli("policy", "override", "x", "--group-by", "a", "--for", "1h")
    assert (said.code, said.out) == (2, "")
    assert "group_by cannot be overridden for a time" in said.err
    assert "--max-wait" not in cli.ok("policy", "override", "--help").out


def test_policy_burst_without_a_rate_is_set_and_noted(cli: CommandLine) -> None:
    noted = "a burst has no effect until there is one"
    assert noted in cli.ok("policy", "set", "x", "--burst", 5).err
    assert noted in cli.ok("policy", "set", "--default", "--burst", 5).err
    assert noted not in cli.ok("policy", "set", "x", "--burst", 6, "--rate", "10/s").err
    assert noted not in cli.ok("policy", "set", "x", "--burst", 7).err
    cli.ok("policy", "set", "x", "--group-by", "a")
    assert noted not in cli.ok("policy", "set", "x", "--group", "k", "--burst", 3).err


def test_finish_ends_what_is_stuck(cli: CommandLine, conn: Connection) -> None:
    for _ in range(3):
        cli.ok("enqueue", "x")
    claim(conn)
    number = 1
    said = cli.ok("finish", number, "--failed", "--reason", "hangs")
    assert f"Finished execution {number}, which was running: failed." in said.err
    assert "loses it" in said.err
    shown = json.loads(cli.ok("show", number, "--json").out)
    assert (shown["state"], shown["reason"], shown["error"]) == ("failed", "hangs", "hangs")
    again = cli("finish", number, "--succeeded")
    assert (again.code, "has failed already" in again.err) == (1, True)
    said = cli.ok("finish", number + 1, "--succeeded", "--result", '{"by": "hand"}')
    assert "loses it" not in said.err
    assert json.loads(cli.ok("show", number + 1, "--json").out)["result"] == {"by": "hand"}
    cli.ok("finish", number + 2, "--cancelled")
    for words in ([], ["--failed", "--succeeded"], ["--failed", "--result", "1"]):
        assert cli("finish", number, *words).code == 2
    assert cli("finish", 4711, "--failed").code == 1


def test_cancel_by_what_they_are(cli: CommandLine, conn: Connection) -> None:
    cli.ok("policy", "set", "x", "--group-by", "c")
    for n in range(4):
        cli.ok("enqueue", "x", "--set", f"c={n % 2}", "--tag", f"n{n}")
    claim(conn)
    said = cli.ok("cancel", "--action", "x", "--dry-run")
    assert "Would cancel 3 executions, and ask the workers to stop 1 that runs." in said.err
    assert "Cancelled 1 execution." in cli.ok("cancel", "--action", "x", "--group", "c=1", "--tag", "n1").err
    assert "Nothing to do" in cli.ok("cancel", "--tag", "n1").err
    assert "Nothing to do" in cli.ok("cancel", "--action", "x", "--before", "1h").err
    assert "Nothing to do" in cli.ok("cancel", "--action", "x", "--since", "2100-01-01").err
    assert "Nothing to do" in cli.ok("cancel", "--ids", "50..60", "--state", "active").err
    said = cli.ok("cancel", "--action", "x", "--since", "1h", "--reason", "moved")
    assert "Cancelled 2 executions." in said.err
    assert "Asked the workers to stop 1 execution" in said.err
    assert json.loads(cli.ok("show", 4, "--json").out)["reason"] == "moved"
    [undo] = [line for line in said.err.splitlines() if line.startswith("Undo: pgfifo retry")]
    assert cli.ok("list", "--since", "1h", "-q").out.split() == ["4", "3", "2", "1"]
    assert cli.ok("list", "--before", "1h", "-q").out == ""
    assert cli.ok("list", "--before", "2000-01-01T12:00", "-q").out == ""
    for words in (
        [],
        ["1", "--action", "x"],
        ["1", "--dry-run"],
        ["--group", "c=1"],
        ["--action", "x", "--since", "soon"],
        ["--action", "x", "--state", "finished"],
        ["--ids", "a..b"],
    ):
        assert cli("cancel", *words).code == 2, words
    assert cli("cancel", "--action", "y").code == 1
    assert "Put back 2 executions." in cli.ok(*shlex.split(undo)[2:]).err
    assert cli.ok("list", "--state", "waiting", "-q").out.split() == ["6", "5"]


def test_cancel_says_which_lanes_were_kept(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    cli.ok("enqueue", "x")
    with conn.transaction():
        conn.execute("select pgfifo.cancel(1)")
        said = cli("cancel", "--action", "x")
    assert (said.code, "1 lane had to be passed by" in said.err) == (1, True)


def test_events(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x", "--group", "k")
    claim(conn)
    cli.ok("pause", "x", "--reason", "lunch")
    said = cli.ok("events")
    assert [line.split()[2] for line in said.out.splitlines()] == [
        "enqueued",
        "started",
        "lane_started",
        "paused",
    ]
    assert "attempt 1" in said.out
    assert "reason lunch" in said.out
    (words,) = re.findall(r"^Go on with: pgfifo (.*)$", said.err, re.MULTILINE)
    assert cli.ok(*words.split()).out == ""
    conn.execute("select pgfifo.finish(1, 1, 'failed', null, 'boom', false)")
    (line,) = cli.ok(*words.split(), "--kind", "finished", "--json").out.splitlines()
    event = json.loads(line)
    assert (event["id"], event["group_text"], event["detail"]["outcome"]) == (1, "k", "failed")
    assert cli.ok("events", "--action", "x", "--group", "k", "--id", 1, "--since", event["cursor"]).out == ""
    assert cli("events", "--since", "nonsense").code == 2
    assert cli("events", "--action", "y").code == 1
    assert cli("events", "--kind", "born", "--follow").code == 2


def test_events_are_followed_until_interrupted(dsn: str, conn: Connection) -> None:
    conn.execute("select pgfifo.enqueue('x')")
    with started("events", "--follow", "--json", dsn=dsn) as following:
        try:
            looked = (
                "select count(*) = 1 from pg_stat_activity"
                " where state = 'idle' and query like '%pgfifo.events(%' and datname = current_database()"
            )
            wait_for(lambda: conn.execute(looked).fetchone() == (True,), 20, "the program to follow")
            conn.execute("select pgfifo.enqueue('x')")
            assert following.stdout is not None
            assert json.loads(following.stdout.readline())["kind"] == "enqueued"
        finally:
            following.send_signal(signal.SIGINT)
        assert following.wait(60) == 130


def test_pause_and_resume(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    assert "Undo: pgfifo resume x" in cli.ok("pause", "x", "--reason", "lunch").err
    assert "paused" in cli.ok("stats").out
    assert "Nothing to do" in cli.ok("pause", "x").err
    assert "Undo: pgfifo pause x" in cli.ok("resume", "x").err
    assert "Nothing to do" in cli.ok("resume", "x").err
    cli.ok("enqueue", "x", "--group", "k")
    assert "Undo: pgfifo resume x --group k" in cli.ok("pause", "x", "--group", "k").err
    assert "paused" in cli.ok("lanes", "x").out
    cli.ok("resume", "x", "--group", "k")


def test_a_worker_says_that_all_there_is_to_do_is_paused(cli: CommandLine, dsn: str) -> None:
    cli.ok("enqueue", "x")
    cli.ok("pause", "x", "--reason", "migration")
    with started("worker", "--action", "x", "--", "true", dsn=dsn) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.kill()  # how it stops is not what this is about
    assert said.startswith("1 execution waits, all of it paused: nothing starts until it is resumed. Why: ")


def test_close_and_open(cli: CommandLine) -> None:
    cli.ok("enqueue", "x")
    assert "Undo: pgfifo open x" in cli.ok("close", "x", "--reason", "moving house").err
    cli.ok("pause", "x")
    assert "paused, closed" in cli.ok("stats").out
    refused = cli("enqueue", "x")
    assert refused.code == 1
    assert "moving house" in refused.err
    assert "To let enqueues in again: pgfifo open x\n" in refused.err
    assert "Nothing to do" in cli.ok("close", "x").err
    assert "Undo: pgfifo close x" in cli.ok("open", "x").err
    assert "Nothing to do" in cli.ok("open", "x").err
    assert "Undo: pgfifo open x --group k" in cli.ok("close", "x", "--group", "k").err
    refused = cli("enqueue", "x", "--group", "k")
    assert refused.code == 1
    assert "To let enqueues in again: pgfifo open x --group k\n" in refused.err
    assert "closed" in cli.ok("lanes", "x").out
    cli.ok("open", "x", "--group", "k")
    cli.ok("enqueue", "x", "--group", "k")


@pytest.mark.parametrize(
    "words",
    [
        ["pause"],
        ["resume"],
        ["close"],
        ["open"],
        ["stats"],
        ["lanes"],
        ["policy", "show"],
        ["list"],
        ["worker", "--until-empty", "--action"],
    ],
)
def test_unknown_action_is_1_and_suggests_the_nearest(cli: CommandLine, words: list[str]) -> None:
    cli.ok("enqueue", "deliver")
    said = cli(*words, "delivr", *(["--", "cat"] if "worker" in words else []))
    assert (said.code, said.out) == (1, "")
    assert "'deliver'" in said.err


# stats, lanes, workers, check


def test_stats(cli: CommandLine, conn: Connection) -> None:
    assert "No actions yet" in cli.ok("stats").err
    assert cli.ok("stats", "--json").out == "[]\n"
    for _ in range(3):
        cli.ok("enqueue", "x")
    cli.ok("enqueue", "y")
    claim(conn)
    heading, x, y = cli.ok("stats").out.splitlines()
    assert heading.split()[:6] == ["action", "lanes", "waiting", "active", "delayed", "slots"]
    assert x.split()[:6] == ["x", "1", "2", "1", "0", "1"]
    assert y.split()[:6] == ["y", "1", "1", "0", "0", "1"]
    (only,) = json.loads(cli.ok("stats", "y", "--json").out)
    assert (only["action"], only["queue_length"], only["active_count"]) == ("y", 1, 0)
    assert only["oldest_enqueued_at"] is not None


def test_lanes(cli: CommandLine) -> None:
    cli.ok("policy", "set", "x", "--group-by", "c")
    for customer in (1, 2, 2, 3, 3, 3):
        cli.ok("enqueue", "x", json.dumps({"c": customer}))
    lines = [line.split()[:2] for line in cli.ok("lanes", "x").out.splitlines()[1:]]
    assert lines == [["c=3", "3"], ["c=2", "2"], ["c=1", "1"]]
    said = cli.ok("lanes", "x", "--limit", 2, "--json")
    assert [row["queue_length"] for row in json.loads(said.out)] == [3, 2]
    assert "The busiest 2" in said.err
    said = cli.ok("lanes", "x", "--limit", 2, "--all", "--json")
    assert len(json.loads(said.out)) == 3
    assert said.err == ""
    assert cli("lanes", "x", "--limit", 0).code == 2


def test_watch_shows_again_and_again_until_interrupted(cli: CommandLine, dsn: str) -> None:
    cli.ok("enqueue", "x")
    for words in (["stats"], ["stats", "--json"], ["lanes", "x"]):
        with started(*words, "--watch", "--every", "20ms", dsn=dsn) as process:
            assert process.stdout is not None
            for _ in range(7):
                assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in out + err


def test_bad_durations_are_2(cli: CommandLine) -> None:
    for text in ("soon", "-1s", "", "0", "0s"):
        assert cli("stats", "--watch", "--every", text).code == 2


def test_tables_separate_thousands_in_counts_and_in_nothing_else(cli: CommandLine, conn: Connection) -> None:
    conn.execute("alter sequence pgfifo.execution_ids restart 12345")
    cli.ok("policy", "set", "x", "--max-concurrent", 10_000)
    conn.execute("select count(*) from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[1234]))")
    assert cli.ok("stats").out.splitlines()[1].split()[:6] == ["x", "1", "1,234", "0", "0", "10,000"]
    assert "1,234" in cli.ok("lanes", "x").out
    (row,) = json.loads(cli.ok("stats", "--json").out)
    assert (row["queue_length"], row["max_concurrent"]) == (1234, 10_000)
    assert cli.ok("list", "--limit", 1, "--oldest").out.splitlines()[1].split()[0] == "12345"
    shown = cli.ok("show", 12345).out
    assert re.search(r"^id +12345$", shown, re.MULTILINE)
    assert re.search(r"^ticket +12345$", shown, re.MULTILINE)
    policy = cli.ok("policy", "show", "x").out
    assert "max_concurrent           10000 " in policy, "it could not be given as it is shown"


def test_groups_of_text_and_of_numbers_look_different(cli: CommandLine) -> None:
    cli.ok("policy", "set", "x", "--group-by", "n")
    for payload in ('{"n":1}', '{"n":"1"}', '{"n":"one"}'):
        cli.ok("enqueue", "x", payload)
    groups = {line.split()[0] for line in cli.ok("lanes", "x").out.splitlines()[1:]}
    assert groups == {"n=1", 'n="1"', "n=one"}
    for group in groups:
        assert len(json.loads(cli.ok("list", "x", "--group", group, "--json").out)) == 1
    assert 'in x n="1".' in cli.ok("enqueue", "x", '{"n":"1"}').err


def test_workers(cli: CommandLine, conn: Connection) -> None:
    assert "No workers" in cli.ok("workers").err
    cli.ok("enqueue", "x")
    claim(conn)
    heading, line = cli.ok("workers").out.splitlines()
    assert heading.split()[:5] == ["id", "name", "host", "pid", "state"]
    assert line.split()[:6] == ["1", "test", "here", "1", "alive", "1"]
    (worker,) = json.loads(cli.ok("workers", "--json").out)
    assert (worker["name"], worker["actions"], worker["executions"]) == ("test", ["x"], 1)


def test_check_is_1_on_findings(cli: CommandLine, conn: Connection) -> None:
    cli.ok("enqueue", "x")
    assert "Everything is in order" in cli.ok("check").err
    assert cli.ok("check", "--json").out == "[]\n"
    conn.execute("update pgfifo.ledger set running = running + 1")
    said = cli("check")
    assert said.code == 1
    assert "violation" in said.out
    found = json.loads(cli("check", "--json").out)
    assert found[0]["severity"] == "violation"


# worker


def test_worker_runs_a_command_for_each(cli: CommandLine, dsn: str, tmp_path: Path) -> None:
    cli.ok("policy", "set", "deliver", "--group-by", "customer")
    for customer in (1, 2, 1):
        cli.ok("enqueue", "deliver", json.dumps({"customer": customer}))
    script = tmp_path / "deliver.sh"
    script.write_text(
        '#!/bin/sh\necho "$PGFIFO_ID $PGFIFO_ATTEMPT $PGFIFO_GROUP $(cat)" >> "$(dirname "$0")/seen"\n'
    )
    script.chmod(0o755)
    said = run_program(
        *("worker", "--action", "deliver", "--concurrency", 1, "--until-empty", "--name", "me", "--", script),
        env={"PGFIFO_DSN": dsn},
    )
    assert said.code == 0, said.err
    assert (tmp_path / "seen").read_text().splitlines() == [
        '1 1 {"customer":1} {"customer": 1}',
        '2 1 {"customer":2} {"customer": 2}',
        '3 1 {"customer":1} {"customer": 1}',
    ]
    assert [row["state"] for row in json.loads(cli.ok("list", "--json").out)] == ["succeeded"] * 3
    assert json.loads(cli.ok("workers", "--json").out)[0]["name"] == "me"


def test_worker_shell_and_result(cli: CommandLine) -> None:
    cli.ok("enqueue", "x", '{"n":20}')
    line = 'read payload; echo "{\\"got\\":$payload}" | cat'
    cli.ok("worker", "-a", "x", "--until-empty", "--result", "json", "--shell", "--", line)
    assert json.loads(cli.ok("show", 1, "--json").out)["result"] == {"got": {"n": 20}}


APPLICATION = """
import pgfifo
actions = pgfifo.Actions()
@actions.action("double", max_concurrent=2)
def double(execution):
    return {"twice": execution.payload["n"] * 2}
@actions.action("other")
def other(execution):
    return None
something = 1
"""


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application in it, where the command line runs."""
    (tmp_path / "shop_jobs.py").write_text(APPLICATION)
    (tmp_path / "broken_jobs.py").write_text("import pgfifo\nraise RuntimeError('no configuration')\n")
    (tmp_path / "lacking_jobs.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "two_jobs.py").write_text(APPLICATION + "more = pgfifo.Actions()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    return tmp_path


def test_worker_runs_an_application(cli: CommandLine, application: Path, dsn: str) -> None:
    cli.ok("enqueue", "double", '{"n":21}')
    cli.ok("enqueue", "other")
    said = run_program(
        "worker", "shop_jobs:actions", "--until-empty", env={"PGFIFO_DSN": dsn}, cwd=application
    )
    assert said.code == 0, said.err
    assert "serves double, other" in said.err
    assert json.loads(cli.ok("show", 1, "--json").out)["result"] == {"twice": 42}
    assert json.loads(cli.ok("show", 2, "--json").out)["state"] == "succeeded"
    assert '"declared"' in cli.ok("policy", "show", "double", "--json").out


def test_worker_module_alone_will_do_and_one_action_of_it(cli: CommandLine, application: Path) -> None:
    cli.ok("enqueue", "double", '{"n":1}')
    cli.ok("enqueue", "other")
    cli.ok("worker", "shop_jobs:actions", "--action", "other", "--until-empty")
    assert json.loads(cli.ok("show", 1, "--json").out)["state"] == "waiting"
    cli.ok("worker", "shop_jobs", "--until-empty", "--concurrency", 5, "--concurrency", "double=1")
    assert json.loads(cli.ok("show", 1, "--json").out)["state"] == "succeeded"


@pytest.mark.parametrize("way", ["force", "drain"])
def test_worker_that_declares_a_new_grouping_over_what_waits_names_both_ways_out(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lines = ['"ship", group_by=["customer", "to.city"]', "def ship(execution):", "    return 1"]
    text = f"import pgfifo\nactions = pgfifo.Actions()\n@actions.action({lines[0]})\n{lines[1]}\n{lines[2]}\n"
    (tmp_path / f"grouped_{way}.py").write_text(text.replace(", group", ", group"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    cli.ok("enqueue", "ship", '{"customer":"a"}')
    said = cli("worker", f"grouped_{way}:actions", "--until-empty")
    assert said.code == 1
    assert "pgfifo policy set ship --group-by customer,to.city --force. Or let it drain" in said.err
    assert "pgfifo worker … --no-declare, in Python Worker(…, declare=False)." in said.err
    if way == "force":
        cli.ok("policy", "set", "ship", "--group-by", "customer,to.city", "--force")
    else:
        cli.ok("worker", f"grouped_{way}:actions", "--until-empty", "--no-declare")
        assert json.loads(cli.ok("show", 1, "--json").out)["state"] == "succeeded"
    cli.ok("worker", f"grouped_{way}:actions", "--until-empty")
    assert json.loads(cli.ok("show", 1, "--json").out)["state"] == "succeeded"
    assert '"customer"' in cli.ok("policy", "show", "ship", "--json").out


def test_worker_processes(cli: CommandLine, application: Path, dsn: str) -> None:
    for n in range(20):
        cli.ok("enqueue", "double", json.dumps({"n": n}))
    said = run_program(
        *("worker", "shop_jobs:actions", "--processes", 2, "--until-empty", "--concurrency", 2),
        env={"PGFIFO_DSN": dsn},
        cwd=application,
    )
    assert said.code == 0, said.err
    assert len(json.loads(cli.ok("workers", "--json").out)) == 2
    assert cli.ok("list", "--state", "succeeded", "--quiet").out.count("\n") == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_worker_stops_on_signals(
    cli: CommandLine, conn: Connection, dsn: str, number: signal.Signals, code: int, processes: int
) -> None:
    cli.ok("enqueue", "x")
    words = ["worker", "--action", "x", "--processes", str(processes), "--", "true"]
    alive = "select count(*) from pgfifo.workers where state = 'alive'"
    with started(*words, dsn=dsn) as process:
        wait_for(lambda: conn.execute(alive).fetchone() == (processes,), 60, "the workers to register")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert conn.execute(alive).fetchone() == (0,)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "nothing to run"),
        (["--action", "x"], 2, "no command to run"),
        (["--action", "x", "--"], 2, "no command to run"),
        (["--action", "x", "--", "no-such-program-anywhere"], 2, "no such program"),
        (["--action", "x", "--", "/etc/passwd"], 2, "not an executable file"),
        (["--action", "x", "--shell", "--", "echo", "hello"], 2, "one line of shell"),
        (["--", "cat"], 2, "there is no module 'cat'"),
        (["cat", "-n"], 2, "-n"),
        (["a", "b"], 2, "--action NAME -- COMMAND"),
        (["nowhere:actions"], 2, "there is no module 'nowhere'"),
        (["nowhere.at.all:actions"], 2, "there is no module 'nowhere'"),
        (["shop_jobs:action"], 2, "Did you mean shop_jobs:actions?"),
        (["shop_jobs:qqq"], 2, "It has: shop_jobs:actions."),
        (["shop_jobs:something"], 2, "no pgfifo.Actions"),
        (["two_jobs"], 2, "two_jobs:more"),
        (["json:loads"], 2, "no pgfifo.Actions"),
        (["broken_jobs:actions"], 1, "no configuration"),
        (["lacking_jobs:actions"], 1, "not_installed_anywhere"),
        (["shop_jobs:actions", "--action", "doubl"], 2, "'double'"),
        (["shop_jobs:actions", "--shell"], 2, "belong to a command"),
        (["shop_jobs:actions", "--concurrency", "0"], 2, "0"),
        (["shop_jobs:actions", "--concurrency", "x"], 2, "no number"),
        (["shop_jobs:actions", "--concurrency", "double=x"], 2, "no number"),
        (["shop_jobs:actions", "--concurrency", "doubl=2"], 2, "'double'"),
        (["shop_jobs:actions", "--processes", "0"], 2, "--processes"),
        (["shop_jobs:actions", "--lease", "soon"], 2, "soon"),
        (["shop_jobs:actions", "--result", "xml"], 2, "json"),
        (["shop_jobs:actions", "--poll-only", "--listen-dsn", "postgresql://x/y"], 2, "exclude"),
        (["shop_jobs:actions", "--listen-dsn", "mysql://x"], 2, "mysql"),
        (["shop_jobs:actions", "--log-level", "loud"], 2, "loud"),
        (["shop_jobs:actions", "--action", "nothing"], 2, "no handler is registered for action 'nothing'"),
        (["shop_jobs:actions", "--concurrency", "nothing=1"], 2, "no handler"),
    ],
)
def test_worker_bad_input(
    cli: CommandLine, application: Path, words: list[str], code: int, message: str
) -> None:
    cli.ok("enqueue", "x")
    said = cli("worker", *words)
    assert said.code == code, said
    assert message in said.err


def test_error_in_an_application_shows_where_it_is(cli: CommandLine, application: Path) -> None:
    err = cli("worker", "broken_jobs:actions").err
    assert 'broken_jobs.py", line 2' in err
    assert "importlib" not in err


# embedded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for an embedded server of the test's own, which is stopped at the end."""
    from pgfifo import embedded

    monkeypatch.setenv("PGFIFO_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    embedded.stop()


def test_embedded_start_status_url_stop(cli: CommandLine, home: Path) -> None:
    cli.use(None)
    said = cli("embedded", "url")
    assert said.code == 3
    assert "pgfifo embedded start" in said.err
    assert cli("embedded", "status").code == 1
    assert "Nothing to do" in cli.ok("embedded", "stop").err
    assert "Undo: pgfifo embedded stop" in cli.ok("embedded", "start").err
    found = json.loads(cli.ok("embedded", "status", "--json").out)
    assert found["running"] is True
    assert found["data_dir"] == str(home)
    url = cli.ok("embedded", "url").out.strip()
    assert url == found["dsn"]
    with psycopg.connect(url) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    cli.ok("embedded", "start")
    cli.ok("embedded", "stop")
    assert cli("embedded", "status").code == 1


def test_without_any_database_the_embedded_one_is_used_and_said_so(cli: CommandLine, home: Path) -> None:
    cli.use(None)
    cli.ok("embedded", "start")
    found = json.loads(cli.ok("embedded", "status", "--json").out)
    took = f"{found['version']} of {found['binaries']}"
    said = cli.ok("enqueue", "x")
    assert said.out == "1\n"
    assert [line for line in said.err.splitlines() if "embedded PostgreSQL" in line] == [
        f"Using the embedded PostgreSQL {took}, data in {home} (no --dsn, PGFIFO_DSN or DATABASE_URL)."
    ]
    env = {"PGFIFO_HOME": str(home)}
    said = run_program("worker", "--action", "x", "--until-empty", "--processes", 2, "--", "true", env=env)
    assert said.code == 0, said.err
    assert said.err.count("Using the embedded PostgreSQL") == 1
    assert "succeeded" in cli.ok("list").out


def test_embedded_server_that_nobody_started_to_stay_stops_with_the_command(
    cli: CommandLine, home: Path
) -> None:
    env = {"PGFIFO_HOME": str(home)}
    assert run_program("enqueue", "x", env=env).out == "1\n"
    assert run_program("embedded", "status", env=env).code == 1
    assert run_program("enqueue", "x", env=env).out == "2\n"


# Ends


def test_reader_that_has_seen_enough_is_no_error(cli: CommandLine, conn: Connection, dsn: str) -> None:
    many = "select count(*) from pgfifo.enqueue_many('x', array_fill('{}'::jsonb, array[20000]))"
    conn.execute(many)
    for words in (
        ["list", "--all"],
        ["list", "--all", "--quiet"],
        ["list", "--all", "--json"],
    ):
        with started(*words, dsn=dsn) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(timeout=60) == 141


def test_interrupt_is_130_without_a_traceback(dsn: str) -> None:
    for pause in (0.05, 0.15, 0.3, 0.6):
        with started("stats", "--watch", dsn=dsn) as process:
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        # Else that came before Python itself was up.
        if process.returncode != -signal.SIGINT and "init_import_site" not in err:
            assert process.returncode == 130, err
            assert "Traceback" not in err


def test_interrupt_while_the_program_is_still_being_loaded_is_130_and_silent(tmp_path: Path) -> None:
    sign = tmp_path / "loading"
    (tmp_path / "psycopg.py").write_text(
        f"import pathlib, time\npathlib.Path({str(sign)!r}).touch()\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [program(), "stats"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for(sign.exists, 60, "the import of psycopg to begin")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


def test_server_that_goes_away_is_3(cli: CommandLine, dsn: str) -> None:
    with PrivateServer() as server:
        assert run_program("install", env={"PGFIFO_DSN": server.dsn()}).code == 0
        with started("stats", "--watch", "--every", "10ms", dsn=server.dsn()) as process:
            assert process.stdout is not None
            process.stdout.readline()
            server.stop("immediate")
            _, err = process.communicate(timeout=60)
        assert process.returncode == 3, err
        assert "Traceback" not in err
