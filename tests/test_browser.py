"""The pages in a real browser: live, by keys, in the dark, on a phone; and all that can be done there."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psycopg
import pytest

import pgfifo
from tests.support.browser import browser, chromium, served
from tests.support.cli import program
from tests.support.database import clean
from tests.support.engine import Engine, item
from tools.screenshots import IMAGES, shop, shots

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="there is no Chromium here (Debian: apt install chromium)"
)

Page = Any
Connection = psycopg.Connection[Any]

HOSTILE = "<script>document.title='owned'</script><img/src=x/onerror=\"document.title='owned'\">"
LANE = "/lane?" + urlencode({"action": "deploy", "group": '{"env":"prod"}'})


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    """One browser for all."""
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def address(_shared: str) -> Iterator[str]:
    """One server for all, that may change things."""
    with psycopg.connect(_shared, autocommit=True) as conn:
        clean(conn)
    with served(_shared, interval=0.2) as at:
        yield at


@pytest.fixture
def visit(dsn: str, chrome: Any, address: str) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end, none of them may have complained, or asked anybody else."""
    contexts = []
    complaints: list[str] = []
    foreign: list[str] = []

    def opener(path: str, live: bool = True, **options: Any) -> Page:
        context = chrome.new_context(base_url=address, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "data:")) else foreign.append(asked.url),
        )
        page.goto(path)
        if live:
            page.wait_for_selector('#live-state[data-state="on"]')
        return page

    yield opener
    for context in contexts:
        context.close()
    assert complaints == []
    assert foreign == []


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


def fits(page: Page) -> bool:
    """Tell whether nothing of a page is cut off at its side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def prod(engine: Engine, count: int = 3) -> list[int]:
    """Have a lane with some waiting."""
    engine.policy("deploy", group_by=["env"])
    return [engine.enqueue("deploy", {"env": "prod", "n": n}) for n in range(count)]


def test_each_page_is_quiet_and_fits_in_the_dark_and_on_a_phone(
    visit: Callable[..., Page], engine: Engine
) -> None:
    ids = prod(engine)
    worker = engine.worker("deploy", lease="1 hour")
    [start] = engine.claim(worker)
    engine.work(worker, 0, [], [item(start, "failed", error="boom\n" * 3)])
    paths = ["/", "/action?name=deploy", "/lanes", LANE, "/executions", f"/execution?id={ids[0]}"]
    paths += ["/workers", "/policies?action=deploy", "/audit"]
    phone = visit("/", viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    wide = visit("/", viewport={"width": 1280, "height": 800}, color_scheme="light")
    assert wide.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 247, 245)"
    for path in paths:
        for page in (phone, wide) if path == LANE else (phone,):
            page.goto(path)
            page.wait_for_selector('#live-state[data-state="on"]')
            assert page.locator("h1").count() == 1, path
            assert fits(page), path
            assert page.evaluate("document.querySelectorAll('[id]').length") == page.evaluate(
                "new Set([...document.querySelectorAll('[id]')].map(each => each.id)).size"
            ), f"{path}: an id is there twice"


def test_a_page_follows_what_happens_and_keeps_focus(visit: Callable[..., Page], engine: Engine) -> None:
    first, second, *_ = prod(engine)
    page = visit(LANE)
    link = page.locator(f'tr[data-key="{second}"] a').first
    link.focus()
    page.evaluate("window.kept = document.activeElement")
    worker = engine.worker("deploy", lease="1 hour")
    [start] = engine.claim(worker)
    page.wait_for_selector(f'.slot.running[data-key="s{first}"]')
    page.wait_for_function(f"document.querySelector('tr.next')?.dataset.key === '{second}'")
    assert page.locator(f'tr[data-key="{second}"] .pos').inner_text() == "1"
    assert page.evaluate("window.kept === document.activeElement && window.kept.isConnected")
    engine.hand_in(worker, start)
    page.wait_for_selector(f'#live tr[data-key="{first}"] .state.succeeded')


def test_a_page_tells_when_the_server_is_gone_and_comes_back(
    visit: Callable[..., Page], engine: Engine, dsn: str, chrome: Any
) -> None:
    prod(engine)
    with served(dsn, interval=0.2) as at:
        context = chrome.new_context(base_url=at)
        page = context.new_page()
        page.goto("/")
        page.wait_for_selector('#live-state[data-state="on"]')
    page.wait_for_selector('#live-state[data-state="off"]')
    assert "deploy" in page.locator("#live").inner_text(), "what was known is still there"
    context.close()


def test_pages_work_without_a_script(visit: Callable[..., Page], engine: Engine) -> None:
    prod(engine)
    page = visit("/", live=False, java_script_enabled=False)
    page.click("text=deploy")
    page.click("text=env=prod")
    assert page.locator("tr.next .pos").inner_text() == "1"
    page.click("text=Pause…")
    page.click("button:has-text('Pause')")
    assert "is paused" in page.locator(".flash").inner_text()
    assert engine.lane("deploy", '{"env":"prod"}')["paused"]


def test_everything_can_be_done_and_undone_by_hand(visit: Callable[..., Page], engine: Engine) -> None:
    ids = prod(engine)
    lane = '{"env":"prod"}'
    page = visit(LANE)

    page.click("text=Pause…")
    page.fill("text=Reason", "release")
    page.click("button:has-text('Pause')")
    assert "deploy env=prod is paused" in page.locator(".flash").inner_text()
    page.wait_for_selector(".badge:has-text('paused')")
    assert engine.lane("deploy", lane)["paused_reason"] == "release"
    page.click("text=Resume…")
    page.click("button:has-text('Resume')")
    assert not engine.lane("deploy", lane)["paused"]

    page.click("text=Change slots…")
    page.fill("input[name=value]", "3")
    page.click("button:has-text('Change it')")
    assert "→ 3" in page.locator(".flash").inner_text()
    assert engine.lane("deploy", lane)["max_concurrent"] == 3
    page.click(".flash button:has-text('Undo')")
    page.wait_for_selector(".flash:has-text('→ inherited')")
    assert engine.lane("deploy", lane)["max_concurrent"] == 1

    page.goto(f"/execution?id={ids[2]}")
    page.click("text=Cancel…")
    page.click("text=No, go back")
    assert engine.state(ids[2]) == "waiting"
    page.click("text=Cancel…")
    page.fill("text=Reason", "a typo")
    page.click("button:has-text('Cancel it')")
    page.wait_for_selector("h1 + .state.cancelled")
    assert engine.state(ids[2]) == "cancelled"
    page.click("text=Put back…")
    page.click("button:has-text('Put it back')")
    assert f"Execution {ids[2]} is put back" in page.locator(".flash").inner_text()
    assert engine.lane("deploy", lane)["queue_length"] == 3


def test_everything_is_reached_by_keys(visit: Callable[..., Page], engine: Engine) -> None:
    ids = prod(engine)
    page = visit("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/action?name=deploy")
    page.keyboard.press("p")
    page.wait_for_url("**/change/pause?action=deploy")
    assert page.evaluate("document.activeElement.name") == "reason"
    page.keyboard.type("by keys")
    page.keyboard.press("Enter")
    page.wait_for_selector(".flash")
    assert engine.stats()["paused_reason"] == "by keys"
    for key, path in {"l": "lanes", "e": "executions", "w": "workers", "p": "policies", "a": "audit"}.items():
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"**/{path}")
    page.keyboard.press("?")
    assert page.locator("#help[open] kbd").count() > 10
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type(str(ids[1]))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/execution?id={ids[1]}")


def test_hostile_values_do_nothing(visit: Callable[..., Page], engine: Engine, dsn: str) -> None:
    with pgfifo.Client(dsn) as fifo:
        fifo.set_policy("deploy", max_attempts=1)
        for _ in range(3):
            fifo.enqueue("deploy", {HOSTILE: HOSTILE}, group=HOSTILE, tags=[HOSTILE])
        fifo.acting_as(HOSTILE).pause("deploy", HOSTILE, reason=HOSTILE)
        fifo.resume("deploy", HOSTILE)
        worker = engine.one(
            "select pgfifo.worker_start(%s, %s, 1, '{deploy}', 9, '1 h', false)", HOSTILE, HOSTILE
        )
        [start] = engine.claim(worker)
        engine.work(worker, 0, [], [item(start, "failed", error=HOSTILE)])
        fifo.acting_as(HOSTILE).pause("deploy", reason=HOSTILE)
    lane = "/lane?" + urlencode({"action": "deploy", "group": HOSTILE})
    page = visit("/")
    for path in ("/", "/action?name=deploy", "/executions", f"/execution?id={start.id}", "/audit", lane):
        page.goto(path)
        assert HOSTILE in page.locator("#live").inner_text(), path
        assert page.title() != "owned"
        assert page.locator("#live img, #live script").count() == 0
    newest = engine.enqueue("deploy", {"x": HOSTILE}, HOSTILE)
    page.wait_for_selector(f'tr[data-key="{newest}"]')
    assert page.title() != "owned", "what comes live is text too"
    assert page.locator("#live img, #live script").count() == 0


def test_charts_tell_what_is_under_the_pointer(visit: Callable[..., Page], engine: Engine) -> None:
    prod(engine)
    page = visit("/")
    page.wait_for_selector("tr[data-key='deploy']")
    plot = page.locator(".plot").first
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    # At the edge of a minute it is that of the one before, when less had come.
    assert re.fullmatch(r"\d\d:\d\d UTC · not ended .", page.locator(".readout").inner_text())
    engine.enqueue("deploy", {"env": "prod"})
    page.wait_for_selector(".figure:has-text('Waiting') >> text='4'")
    assert page.locator(".readout").count() == 1, "what is new took it away"
    page.mouse.move(2, 2)
    assert page.locator(".readout").count() == 0


def test_a_huge_lane_and_many_lanes_fit_on_a_page(visit: Callable[..., Page], engine: Engine) -> None:
    engine.policy("deploy", max_concurrent=1_000_000)
    engine.enqueue_many("deploy", [{}] * 300, [f"g{n}" for n in range(300)])
    engine.enqueue_many("deploy", [{"long": "x" * 5_000}] * 500, ["g7"] * 500)
    page = visit("/action?name=deploy")
    assert page.locator("table.lanes tbody tr").count() == 50
    page.click("text=Next →")
    page.wait_for_url("**page=2**")
    page.goto("/lane?action=deploy&group=g7")
    assert page.locator("table.line tbody tr").count() == 50
    assert "451 more behind them" in page.locator("#live").inner_text()
    assert "999,988 more that are free" in page.locator("#live").inner_text()
    assert fits(page)


def test_from_an_enqueue_over_http_to_the_result_on_the_page(
    visit: Callable[..., Page], dsn: str, address: str, tmp_path: Path
) -> None:
    """All of it: the API, a real worker process, and the live page."""
    (tmp_path / "shop.py").write_text(
        "import pgfifo\n"
        "actions = pgfifo.Actions()\n"
        "@actions.action('greet')\n"
        "def greet(execution):\n"
        "    return {'greeting': 'hello ' + execution.payload['name']}\n"
    )
    with pgfifo.Client(dsn) as fifo:
        fifo.set_policy("greet", max_concurrent=1)
    answer = httpx.post(
        f"{address}/api/v1/actions/greet/executions", json={"payload": {"name": "<b>ann</b>"}}
    )
    assert answer.status_code in (200, 201), answer.text
    number = answer.json()["data"]["id"]
    page = visit(f"/execution?id={number}")
    assert "No living worker serves greet" in page.locator(".why").inner_text()
    worker = subprocess.Popen(
        [program(), "worker", "shop:actions", "--dsn", dsn],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        page.wait_for_selector("h1 + .state.succeeded")
        assert '"greeting": "hello <b>ann</b>"' in page.locator("#result").inner_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.stderr is not None
        said = worker.communicate(timeout=60)[1]
    assert worker.returncode == 0, (said, sys.version)


def test_the_pictures_of_the_documents_can_still_be_taken(empty_dsn: str, chrome: Any) -> None:
    with shop(empty_dsn) as fifo, served(empty_dsn) as at:
        taken = {f"{name}.png": path for name, path, *_ in shots(fifo)}
        page = chrome.new_page(base_url=at)
        page.goto(taken["lane.png"])
        page.locator(".slot.running", has_text="rolling out").wait_for()
        page.close()
    assert taken.keys() == {path.name for path in IMAGES.glob("*.png")}, "make screenshots"
