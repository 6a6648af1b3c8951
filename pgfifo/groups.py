"""Groups: what splits an action into lanes.

To SQL a group is text: a JSON object such as ``{"env":"prod"}``, whose canonical form SQL makes, or a key
that the caller chose. To people it is ``env=prod``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from pgfifo._given import brief, text
from pgfifo.errors import InvalidValue
from pgfifo.jsontext import dumps

Group = Mapping[str, object] | str
"""What calls take as a group: a value for each path of the action's ``group_by``, or text."""


def to_text(group: Group | None, index: int | None = None) -> str | None:
    """Return a group as SQL takes it.

    Args:
        group: A mapping from path to value; or text: canonical, the bare value of the only path, or a free
            key where the action has no ``group_by``; or None, for what the payload says.
        index: Its place in a batch, counted from 0, for the error.

    Raises:
        InvalidValue: It is neither, or a value in it is not JSON.
    """
    if group is None:
        return None
    if isinstance(group, str):
        return text(group, "group", index)
    if not isinstance(group, Mapping):
        raise InvalidValue(
            f"a group is a mapping or text, not {brief(group)}",
            detail={"name": "group", "value": brief(group)} | ({} if index is None else {"index": index}),
            hint='Give it like {"env": "prod"}, or the bare value as text.',
        )
    return dumps(dict(group), "group", index)


def from_pairs(pairs: Iterable[str]) -> Group:
    """Return the group that a command line gives.

    Args:
        pairs: ``env=prod`` once per path, or one raw text. A value that is JSON is taken as JSON (``n=1`` is
            the number, ``n='"1"'`` the text), any other as text.

    Raises:
        InvalidValue: Pairs and raw text are mixed, or a path is given twice.
    """
    given = list(pairs)
    if len(given) == 1 and ("=" not in given[0] or given[0].startswith("{")):
        return given[0]
    result: dict[str, object] = {}
    for pair in given:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise InvalidValue(
                f"{pair!r} is no part of a group",
                detail={"name": "group", "value": pair},
                hint="Write --group path=value, once per path.",
            )
        if path in result:
            raise InvalidValue(f"the path {path!r} is given twice", detail={"name": "group", "value": pair})
        result[path] = _value(value)
    return result


def from_shown(text: str, paths: Sequence[str]) -> Group:
    """Return the group that a text names, where it may be the one that people are shown.

    Args:
        text: ``env=prod,target.region=eu``, as `display` shows it; or what `to_text` takes.
        paths: The action's ``group_by``. Where there is none a text is a free key, whatever is in it.

    Raises:
        InvalidValue: A path is given twice, or one has no name.
    """
    if not paths or "=" not in text:
        return text
    if len(paths) == 1 or text.startswith("{"):
        return from_pairs([text])
    known = "|".join(re.escape(path) for path in paths)
    return from_pairs(re.split(f",(?=(?:{known})=)", text))


def _value(text: str) -> object:
    if text.startswith(("{", "[")):
        return text
    try:
        value: object = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value


def parse(text: str) -> dict[str, object] | str:
    """Return the mapping that a canonical group text stands for, or the text itself if it is a free key."""
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if isinstance(value, dict):
            return value
    return text


def display(text: str) -> str:
    """Return a group text for people, as SQL's ``format_group`` does: ``env=prod,target.region=eu``."""
    group = parse(text)
    if isinstance(group, str):
        return group
    return ",".join(f"{path}={_shown(value)}" for path, value in group.items())


_READS_AS_JSON = re.compile(
    r'[ \t\n\r]*(-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?|true|false|null|".*")[ \t\n\r]*', re.DOTALL
)


def _shown(value: object) -> str:
    """Return a value so that text and number can be told apart, and `from_pairs` reads it as it was."""
    if isinstance(value, str) and not _READS_AS_JSON.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def lane(action: str, group_text: str) -> str:
    """Return the name of a lane for people: ``deploy``, or ``deploy env=prod`` where there is a group."""
    return f"{action} {display(group_text)}" if group_text else action
