"""Who is let in by the web application, and what hostile requests come to."""

import asyncio
import dataclasses
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import pgfifo
from pgfifo.web import Settings, create_app
from pgfifo.web.security import new_session, of_session
from tests.support.calls import HOSTILE
from tests.support.database import wait_for
from tests.support.web import TOKEN, Api, openapi, problem

STATS = "/api/v1/actions/mail/queue-stats"
PAUSE = "/api/v1/actions/mail/pause"
BOB = "a-token-of-bob-0002"


@pytest.fixture
def dsn(dsn: str) -> str:
    with pgfifo.Client(dsn) as fifo:
        fifo.enqueue("mail")
    return dsn


@pytest.fixture
def api(dsn: str) -> Iterator[Api]:
    with Api(dsn) as api:
        yield api


def test_settings_have_to_say_who_may_use_it() -> None:
    with pytest.raises(pgfifo.InvalidValue, match="who may use the application"):
        Settings()
    with pytest.raises(pgfifo.InvalidValue, match="token of 'ann'"):
        Settings(tokens={"ann": "short"})
    with pytest.raises(pgfifo.InvalidValue, match="no address and no network"):
        Settings(proxy_header="X-User", trusted_proxies=["proxy.example"])
    with pytest.raises(pgfifo.InvalidValue, match="root path"):
        Settings(unauthenticated=True, root_path="queue/")
    for host in ("https://queue.example", "queue.example:8484", "queue.example/", "bücher.example", "", " "):
        with pytest.raises(pgfifo.InvalidValue, match="is no host name"):
            Settings(unauthenticated=True, allowed_hosts=[host])
    Settings(unauthenticated=True, allowed_hosts=["*", "queue.example", "Queue_1", "::1", "10.0.0.1"])
    for header in ("X-User:", "X User", ""):
        with pytest.raises(pgfifo.InvalidValue, match="is no name of a header"):
            Settings(unauthenticated=True, proxy_header=header)
    settings = Settings(tokens={"ann": TOKEN})
    assert TOKEN not in repr(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.allow_changes = True  # type: ignore[misc]


def test_who_has_no_token_gets_nothing_but_health(api: Api) -> None:
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
        for path in (STATS, "/api/openapi.json", "/metrics", "/", "/nowhere"):
            answer = api.stranger("GET", path, headers=headers)
            problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert api.stranger("GET", "/healthz").json() == {"status": "ok"}
    assert api.stranger("GET", "/readyz").json() == {"status": "ready"}
    assert api.stranger("HEAD", "/readyz").status_code == 200
    assert api("GET", STATS).status_code == 200


def test_without_allow_changes_everything_only_reads(dsn: str) -> None:
    with Api(dsn, allow_changes=False) as api:
        for path, methods in openapi()["paths"].items():
            for method in methods.keys() - {"get"}:
                url = path.replace("{action}", "mail").replace("{id}", "1")
                url = url.replace("{name}", "x").replace("{pack}", "x")
                answer = api(method.upper(), url, json={"outcome": "failed", "items": [{}], "ids": [1]})
                assert answer.status_code in (403, 422), f"{method} {path}"
                if answer.status_code == 422:
                    continue
                assert "only reads" in problem(answer, 403)["detail"]
        assert problem(api("POST", PAUSE), 403)["hint"].startswith("Start it with --allow-changes")
        assert api("GET", STATS).status_code == 200


def test_a_role_that_only_reads_is_refused_clearly(server: Any, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("drop role if exists web_watcher")
        conn.execute("create role web_watcher login")
        conn.execute("select pgfifo.grant_role('observer', 'web_watcher')")
    try:
        with Api(psycopg.conninfo.make_conninfo(dsn, user="web_watcher")) as api:
            assert api("GET", STATS).status_code == 200
            refused = problem(api("POST", PAUSE), 403)
            assert refused["detail"] == "The database role of this server may not do this."
            problem(api("POST", "/api/v1/actions/mail/executions", json={}), 403)
            with pgfifo.Client(dsn) as fifo:
                assert fifo.stats("mail").queue_length == 1
    finally:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("drop owned by web_watcher; drop role web_watcher")


def test_a_session_begins_with_the_token_and_ends_with_it(dsn: str) -> None:
    settings = Settings(tokens={"ann": TOKEN, "bob": BOB})
    with Api(dsn, tokens={"ann": TOKEN, "bob": BOB}) as api:
        page = api.stranger("GET", "/api/v1/actions?x=1", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (
            303,
            "/login?next=%2Fapi%2Fv1%2Factions%3Fx%3D1",
        )
        form = api.stranger("GET", page.headers["location"])
        assert 'value="/api/v1/actions?x=1"' in form.text
        wrong = api.stranger("POST", "/login", data={"token": "guessed", "next": "/"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        entered = api.stranger("POST", "/login", data={"token": BOB, "next": "/api/v1/about"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/api/v1/about")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        about = api.stranger("GET", "/api/v1/about").json()["data"]  # the client keeps cookies, as a browser
        assert (about["user"], about["known_by"]) == ("bob", "session")
        assert api.stranger("POST", PAUSE).status_code == 200
        with pgfifo.Client(dsn) as fifo:
            assert fifo.audit("mail")[0].actor == "bob"
        out = api.stranger("POST", "/logout")
        assert out.status_code == 303
        problem(api.stranger("GET", STATS), 401)
    sealed = new_session(settings, "bob")
    assert of_session(settings, sealed) == "bob"
    assert of_session(dataclasses.replace(settings, tokens={"ann": TOKEN, "bob": BOB + "x"}), sealed) is None
    assert of_session(dataclasses.replace(settings, tokens={"ann": TOKEN}), sealed) is None
    name, ends, seal = sealed.split(".")
    mine = new_session(settings, "ann").partition(".")[0]
    for forged in (
        "",
        ".",
        "..",
        "é",
        f"{mine}.{ends}.{seal}",
        f"{name}.{int(ends) + 1}.{seal}",
        f"{name}.x.{seal}",
    ):
        assert of_session(settings, forged) is None, forged
    assert of_session(settings, new_session(dataclasses.replace(settings, session=-1), "bob")) is None


def test_a_login_leads_to_no_other_site(api: Api) -> None:
    for there in (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/\r\nX: 1",
        "/\t/evil.example",
        "/\t/[",
    ):
        entered = api.stranger("POST", "/login", data={"token": TOKEN, "next": there})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
    page = api.stranger("GET", "/login", params={"next": '"><script>alert(1)</script>'})
    assert "<script" not in page.text


def test_a_proxy_is_believed_only_at_its_own_address(dsn: str) -> None:
    settings: dict[str, Any] = {
        "tokens": {},
        "proxy_header": "X-Forwarded-User",
        "trusted_proxies": ["10.0.0.0/8", "::1"],
        "allowed_hosts": ["localhost"],
    }
    with Api(dsn, **settings) as api:
        as_carol = {"X-Forwarded-User": "carol é".encode()}
        for address, known in (
            ("10.1.2.3", True),
            ("::ffff:10.1.2.3", True),
            ("::1", True),
            ("127.0.0.1", False),
            ("192.0.2.1", False),
            ("nonsense", False),
        ):
            api.use(api.app, address)
            answer = api.stranger("GET", "/api/v1/about", headers=as_carol)
            if known:
                assert answer.json()["data"]["user"] == "carol é", address
            else:
                problem(answer, 401)
        api.use(api.app, "10.1.2.3")
        problem(api.stranger("GET", STATS), 401)
        problem(api.stranger("GET", STATS, headers={"X-Forwarded-User": " "}), 401)
        problem(api.stranger("GET", STATS, headers={"X-Forwarded-User": "x" * 201}), 401)
        twice = [("X-Forwarded-User", "admin"), ("X-Forwarded-User", "carol")]
        problem(api.stranger("GET", STATS, headers=twice), 401)
        assert api.stranger("POST", PAUSE, headers=as_carol).status_code == 200
    with pgfifo.Client(dsn) as fifo:
        assert fifo.audit("mail")[0].actor == "carol é"


def test_an_application_may_say_itself_who_somebody_is(dsn: str) -> None:
    async def authenticate(request: Any) -> str | None:
        return str(request.headers["x-who"]) if "x-who" in request.headers else None

    with Api(dsn, tokens={}, authenticate=authenticate) as api:
        problem(api.stranger("GET", STATS), 401)
        about = api.stranger("GET", "/api/v1/about", headers={"X-Who": "dora"}).json()["data"]
        assert (about["user"], about["known_by"]) == ("dora", "application")
    with Api(dsn, tokens={}, authenticate=lambda request: request.headers.get("x-who")) as api:
        assert api.stranger("GET", STATS, headers={"X-Who": "dora"}).status_code == 200


def test_a_foreign_host_name_is_refused_where_nobody_has_to_know_a_secret(dsn: str) -> None:
    with Api(dsn, tokens={}, unauthenticated=True) as api:
        for host, known in (
            ("localhost:8484", True),
            ("LOCALHOST", True),
            ("queue.localhost", True),
            ("127.0.0.1:8484", True),
            ("[::1]:8484", True),
            ("192.0.2.7", True),
            ("evil.example", False),
            ("localhost.evil.example", False),
            ("localhost@evil.example", False),
            ("127.0.0.1.evil.example", False),
            ("", False),
            ("[", False),
            ("[::1", False),
        ):
            answer = api.stranger("GET", STATS, headers={"Host": host})
            assert answer.status_code == (200 if known else 421), host
            if not known:
                problem(answer, 421)
    with Api(dsn, tokens={}, unauthenticated=True, allowed_hosts=["queue.example"]) as api:
        assert api.stranger("GET", STATS, headers={"Host": "Queue.Example"}).status_code == 200
        problem(api.stranger("GET", STATS, headers={"Host": "localhost"}), 421)


def test_a_page_of_another_site_changes_nothing(dsn: str) -> None:
    with Api(dsn, tokens={}, unauthenticated=True) as api:
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:3000"},
            {"Origin": "http://["},
        ):
            refused = api.stranger("POST", PAUSE, headers=headers)
            assert "another site" in problem(refused, 403)["detail"], headers
            assert api.stranger("GET", STATS, headers=headers).status_code == 200
        # What a form can send without being asked for is no JSON.
        form = api.stranger("POST", PAUSE, content='{"reason":"x"}', headers={"Content-Type": "text/plain"})
        problem(form, 415)
        with pgfifo.Client(dsn) as fifo:
            assert not fifo.stats("mail").paused
        for own in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}, {}):
            assert api.stranger("POST", PAUSE, headers=own).status_code == 200
    with Api(dsn, tokens={}, unauthenticated=True, allowed_hosts=["localhost", "queue.example"]) as api:
        proxied = {"Origin": "http://queue.example"}  # by a proxy that says Host: localhost
        assert api.stranger("POST", PAUSE, headers=proxied).status_code == 200


def test_browsers_are_told_to_do_nothing_else(api: Api) -> None:
    for path in (STATS, "/nowhere", "/healthz", "/login"):
        headers = api("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
    assert (
        "access-control-allow-origin"
        not in api("GET", STATS, headers={"Origin": "https://x.example"}).headers
    )


def test_a_body_has_an_end(dsn: str) -> None:
    async def endless() -> Any:
        while True:
            yield b'{"payload": "' + b"x" * 1000

    with Api(dsn, max_body=10_000) as api:
        path = "/api/v1/actions/mail/executions"
        api.problem("POST", path, 413, json={"payload": "x" * 10_000})
        api.problem("POST", path, 413, content=endless(), headers={"Content-Type": "application/json"})
        for length in ("1e3", "9" * 5000, "-1"):
            api.problem("POST", path, 413, headers={"Content-Length": length})
        assert api("POST", path, json={"payload": "x" * 9_000}).status_code == 201


WRONG = [
    (b"", 422),
    (b"{", 400),
    (b"\xff", 400),
    (b"[" * 100_000, 400),
    (b'{"payload": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    (b'{"payload": NaN}', 422),
    (b'{"payload": 1e999}', 422),
    (b'{"payload": "\\u0000"}', 422),
    (b'{"payload": "\\ud800"}', 422),
    (b'{"payload": ' + b"9" * 5000 + b"}", 400),
    (b'{"delay": -1}', 422),
    (b'{"delay": "soon"}', 422),
    (b'{"run_at": "2026-01-01T00:00:00"}', 422),
    (b'{"group": 5}', 422),
    (b'{"group": {"a": "\\u0000"}}', 422),
    (b'{"tags": [1]}', 422),
    (b'{"headers": []}', 422),
    (b'{"connection": 1}', 422),
    (b"[]", 422),
    (b'"x"', 422),
]


def test_what_cannot_be_is_a_problem_and_enqueues_nothing(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    for body, status in WRONG:
        said = api("POST", "/api/v1/actions/mail/executions", content=body, headers=headers)
        assert said.status_code == status, (body[:50], said.text)
        problem(said, status)
    with pgfifo.Client(api.dsn) as fifo:
        assert fifo.stats("mail").total_enqueued == 1


def test_hostile_texts_stay_texts(api: Api) -> None:
    for text in [
        *HOSTILE,
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "%2e%2e",
        "a" * 10_000,
        "\x00",
        "é\ufffd",
    ]:
        query = {"action": text, "search": text, "sort": "group"}
        for answer in (
            api("GET", "/api/v1/lanes", params=query),
            api("GET", "/api/v1/executions", params={"tag": text, "group": text, "action": "mail"}),
            api("GET", "/api/v1/events", params={"cursor": text}),
            api("GET", f"/api/v1/actions/{quote(text)}/pace"),
            api("POST", "/api/v1/actions/mail/pause", json={"reason": text, "group": text}),
            api("PATCH", "/api/v1/limits/x", json={"rate": text, "actions": [text]}),
            api("PUT", "/api/v1/policies", json={"actions": {text: {"max_concurrent": text}}}),
            api("PUT", "/api/v1/policies", json={text: text}),
        ):
            assert answer.status_code < 500, f"{answer.request.method} {answer.url}: {answer.text}"
            if answer.status_code >= 400:
                problem(answer, answer.status_code)
    with pgfifo.Client(api.dsn) as fifo:
        assert fifo.stats("mail").queue_length == 1
        assert fifo.check() == []


@pytest.mark.parametrize("prefix", ["", "/queue"])
def test_addresses_that_are_no_text_are_refused_and_not_taken_for_another_name(dsn: str, prefix: str) -> None:
    with Api(dsn) as api:
        api("POST", "/api/v1/actions/\ufffd/executions", json={})  # what bytes that mean nothing come out as
        if prefix:
            api.use(Starlette(routes=[Mount(prefix, api.app)]))
        assert api("GET", f"{prefix}/api/v1/actions/%ef%bf%bd/queue-stats").status_code == 200
        for path in (
            "/api/v1/actions/%ff/queue-stats",
            "/api/v1/actions/%c3/queue-stats",
            "/api/v1/actions/%ed%a0%80/queue-stats",
            "/api/v1/lanes?action=%ff",
            "/live/action?name=%ff",
        ):
            refused = problem(api("GET", prefix + path), 400)
            assert refused["detail"] == "The address is not UTF-8."
        problem(api("POST", f"{prefix}/api/v1/actions/%ff/pause"), 400)
        problem(api.stranger("GET", f"{prefix}/login?next=%ff"), 400)
        for page in ("/action?name=%ff", "/lane?action=mail&group=%ff", "/%ff", "/go?for=%ff"):
            shown = api("GET", prefix + page, headers={"Accept": "text/html"})
            assert shown.status_code == 400, page
            assert shown.headers["content-type"] == "text/html; charset=utf-8"
            assert "The address is not UTF-8." in shown.text


def test_numbers_out_of_range_are_refused(api: Api) -> None:
    for path in (
        "/executions?limit=0",
        "/executions?limit=1001",
        "/executions?before=99999999999999999999",
        "/executions?state=lost",
        "/executions/99999999999999999999",
        "/lanes?offset=-1",
        "/minutes?minutes=99999",
        "/audit?before=-1",
        "/executions?enqueued_since=yesterday",
    ):
        api.problem("GET", f"/api/v1{path}", 422)
    api.problem("DELETE", "/api/v1/actions", 405)
    for path in ("/api/v2/actions", "/api/v1/executions/1.5", "/api/v1/executions/-1"):
        api.problem("GET", path, 404)


def test_a_server_that_is_down_is_a_503_and_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        dsn = f"postgresql://app:hunter2@127.0.0.1:{port}/secretdb?connect_timeout=2"
        with caplog.at_level(logging.INFO), Api(dsn) as api:
            down = api("GET", STATS)
            assert down.headers["retry-after"] == "5"
            assert problem(down, 503)["detail"] == "The database cannot be reached."
            problem(api.stranger("GET", "/readyz"), 503)
            assert api.stranger("GET", "/healthz").status_code == 200
            assert "pgfifo_up 0.0" in api("GET", "/metrics").text
            for each in (down.text, api.stranger("GET", "/readyz").text):
                assert "hunter2" not in each
                assert "secretdb" not in each
    assert "hunter2" not in caplog.text


def test_a_schema_that_is_missing_is_told(empty_dsn: str) -> None:
    with Api(empty_dsn) as api:
        missing = problem(api("GET", STATS), 503)
        assert missing["type"] == "urn:pgfifo:problem:schema-missing"
        assert "pgfifo install" in missing["hint"]
        assert "schema is missing" in problem(api.stranger("GET", "/readyz"), 503)["detail"]


def test_what_nobody_has_thought_of_is_logged_and_not_shown(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the secret is 42")

    with Api(dsn) as api:
        monkeypatch.setattr(api.fifo, "workers", broken)
        answer = api("GET", "/api/v1/workers")
        assert "42" not in answer.text
        problem(answer, 500)
        assert "nosniff" in answer.headers["x-content-type-options"]
    assert "the secret is 42" in caplog.text


def test_a_call_that_takes_too_long_is_given_up(dsn: str, connect: Any) -> None:
    with connect(autocommit=False) as other:
        other.execute("lock table pgfifo.audit")  # who reads it waits
        with Api(dsn, timeout=0.2) as api:
            answer = problem(api("GET", "/api/v1/audit"), 504)
            assert "did not answer in time" in answer["detail"]
            # What was given up does not go on in the server.
            left = other.execute(
                "select count(*) from pg_stat_activity"
                " where wait_event_type = 'Lock' and datname = current_database()"
            ).fetchone()
            assert left == (0,)


def test_requests_that_hang_make_nobody_think_that_the_database_is_away(dsn: str, connect: Any) -> None:
    with connect(autocommit=False) as other, connect() as watching:
        other.execute("lock table pgfifo.audit")  # who reads it waits

        async def story() -> None:
            async with pgfifo.AsyncClient(dsn, max_size=1, prepare_threshold=None) as fifo:
                app = create_app(fifo, settings=Settings(unauthenticated=True))
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    hanging = asyncio.create_task(client.get("/api/v1/audit"))
                    waits = "select 1 from pg_locks where not granted"
                    await asyncio.to_thread(
                        wait_for,
                        lambda: watching.execute(waits).fetchone(),
                        message="the request to wait",
                    )
                    for _ in range(3):
                        assert (await client.get("/readyz")).json() == {"status": "ready"}
                        assert "pgfifo_up 1.0" in (await client.get("/metrics")).text
                    assert not hanging.done()
                    other.rollback()
                    assert (await hanging).status_code == 200
                await app.state.probe.close()
                await app.state.scraped.close()

        asyncio.run(story())
