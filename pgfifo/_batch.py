"""The items of one enqueue_many, as the arrays that SQL takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pgfifo import groups as _groups
from pgfifo._words import count
from pgfifo.durations import Duration
from pgfifo.errors import InvalidValue, TooManyLanes
from pgfifo.groups import Group
from pgfifo.jsontext import array, dumps, dumps_each


class Batch:
    """Items for one action. Everything that Python can find wrong with them is found when it is made."""

    def __init__(
        self,
        action: str,
        items: Iterable[object],
        group: Group | None,
        groups: Sequence[Group | None] | None,
        headers: Sequence[Mapping[str, Any] | None] | None,
        tags: Sequence[str] | None,
        request_ids: Sequence[str | None] | None,
        dedup_keys: Sequence[str | None] | None,
        item_keys: Sequence[str | None] | None,
        run_ats: Sequence[datetime | None] | None,
        delay: Duration | None,
        on_item: str,
    ) -> None:
        self.action = action
        self.on_item = on_item
        self.payloads = dumps_each(({} if item is None else item for item in items), "payload")
        self.tags = None if tags is None else list(tags)
        if group is not None and groups is not None:
            raise InvalidValue("group and groups cannot both be given", detail={"name": "groups"})
        self.groups: list[str | None] | None = None
        if group is not None:
            self.groups = [_groups.to_text(group)] * len(self.payloads)
        elif groups is not None:
            self.groups = [_groups.to_text(each, index) for index, each in enumerate(groups)]
        self.headers: list[str | None] | None = None
        if headers is not None:
            self.headers = [
                None if each is None else dumps(each, "header", index) for index, each in enumerate(headers)
            ]
        self.keys = (request_ids, dedup_keys, item_keys)
        self.run_ats = run_ats
        self.delay = delay
        for name, values in (
            ("groups", self.groups),
            ("headers", self.headers),
            ("request_ids", request_ids),
            ("dedup_keys", dedup_keys),
            ("item_keys", item_keys),
            ("run_ats", self.run_ats),
        ):
            if values is not None and len(values) != len(self.payloads):
                raise InvalidValue(
                    f"{name} has {count(len(values), 'element')} for {count(len(self.payloads), 'item')}",
                    detail={"name": name, "value": len(values)},
                    hint="Give one per item, in the same order; None where there is none.",
                )

    def __len__(self) -> int:
        return len(self.payloads)

    def arguments(self, start: int, stop: int) -> list[object]:
        """Return the arguments of SQL's enqueue_many for a part of the items."""

        def part(texts: Sequence[str | None] | None) -> str | None:
            return None if texts is None else array(texts[start:stop])

        return [
            self.action,
            array(self.payloads[start:stop]),
            part(self.groups),
            part(self.headers),
            self.tags,
            *(part(keys) for keys in self.keys),
            None if self.run_ats is None else self.run_ats[start:stop],
            self.delay,
            self.on_item,
        ]


def smaller(size: int, refused: TooManyLanes) -> int:
    """Return how many items to try in place of so many, which were in too many lanes."""
    # A proportional part may fit; as many items as there may be lanes do in any case.
    most, lanes = refused.limit or 1, refused.lanes or size
    return max(1, min(size // 2, max(most, size * most // lanes)))
