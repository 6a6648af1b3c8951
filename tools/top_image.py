"""Draw docs/images/top.svg and top-lane.svg: `pgfifo top` before a small queue, on a server of its own.

python -m tools.top_image
"""

import asyncio
import re
from pathlib import Path

import psycopg

from pgfifo.dsn import resolve
from pgfifo.embedded import PrivateServer
from pgfifo.schema import install
from pgfifo.top import Top

IMAGES = Path(__file__).parent.parent / "docs" / "images"

_QUEUE = """
update pgfifo.installation set testing = true;
select from pgfifo.set_policy('deploy', '{"group_by": ["env"], "max_concurrent": 1}');
select from pgfifo.set_policy('webhook', '{"group_by": ["customer"], "max_concurrent": 2}');
select from pgfifo.set_policy('index', '{"max_concurrent": 8}');
select from pgfifo.set_policy('invoice.send', '{"group_by": ["account"]}');
select pgfifo.pause('invoice.send', p_reason => 'month end');
select count(*) from pgfifo.enqueue_many('deploy',
  array(select jsonb_build_object('env', e, 'sha', left(md5(e || n), 7))
    from unnest('{prod,staging,qa}'::text[]) e, generate_series(1, 6) n));
select pgfifo.advance('40 s');
select count(*) from pgfifo.enqueue_many('webhook',
  array(select jsonb_build_object('customer', n % 40, 'event', n) from generate_series(1, 700) n));
select count(*) from pgfifo.enqueue_many('invoice.send',
  array(select jsonb_build_object('account', n) from generate_series(1, 25) n));
select count(*) from pgfifo.enqueue_many('index', array_fill('{}'::jsonb, array[30]));
select from pgfifo.worker_start('blue', 'app-1', 411, '{deploy,webhook,index}', 100);
select from pgfifo.work(1, '{deploy}', 3);
select from pgfifo.work(1, '{webhook}', 30);
select from pgfifo.work(1, '{index}', 5);
select pgfifo.advance('12 s');
"""
_MORE = """
select count(*) from pgfifo.enqueue_many('webhook',
  array(select jsonb_build_object('customer', n % 40, 'event', n) from generate_series(1, %(more)s) n));
select count(*) from pgfifo.enqueue_many('index', array_fill('{}'::jsonb, array[%(more)s / 5]));
select from pgfifo.work(1, '{webhook}', 30, null, (
  select jsonb_agg(jsonb_build_object('id', r.id, 'attempt', r.attempt, 'outcome', 'succeeded'))
  from (select * from pgfifo.runs where state = 'running' and id > 18 order by id limit 25) r));
select pgfifo.advance('2 s');
select from pgfifo.heartbeat(1, null, array(select r.id from pgfifo.runs r where r.state = 'running'));
"""


async def draw(dsn: str) -> None:
    """Draw both images."""
    top = Top(resolve(dsn), 3600)
    async with top.run_test(size=(80, 24)) as pilot:
        for more in (10, 60, 90, 40, 150, 210, 80, 30):
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(_MORE.replace("%(more)s", str(more)))
            before = top.reads
            top.look()
            while top.reads == before:
                await pilot.pause(0.02)
        top.database = "shop on db.internal"
        await pilot.press("down")
        top.view.tell()
        await pilot.pause()
        _write("top.svg", top.export_screenshot(title="pgfifo top"))
        for key in ("end", "up", "enter", "enter"):
            before = top.reads
            await pilot.press(key)
            while key == "enter" and top.reads == before:
                await pilot.pause(0.05)
        await pilot.pause()
        _write("top-lane.svg", top.export_screenshot(title="pgfifo top"))


def _write(name: str, svg: str) -> None:
    """Write an image that fetches no font from elsewhere, and whose names do not change from run to run."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"terminal-\d+", "terminal-1", svg)
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / name).write_text(svg, encoding="utf-8")
    print(f"Wrote docs/images/{name}.")


def main() -> None:
    """Make a queue, and draw."""
    with PrivateServer({"fsync": False}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            install(conn)
            for statement in _QUEUE.strip().split(";\n"):
                conn.execute(statement.encode())
        asyncio.run(draw(server.dsn()))


if __name__ == "__main__":
    main()
