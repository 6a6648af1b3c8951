"""The HTTP API: what is asked and answered, and what it does to the queue."""

import json
import typing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import errors, filters, policies
from pgfifo.web import problems
from pgfifo.web.bodies import FilterBody, LimitBody, PolicyBody
from tests.support.engine import Engine
from tests.support.web import Api, openapi
from tools.gen_http_docs import PAGE, page


@pytest.fixture
def api(dsn: str) -> Iterator[Api]:
    with Api(dsn) as api:
        yield api


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as fifo:
        yield fifo


@pytest.fixture
def engine(conn: psycopg.Connection[Any]) -> Engine:
    return Engine(conn)


def test_queue_stats_have_the_fields_of_the_origin(api: Api, fifo: pgfifo.Client, engine: Engine) -> None:
    fifo.set_policy("deploy", max_concurrent=3)
    empty = api.get("/actions/deploy/queue-stats")["data"]
    expected = {
        "action_ref": "deploy",
        "queue_length": 0,
        "active_count": 0,
        "max_concurrent": 3,
        "oldest_enqueued_at": None,
        "total_enqueued": 0,
        "total_completed": 0,
        "last_updated": None,
    }
    assert empty | expected == empty, "zeros and null for a known action without anything"
    engine.fill(5)
    starts = engine.claim(engine.worker("deploy"), 2)
    found = api.get("/actions/deploy/queue-stats")["data"]
    assert (found["queue_length"], found["active_count"], found["total_enqueued"]) == (3, 2, 5)
    oldest = datetime.fromisoformat(found["oldest_enqueued_at"])
    assert found["oldest_enqueued_at"].endswith("Z")
    assert oldest == fifo.execution(starts[1].id + 1).enqueued_at
    unknown = api.problem("GET", "/api/v1/actions/deplo/queue-stats", 404)
    assert unknown["type"] == "urn:pgfifo:problem:unknown-action"
    assert (unknown["code"], unknown["hint"]) == ("QF006", "Did you mean 'deploy'?")


def test_an_execution_is_enqueued_looked_up_cancelled_and_put_back(api: Api, fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    made = api("POST", "/api/v1/actions/deploy/executions", json={"payload": {"env": "prod"}, "tags": ["x"]})
    assert made.status_code == 201
    job = made.json()["data"]
    assert made.headers["location"] == f"/api/v1/executions/{job['id']}"
    assert job["created"]
    assert job["lane"] == {"action": "deploy", "group_text": '{"env":"prod"}', "group": {"env": "prod"}}
    found = api("GET", made.headers["location"]).json()["data"]
    assert (found["state"], found["payload"], found["tags"]) == ("waiting", {"env": "prod"}, ["x"])
    assert found["position"]["position"] == 1
    assert "no_worker" in found["explanation"]["reasons"]
    assert api.post(f"/executions/{job['id']}/cancel", {"reason": "wrong commit"})["answer"] == "cancelled"
    gone = fifo.execution(job["id"])
    assert (gone.state, gone.reason) == ("cancelled", "wrong commit")
    again = api.post(f"/executions/{job['id']}/retry", status=201)
    assert fifo.execution(again["id"]).retry_of == job["id"]
    assert api.post(f"/executions/{again['id']}/finish", {"outcome": "succeeded", "result": 3})["changed"]
    assert fifo.execution(again["id"]).result == 3
    assert {each.actor for each in fifo.audit("deploy")} == {"ann", None}, "who changed it is in the audit"


def test_an_enqueue_says_what_a_client_can_say(api: Api, fifo: pgfifo.Client) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    path = "/actions/mail/executions"
    first = api.post(path, {"payload": [1, None, "é"], "request_id": "r1", "headers": {"a": 1}}, status=201)
    assert api.post(path, {"payload": [2], "request_id": "r1"}) == first | {"created": False}
    assert api.post(path, {}, headers={"Idempotency-Key": "r1"})["id"] == first["id"]
    delayed = api.post(path, {"run_at": later.isoformat(), "dedup_key": "d"}, status=201)
    soon = api.post(path, {"delay": "10m", "item_key": "i", "on_item": "replace"}, status=201)
    null = api.post(path, {"payload": None}, status=201)
    grouped = api.post(path, {"group": "tenant 7"}, status=201)
    stored = fifo.execution(first["id"])
    assert (stored.payload, stored.headers, stored.request_id) == ([1, None, "é"], {"a": 1}, "r1")
    assert fifo.execution(delayed["id"]).due_at == later
    assert fifo.execution(soon["id"]).state == "delayed"
    assert fifo.execution(null["id"]).payload is None, "null is a payload, and not none at all"
    assert fifo.execution(grouped["id"]).group_text == "tenant 7"
    moved = api.post(f"/executions/{delayed['id']}/reschedule", {"delay": 60})
    assert datetime.fromisoformat(moved["previous"]) == later


def test_a_batch_is_all_or_nothing_and_names_the_first_offender(api: Api, fifo: pgfifo.Client) -> None:
    items = [{"payload": {"n": n}, "group": f"g{n % 2}", "request_id": f"r{n}"} for n in range(4)]
    made = api.post("/actions/mail/executions/batch", {"items": items, "tags": ["b"]}, status=201)
    assert [each["lane"]["group_text"] for each in made] == ["g0", "g1", "g0", "g1"]
    assert [each.payload["n"] for each in fifo.executions("mail", tags=["b"])] == [3, 2, 1, 0]
    fifo.set_policy("mail", max_payload=100)
    bad = {"items": [{"payload": 1}, {"payload": "x" * 200}]}
    refused = api.problem("POST", "/api/v1/actions/mail/executions/batch", 413, json=bad)
    assert refused["context"]["index"] == 1
    assert len(fifo.executions("mail")) == 4


def test_payloads_go_in_and_out_as_they_are(api: Api) -> None:
    payload = {"big": 2**80, "deep": [[[]]], "text": "\u2028</script>\x01é😀", "float": 0.1, "": None}
    job = api.post("/actions/mail/executions", {"payload": payload}, status=201)
    assert api.get(f"/executions/{job['id']}")["data"]["payload"] == payload
    # What Python has no value for comes as text.
    deep = "[" * 600 + "]" * 600
    with pgfifo.Client(api.dsn) as fifo, fifo.transaction() as conn:
        conn.execute("select pgfifo.enqueue('mail', %s::jsonb)", (deep,))
    [found] = api.get("/executions", action="mail", limit=1, include="payload")["data"]
    assert found["payload"] == deep


def test_lists_are_filtered_and_paged(api: Api, fifo: pgfifo.Client, engine: Engine) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    ids = [fifo.enqueue("deploy", {"env": env}, tags=[env]).id for env in ("prod", "test") * 5]
    fifo.enqueue("mail")
    first = api.get("/executions", action="deploy", limit=4)
    rest = api.get("/executions", action="deploy", limit=10, before=first["next"])
    assert [each["id"] for each in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None
    for query in ({"group": "env=prod"}, {"group": '{"env":"prod"}'}, {"group": "prod"}, {"tag": "prod"}):
        found = api.get("/executions", action="deploy", **query)["data"]
        assert [each["id"] for each in found] == ids[8::-2], query
    fifo.cancel(ids[0])
    states = api.get("/executions", state=["cancelled", "failed"])["data"]
    assert [each["id"] for each in states] == [ids[0]]
    assert api.get("/executions", enqueued_since="1h", finished_before="1h")["data"] == []
    now = datetime.now(UTC).isoformat()
    assert len(api.get("/executions", finished_before=now)["data"]) == 1
    lanes = api.get("/lanes", action="deploy", sort="group", limit=1)
    assert (lanes["data"][0]["group"], lanes["next"]) == ({"env": "prod"}, 1)
    assert api.get("/lanes", action="deploy", search="test", having="waiting")["data"][0]["queue_length"] == 5


def test_lists_leave_out_what_may_be_large_until_it_is_asked_for(
    api: Api, fifo: pgfifo.Client, engine: Engine
) -> None:
    ids = [fifo.enqueue("deploy", {"text": "x" * 500_000}, headers={"a": "y" * 10_000}).id for _ in range(4)]
    [start] = engine.claim(engine.worker("deploy"))
    fifo.finish_execution(start.id, "succeeded", result="z" * 500_000)
    answer = api("GET", "/api/v1/executions?action=deploy")
    assert len(answer.content) < 20_000
    content = {"payload", "headers", "result", "attempts"}
    for each in answer.json()["data"]:
        assert not each.keys() & content, "what is left out is not said to be null"
    whole = api.get(f"/executions/{ids[0]}")["data"]
    [succeeded] = api.get("/executions", state="succeeded", include=["result", "headers"])["data"]
    assert {name: whole[name] for name in succeeded} == succeeded
    assert content & succeeded.keys() == {"result", "headers"}
    [everything] = api.get("/executions", state="succeeded", include=sorted(content))["data"]
    assert whole.keys() - everything.keys() == {"position", "explanation"}
    lane = api.get("/actions/deploy/lane")["data"]
    assert [each["id"] for each in lane["line"]] == ids[1:]
    assert not any("payload" in each for each in lane["line"])
    lane = api.get("/actions/deploy/lane", include="payload", limit=1)["data"]
    assert lane["line"][0]["payload"] == {"text": "x" * 500_000}
    for path in ("/executions", "/actions/deploy/lane"):
        api.problem("GET", f"/api/v1{path}?include=everything", 422)


def test_a_lane_shows_its_line(api: Api, fifo: pgfifo.Client, engine: Engine) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    ids = [fifo.enqueue("deploy", {"env": "prod"}).id for _ in range(4)]
    engine.claim(engine.worker("deploy"))
    lane = api.get("/actions/deploy/lane", group="env=prod", limit=2)["data"]
    assert [each["id"] for each in lane["active"]] == ids[:1]
    assert [(each["pos"], each["id"]) for each in lane["line"]] == [(1, ids[1]), (2, ids[2])]
    assert lane["stats"]["queue_length"] == 3
    unknown = api.problem("GET", "/api/v1/actions/deploy/lane?group=env=test", 404)
    assert unknown["type"] == "urn:pgfifo:problem:unknown-lane"
    api.problem("GET", "/api/v1/actions/deploy/lane?group=region=eu", 422)


def test_many_are_cancelled_and_put_back(api: Api, fifo: pgfifo.Client) -> None:
    ids = [fifo.enqueue("mail").id for _ in range(3)]
    answers = api.post("/executions/cancel", {"ids": [ids[0], 10**15], "reason": "no"})
    assert [each["answer"] for each in answers] == ["cancelled", "unknown"]
    dry = api.post("/executions/cancel-where", {"where": {"action": "mail"}, "dry_run": True})
    assert dry == {"cancelled": 2, "requested": 0, "busy": 0}
    where: dict[str, Any] = {"action": "mail", "enqueued_since": "1h", "state": "waiting"}
    assert api.post("/executions/cancel-where", {"where": where})["cancelled"] == 2
    put_back = api.post("/executions/retry", {"ids": ids[:1], "head": True})
    assert [each["answer"] for each in put_back] == ["retried"]
    where = {"action": "mail", "state": ["cancelled"], "from_id": ids[1]}
    assert api.post("/executions/retry-where", {"where": where})["retried"] == 2
    everything = api.problem("POST", "/api/v1/executions/cancel-where", 422, json={"where": {}})
    assert "a filter has to say something" in everything["detail"]


def test_actions_and_lanes_are_paused_and_closed(api: Api, fifo: pgfifo.Client) -> None:
    fifo.enqueue("mail", group="a")
    for word, back in (("pause", "resume"), ("close", "open")):
        for body in ({}, {"group": "a"}):
            assert api.post(f"/actions/mail/{word}", body | {"reason": "why"})["changed"]
            assert not api.post(f"/actions/mail/{word}", body)["changed"]
            assert api.post(f"/actions/mail/{back}", body)["changed"]
    assert api.post("/actions/mail/pause")["changed"]
    assert api.get("/actions")["data"][0]["paused"]
    api.post("/actions/mail/resume")
    api.post("/actions/mail/close", {"reason": "moved"})
    closed = api.problem("POST", "/api/v1/actions/mail/executions", 409, json={"group": "a"})
    assert (closed["type"], closed["context"]["reason"]) == ("urn:pgfifo:problem:action-closed", "moved")
    assert api.post("/pause", {"reason": "fire"})["changed"]
    assert api.post("/resume")["changed"]
    record = api.get("/audit", action="mail", what="pause", limit=1)
    assert (record["data"][0]["actor"], record["data"][0]["detail"]["reason"]) == ("ann", None)
    before = api.get("/audit", action="mail", what="pause", before=record["next"])["data"]
    assert [each["detail"]["reason"] for each in before] == ["why", "why"]


def test_policies_are_read_set_unset_and_remembered(api: Api, fifo: pgfifo.Client) -> None:
    def patch(path: str, body: dict[str, Any], **query: str) -> Any:
        answer = api("PATCH", f"/api/v1{path}", json=body, params=query)
        assert answer.status_code == 200, answer.text
        return {each["attribute"]: (each["old"], each["new"]) for each in answer.json()["data"]}

    def in_force(path: str, attribute: str, **query: str) -> tuple[Any, str]:
        found = {each["attribute"]: each for each in api.get(path, **query)["data"]}
        return found[attribute]["value"], found[attribute]["source"]

    assert patch("/policies/default", {"max_concurrent": 2}) == {"max_concurrent": (None, 2)}
    assert patch("/packs/billing/policy", {"max_concurrent": 3}) == {"max_concurrent": (None, 3)}
    patch("/actions/billing.invoice/policy", {"max_wait": "1h", "max_concurrent": 4})
    patch("/actions/billing.invoice/policy", {"max_concurrent": 5}, group="acme")
    of = "/actions/billing.invoice/policy"
    assert in_force("/policies/default", "max_concurrent") == (2, "everything")
    assert in_force(of, "max_concurrent") == (4, "action")
    assert in_force(of, "max_wait") == (3600, "action")
    assert in_force(of, "max_concurrent", group="acme") == (5, "lane")
    assert patch(of, {"max_concurrent": None}) == {"max_concurrent": (4, None)}
    assert in_force(of, "max_concurrent") == (3, "pack")
    override = {"values": {"max_concurrent": 9}, "lasting": "10m", "reason": "backlog"}
    assert api("PUT", "/api/v1/actions/billing.invoice/override", json=override).status_code == 200
    assert in_force(of, "max_concurrent") == (9, "override")
    assert api.get("/overrides")["data"][0]["reason"] == "backlog"
    own = api.get("/policies")["data"]
    assert own["packs"] == {"billing": {"max_concurrent": 3}}
    own["packs"]["billing"]["max_concurrent"] = 7
    [changed] = api("PUT", "/api/v1/policies", json=own).json()["data"]
    assert (changed["pack"], changed["old"], changed["new"]) == ("billing", 3, 7)
    record = api.get("/policies/history", action="billing.invoice", limit=1)["data"][0]
    assert (record["attribute"], record["actor"]) == ("max_concurrent", "ann")
    wrong = api.problem("PATCH", f"/api/v1{of}", 422, json={"max_concurent": 1})
    assert wrong["errors"][0]["at"] == "/max_concurent"
    wrong = api.problem("PATCH", f"/api/v1{of}", 422, json={"max_concurrent": 0})
    assert wrong["type"] == "urn:pgfifo:problem:invalid-value"


def test_shared_limits_are_set_and_dropped(api: Api, fifo: pgfifo.Client) -> None:
    fifo.enqueue("mail")
    body = {"max_concurrent": 2, "actions": ["mail"]}
    assert api("PATCH", "/api/v1/limits/smtp", json=body).status_code == 200
    assert api.get("/limits")["data"][0]["actions"] == ["mail"]
    assert api.problem("DELETE", "/api/v1/limits/smpt", 404)["hint"] == "Did you mean 'smtp'?"
    assert api("DELETE", "/api/v1/limits/smtp").status_code == 204
    assert api.problem("DELETE", "/api/v1/limits/smtp", 404)["hint"] == "There are none."
    assert api.get("/limits")["data"] == []
    api.problem("PATCH", "/api/v1/limits/smtp", 404, json={"rate": "1/s", "actions": ["mial"]})


def test_the_rest_can_be_looked_at(api: Api, fifo: pgfifo.Client, engine: Engine) -> None:
    fifo.set_schedule("nightly", "mail", "0 3 * * *", payload={"n": 1})
    ids = [fifo.enqueue("mail").id for _ in range(2)]
    worker = engine.worker("mail")
    [start] = engine.claim(worker, actions=["mail"])
    engine.finish(start)
    [found] = api.get("/workers")["data"]
    assert (found["id"], found["state"], found["actions"]) == (worker, "alive", ["mail"])
    engine.claim(worker, actions=["mail"])
    assert [each["id"] for each in api.get("/slots", action="mail")["data"]] == ids[1:]
    assert api.get("/actions/mail/pace", minutes=5)["data"]["enqueued"] == 0
    assert api.get("/minutes", action="mail")["data"] == []
    assert api.get("/wait-times", action="mail")["data"] == []
    assert api.get("/schedules")["data"][0]["cron"] == "0 3 * * *"
    assert api.post("/schedules/nightly/pause", {"reason": "holiday"})["changed"]
    assert api.get("/schedules", action="mail")["data"][0]["paused_by"]
    assert api.post("/schedules/nightly/resume")["changed"]
    api.problem("POST", "/api/v1/schedules/nightli/resume", 404)
    told: list[str] = []
    cursor = "begin"
    while page := api.get("/events", action="mail", cursor=cursor, limit=2, kind=["enqueued", "finished"]):
        told += [each["kind"] for each in page["data"]]
        if not page["data"]:
            break
        cursor = page["next"]
    assert sorted(told) == ["enqueued", "enqueued", "finished"]
    for _ in range(11):  # one more than there are connections
        assert len(api.get("/events", limit=1)["data"]) == 1
    about = api.get("/about")["data"]
    assert (about["user"], about["known_by"], about["allow_changes"]) == ("ann", "token", True)
    metrics = api("GET", "/metrics?lanes=5")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "pgfifo_up 1.0" in metrics.text
    assert 'action="mail"' in metrics.text


def test_what_the_queue_refuses_has_a_status_of_its_own(api: Api, fifo: pgfifo.Client) -> None:
    path = "/api/v1/actions/mail/executions"
    fifo.set_policy("mail", max_queue_length=1)
    fifo.enqueue("mail")
    full = api("POST", path, json={})
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["context"] | {"limit": 1, "current": 1} == full.json()["context"]
    fifo.set_policy("mail", max_queue_length=None, on_limit="cancel")
    fifo.pause("mail")
    limit = api.problem("POST", path, 409, json={})
    assert (limit["type"], limit["context"]["which"]) == ("urn:pgfifo:problem:concurrency-limit", "paused")
    fifo.set_policy("rated", rate="1/h", burst=1, on_limit="cancel", max_concurrent=100)
    fifo.set_policy("counted", quota="1/day")
    for action in ("rated", "counted"):
        fifo.enqueue(action)
    pgfifo.Worker(api.dsn, _doing_nothing("rated"), until_empty=True).run()
    for action in ("rated", "counted"):
        answer = api("POST", f"/api/v1/actions/{action}/executions", json={})
        assert answer.status_code == 429, answer.text
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
    api.problem("GET", "/api/v1/executions/999999999", 404)
    api.problem("POST", "/api/v1/actions/nix/pause", 404)
    api.problem("GET", "/api/v1/executions?group=prod", 422)
    twice = api.problem("GET", "/api/v1/actions/mail/lane?group=a=1&group=a=2", 422)
    assert twice["hint"] == "Write group=path=value, once for each path."


def test_a_text_means_the_same_lane_in_a_body_as_in_the_query(api: Api, fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    fifo.set_policy("build", group_by=["env", "target.region"])
    path = "/actions/deploy/executions"
    job = api.post(path, {"payload": {}, "group": "env=prod"}, status=201)
    assert job["lane"]["group"] == {"env": "prod"}
    items = [{"group": each} for each in ("env=prod", "prod", {"env": "env=prod"}, "env=1")]
    many = api.post(f"{path}/batch", {"items": items}, status=201)
    groups = [each["lane"]["group"]["env"] for each in many]
    assert groups == ["prod", "prod", "env=prod", 1]
    shown = "env=a,b,target.region=eu"
    both = api.post("/actions/build/executions", {"group": shown}, status=201)
    assert both["lane"]["group"] == {"env": "a,b", "target.region": "eu"}
    free = api.post("/actions/mail/executions", {"group": "env=prod"}, status=201)
    assert free["lane"]["group_text"] == "env=prod", "a new action has no group_by, and its groups are free"
    for word in ("pause", "resume", "close", "open"):
        assert api.post(f"/actions/deploy/{word}", {"group": "env=prod"})["changed"]
        assert api.post(f"/actions/mail/{word}", {"group": "env=prod"})["changed"]
    where = {"action": "deploy", "group": "env=prod"}
    assert api.post("/executions/cancel-where", {"where": where})["cancelled"] == 3
    assert api.post("/executions/retry-where", {"where": where | {"state": "cancelled"}})["retried"] == 3
    wrong = api.problem("POST", f"/api/v1{path}", 422, json={"group": "region=eu"})
    assert wrong["hint"] == "Give exactly these keys: env."
    twice = {"group": "env=a,target.region=b,env=c"}
    wrong = api.problem("POST", "/api/v1/actions/build/executions", 422, json=twice)
    assert wrong["hint"] == "Write path=value, once for each path with commas between, or an object."


def test_a_parameter_that_is_not_known_is_refused(api: Api) -> None:
    wrong = api.problem("GET", "/api/v1/executions?stat=failed&limit=3&group=x", 422)
    assert wrong["detail"] == "The query has no parameter 'stat'."
    assert wrong["hint"].startswith("Did you mean 'state'? It takes action, before, ")
    assert [(each["in"], each["at"]) for each in wrong["errors"]] == [("query", "/stat")]
    none = api.problem("POST", "/api/v1/actions/mail/executions?group=a", 422, json={})
    assert none["hint"] == "It takes none."
    assert api("GET", "/metrics?collect=all").status_code == 200, "a scraper may add what it likes"


def test_a_body_has_to_be_sent_as_json(api: Api, fifo: pgfifo.Client) -> None:
    path = "/api/v1/actions/mail/executions"
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ):
        wrong = api.problem("POST", path, 415, content="{}", headers=headers)
        assert wrong["hint"] == "Send it with Content-Type: application/json."
    for kind in ("application/json; charset=utf-8", "application/vnd.x+json"):
        assert api("POST", path, content="{}", headers={"Content-Type": kind}).status_code == 201
    assert api("POST", "/api/v1/actions/mail/pause").status_code == 200, "none at all says nothing"


def test_a_request_has_one_name(api: Api, fifo: pgfifo.Client) -> None:
    path = "/actions/mail/executions"
    named = {"json": {"request_id": "a"}, "headers": {"Idempotency-Key": "b"}}
    wrong = api.problem("POST", f"/api/v1{path}", 422, **named)
    assert "do not agree" in wrong["detail"]
    assert fifo.enqueue("mail").created, "nothing was refused for being there"
    assert len(fifo.executions("mail")) == 1
    assert api.post(path, {"request_id": "a"}, status=201, headers={"Idempotency-Key": "a"})["created"]


def test_refusals_speak_of_what_the_api_calls_so(api: Api, fifo: pgfifo.Client) -> None:
    assert api.get("/executions", before=fifo.enqueue("mail").id)["data"] == []
    assert api.get("/executions", before=1)["data"] == []
    assert api.problem("GET", "/api/v1/executions?before=0", 422)["errors"][0]["at"] == "/before"
    assert api.problem("GET", "/api/v1/events?cursor=zzz", 422)["context"]["name"] == "cursor"
    missing = api.problem("GET", "/api/v1/executions/abc", 404)
    assert missing["detail"] == "There is nothing at this address."
    assert missing["hint"].startswith("An execution's id is an integer.")


def _doing_nothing(action: str) -> pgfifo.Actions:
    actions = pgfifo.Actions()
    actions.add(action, lambda _: None)
    return actions


def test_every_error_of_pgfifo_has_a_status(dsn: str) -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    ]
    named = {
        kind for kind in kinds if issubclass(kind, pgfifo.PgfifoError) and not kind.__name__.startswith("_")
    }
    assert named - {pgfifo.PgfifoError} == set(problems.STATUS)


def test_bodies_have_the_attributes_of_the_clients(dsn: str) -> None:
    for body, kind in (
        (PolicyBody, policies.Policy),
        (LimitBody, policies.SharedLimitValues),
        (FilterBody, filters.Filter),
    ):
        assert set(body.model_fields) == set(typing.get_type_hints(kind))
        assert all(each.description for each in body.model_fields.values())


def test_the_document_tells_of_every_route_with_models_and_problems() -> None:
    document = openapi()
    assert document["openapi"].startswith("3.1")
    names = [
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    ]
    assert len(names) == len(set(names))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            for status, told in operation["responses"].items():
                content = told.get("content", {})
                if status == "default" or int(status) >= 400:
                    assert set(content) == {"application/problem+json"}, f"{where} {status}"
                elif path.startswith("/api/"):
                    assert status == "204" or content["application/json"]["schema"], f"{where} {status}"
            for parameter in operation.get("parameters", []):
                assert parameter["description"], f"{where} {parameter['name']}"
    for name, schema in document["components"]["schemas"].items():
        for member, told in schema.get("properties", {}).items():
            assert told.get("description") or name == "Problem", f"{name}.{member}"
    assert "HTTPValidationError" not in json.dumps(document)
    for methods in document["paths"].values():
        for operation in methods.values():
            for told in operation["responses"].values():
                content = told.get("content", {}).get("application/json", {})
                if "example" in content:
                    name = content["schema"]["$ref"].rpartition("/")[2]
                    data = document["components"]["schemas"][name]["properties"]["data"]["$ref"]
                    known = document["components"]["schemas"][data.rpartition("/")[2]]["properties"]
                    assert content["example"]["data"].keys() <= known.keys(), (
                        "an example is what can be answered"
                    )


def test_the_page_is_what_the_document_says() -> None:
    assert PAGE.read_text() == page(), (
        "docs/http-api.md is stale; write it anew with: python -m tools.gen_http_docs"
    )
