"""docs/sql.md: it is what the catalog says, and its worker works."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from pgfifo.embedded import PrivateServer
from tests.support.database import wait_for
from tests.support.server import psql_folder
from tests.support.sqlworker import enqueue, policy, value, violations
from tools import gen_sql_docs

Connection = psycopg.Connection[Any]

HANDLER = """\
#!/usr/bin/env bash
payload=$(cat)
echo "$payload" >> "$JOURNAL"
case $payload in
  *slow*) echo begun >> "$JOURNAL.begun"; sleep 1 ;;
  *bad*) echo "this cannot be done" >&2; exit 1 ;;
esac
echo "did $payload"
"""


def test_the_page_is_what_the_catalog_says(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn) as conn:
        page = gen_sql_docs.page(conn)
    assert page == gen_sql_docs.PAGE.read_text(), "stale; run: python -m tools.gen_sql_docs"


def test_the_committed_dump_is_the_schema(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn) as conn:
        text = gen_sql_docs.dump(conn)
    assert text == gen_sql_docs.DUMP.read_text(), "stale; run: python -m tools.gen_sql_docs"


def test_the_worker_in_bash_and_psql_works(
    server: PrivateServer, dsn: str, connect: Callable[..., Connection], tmp_path: Path
) -> None:
    script = re.findall(
        r"^```bash worker\n(.*?)^```$", gen_sql_docs.PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(script) == 1
    worker, handler, journal = (tmp_path / name for name in ("worker.sh", "handler.sh", "journal"))
    worker.write_text(script[0])
    handler.write_text(HANDLER)
    handler.chmod(0o755)

    conn = connect()
    policy(conn, "deliver", group_by=["customer"], max_attempts=1)
    payloads = [
        '{"customer": 1, "text": "plain"}',
        '{"customer": 1, "text": "a \\"quote\\", a tab\\t, a line\\n and $HOME"}',
        '{"customer": 2, "text": "bad"}',
        '{"customer": 1, "text": "l\'été"}',
    ]
    ids = [enqueue(conn, "deliver", None, payload) for payload in payloads]
    environment = os.environ | {
        "PGFIFO_DSN": dsn,
        "JOURNAL": str(journal),
        "PATH": f"{psql_folder(server)}:{os.environ['PATH']}",
    }
    running = subprocess.Popen(["bash", worker, "deliver", handler], env=environment)
    try:
        completed = "select total_completed from pgfifo.queue_stats"
        wait_for(lambda: value(conn, completed) == 4, 40, "the worker to run four executions")
        idle = "select last_seen > started_at + interval '1 s' from pgfifo.workers"
        wait_for(lambda: value(conn, idle), 20, "a heartbeat while it has nothing to do")
        slow = enqueue(conn, "deliver", None, '{"customer": 3, "text": "slow"}')
        wait_for(Path(f"{journal}.begun").exists, 20, "the slow one to begin")
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    finally:
        running.kill()
        running.wait()

    outcomes = dict(conn.execute("select id, state from pgfifo.executions").fetchall())
    assert outcomes[slow] == "succeeded", "what ran when the worker was told to stop was not finished"
    assert [outcomes[key] for key in ids] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert value(conn, "select error from pgfifo.executions where id = %s", ids[2]) == "this cannot be done"
    stored = [value(conn, "select payload::text from pgfifo.executions where id = %s", key) for key in ids]
    ran = journal.read_text().splitlines()
    assert sorted(ran) == sorted([*stored, '{"text": "slow", "customer": 3}'])
    assert [line for line in ran if '"customer": 1' in line] == [stored[0], stored[1], stored[3]]
    result = value(conn, "select result from pgfifo.executions where id = %s", ids[1])
    assert result == f"did {stored[1]}"
    assert conn.execute("select state, executions from pgfifo.workers").fetchall() == [("stopped", 0)]
    assert violations(conn) == []
