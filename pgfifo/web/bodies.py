"""What requests of the API carry: bodies, and the parameters that several routes have."""

from __future__ import annotations

import inspect
import re
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from pgfifo import groups, models, policies
from pgfifo.client_async import AsyncClient
from pgfifo.errors import InvalidValue
from pgfifo.filters import Filter, Which
from pgfifo.groups import Group
from pgfifo.jsontext import JsonText

Seconds = Annotated[
    float | str, Field(description="Seconds, or a text such as `30s`, `5m`, `1h30m`.", examples=["5m"])
]
Moment = Annotated[
    float | AwareDatetime | str,
    Field(
        union_mode="left_to_right",  # else a text of a time would stay a text
        description="A time in ISO 8601 with its zone, or how long ago: seconds, or a text such as `2h`.",
        examples=["2h"],
    ),
]


def moment(what: str) -> Any:  # noqa: ANN401 - of FastAPI
    """Return a parameter of the query that is a time."""
    return Query(description=f"{what} ISO 8601 with its zone, or how long ago: seconds, or `2h`.")


GroupBody = Annotated[
    dict[str, Any] | str,
    Field(
        description="A value for each path of the action's `group_by`; or text: `env=prod`, with a comma "
        "between several, as it is shown and as the query takes it, the bare value of the only path, or, "
        "where there is no `group_by`, a free key.",
        examples=[{"env": "prod"}],
    ),
]
Scope = Literal["lane", "action", "declared", "pack", "everything"]
Reason = Annotated[str | None, Field(description="Why, for those who look.", examples=["release"])]

Action = Annotated[str, Path(description="The action's name.", examples=["deploy"])]
Id = Annotated[int, Path(description="The execution's id.", examples=[4711], le=2**63 - 1, ge=-(2**63) + 1)]
OfAction = Annotated[str | None, Query(description="Only this action's.", examples=["deploy"])]
Limit = Annotated[int, Query(description="The most rows.", ge=1, le=1000)]
Minutes = Annotated[int, Query(description="How many minutes back.", ge=1, le=10_080)]
Ids = Annotated[list[int], Field(min_length=1, max_length=10_000, description="Executions, by their ids.")]
_GROUP = (
    "The lane's group: `env=prod`, once for each path of the action's `group_by`; or its text, as "
    "`group_text` has it, or a free key."
)


def group_of(
    group: Annotated[list[str] | None, Query(description=_GROUP, examples=[["env=prod"]])] = None,
) -> Group | None:
    """Return the group that the query names."""
    try:
        return groups.from_pairs(group) if group else None
    except InvalidValue as error:
        error.hint = "Write group=path=value, once for each path."
        raise


async def named(fifo: AsyncClient, action: str, *said: Group | None) -> list[Group | None]:
    """Return the groups that a body names; the same text means the same lane here and in the query."""
    if not any(isinstance(each, str) and "=" in each for each in said):
        return list(said)
    # Of an empty payload a group has nothing but the paths. Every role may ask, also one that only enqueues.
    async with fifo.transaction() as conn:
        row = await (await conn.execute("select pgfifo.group_text(%s::text)", (action,))).fetchone()
    shown = groups.parse(row[0]) if row is not None else ""
    paths = [] if isinstance(shown, str) else list(shown)
    try:
        return [groups.from_shown(each, paths) if isinstance(each, str) else each for each in said]
    except InvalidValue as error:
        error.hint = "Write path=value, once for each path with commas between, or an object."
        raise


class Body(BaseModel):
    """Base of what the API takes: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """Return what the request says, without what it leaves out."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Item(Body):
    """What one execution is made of."""

    payload: Any = Field(default=None, description="Any JSON value. Left out: `{}`.")
    group: GroupBody | None = Field(default=None, description="Instead of what the payload says.")
    headers: dict[str, Any] | None = Field(default=None, description="What travels beside the payload.")
    request_id: str | None = Field(
        default=None,
        description="A name for this request, unique within its action: made again, it gives back the first "
        "one's id and changes nothing. The header `Idempotency-Key` says the same.",
    )
    dedup_key: str | None = Field(
        default=None, description="Nothing is enqueued while one of this name has not ended."
    )
    item_key: str | None = Field(
        default=None,
        description="Nothing is enqueued while one of this name waits in the lane; see `on_item`.",
    )
    run_at: AwareDatetime | None = Field(default=None, description="When it is to join the end of its lane.")

    def content(self) -> object:
        """Return the payload as a client takes it: null that was said is null, and not nothing."""
        said = "payload" in self.model_fields_set
        return JsonText("null") if said and self.payload is None else self.payload


class EnqueueBody(Item):
    """One execution."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"payload": {"env": "prod", "sha": "abc123"}, "request_id": "push-17"}]
        }
    )

    tags: list[str] | None = Field(default=None, description="Texts to find it by.")
    delay: Seconds | None = Field(default=None, description="Instead of a time: so long from now.")
    on_item: models.OnItem = Field(
        default="immutable", description="What becomes of the payload of the one that waits."
    )


class EnqueueManyBody(Body):
    """Executions of one action, all or nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"payload": {"env": "prod"}}, {"payload": {"env": "test"}}]}]
        }
    )

    items: list[Item] = Field(
        min_length=1, max_length=10_000, description="In the order in which they are to start."
    )
    tags: list[str] | None = Field(default=None, description="Texts to find them by, for all of them.")
    delay: Seconds | None = Field(default=None, description="Delay all of them.")
    on_item: models.OnItem = Field(default="immutable", description="For all of them.")
    split: bool = Field(
        default=False,
        description="Allow several transactions, if there are more lanes than one may touch.",
    )


class WhyBody(Body):
    """Why something is done."""

    reason: Reason = None


class LaneBody(WhyBody):
    """An action as a whole, or one lane of it, and why."""

    group: GroupBody | None = Field(default=None, description="The lane; without it, the whole action.")


class RetryBody(Body):
    """How to put a finished execution back."""

    head: bool = Field(default=False, description="Into its old place, before all younger ones that wait.")


class RescheduleBody(Body):
    """When it is to join its lane, or is tried again; now, if nothing is said."""

    run_at: AwareDatetime | None = Field(default=None, description="When.")
    delay: Seconds | None = Field(default=None, description="Instead of a time: so long from now.")


class FinishBody(WhyBody):
    """How an execution ends."""

    outcome: Literal["succeeded", "failed", "cancelled"] = Field(description="How it ends.")
    result: Any = Field(default=None, description="What it gave; for `succeeded` only.")


def _told(kind: type) -> dict[str, str]:
    """Return the texts below the members of a TypedDict of ours."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in found}


def _values(
    name: str, doc: str, *kinds: type, base: type[Body] = Body, types: dict[str, Any] | None = None
) -> type[Body]:
    """Return a body with the members of TypedDicts of ours, none of which has to be there."""
    told = {key: text for kind in kinds for key, text in _told(kind).items()}
    members = {
        key: ((types or {}).get(key, Any), Field(default=None, description=told[key]))
        for key in typing.get_type_hints(kinds[-1])
    }
    return create_model(name, __base__=base, __doc__=doc, **members)  # type: ignore[call-overload, no-any-return]


class _PolicyBase(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"max_concurrent": 3, "max_wait": "1h"}]})


if TYPE_CHECKING:  # they are made below from the TypedDicts of the clients, which say it once

    class PolicyBody(Body):
        """Attributes of a policy; their values are looked at by `pgfifo.policies`."""

    class LimitBody(Body):
        """Attributes of a shared limit."""

    class FilterBody(Body):
        """Which executions are meant."""

else:
    PolicyBody = _values(
        "Policy",
        "Attributes of a policy. What is left out keeps its value; null inherits from the wider scope.",
        policies.Policy,
        base=_PolicyBase,
    )
    LimitBody = _values(
        "SharedLimitValues",
        "What a shared limit says. What is left out keeps its value; a number that is null is taken away.",
        policies.SharedLimitValues,
    )
    FilterBody = _values(
        "Filter",
        "Which executions are meant: those that fit everything that is said.",
        Which,
        Filter,
        types={
            "action": str,
            "group": GroupBody,
            "state": models.State | list[models.State],
            "tags": list[str],
            "enqueued_since": Moment,
            "enqueued_before": Moment,
            "finished_since": Moment,
            "finished_before": Moment,
            "from_id": int,
            "to_id": int,
        },
    )


class OverrideBody(Body):
    """Values that win over every policy for a time."""

    values: PolicyBody = Field(description="The attributes; null ends an override now.")
    lasting: Seconds | None = Field(default=None, description="For how long, up to a year.")
    reason: Reason = None


class CancelManyBody(WhyBody):
    """Which executions to cancel, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [17, 18], "reason": "outage"}]})

    ids: Ids


class RetryManyBody(RetryBody):
    """Which finished executions to put back, in the order in which they are to start."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [17, 18]}]})

    ids: Ids


class _WhereBody(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"where": {"action": "deploy"}, "dry_run": True}]}
    )

    where: FilterBody = Field(description="All that fit; it has to say something.")
    dry_run: bool = Field(default=False, description="Only count them.")


class CancelWhereBody(_WhereBody, WhyBody):
    """Which executions to cancel, and why."""


class RetryWhereBody(_WhereBody, RetryBody):
    """Which finished executions to put back."""
