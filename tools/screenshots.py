"""Take the pictures of the dashboard for the documentation, with made-up data on a server of their own.

make screenshots
"""

import argparse
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg

import pgfifo
from pgfifo.demo.events import CUSTOMERS, events
from tests.support.browser import browser, served
from tests.support.server import clean_environment, make_server

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDE, PHONE = {"width": 1360, "height": 850}, {"width": 390, "height": 844}
CHANCE = random.Random("pgfifo")

_HOUR = """
    with minutes as (
      select a.id as action_id, date_trunc('minute', now()) - make_interval(mins => m) as minute,
        greatest(0, (w.n * (1 + 0.45 * sin(m / 9.0 + a.id) + 0.2 * random()))::bigint) as n,
        w.run, w.wait * (1 + 0.8 * greatest(0, sin(m / 11.0 + a.id)) + 0.3 * random()) as wait
      from unnest(%s::text[], %s::int[], %s::float8[], %s::float8[]) w(name, n, wait, run)
      join pgfifo.actions a on a.name = w.name
      cross join generate_series(1, 61) m),
    counted as (
      insert into pgfifo._minutes
        (action_id, minute, enqueued, started, succeeded, failed, measured, wait_seconds, run_seconds)
      select m.action_id, m.minute, m.n + round(sin(extract(epoch from m.minute) / 400) * m.n * 0.1), m.n,
        m.n - (m.n > 9 and random() < 0.1)::int, (m.n > 9 and random() < 0.1)::int,
        m.n, m.n * m.wait, m.n * m.run
      from minutes m where m.n > 0
      on conflict (action_id, minute) do nothing)
    insert into pgfifo._waits (action_id, minute, class, n)
    select m.action_id, m.minute,
      width_bucket(m.wait * 10 ^ ((random() + random() + random() - 1.9) * 0.9), pgfifo._wait_classes()),
      count(*)
    from minutes m cross join generate_series(1, least(m.n, 40)) g where m.n > 0 group by 1, 2, 3
    on conflict (action_id, minute, class) do update set n = pgfifo._waits.n + 1
"""
"""An hour in which much has happened: a screenshot cannot wait for one."""
_LONG_AGO = """
    select pgfifo._count_lanes(array(select l.id from pgfifo.lanes l), now(), now());
    update pgfifo._minutes set minute = minute - interval '3 hours';
"""
"""What has really happened, in a few seconds, is counted as of another time."""


@contextmanager
def shop(dsn: str) -> Iterator[pgfifo.Client]:
    """A shop system in the middle of its day, with workers that are busy."""
    actions = pgfifo.Actions()
    hold = threading.Event()

    def brief(execution: pgfifo.Execution) -> dict[str, Any]:
        if execution.payload.get("fails"):
            raise pgfifo.Abort("hooks.example answered 502 Bad Gateway")
        time.sleep(CHANCE.uniform(0.05, 0.5))
        return {"status": 200}

    def long(execution: pgfifo.Execution) -> dict[str, Any]:
        if not execution.payload.get("quick"):
            execution.progress(CHANCE.uniform(0.2, 0.9), execution.payload.get("step", "writing"))
            hold.wait()
        return {
            "released": execution.payload.get("sha"),
            "hosts": ["web-1", "web-2", "web-3"],
            "took_s": 84.2,
        }

    for name, slots, by in (
        ("deploy", 1, "env"),
        ("index", 3, "customer"),
        ("ledger.post", 1, "account"),
        ("mail.send", 4, None),
        ("webhook.deliver", 1, "customer"),
    ):
        handler = long if name in ("deploy", "index") else brief
        actions.add(name, handler, group_by=[by] if by else [], max_concurrent=slots, max_attempts=3)
    with pgfifo.Client(dsn) as fifo:
        fifo.install()
        fifo.declare(actions)
        fifo.set_policy("webhook.deliver", rate="20/s", backoff_initial="10m", backoff_cap="1h")
        fifo.acting_as("maria").set_policy("index", max_concurrent=4)
        fifo.acting_as("tom").override_policy("index", lasting="45m", reason="backfill", max_concurrent=6)
        fifo.set_shared_limit("billing-api", max_concurrent=20, rate="100/s", actions=["ledger.post"])
        with ExitStack() as stack:
            for n, host in enumerate(("app-1", "app-1", "app-2"), 1):
                worker = pgfifo.Worker(
                    dsn, actions, name=f"{host}/{n}", concurrency=(24, 24, 12)[n - 1], poll_interval=0.1
                )
                stack.enter_context(worker)
            stack.callback(hold.set)
            _fill(fifo)
            with psycopg.connect(dsn, autocommit=True) as conn:
                names = ["deploy", "index", "ledger.post", "mail.send", "webhook.deliver"]
                conn.execute(_LONG_AGO)
                waits, runs = [40.0, 0.4, 0.05, 1.2, 2.6], [84.0, 0.9, 0.1, 0.2, 0.4]
                conn.execute(_HOUR, [names, [1, 34, 12, 21, 58], waits, runs])
            yield fifo


def _fill(fifo: pgfifo.Client) -> None:
    for env in ("staging", "prod"):
        fifo.enqueue_and_wait("deploy", {"env": env, "sha": "9c1f2ab", "quick": True}, timeout=60)
    for _ in range(9):
        sha = f"{CHANCE.randrange(16**7):07x}"
        fifo.enqueue("deploy", {"env": "prod", "sha": sha, "step": "rolling out to web-2"}, tags=["release"])
    fifo.set_policy("mail.send", max_attempts=1)
    for name in ("ann@example.org", "bo@example.org"):
        with suppress(pgfifo.ExecutionFailed):
            fifo.enqueue_and_wait("mail.send", {"to": name, "fails": True}, timeout=60)
    for _, event in events(3, 26):
        fifo.enqueue("index", {"customer": event["customer"], "product": CHANCE.randrange(1000, 9999)})
    fifo.enqueue_many("mail.send", [{"to": "all", "template": "digest"}] * 3, delay="6h")
    fifo.enqueue("webhook.deliver", {"customer": "alpine-sports", "event": "order.paid"})
    reason = "their endpoint is down until 14:00"
    fifo.acting_as("maria").pause("webhook.deliver", {"customer": "alpine-sports"}, reason=reason)
    customers = [CUSTOMERS[min(len(CUSTOMERS) - 1, int(CHANCE.expovariate(0.2)))] for _ in range(400)]
    sent = zip(events(2, 400), customers, strict=True)
    fifo.enqueue_many("webhook.deliver", [event | {"customer": customer} for (_, event), customer in sent])
    amounts = [{"account": f"acc-{n % 7}", "amount": CHANCE.randrange(100, 9000)} for n in range(120)]
    fifo.enqueue_many("ledger.post", amounts)
    fifo.enqueue_many(
        "mail.send", [{"to": f"user{n}@example.org", "template": "welcome"} for n in range(120)]
    )


def shots(fifo: pgfifo.Client) -> list[tuple[str, str, dict[str, int], str]]:
    """Return what to take: name, path, size and colours."""
    lane = "/lane?" + urlencode({"action": "deploy", "group": '{"env":"prod"}'})
    failed = fifo.executions("mail.send", state="failed")[0].id
    return [
        ("overview", "/", WIDE, "light"),
        ("overview-dark", "/", WIDE, "dark"),
        ("action", "/action?name=webhook.deliver", WIDE, "light"),
        ("lane", lane, WIDE, "light"),
        ("lane-phone", lane, PHONE, "dark"),
        ("execution", f"/execution?id={failed}", WIDE, "light"),
        ("workers", "/workers", WIDE, "light"),
        ("policies", "/policies?action=index", WIDE, "light"),
    ]


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=IMAGES, help="where they go")
    into = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    clean_environment()
    with (
        make_server() as server,
        shop(server.dsn("postgres")) as fifo,
        served(server.dsn("postgres")) as at,
        browser() as chromium,
    ):
        for name, path, size, colours in shots(fifo):
            page = chromium.new_page(viewport=size, color_scheme=colours)
            page.goto(at + path)
            page.wait_for_selector('#live-state[data-state="on"]')
            page.wait_for_timeout(5000 if name == "overview" else 500)  # several looks, for rates
            page.screenshot(path=into / f"{name}.png")
            page.close()
            print(into / f"{name}.png")


if __name__ == "__main__":
    main()
