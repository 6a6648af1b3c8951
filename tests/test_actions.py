"""The registry takes handlers without a connection, and refuses mistakes where they are written."""

import functools
from datetime import timedelta

import pytest

import pgfifo
from pgfifo.errors import InvalidValue, UnknownAction


def handler(execution: object) -> None:
    """Do nothing."""


def test_a_decorated_function_stays_as_it_is_and_is_registered() -> None:
    actions = pgfifo.Actions()

    @actions.action("deploy", group_by=["env"], max_concurrent=1)
    def deploy(execution: object) -> str:
        return "done"

    assert deploy(None) == "done"
    assert actions.names == ["deploy"]
    assert actions["deploy"].handler is deploy
    assert actions["deploy"].values == {"group_by": ["env"], "max_concurrent": 1}
    assert not actions["deploy"].is_async
    assert "deploy" in actions
    assert len(actions) == 1
    assert [action.name for action in actions] == ["deploy"]


def test_values_are_in_the_form_that_sql_takes() -> None:
    actions = pgfifo.Actions()
    actions.add(
        "deploy",
        handler,
        group_by="env",
        max_queue_length="unlimited",
        backoff_initial="1m",
        backoff_cap=timedelta(hours=1),
        retention=3600,
        lane_retention="unlimited",
        ordering="relaxed",
        max_attempts=None,
    )
    assert actions["deploy"].values == {
        "group_by": ["env"],
        "max_queue_length": "unlimited",
        "backoff_initial": 60.0,
        "backoff_cap": 3600.0,
        "retention": 3600.0,
        "lane_retention": "unlimited",
        "ordering": "relaxed",
        "max_attempts": None,
    }


class Callable:
    """A handler that is an object."""

    async def __call__(self, execution: object) -> None:
        """Do nothing."""

    async def method(self, execution: object) -> None:
        """Do nothing."""


async def coroutine(extra: int, execution: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize("given", [functools.partial(coroutine, 1), Callable(), Callable().method])
def test_an_async_handler_is_known_in_each_of_its_forms(given: object) -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", given)  # type: ignore[arg-type]
    assert actions["deploy"].is_async


@pytest.mark.parametrize("given", [functools.partial(handler), lambda _: None, print, int])
def test_a_sync_handler_is_known_in_each_of_its_forms(given: object) -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", given)  # type: ignore[arg-type]
    assert not actions["deploy"].is_async


@pytest.mark.parametrize("name", ["", "two words", "tab\t", "x" * 201, "nul\0", "line\n"])
def test_a_name_that_sql_would_refuse_is_refused_at_import_time(name: str) -> None:
    with pytest.raises(InvalidValue, match="no name for an action"):
        pgfifo.Actions().add(name, handler)


def test_a_decorator_without_its_parentheses_is_explained() -> None:
    with pytest.raises(InvalidValue) as caught:
        pgfifo.Actions().action(handler)  # type: ignore[arg-type]
    assert '@actions.action("name")' in str(caught.value)


def test_a_second_handler_for_an_action_is_refused() -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", handler)
    with pytest.raises(InvalidValue, match=r"has a handler already.*test_actions\.handler"):
        actions.add("deploy", handler)
    other = pgfifo.Actions()
    other.add("index", handler)
    other.add("deploy", handler)
    with pytest.raises(InvalidValue, match="has a handler already"):
        actions.include(other)
    assert actions.names == ["deploy"], "half of the other registry was taken over"


def test_registries_can_be_put_together() -> None:
    actions, other = pgfifo.Actions(), pgfifo.Actions()
    actions.add("deploy", handler)
    other.add("index", handler)
    actions.include(other)
    assert actions.names == ["deploy", "index"]


@pytest.mark.parametrize("given", [lambda: None, lambda _, __: None, lambda *, _: None, "text", None])
def test_what_cannot_be_called_with_an_execution_is_refused(given: object) -> None:
    with pytest.raises(InvalidValue, match=r"cannot be (called|told which of its parameters)"):
        pgfifo.Actions().add("deploy", given)  # type: ignore[arg-type]


def test_a_handler_that_is_not_there_is_named_with_the_nearest_that_is() -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", handler)
    with pytest.raises(UnknownAction, match="deploi") as caught:
        actions["deploi"]
    assert caught.value.nearest == "deploy"
    assert "deploy" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_concurrent", 0),
        ("max_concurrent", 1_000_001),
        ("max_concurrent", 1.5),
        ("max_concurrent", True),
        ("max_concurrent", "unlimited"),
        ("max_queue_length", 0),
        ("max_queue_length", "infinite"),
        ("max_attempts", -1),
        ("ordering", "loose"),
        ("failure_mode", "explode"),
        ("backoff", "linear"),
        ("backoff_initial", "soon"),
        ("backoff_initial", -1),
        ("backoff_cap", "2000w"),
        ("backoff_factor", 0.5),
        ("backoff_jitter", 2),
        ("backoff_jitter", float("nan")),
        ("on_exhausted", "panic"),
        ("on_limit", "drop"),
        ("rate", 100),
        ("rate", "100"),
        ("rate", "0/s"),
        ("rate", "2000000/s"),
        ("rate", "1/366d"),
        ("burst", 0),
        ("spacing", -1),
        ("gap", "2000w"),
        ("quota", 100),
        ("quota", "100/week"),
        ("quota", "0/day"),
        ("max_wait", 0),
        ("timeout", "0s"),
        ("kill_after", -1),
        ("max_action_queue_length", 0),
        ("declared_actions_only", "yes"),
        ("retention", "x"),
        ("retention", "-1d"),
        ("max_payload", 0),
        ("max_payload", 10**9),
        ("group_by", 7),
        ("group_by", [7]),
        ("group_by", ["a..b"]),
        ("group_by", ["."]),
        ("group_by", [""]),
        ("group_by", ["a", "a"]),
    ],
)
def test_a_policy_value_that_cannot_be_right_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        pgfifo.Actions().action("deploy", **{name: value})  # type: ignore[arg-type]
    assert caught.value.detail["name"] == name
    assert name in str(caught.value)


def test_an_attribute_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidValue, match="max_concurent") as caught:
        pgfifo.Actions().action("deploy", max_concurent=1)  # type: ignore[call-arg]
    assert "'max_concurrent'" in (caught.value.hint or "")
