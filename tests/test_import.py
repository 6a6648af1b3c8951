"""Files on their way in: checked first, each line in exactly once, and taken up again where they stopped."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgfifo import Client, errors, importing
from pgfifo.importing import Common, Importer, Rewound
from pgfifo.jsonlines import Batch, Lines
from tests.support.cli import CommandLine, program, run_program
from tests.support.database import wait_for

Connection = psycopg.Connection[Any]


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a clean database."""
    return CommandLine(dsn, monkeypatch, capsys)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of numbered lines, with others in between."""

    def writer(count: int, others: dict[int, bytes] | None = None, name: str = "events.jsonl") -> Path:
        path = tmp_path / name
        with path.open("wb") as stream:
            for number in range(1, count + 1):
                stream.write((others or {}).get(number, b'{"n":%d,"c":%d}' % (number, number % 7)) + b"\n")
        return path

    return writer


def numbers(conn: Connection, action: str = "x") -> list[int]:
    """Return the numbers of the lines that are in, in the order of their tickets."""
    query = "select (payload ->> 'n')::int from pgfifo.executions where action = %s order by ticket"
    return [number for (number,) in conn.execute(query, [action])]


def lines(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_order_of_the_file_is_the_order_of_the_lanes(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    cli.ok("policy", "set", "x", "--group-by", "c")
    said = cli.ok("enqueue", "x", "--file", write(2500), "--commit-every", 400)
    assert numbers(conn) == lines(1, 2500)
    assert conn.execute("select count(distinct group_text) from pgfifo.executions").fetchone() == (7,)
    assert re.fullmatch(r"\d+\n", said.out)
    assert "Enqueued 2,500 lines" in said.err
    upto = conn.execute("select upto, finished_at is not null from pgfifo.imports").fetchone()
    assert upto == (2500, True)
    assert conn.execute("select count(distinct xmin::text) from pgfifo._executions").fetchone() == (7,)


def test_undo_that_is_printed_undoes_it(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    said = cli.ok("enqueue", "x", "--file", write(30))
    (undo,) = [line.removeprefix("Undo: ") for line in said.err.splitlines() if line.startswith("Undo: ")]
    path = f"{Path(program()).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(undo, shell=True, check=True, env=os.environ | {"PATH": path}, capture_output=True)
    assert conn.execute("select distinct state from pgfifo.executions").fetchall() == [("cancelled",)]


def test_everything_that_lines_have_in_common(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    words = ["--tag", "a", "--tag", "b", "--header", "trace=1", "--group", "k", "--commit-every", "3"]
    said = cli.ok("enqueue", "x", "--file", write(7), "--json", *words)
    found = json.loads(said.out)
    assert (found["enqueued"], found["skipped"], found["upto"]) == (7, 0, 7)
    assert found["last_id"] - found["first_id"] == 6
    rows = conn.execute("select distinct tags, headers, group_text from pgfifo.executions").fetchall()
    assert rows == [(["a", "b"], {"trace": 1}, "k")]


def test_payload_is_what_stood_in_the_file(cli: CommandLine, conn: Connection) -> None:
    text = '{"b" : [1.50, 1e2],  "a":"\\u00e9 \\"\\\\ , {}", "big":123456789012345678901234567890}'
    cli.ok("enqueue", "x", "--file", "-", stdin=f"\ufeff{text}\r\n")
    row = conn.execute("select payload::text, payload = %s::jsonb from pgfifo.executions", [text]).fetchone()
    assert row is not None
    assert row[1], row[0]
    assert "1.50" in row[0]


# Bad lines


def test_file_with_bad_lines_is_refused_before_anything_is_enqueued(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    bad = dict.fromkeys((5, 1800, *range(2001, 2100)), b"oops") | {3: b""}
    said = cli("enqueue", "x", "--file", write(2500, bad))
    assert (said.code, said.out) == (1, "")
    assert "line 5: Expecting value at column 1" in said.err
    assert "line 1,800:" in said.err
    assert said.err.count("  line ") == 20
    assert "and 81 more" in said.err
    assert "101 bad lines of 2,500 in" in said.err
    assert ", and 1 blank one; nothing was enqueued" in said.err
    assert "--skip-bad" in said.err
    assert conn.execute("select count(*) from pgfifo._executions").fetchone() == (0,)
    assert conn.execute("select count(*) from pgfifo.imports").fetchone() == (0,)


def test_skip_bad_leaves_them_out_and_says_so(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    path = write(2500, {5: b"oops", 1800: b"[]", 2000: b""})
    said = cli.ok("enqueue", "x", "--file", path, "--skip-bad", "--json")
    assert numbers(conn) == [n for n in lines(1, 2500) if n not in (5, 1800, 2000)]
    assert (json.loads(said.out)["skipped"], json.loads(said.out)["blank"]) == (2, 1)
    assert "Passed over 1 blank line." in said.err
    assert "line 1,800: an array, not an object" in said.err


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_file_without_lines_is_no_error(cli: CommandLine, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty"
    path.write_bytes(content)
    assert "nothing to enqueue" in cli.ok("enqueue", "x", "--file", path).err
    assert "nothing to enqueue" in cli.ok("enqueue", "x", "--file", "-", stdin=b"").err


def test_payload_that_is_too_large_is_found_by_the_check(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    cli.ok("policy", "set", "x", "--max-payload", 1000)
    path = write(100, {60: b'{"n":60,"a":"%s"}' % (b"x" * 1000), 61: b'{"n":61,"a":"%s"}' % (b"x" * 900)})
    said = cli("enqueue", "x", "--file", path)
    assert said.code == 1
    assert "line 60: " in said.err
    assert "line 61: " not in said.err
    assert numbers(conn) == []
    cli.ok("enqueue", "x", "--file", path, "--skip-bad")
    assert numbers(conn) == [n for n in lines(1, 100) if n != 60]


def test_group_that_is_too_long_is_found_by_the_check(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    cli.ok("policy", "set", "x", "--group-by", "c")
    path = write(100, {60: b'{"n":60,"c":"%s"}' % (b"x" * 2000), 61: b'{"n":61,"c":"%s"}' % (b"x" * 950)})
    said = cli("enqueue", "x", "--file", path)
    assert said.code == 1
    assert "line 60: " in said.err
    assert "line 61: " not in said.err
    assert numbers(conn) == []


def test_line_that_only_the_server_refuses_is_named(
    cli: CommandLine, conn: Connection, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.ok("policy", "set", "x", "--max-payload", 1000)
    path = write(100, {60: b'{"n":60,"a":"%s"}' % (b"x" * 1000)})
    monkeypatch.setattr(importing, "examiner", lambda *_, **__: None)  # as if the policy had changed since
    said = cli("enqueue", "x", "--file", path, "--commit-every", 50)
    assert said.code == 1
    assert "line 60: " in said.err
    assert "line 50 and all before it are in" in said.err
    resume = resume_words(said.err)
    cli.ok(*resume, "--skip-bad")
    assert numbers(conn) == [n for n in lines(1, 100) if n != 60]


def test_group_that_does_not_fit_is_refused_at_once(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    cli.ok("policy", "set", "x", "--group-by", "a,b")
    assert cli("enqueue", "x", "--file", write(10), "--group", "a=1").code == 1
    assert numbers(conn) == []


# Lines that say more than a payload


def envelopes(path: Path, *found: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in found), "utf-8")
    return path


def test_envelope_says_everything_that_an_enqueue_can(
    cli: CommandLine, conn: Connection, tmp_path: Path
) -> None:
    cli.ok("policy", "set", "x", "--group-by", "env")
    path = envelopes(
        tmp_path / "f",
        {"payload": {"n": 1, "env": "prod"}},
        {"payload": [1.5], "group": {"env": "test"}, "headers": {"trace": "2"}, "tags": ["a", "b"]},
        {"payload": {"n": 3}, "group": "prod", "request_id": "r3", "tags": None},
        {"payload": None, "dedup_key": "d4"},
        {"item_key": "i5", "tags": []},
        {"payload": {"n": 6}, "run_at": "2999-01-31T12:00:00+01:00"},
    )
    said = cli.ok("enqueue", "x", "--file", path, "--envelope", "--tag", "t", "--header", "h=1", "--json")
    found = json.loads(said.out)
    assert (found["enqueued"], found["known"], found["upto"]) == (6, 0, 6)
    rows = conn.execute(
        "select v.payload, v.group_text, v.headers, v.tags, e.request_id, e.dedup_key, e.item_key,"
        " e.run_at::text, v.state from pgfifo.executions v join pgfifo._executions e using (id) order by id"
    ).fetchall()
    h, env = {"h": 1}, '{"env":%s}'
    due = conn.execute("select timestamptz '2999-01-31 11:00+00'::text").fetchone()
    assert due is not None
    assert rows == [
        ({"n": 1, "env": "prod"}, env % '"prod"', h, ["t"], None, None, None, None, "waiting"),
        ([1.5], env % '"test"', {"trace": "2"}, ["a", "b"], None, None, None, None, "waiting"),
        ({"n": 3}, env % '"prod"', h, ["t"], "r3", None, None, None, "waiting"),
        (None, env % "null", h, ["t"], None, "d4", None, None, "waiting"),
        ({}, env % "null", h, [], None, None, "i5", None, "waiting"),
        ({"n": 6}, env % "null", h, ["t"], None, None, None, due[0], "delayed"),
    ]
    (undo,) = said.undo
    cli.ok(*undo)
    assert conn.execute("select distinct state from pgfifo.executions").fetchall() == [("cancelled",)]


def test_envelope_payload_is_what_stood_in_the_file(cli: CommandLine, conn: Connection) -> None:
    text = '{"b" : [1.50, 1e400],  "a":"\\u00e9", "big":123456789012345678901234567890}'
    line = f'{{"payload":{text},"group":"k","headers":{{"n":1.50}}}}'
    cli.ok("enqueue", "x", "--file", "-", "--envelope", stdin=line)
    query = "select payload = %s::jsonb, payload::text, headers::text from pgfifo.executions"
    row = conn.execute(query, [text]).fetchone()
    assert row is not None
    assert (row[0], "1.50" in row[1], row[2]) == (True, True, '{"n": 1.50}')


def test_envelope_lines_that_are_known_are_told_and_counted_once(
    cli: CommandLine, conn: Connection, tmp_path: Path
) -> None:
    def line(n: int, **more: object) -> dict[str, object]:
        return {"payload": {"n": n, f"k{n}": n}, **more}

    first = envelopes(tmp_path / "first", *(line(n, request_id=f"r{n}") for n in lines(1, 5)))
    cli.ok("enqueue", "x", "--file", first, "--envelope")
    second = envelopes(
        tmp_path / "second",
        *(line(n, request_id=f"r{n}") for n in lines(4, 8)),
        line(9, item_key="i"),
        line(10, item_key="i"),
    )
    said = cli.ok(
        "enqueue", "x", "--file", second, "--envelope", "--on-item", "merge_patch", "--commit-every", 3
    )
    assert "Enqueued 4 lines of" in said.err
    assert "3 were there already" in said.err
    assert numbers(conn) == [*lines(1, 8), 10]
    query = "select payload from pgfifo._executions where item_key = 'i'"
    assert conn.execute(query).fetchall() == [({"n": 10, "k9": 9, "k10": 10},)]
    assert conn.execute("select enqueued, upto from pgfifo.imports order by id").fetchall() == [
        (5, 5),
        (4, 7),
    ]
    again = cli.ok("enqueue", "x", "--file", first, "--envelope")
    assert "Enqueued 0 lines of" in again.err
    assert "5 were there already" in again.err
    assert "No one command" not in again.err


BAD_ENVELOPES: dict[str, tuple[str, str]] = {
    "no envelope": ('{"customer":1}', "'customer' is no key of an envelope; there are payload, group"),
    "a group": ('{"group":[1]}', "group must be an object, such as"),
    "headers": ('{"headers":"x"}', "headers must be an object"),
    "tags": ('{"tags":["a",1]}', "tags must be an array of texts"),
    "tag": ('{"tags":"a"}', "tags must be an array of texts"),
    "a number as a key": ('{"request_id":7}', "request_id must be text of 1 to 1,024 bytes"),
    "no key": ('{"dedup_key":""}', "dedup_key must be text of 1 to 1,024 bytes"),
    "a long key": ('{"item_key":"' + "x" * 1025 + '"}', "item_key must be text of 1 to 1,024 bytes"),
    "both keys": ('{"item_key":"a","dedup_key":"b"}', "dedup_key and item_key exclude each other"),
    "a number as a time": ('{"run_at":1700000000}', "run_at must be a time as text"),
    "no time": ('{"run_at":"soon"}', "run_at: 'soon' is no time"),
    "a time of nowhere": ('{"run_at":"2026-01-31T12:00"}', "names no time zone"),
    "another group": ('{"group":{"env":"a","zone":1}}', "group"),
    "an array": ("[]", "an array, not an object"),
}


def test_envelope_file_with_bad_lines_is_refused_before_anything_is_enqueued(
    cli: CommandLine, conn: Connection, tmp_path: Path
) -> None:
    cli.ok("policy", "set", "x", "--group-by", "env")
    path = tmp_path / "bad"
    good = ['{"payload":{"n":1}}', '{"group":{"env":"a"}}', '{"group":"a"}']
    path.write_text("\n".join([*good, *(line for line, _ in BAD_ENVELOPES.values())]), "utf-8")
    said = cli("enqueue", "x", "--file", path, "--envelope")
    assert said.code == 1
    for number, (_, reason) in enumerate(BAD_ENVELOPES.values(), len(good) + 1):
        (told,) = [line for line in said.err.splitlines() if line.startswith(f"  line {number}: ")]
        assert reason in told
    assert f"{len(BAD_ENVELOPES)} bad lines of {len(good) + len(BAD_ENVELOPES)}" in said.err
    assert conn.execute("select count(*) from pgfifo.imports").fetchone() == (0,)
    cli.ok("enqueue", "x", "--file", path, "--envelope", "--skip-bad")
    assert conn.execute("select count(*) from pgfifo.executions").fetchone() == (len(good),)


def test_envelope_line_that_only_the_server_refuses_is_named(
    cli: CommandLine, conn: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where lines before it are in other calls of the same transaction."""
    cli.ok("policy", "set", "x", "--group-by", "env")
    path = envelopes(
        tmp_path / "f",
        *({"payload": {"n": n}, "tags": [f"t{n % 3}"]} for n in lines(1, 10)),
        {"payload": {"n": 11}, "group": {"zone": 1}},
        {"payload": {"n": 12}, "run_at": "9999-12-31T23:59:59-05:00"},
        {"payload": {"n": 13}},
    )
    monkeypatch.setattr(importing, "examiner", lambda *_, **__: None)
    said = cli("enqueue", "x", "--file", path, "--envelope", "--commit-every", 5)
    assert said.code == 1
    assert re.search(r"^  line 1[12]: ", said.err, re.MULTILINE)
    assert "line 10 and all before it are in" in said.err
    cli.ok(*resume_words(said.err), "--skip-bad")
    assert numbers(conn) == [*lines(1, 10), 13]


def test_envelope_lines_keep_their_order_whatever_they_say(
    cli: CommandLine, conn: Connection, tmp_path: Path
) -> None:
    """Tags and times that change from line to line cut a transaction into several calls."""
    path = envelopes(
        tmp_path / "f",
        *({"payload": {"n": n}, "tags": [f"t{n % 7}"], "group": f"g{n % 50}"} for n in lines(1, 1000)),
    )
    cli.ok("enqueue", "x", "--file", path, "--envelope")
    assert numbers(conn) == lines(1, 1000)
    query = "select bool_and(tags[1] = 't' || (payload ->> 'n')::int % 7) from pgfifo.executions"
    assert conn.execute(query).fetchone() == (True,)
    locked = conn.execute(
        "select count(distinct xmin::text), pgfifo.max_batch_lanes() from pgfifo._executions"
    )
    transactions, most = locked.fetchone() or (0, 1)
    assert transactions >= 1000 / most, "a transaction may have locked more lanes than it should"


def test_envelope_times_win_over_the_delay_of_all(cli: CommandLine, conn: Connection, tmp_path: Path) -> None:
    path = envelopes(
        tmp_path / "f",
        {"payload": {"n": 1}},
        {"payload": {"n": 2}, "run_at": "2999-01-31T12:00:00Z"},
        {"payload": {"n": 3}},
    )
    cli.ok("enqueue", "x", "--file", path, "--envelope", "--delay", "1h")
    soon = "select (payload ->> 'n')::int from pgfifo.executions where due_at < '2990-01-01' order by id"
    assert conn.execute(soon).fetchall() == [(1,), (3,)]
    assert conn.execute("select count(*) from pgfifo.executions where state = 'delayed'").fetchone() == (3,)


def test_envelope_import_goes_on_as_it_began(cli: CommandLine, conn: Connection, tmp_path: Path) -> None:
    path = envelopes(tmp_path / "f", *({"payload": {"n": n}, "group": "g"} for n in lines(1, 1000)))
    resume = stopped(cli, path, "--envelope", "--on-item", "replace", "--tag", "t")
    without = [word for word in resume if word not in ("--envelope", "--on-item", "replace")]
    said = cli(*without)
    assert said.code == 2
    assert "takes its lines as envelopes" in said.err
    cli.ok(*resume)
    assert numbers(conn) == lines(1, 1000)
    assert conn.execute("select distinct tags from pgfifo.executions").fetchall() == [(["t"],)]


def test_envelope_belongs_to_a_file(cli: CommandLine, write: Callable[..., Path]) -> None:
    assert cli("enqueue", "x", "--envelope").code == 2
    assert cli("enqueue", "x", "--file", write(1), "--on-item", "replace").code == 2
    said = cli("enqueue", "x", "--file", write(1), "--request-id", "r")
    assert (said.code, "--envelope" in said.err) == (2, True)


# Stops, and going on


def resume_words(err: str) -> list[str]:
    """Return the command that the message says to go on with."""
    import shlex

    (line,) = [line for line in err.splitlines() if line.startswith("To go on: ")]
    words = shlex.split(line.removeprefix("To go on: "))
    assert Path(words[0]).name == "pgfifo"
    return words[1:]


def test_full_queue_stops_it_and_the_printed_command_goes_on(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    cli.ok("policy", "set", "x", "--max-queue-length", 250)
    path = write(1000)
    said = cli("enqueue", "x", "--file", path, "--commit-every", 100, "--tag", "t")
    assert (said.code, said.out) == (1, "")
    assert "line 200 and all before it are in" in said.err
    assert numbers(conn) == lines(1, 200)
    resume = resume_words(said.err)
    assert cli(*resume).code == 1
    assert numbers(conn) == lines(1, 200)
    cli.ok("policy", "set", "x", "--max-queue-length", "unlimited")
    cli.ok(*resume)
    assert numbers(conn) == lines(1, 1000)
    assert conn.execute("select distinct tags from pgfifo.executions").fetchall() == [(["t"],)]
    assert "Nothing to do" in cli.ok(*resume).err
    assert numbers(conn) == lines(1, 1000)


def stopped(cli: CommandLine, path: Path, *words: object) -> list[str]:
    """Import a file until the queue is full, and make room for the rest."""
    cli.ok("policy", "set", "x", "--max-queue-length", 250)
    said = cli("enqueue", "x", "--file", path, "--commit-every", 100, *words)
    assert said.code == 1, said
    cli.ok("policy", "set", "x", "--max-queue-length", "unlimited")
    return resume_words(said.err)


def test_resume_refuses_another_file(cli: CommandLine, conn: Connection, write: Callable[..., Path]) -> None:
    path = write(1000)
    resume = stopped(cli, path)
    text = path.read_bytes()
    path.write_bytes(text.replace(b'{"n":1,', b'{"n":2,', 1))
    said = cli(*resume)
    assert said.code == 1
    assert "another file" in said.err
    path.write_bytes(text[:-1])
    assert cli(*resume).code == 1
    path.unlink()
    assert cli(*resume).code == 2
    path.write_bytes(text)
    cli.ok(*resume)
    assert numbers(conn) == lines(1, 1000)


def test_resume_of_a_file_that_has_grown_takes_what_it_was(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    path = write(1000)
    resume = stopped(cli, path)
    with path.open("ab") as stream:
        stream.write(b'{"n":1001}\n')
    said = cli.ok(*resume)
    assert "lines after 1,000 are not part of this import" in said.err
    assert numbers(conn) == lines(1, 1000)


def test_resume_needs_no_file_name_and_the_right_action(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    resume = stopped(cli, write(1000))
    number = resume[resume.index("--resume") + 1]
    said = cli("enqueue", "y", "--resume", number)
    assert said.code == 2
    assert "one of x" in said.err
    cli.ok("enqueue", "x", "--resume", number)
    assert numbers(conn) == lines(1, 1000)
    unknown = cli("enqueue", "x", "--resume", 999)
    assert (unknown.code, "there is no import 999" in unknown.err) == (1, True)


def test_stdin_is_checked_batch_by_batch_and_goes_on(cli: CommandLine, conn: Connection) -> None:
    text = "".join(f'{{"n":{n}}}\n' for n in lines(1, 500)) + "oops\n" + '{"n":502}\n'
    said = cli("enqueue", "x", "--file", "-", "--commit-every", 200, stdin=text)
    assert said.code == 1
    assert "line 501: " in said.err
    assert "line 400 and all before it are in" in said.err
    assert numbers(conn) == lines(1, 400)
    resume = resume_words(said.err)
    assert "another file" in cli(*resume, stdin="{}\n" + text).err
    assert cli(*[word for word in resume if word not in ("--file", "-")]).code == 2
    assert cli(*resume, stdin=text).code == 1
    assert numbers(conn) == lines(1, 400)
    cli.ok(*resume, "--skip-bad", stdin=text)
    assert numbers(conn) == [*lines(1, 500), 502]


def test_named_pipe_is_read_once(
    cli: CommandLine, conn: Connection, dsn: str, write: Callable[..., Path]
) -> None:
    command = f"{program()} enqueue x --file <(cat {write(1500)})"
    subprocess.run(
        ["bash", "-c", command], check=True, env=os.environ | {"PGFIFO_DSN": dsn}, capture_output=True
    )
    assert numbers(conn) == lines(1, 1500)


@contextlib.contextmanager
def held_up(
    path: Path, dsn: str, conn: Connection, blocker: Connection, *words: str
) -> "Iterator[subprocess.Popen[str]]":
    """An import in a process of its own, whose next batch waits until `blocker` ends its transaction."""
    with subprocess.Popen(
        [program(), "enqueue", "x", "--file", str(path), *words],
        env=os.environ | {"PGFIFO_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: conn.execute("select count(*) from pgfifo.imports").fetchone() == (1,), 60)
        blocker.execute("select pgfifo.enqueue('x')")  # it waits for this one's commit
        here = "datname = current_database() and pg_blocking_pids(pid) <> '{}'"
        waits = f"select count(*) from pg_stat_activity where {here}"
        wait_for(lambda: process.poll() is not None or conn.execute(waits).fetchone() == (1,), 60)
        assert process.poll() is None, "it was through before it could be held up"
        yield process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_says_how_to_go_on(
    cli: CommandLine,
    conn: Connection,
    dsn: str,
    write: Callable[..., Path],
    connect: Callable[..., Connection],
    number: signal.Signals,
    code: int,
) -> None:
    cli.ok("policy", "set", "x", "--max-concurrent", 1)
    blocker = connect(autocommit=False)
    with held_up(write(1000), dsn, conn, blocker, "--commit-every", "100") as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    blocker.rollback()
    assert process.returncode == code, err
    assert "Traceback" not in err
    cli.ok(*resume_words(err))
    assert numbers(conn) == lines(1, 1000)


def test_file_that_changes_while_it_is_read_is_stopped_before_the_change(
    cli: CommandLine,
    conn: Connection,
    dsn: str,
    tmp_path: Path,
    connect: Callable[..., Connection],
) -> None:
    path = tmp_path / "events.jsonl"
    # More than is read ahead, so that the change is met.
    path.write_bytes(b"".join(b'{"n":%d,"p":"%s"}\n' % (n, b"x" * 100) for n in lines(1, 30_000)))
    text = path.read_bytes()
    cli.ok("policy", "set", "x", "--max-concurrent", 1)
    blocker = connect(autocommit=False)
    with held_up(path, dsn, conn, blocker) as process:
        with path.open("r+b") as stream:
            stream.seek(text.index(b'{"n":29500,'))
            stream.write(b'{"n":29,"m":')
        blocker.rollback()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "was changed while it was read, in lines 29,001 to 30,000" in err
    assert "line 29,000 and all before it are in" in err
    assert f"tail -n +29001 {path} | {program()} enqueue x --file -" in err
    resume = resume_words(err)
    assert numbers(conn) == lines(1, 29_000)
    said = cli(*resume)
    assert said.code == 1
    assert "line 29,000 of that and all before it are in" in said.err
    path.write_bytes(text)
    cli.ok(*resume)
    assert numbers(conn) == lines(1, 30_000)


def test_undo_after_a_resume_covers_the_whole_import(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    resume = stopped(cli, write(1000))
    said = cli.ok(*resume, "--json")
    found = json.loads(said.out)
    assert (found["enqueued"], found["enqueued_in_all"]) == (800, 1000)
    assert "Enqueued 800 lines" in said.err
    assert "1,000 with those of before" in said.err
    [undo] = said.undo
    cli.ok(*undo)
    assert conn.execute("select distinct state from pgfifo.executions").fetchall() == [("cancelled",)]


def test_undo_is_not_printed_where_it_would_cancel_what_others_have_enqueued(
    cli: CommandLine, conn: Connection, write: Callable[..., Path]
) -> None:
    resume = stopped(cli, write(1000))
    conn.execute("select pgfifo.enqueue('x')")
    said = cli.ok(*resume)
    assert said.undo == []
    assert "in between others have enqueued too" in said.err


# Whatever happens to the connection


def open_import(fifo: Client, data: bytes) -> int:
    return fifo.import_start("x", "test", f"{len(data)}:")


def data_of(count: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % n for n in lines(1, count))


def run_import(fifo: Client, number: int, data: bytes, after: int = 0, rows: int = 100) -> importing.Done:
    job = Importer(fifo, Common("x"), number, after=after, rows=rows)
    return job.run(Lines(io.BytesIO(data), end=len(data)))


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_connection_that_breaks_around_a_commit_neither_loses_nor_doubles_a_line(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    data = data_of(1000)
    with Client(dsn) as fifo:
        number = open_import(fifo, data)
        original = psycopg.Transaction.__exit__
        count = 0

        def breaking(self: psycopg.Transaction, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            pid = self.connection.info.backend_pid
            if count % 5 == 3 and moment == "before the commit":
                conn.execute("select pg_terminate_backend(%s, 10000)", [pid])
            done = original(self, *arguments)
            if count % 5 == 3 and moment == "after the commit":
                conn.execute("select pg_terminate_backend(%s, 10000)", [pid])
                self.connection.execute("")  # raises: the answer is lost
            return done

        monkeypatch.setattr(psycopg.Transaction, "__exit__", breaking)
        done = run_import(fifo, number, data)
        monkeypatch.undo()
    assert count > 5
    assert numbers(conn) == lines(1, 1000)
    assert (done.enqueued, done.upto) == (1000, 1000)


def test_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    from pgfifo.embedded import PrivateServer

    data = data_of(3000)
    with PrivateServer({"fsync": False}) as server, Client(server.dsn()) as fifo:
        fifo.install()
        number = open_import(fifo, data)
        seen: list[int] = []

        def restart(progress: Lines) -> None:
            seen.append(progress.number)
            if len(seen) == 5:
                server.restart("immediate")

        job = Importer(fifo, Common("x"), number, rows=100)
        job.run(Lines(io.BytesIO(data)), progress=restart)
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            assert numbers(conn) == lines(1, 3000)


def test_server_that_stays_away_is_3_with_the_command_to_go_on(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    from pgfifo.embedded import PrivateServer

    monkeypatch.setattr(importing, "PATIENCE", 0.2)
    path = write(1000)
    with PrivateServer({"fsync": False}) as server:
        cli.use(server.dsn())
        cli.ok("install")
        original = Importer._commit

        def leaving(self: Importer, batch: Batch) -> None:
            if batch.upto == 300:
                server.stop("immediate")
            original(self, batch)

        monkeypatch.setattr(Importer, "_commit", leaving)
        said = cli("enqueue", "x", "--file", path, "--commit-every", 100)
        monkeypatch.setattr(Importer, "_commit", original)
        assert said.code == 3, said
        assert "line 200 and all before it are in" in said.err
        server.start()
        cli.ok(*resume_words(said.err))
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            assert numbers(conn) == lines(1, 1000)


@pytest.mark.parametrize("rows", [100, 150, 400])
def test_two_that_resume_the_same_import_enqueue_nothing_twice(dsn: str, conn: Connection, rows: int) -> None:
    data = data_of(1000)
    with Client(dsn) as first, Client(dsn) as second:
        number = open_import(first, data)
        run_import(first, number, data[: len(data_of(300))])
        # The second one has looked before the first one went on.
        run_import(first, number, data[: len(data_of(700))], after=300)
        with pytest.raises(errors.InvalidValue, match="import"):
            run_import(second, number, data, after=300, rows=rows)
        run_import(second, number, data, after=700, rows=rows)
    assert numbers(conn) == lines(1, 1000)


def test_deadlock_with_another_producer_is_tried_again(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Importer._commit
    raised: list[int] = []

    def deadlocked(self: Importer, batch: Batch) -> None:
        if len(raised) < 2:
            raised.append(batch.upto)
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        original(self, batch)

    monkeypatch.setattr(Importer, "_commit", deadlocked)
    data = data_of(50)
    with Client(dsn) as fifo:
        run_import(fifo, open_import(fifo, data), data)
    assert raised == [50, 50]
    assert numbers(conn) == lines(1, 50)


# Many lanes


def test_batch_over_too_many_lanes_is_split_in_order(
    cli: CommandLine, conn: Connection, tmp_path: Path
) -> None:
    row = conn.execute("select pgfifo.max_batch_lanes()").fetchone()
    assert row is not None
    most = row[0]
    path = tmp_path / "lanes.jsonl"
    count = 5 * most
    path.write_text("".join(f'{{"n":{n},"c":{n % (3 * most)}}}\n' for n in lines(1, count)))
    cli.ok("policy", "set", "x", "--group-by", "c")
    cli.ok("enqueue", "x", "--file", path, "--commit-every", count)
    assert numbers(conn) == lines(1, count)
    assert conn.execute("select upto from pgfifo.imports").fetchone() == (count,)


# Size


def test_memory_stays_small_however_long_the_file_is(cli: CommandLine, tmp_path: Path, dsn: str) -> None:
    def peak(count: int, size: int) -> int:
        path = tmp_path / f"{count}-{size}.jsonl"
        filler = "x" * size
        with path.open("w") as stream:
            for n in lines(1, count):
                stream.write(f'{{"n":{n},"a":"{filler}"}}\n')
        code = (
            "import sys\n"
            "from pgfifo.cli import main\n"
            "from tests.support.memory import peak_kib\n"
            "try:\n    main(sys.argv[1:])\n"
            "finally:\n    print('peak', peak_kib(), file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "enqueue", "x", "--file", str(path)],
            env=os.environ | {"PGFIFO_DSN": dsn},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stderr.split()[-1]) // 1024

    assert peak(50_000, 10) < 100
    assert peak(40, 1_000_000) < 100


def test_fingerprint_of_a_stream_covers_what_is_there_at_once() -> None:
    data = data_of(20_000)
    first = Rewound(io.BytesIO(data))
    assert 0 < len(first.beginning) <= 65536
    again = Rewound(io.BytesIO(data), len(first.beginning))
    assert again.fingerprint == first.fingerprint
    assert [*Lines(again)] == data.splitlines(keepends=True)
    assert Rewound(io.BytesIO(b"{}\n" + data), len(first.beginning)).fingerprint != first.fingerprint


def test_program_imports_from_a_pipe(dsn: str, conn: Connection) -> None:
    said = run_program("enqueue", "x", "--file", "-", env={"PGFIFO_DSN": dsn}, input=data_of(5).decode())
    assert said.code == 0, said.err
    assert numbers(conn) == lines(1, 5)
