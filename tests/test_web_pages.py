"""The pages over HTTP, in the process of the tests: what they show, what they do, and what they refuse."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import psycopg
import pytest

import pgfifo
from pgfifo.web import Settings, create_app
from pgfifo.web.pages import charts, formats, rendering
from pgfifo.web.pages.live import Hub
from pgfifo.web.pages.looking import Desk
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Story = Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]

HOSTILE = """<script>alert(1)</script>"><img/src=x/onerror=alert(2)>'{{7*7}}{%raw%}"""
PATHS = ["/", "/lanes", "/executions", "/workers", "/policies", "/audit"]


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The minute that pages take for this one until the test is over."""
    at = formats.now().replace(second=0, microsecond=0)
    monkeypatch.setattr(formats, "now", lambda: at)
    return at


def tell(dsn: str, story: Story, **settings: Any) -> None:
    """Run a story with a client of the application."""
    given: dict[str, Any] = {"allow_changes": True, "unauthenticated": True} | settings

    @asynccontextmanager
    async def client() -> AsyncIterator[httpx.AsyncClient]:
        async with pgfifo.AsyncClient(dsn) as fifo:
            transport = httpx.ASGITransport(create_app(fifo, settings=Settings(**given)))
            headers = {"accept": "text/html"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=headers
            ) as made:
                yield made

    async def whole() -> None:
        async with client() as made:
            await story(made)

    asyncio.run(whole())


async def page(client: httpx.AsyncClient, path: str, **parameters: object) -> str:
    """Return a page that is there."""
    given = {name: str(value) for name, value in parameters.items()}
    answer = await client.get(path, params=given or None)
    assert answer.status_code == 200, (path, answer.status_code, answer.text[-2000:])
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def words(html: str) -> str:
    """Return what a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_every_page_is_there_when_nothing_is(dsn: str) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for path in PATHS:
            text = await page(client, path)
            assert '<html lang="en"' in text
            assert 'href="#main"' in text
        assert "Nothing here yet" in await page(client, "/")
        assert "No worker lives" in await page(client, "/workers")

    tell(dsn, story)


def test_pages_show_what_is_in_the_queue(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", group_by=["env"], max_concurrent=2)
    ids = [engine.enqueue("deploy", {"env": "prod", "sha": f"s{n}"}) for n in range(5)]
    engine.enqueue("mail", {"to": "ann"})
    worker = engine.worker("deploy", lease="1 hour")
    running, failed = engine.claim(worker, 2)
    engine.work(worker, 0, [], [item(failed, "failed", error="boom")])

    async def story(client: httpx.AsyncClient) -> None:
        overview = await page(client, "/")
        assert "deploy" in words(overview)
        assert "name=mail" in overview
        assert (
            "mail"
            not in words(await page(client, "/", q="deplo")).split("Changed last")[0].split("Actions")[1]
        )
        action = words(await page(client, "/action", name="deploy"))
        assert "env=prod" in action
        assert "a lane per env" in action
        lane = await page(client, "/lane", action="deploy", group='{"env":"prod"}')
        said = words(lane)
        assert re.search(rf"{running.id} running for", said)
        assert re.search(rf"{failed.id} held tried again in", said)
        assert f"{ids[2]} is next. " in said
        assert "2 slots of its lane are taken" in said or "slots of its lane" in said
        places = re.findall(r'<td class="figures pos">(\d+)</td>\s*<td class="id"><a [^>]*>(\d+)</a>', lane)
        assert places == [("1", str(ids[2])), ("2", str(ids[3])), ("3", str(ids[4]))]
        one = words(await page(client, "/execution", id=failed.id))
        assert "Last error boom" in one
        assert re.search(r"started attempt 1 .*failed attempt 1 boom .*held is tried again in \d", one)
        assert '"sha": "s' in words(await page(client, "/execution", id=ids[4])).replace("&#34;", '"')
        assert "1 of 10" in words(await page(client, "/workers"))
        policies = words(await page(client, "/policies", action="deploy"))
        assert "max_concurrent 2 action deploy" in policies
        assert "How it came to be" in policies
        assert "set_policy" in words(await page(client, "/audit", action="deploy"))
        listed = await page(client, "/executions", action="deploy", state="waiting")
        assert [int(each) for each in re.findall(r'data-key="(\d+)"', listed)] == ids[:1:-1]

    tell(dsn, story)


def test_hostile_values_are_text_on_every_page(dsn: str, engine: Engine) -> None:
    with pgfifo.Client(dsn, application_name=HOSTILE[:60]) as fifo:
        action, group = f"a{HOSTILE}", f"g{HOSTILE}"
        fifo.set_policy(action, max_attempts=1)
        tags, headers = [HOSTILE], {HOSTILE: HOSTILE}
        ids = [
            fifo.enqueue(action, {HOSTILE: HOSTILE}, group=group, tags=tags, headers=headers).id
            for _ in range(4)
        ]
        fifo.acting_as(HOSTILE).pause(action, group, reason=HOSTILE)
        fifo.resume(action, group)
        query = "select pgfifo.worker_start(%s, %s, 1, %s, 9, '1 h', false)"
        worker = engine.one(query, HOSTILE, HOSTILE, [action])
        [start] = engine.claim(worker, 1, [action])
        engine.work(worker, 0, [], [item(start, "failed", error=HOSTILE)])
        [start] = engine.claim(worker, 1, [action])
        engine.one("select pgfifo.progress(%s, 1, 0.5, %s)", start.id, HOSTILE)
        fifo.acting_as(HOSTILE).override_policy(action, reason=HOSTILE, lasting="1h", max_concurrent=3)
        fifo.set_shared_limit("limit", max_concurrent=1, actions=[action])
        fifo.acting_as(HOSTILE).pause(action, group, reason=HOSTILE)
    looked = [
        *PATHS,
        *("/execution?id=" + str(each) for each in ids),
        "/action?" + urlencode({"name": action, "q": HOSTILE}),
        "/action?" + urlencode({"name": action}),
        "/lane?" + urlencode({"action": action, "group": group}),
        "/policies?" + urlencode({"action": action, "group": group}),
        "/audit?" + urlencode({"what": HOSTILE}),
        "/lanes?" + urlencode({"q": HOSTILE, "sort": HOSTILE, "having": HOSTILE, "page": HOSTILE}),
        "/change/pause?" + urlencode({"action": action, "group": group}),
        "/change/limit?" + urlencode({"action": action, "attribute": "rate", "value": HOSTILE}),
    ]
    errors = [
        "/action?" + urlencode({"name": HOSTILE}),
        "/execution?" + urlencode({"id": HOSTILE}),
        "/executions?" + urlencode({"state": HOSTILE}),
        "/lane?" + urlencode({"action": HOSTILE, "group": HOSTILE}),
        "/change/" + HOSTILE.replace("/", ""),
    ]

    async def story(client: httpx.AsyncClient) -> None:
        seen = 0
        for path in looked + errors:
            answer = await client.get(path)
            assert (answer.status_code < 400) == (path in looked), (path, answer.status_code)
            assert answer.headers["content-type"].startswith("text/html"), path
            bare = answer.text.replace("<script src=", "")
            for bad in ("<script>alert", "<img", 'onerror=alert(2)>"', "49{%"):
                assert bad not in bare, (path, bad)
            assert not re.search(r"<[^>]*\son\w+\s*=", bare), path
            assert not re.search(r"<[^>]*\sstyle\s*=", bare), "the policy of content forbids it"
            seen += "&lt;script&gt;alert(1)" in answer.text
        assert seen >= len(looked) - 3, "the hostile text is shown, as text"

    tell(dsn, story)


def test_nothing_is_fetched_from_another_host(dsn: str) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        text = await page(client, "/")
        for address in re.findall(r'(?:src|href|action)="([^"]+)"', text):
            assert not urlsplit(address).netloc, address
        for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
            answer = await client.get(address)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert not re.search(rb"url\(|@import|https?://(?!www\.w3\.org)", answer.content), address
        policy = (await client.get("/")).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (await client.get("/static/nothing.js")).status_code == 404

    tell(dsn, story)


def test_lanes_are_paged_sorted_and_searched(dsn: str, engine: Engine) -> None:
    engine.enqueue_many("deploy", [{}] * 120, [f"g{n:03}" for n in range(120)])
    engine.enqueue_many("deploy", [{}] * 3, ["g077"] * 3)

    def keys(text: str) -> list[str]:
        return re.findall(r">(g\d{3})</a>", text)

    async def story(client: httpx.AsyncClient) -> None:
        first = await page(client, "/action", name="deploy")
        assert len(keys(first)) == 50
        assert keys(first)[0] == "g077"
        seen = {*keys(first)}
        for number in (2, 3):
            text = await page(client, "/action", name="deploy", page=number)
            assert ("Next" in text) == (number < 3)
            seen |= {*keys(text)}
        assert len(seen) == 120
        assert keys(await page(client, "/action", name="deploy", sort="group"))[:2] == ["g000", "g001"]
        found = words(await page(client, "/lanes", q="G07", having="waiting", sort="group"))
        assert re.findall(r"deploy (g\d{3})", found) == [f"g07{n}" for n in range(10)]
        assert "No lane is like that." in await page(client, "/lanes", q="nowhere")
        assert "No lane is like that." in await page(client, "/lanes", page=999)

    tell(dsn, story)


def test_tables_read_no_more_of_a_payload_than_they_show(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"text": "x" * 900_000}
    with pgfifo.Client(dsn) as fifo:
        for delay in (None, None, None, 3600.0):
            fifo.enqueue("deploy", payload, delay=delay)
    [start] = engine.claim(engine.worker("deploy"))
    engine.finish(start, "failed", retry=False)

    for name in ("executions", "line"):  # which would read whole ones
        monkeypatch.setattr(pgfifo.AsyncClient, name, None)

    async def story(client: httpx.AsyncClient) -> None:
        for path, parameters in (
            ("/", {}),
            ("/action", {"name": "deploy"}),
            ("/lane", {"action": "deploy"}),
            ("/executions", {"state": "waiting"}),
            ("/workers", {}),
        ):
            found = await page(client, path, **parameters)
            assert len(found) < 60_000, path
        assert "{&#34;text&#34;: &#34;xxx" in await page(client, "/executions", action="deploy")
        assert "more characters" in await page(client, "/execution", id=start.id)

    tell(dsn, story)


def test_executions_go_on_where_a_page_ends(dsn: str, engine: Engine) -> None:
    ids = engine.fill(60)

    async def story(client: httpx.AsyncClient) -> None:
        first = await page(client, "/executions")
        [older] = re.findall(r'<a rel="next" href="([^"]+)"', first)
        second = await page(client, older)
        shown = [int(each) for each in re.findall(r'data-key="(\d+)"', first + second)]
        assert shown == ids[::-1]
        assert 'rel="next"' not in second

    tell(dsn, story)


def test_go_finds_executions_actions_and_lanes(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", group_by=["env"])
    number = engine.enqueue("deploy", {"env": "prod"})

    async def story(client: httpx.AsyncClient) -> None:
        for typed, there in (
            (f" #{number} ", f"/execution?id={number}"),
            ("deploy", "/action?name=deploy"),
            ("deploy env=prod", "/lane?action=deploy&group=%7B%22env%22%3A%22prod%22%7D"),
            ("deploy env=pro", "/lanes?q=deploy+env%3Dpro"),
            ("env=prod", "/lanes?q=env%3Dprod"),
        ):
            answer = await client.get("/go", params={"for": typed})
            assert (answer.status_code, answer.headers["location"]) == (303, there)

    tell(dsn, story)


async def do(client: httpx.AsyncClient, verb: str, **fields: object) -> str:
    """Ask, confirm, and return the page on which one is told what was done."""
    given = {name: str(value) for name, value in fields.items()}
    asked = await page(client, f"/change/{verb}", **given)
    assert f'action="/change/{verb}"' in asked
    answer = await client.post(f"/change/{verb}", data=given)
    assert answer.status_code == 303, answer.text
    shown = await page(client, answer.headers["location"])
    assert 'class="flash"' in shown
    assert 'class="flash"' not in await page(client, answer.headers["location"]), "it is told once"
    return shown


async def undo(client: httpx.AsyncClient, shown: str) -> None:
    """Press the button that undoes what a page tells."""
    flash = shown[shown.index('class="flash"') :]
    [verb] = re.findall(r'action="/change/([\w-]+)"', flash)[:1]
    form = flash[: flash.index("</form>")]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))
    answer = await client.post(
        f"/change/{verb}", data={name: value.replace("&#34;", '"') for name, value in fields.items()}
    )
    assert answer.status_code == 303, answer.text


def test_changes_are_done_told_undone_and_on_record(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", group_by=["env"])
    group = '{"env":"prod"}'
    first, second = (engine.enqueue("deploy", {"env": "prod"}) for _ in range(2))
    fifo = pgfifo.Client(dsn)

    async def story(client: httpx.AsyncClient) -> None:
        assert "Pause…" in await page(client, "/action", name="deploy")
        shown = await do(client, "pause", action="deploy", reason="release")
        assert "Resume…" in shown, "what was kept of the time before is shown"
        assert "deploy is paused" in words(shown)
        assert "pgfifo resume deploy" in words(shown)
        assert fifo.stats("deploy").paused_reason == "release"
        await undo(client, shown)
        assert not fifo.stats("deploy").paused

        shown = await do(client, "pause", action="deploy", group=group)
        assert "pgfifo resume deploy --group env=prod" in words(shown)
        assert fifo.lanes("deploy", {"env": "prod"})[0].paused
        await undo(client, shown)
        assert not fifo.lanes("deploy", {"env": "prod"})[0].paused

        shown = await do(client, "limit", action="deploy", group=group, attribute="max_concurrent", value="3")
        assert "max_concurrent of deploy env=prod: inherited → 3" in words(shown)
        assert fifo.lanes("deploy")[0].max_concurrent == 3
        await undo(client, shown)
        assert fifo.lanes("deploy")[0].max_concurrent == 1

        shown = await do(client, "cancel", id=second, reason="a typo")
        assert f"Execution {second} is cancelled." in words(shown)
        assert fifo.execution(second).reason == "a typo"
        await undo(client, shown)
        assert fifo.executions("deploy", state="waiting")[0].retry_of == second
        worker = engine.worker("deploy", lease="1 hour")
        engine.hand_in(worker, *engine.claim(worker))
        assert "had ended before: succeeded" in words(await do(client, "cancel", id=first))

        shown = await do(client, "pause-everything", reason="incident")
        assert fifo.stats("deploy").paused
        await undo(client, shown)
        assert not fifo.stats("deploy").paused

    tell(dsn, story, unauthenticated=False, authenticate=lambda _: "maria")
    with fifo:
        assert {entry.actor for entry in fifo.audit() if entry.what in ("pause", "resume", "cancel")} == {
            "maria"
        }
        assert fifo.execution(first).state == "succeeded"


def test_a_form_that_is_refused_is_shown_again_as_it_was_filled_in(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")

    async def story(client: httpx.AsyncClient) -> None:
        for value in ("-5", "many"):
            fields = {"action": "deploy", "attribute": "max_concurrent", "value": value}
            answer = await client.post("/change/limit", data=fields)
            assert answer.status_code == 422
            assert 'action="/change/limit"' in answer.text
            assert f'name="value" value="{value}"' in answer.text
            assert 'name="attribute" value="max_concurrent"' in answer.text
            assert 'role="alert"' in answer.text

    tell(dsn, story)


def test_the_overview_says_what_no_worker_serves(dsn: str, engine: Engine) -> None:
    engine.fill(2)

    async def story(client: httpx.AsyncClient) -> None:
        text = words(await page(client, "/"))
        assert "No worker lives" in text
        assert "deploy no worker" in text

    tell(dsn, story)
    engine.enqueue("mail")
    engine.worker("mail", lease="1 hour")

    async def then(client: httpx.AsyncClient) -> None:
        text = words(await page(client, "/"))
        assert "No worker lives" not in text
        assert "deploy no worker" in text

    tell(dsn, then)
    engine.worker("deploy", lease="1 hour")

    async def served(client: httpx.AsyncClient) -> None:
        assert "deploy no worker" not in words(await page(client, "/"))

    tell(dsn, served)


def test_what_waited_when_it_was_cancelled_was_not_asked_to_stop(dsn: str, engine: Engine) -> None:
    [number] = engine.fill(1)
    engine.cancel(number)

    async def story(client: httpx.AsyncClient) -> None:
        assert "asked to stop" not in words(await page(client, "/execution", id=number))

    tell(dsn, story)


def test_a_backlog_that_is_not_counted_is_not_shown_as_of_before(
    dsn: str, engine: Engine, minute: datetime
) -> None:
    engine.fill(500)
    engine.claim(engine.worker("deploy", lease="1 hour"), 1)

    async def story(client: httpx.AsyncClient) -> None:
        text = await page(client, "/action", name="deploy")
        points = json.loads(html.unescape(re.findall(r'data-points="([^"]*)"', text)[0]))
        assert points[-1][1] == "500"
        assert "500" not in {value for _, value in points[:-1]}

    tell(dsn, story)
    [stats] = pgfifo.Client(dsn).overview()
    old = charts.hour([stats], [], [], {})
    assert set(old.backlog[:-3]) == {1.0}, "it is known of those that wait only that they are new"
    young = charts.hour([stats], [], [], {"deploy": pace(minute - timedelta(minutes=10), minute)})
    assert set(young.backlog[:50]) == {None}, "it was not there"


def test_what_cannot_be_is_told_on_a_page(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")

    async def story(client: httpx.AsyncClient) -> None:
        refused = [
            ("limit", {"action": "deploy", "attribute": "max_concurrent", "value": "-1"}, 422),
            ("limit", {"action": "deploy", "attribute": "max_concurrent", "value": "many"}, 422),
            ("limit", {"action": "deploy", "attribute": "rate", "value": "fast"}, 422),
            ("limit", {"action": "deploy", "attribute": "group_by", "value": "x"}, 422),
            ("pause", {}, 422),
            ("pause", {"action": "nobody"}, 404),
            ("cancel", {"id": "x"}, 422),
            ("cancel", {"id": "999999"}, 404),
            ("retry", {"id": "999999"}, 404),
            ("explode", {}, 404),
        ]
        for verb, fields, status in refused:
            answer = await client.post(f"/change/{verb}", data=fields)
            assert answer.status_code == status, (verb, fields, answer.text)
            assert 'role="alert"' in answer.text
            assert "Traceback" not in answer.text
        for path, status in (
            ("/action", 404),
            ("/action?name=nobody", 404),
            ("/execution?id=999999", 404),
            ("/execution?id=x", 404),
            ("/executions?state=x", 422),
            ("/nowhere", 404),
        ):
            answer = await client.get(path)
            assert answer.status_code == status, path
            assert "To the overview" in answer.text

    tell(dsn, story)


def test_who_may_only_read_sees_no_button_and_changes_nothing(dsn: str, engine: Engine) -> None:
    [number] = engine.fill(1)

    async def story(client: httpx.AsyncClient) -> None:
        looked = [*PATHS, "/action?name=deploy", "/lane?action=deploy", f"/execution?id={number}"]
        for path in looked:
            text = await page(client, path)
            assert "read-only" in text
            assert "/change/" not in text, path
        for verb in ("pause", "limit", "cancel"):
            assert (await client.get(f"/change/{verb}?action=deploy")).status_code == 403
            assert (await client.post(f"/change/{verb}", data={"action": "deploy"})).status_code == 403

    tell(dsn, story, allow_changes=False)
    assert not engine.stats()["paused"]


def test_an_observers_role_sees_every_page_and_is_told_what_it_may_not(fresh_dsn: str) -> None:
    role = "dashboard of test_web_pages"
    with psycopg.connect(fresh_dsn, autocommit=True) as owner, pgfifo.Client(fresh_dsn) as fifo:
        owner.execute(f'create role "{role}" login')
        fifo.grant_role("observer", role)
        number = fifo.enqueue("deploy").id

        async def story(client: httpx.AsyncClient) -> None:
            for path in [*PATHS, "/action?name=deploy", "/lane?action=deploy", f"/execution?id={number}"]:
                text = await page(client, path)
                assert "/change/" not in text, path
                assert "read-only" in text
            assert (await client.get("/change/pause?action=deploy")).status_code == 403
            answer = await client.post("/change/pause", data={"action": "deploy"})
            assert answer.status_code == 403
            assert "may not do this" in words(answer.text)

        try:
            tell(psycopg.conninfo.make_conninfo(fresh_dsn, user=role), story)
        finally:
            owner.execute(f'drop owned by "{role}"; drop role "{role}"')
        assert not fifo.stats("deploy").paused


def test_a_lane_shows_programs_that_hold_its_slots_themselves(dsn: str) -> None:
    with pgfifo.Client(dsn) as fifo, fifo.slot("migrate", group="prod"):
        [holder] = fifo.slots("migrate")

        async def story(client: httpx.AsyncClient) -> None:
            said = words(await page(client, "/lane", action="migrate", group="prod"))
            assert f"{holder.id} running for" in said
            assert holder.holder
            assert holder.holder in said
            assert "Nobody waits." in said

        tell(dsn, story)


def test_a_page_of_another_site_changes_nothing(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")

    async def story(client: httpx.AsyncClient) -> None:
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
            answer = await client.post("/change/pause", data={"action": "deploy"}, headers=headers)
            assert answer.status_code == 403
            assert answer.headers["content-type"].startswith("text/html")
            assert "To the overview" in answer.text

    tell(dsn, story)
    assert not engine.stats()["paused"]


def test_what_is_refused_at_the_door_is_told_on_a_page(dsn: str) -> None:
    stranger = {"unauthenticated": False, "proxy_header": "X-Forwarded-User", "allowed_hosts": ["localhost"]}

    async def story(client: httpx.AsyncClient) -> None:
        change = "/change/pause"
        for status, method, path, headers, content in (
            (401, "GET", "/lanes", {}, b""),
            (421, "GET", "/lanes", {"host": "evil.example"}, b""),
            (403, "POST", change, {"sec-fetch-site": "cross-site"}, b""),
            (413, "POST", change, {}, b"x" * 2000),
        ):
            answer = await client.request(method, path, headers=headers, content=content)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert 'role="alert"' in answer.text
            assert pgfifo.__version__ not in answer.text, "it tells a stranger what runs here"
            headers |= {"accept": "*/*"}
            document = await client.request(method, path, headers=headers, content=content)
            assert document.status_code == status
            assert document.headers["content-type"] == "application/problem+json"

    tell(dsn, story, max_body=1000, **stranger)


def test_pages_work_under_a_path_of_their_own(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")

    async def story(client: httpx.AsyncClient) -> None:
        text = await page(client, "/queue/")
        for address in re.findall(r'(?:src|href|action|data-live)="([^"#]+)"', text):
            assert address.startswith("/queue/"), address
        answer = await client.post("/queue/change/pause", data={"action": "deploy"})
        assert answer.headers["location"].startswith("/queue/action?name=deploy&done=")

    tell(dsn, story, root_path="/queue")


def test_live_pages_are_rendered_once_for_all_who_look(dsn: str) -> None:
    rendered = 0
    shown = ["one"]
    looks: asyncio.Queue[int] = asyncio.Queue()
    allowed = asyncio.Semaphore(1)

    async def render() -> str:
        nonlocal rendered
        await allowed.acquire()
        rendered += 1
        looks.put_nowait(rendered)
        return f'<p>{shown[0]}</p><time datetime="x">{rendered} s</time>'

    async def some_looks() -> None:
        for _ in range(3):
            allowed.release()
            await looks.get()

    async def whole() -> None:
        hub = Hub(interval=0)
        viewers = [hub.follow("/", render) for _ in range(5)]
        for viewer in viewers:
            assert (await anext(viewer)).startswith("retry: ")
        first = await asyncio.gather(*(anext(viewer) for viewer in viewers))
        assert await looks.get() == rendered == 1, "each viewer had it rendered for himself"
        assert {event.partition("\n")[0] for event in first} == {"event: page"}
        news = [asyncio.ensure_future(anext(viewer)) for viewer in viewers]
        await some_looks()
        assert not any(each.done() for each in news), "an age alone is no news"
        shown[0] = "two\nlines"
        allowed.release()
        for event in await asyncio.gather(*news):
            assert "data: <p>two\ndata: lines</p>" in event
        await looks.get()
        [version] = re.findall(r"^id: (\w+)$", event, re.MULTILINE)
        again = hub.follow("/", render, version)
        await anext(again)
        waits = asyncio.ensure_future(anext(again))
        await some_looks()
        assert not waits.done(), "who has it is not sent it again"
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert hub.pages == 1
        task = hub._topics["/"].task
        assert task is not None
        for viewer in [*viewers, again]:
            await viewer.aclose()  # type: ignore[attr-defined]
        assert hub.pages == 0
        await asyncio.wait([task])
        assert task.cancelled(), "nobody looks, and it is rendered"

    asyncio.run(whole())


def test_what_was_read_is_shared_for_a_moment_and_then_dropped() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    async def whole() -> None:
        desk = Desk(pgfifo.AsyncClient(""), fresh=3600)
        assert await asyncio.gather(*(desk.shared("lanes", ask) for _ in range(5))) == [1] * 5
        desk.forget()
        assert await desk.shared("lanes", ask) == 2
        desk.fresh = 0
        for n in range(300):  # somebody types one search after the other
            await desk.shared(f"lanes {n}", ask)
        assert len(desk._kept) < 150, "what nobody asks for any more stays for ever"
        assert len(desk._asking) < 150
        assert await desk.shared("lanes", ask) == 2, "what is new is dropped"

    asyncio.run(whole())


def test_live_pages_say_when_the_database_is_away_and_go_on() -> None:
    away = True

    async def render() -> str:
        if away:
            raise psycopg.OperationalError("connection refused")
        return "<p>back</p>"

    async def whole() -> None:
        nonlocal away
        viewer = Hub(interval=0.01).follow("/", render)
        await anext(viewer)
        event = await anext(viewer)
        assert event.startswith("event: away\n")
        assert "The database cannot be reached." in event
        away = False
        assert "<p>back</p>" in await anext(viewer)
        await viewer.aclose()  # type: ignore[attr-defined]

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),  # noqa: RUF001
        (0, "0 ms"),
        (0.34, "340 ms"),
        (4.24, "4.2 s"),
        (59.6, "1 m"),
        (312, "5 m 12 s"),
        (11_040, "3 h 4 m"),
        (86_400, "1 d"),
        (900_000, "10 d 10 h"),
        (-3, "0 ms"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float | None, shown: str) -> None:
    assert formats.duration(seconds) == shown


def test_long_values_are_cut() -> None:
    assert len(formats.pretty(["x" * 50_000])) < 21_000
    assert len(formats.line({"x": "y" * 50_000})) < 200
    assert formats.headline("one\ntwo") == "one"


def pace(since: datetime, until: datetime, backlog: int = 0) -> pgfifo.Pace:
    return pgfifo.Pace(since, until, 0, 0, 0, 0, 0, 0, backlog, 0.0, 0.0, 0.0, None, None)


def test_a_backlog_of_delayed_and_running_ones_is_not_shown_before_they_came(
    dsn: str, engine: Engine, minute: datetime
) -> None:
    engine.fill(2)
    engine.claim(engine.worker("deploy", lease="1 hour"), 1)
    for _ in range(3):
        engine.enqueue_later("1 hour")
    [stats] = pgfifo.Client(dsn).overview()
    stats = replace(stats, oldest_enqueued_at=None, queue_length=0)

    def backlog(until: int, counted: int, *flows: tuple[int, int]) -> list[float | None]:
        minutes = [
            pgfifo.Minute("deploy", minute - timedelta(minutes=back), new, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
            for back, new in flows
        ]
        whole = pace(minute - timedelta(minutes=until + 60), minute - timedelta(minutes=until), counted)
        return charts.hour([stats], minutes, [], {"deploy": whole}).backlog[-5:]

    assert backlog(1, 0) == [0, 0, 0, None, 4]
    assert backlog(0, 0, (1, 0)) == [0, 0, 0, 0, 4], "the last minute is known: nothing was left then"
    assert backlog(0, 4, (1, 4)) == [0, 0, 0, 4, 4]
    assert backlog(3, 1, (2, 2), (1, 1)) == [1, 1, 3, 4, 4], "it was counted then, and goes on from there"
    assert backlog(3, 1, (3, 1), (4, 1)) == [1, 2, 2, None, 4]


def test_a_backlog_is_counted_back_from_now(dsn: str, engine: Engine, minute: datetime) -> None:
    engine.fill(3)
    [stats] = pgfifo.Client(dsn).overview()
    stats = replace(stats, oldest_enqueued_at=minute - timedelta(minutes=6))

    def past(back: int, enqueued: int, succeeded: int) -> pgfifo.Minute:
        when = minute - timedelta(minutes=back)
        return pgfifo.Minute("deploy", when, enqueued, succeeded, succeeded, 0, 0, 0, succeeded, 0.0, 0.0)

    hour = charts.hour([stats], [past(2, 5, 4), past(5, 10, 1)], [], {})
    assert hour.backlog[-7:] == [0, 2, 2, 2, 3, 3, 3]
    assert hour.started[-3] == 4
    assert hour.started[-1] is None, "it is not known yet"
    svg = str(charts.draw([charts.Series("x", [1.0, None, 3.0, 4.0])], 4))
    assert svg.count('class="line main"') == 2, "what is missing is a gap"
    assert charts.ceiling(0, "count") == 1
    assert charts.ceiling(730, "count") == 800
    assert charts.ceiling(95, "seconds") == 120


def test_queries_of_pages_can_be_read_back() -> None:
    address = formats.query("/lane", {"action": "a&b=c#?", "group": '{"x":"ä/%"}', "page": None})
    assert parse_qs(urlsplit(address).query) == {"action": ["a&b=c#?"], "group": ['{"x":"ä/%"}']}


def test_every_template_is_used() -> None:
    names = set(rendering.environment.list_templates())
    used = {"overview", "action", "lanes", "lane", "executions", "execution", "workers", "policies", "audit"}
    assert names == {
        f"{name}.html" for name in used | {"bare", "base", "macros", "change", "error", "login", "refused"}
    } | {
        "pager.html",
        "lanes_filter.html",
        "lanes_table.html",
    }
