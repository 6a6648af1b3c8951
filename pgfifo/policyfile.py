"""Policies as a TOML file, for teams that keep their limits under version control.

::

    [everything]
    max_attempts = 3

    [packs.billing]
    rate = "100/s"

    [actions.deploy]
    group_by = ["env"]

    [[actions.deploy.lanes]]
    group = { env = "prod" }
    max_concurrent = 2

    [limit.billing-api]
    rate = "100/s"
    packs = ["billing"]

Read with the standard library. Written by a few lines of our own: five kinds of values in a fixed form, where
a library for it would be one more thing to install for everybody, and could not write a group in one line.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pgfifo import durations, groups
from pgfifo.errors import InvalidValue
from pgfifo.policies import DURATIONS, Policy, SharedLimitValues, checked, checked_limit

_HEAD = "# Policies of pgfifo: what operators have set. To bring a database to this: pgfifo policy apply FILE"
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def dumps(policies: Mapping[str, Any]) -> str:
    """Return a document of policies, as `Client.export_policies` gives it, as TOML."""
    parts = [_HEAD]
    if policies.get("everything"):
        parts.append(_table("[everything]", policies["everything"]))
    for name, values in sorted(policies.get("packs", {}).items()):
        parts.append(_table(f"[packs.{_key(name)}]", values))
    for name, values in sorted(policies.get("actions", {}).items()):
        lanes = values.get("lanes", [])
        if len(values) > bool(lanes):
            parts.append(_table(f"[actions.{_key(name)}]", values))
        parts += [_table(f"[[actions.{_key(name)}.lanes]]", lane) for lane in lanes]
    for name, values in sorted(policies.get("limit", {}).items()):
        parts.append(_table(f"[limit.{_key(name)}]", values))
    return "\n\n".join(parts) + "\n"


def loads(given: str | bytes) -> dict[str, Any]:
    """Return the document that a TOML text is, checked, in the form that `Client.apply_policies` takes.

    Raises:
        InvalidValue: It is no TOML, or says what cannot be; the message says where.
    """
    try:
        text = given if isinstance(given, str) else given.decode()
        found = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidValue(
            f"this is no TOML: {error}", detail={"name": "policies"}, hint="See https://toml.io."
        ) from None
    return document(found, lambda *path: _line(text, path))


def document(
    policies: Mapping[str, Any], line: Callable[..., int | None] = lambda *_: None
) -> dict[str, Any]:
    """Return a document of policies, checked, in the form that SQL takes.

    Args:
        policies: The document.
        line: Says in which line of its text a key is, given the keys that lead to it.

    Raises:
        InvalidValue: It says what cannot be; the message says where.
    """
    read = _Reader(line)
    parts = read.table(policies)
    read.only(parts, ("everything", "packs", "actions", "limit"))
    result: dict[str, Any] = {}
    if "everything" in parts:
        result["everything"] = read.values(parts["everything"], "everything", "everything")
    for kind in ("packs", "actions"):
        result[kind] = {}
        for name, values in read.table(parts.get(kind, {}), kind).items():
            own = dict(read.table(values, kind, name))
            lanes = own.pop("lanes", None) if kind == "actions" else None
            result[kind][name] = read.values(own, "a pack" if kind == "packs" else "an action", kind, name)
            if lanes is not None:
                result[kind][name]["lanes"] = read.lanes(lanes, kind, name)
    if "limit" in parts:
        limits = read.table(parts["limit"], "limit")
        result["limit"] = {name: read.limit(values, "limit", name) for name, values in limits.items()}
    return result


class _Reader:
    """Reads the parts of a document; what is wrong is said with where it is."""

    def __init__(self, line: Callable[..., int | None]) -> None:
        self._line = line

    def table(self, value: object, *path: str | int) -> Mapping[str, Any]:
        """Return a part that must be a table."""
        if not isinstance(value, Mapping):
            raise self.wrong("is no table", "Write it like [actions.deploy], with values below.", *path)
        return value

    def only(self, part: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        """Refuse other keys than these at the top."""
        for key in part:
            if key not in keys:
                raise self.wrong(
                    "is no part of a document of policies", f"There are: {', '.join(keys)}.", key
                )

    def values(
        self, value: object, scope: Literal["an action", "a pack", "everything"], *path: str | int | int
    ) -> dict[str, Any]:
        """Return the attributes of a table."""
        return self._checked(lambda own: checked(own, scope), value, *path)

    def limit(self, value: object, *path: str) -> dict[str, Any]:
        """Return the attributes of a shared limit."""
        return self._checked(checked_limit, value, *path)

    def _checked(
        self, check: Callable[[dict[str, object]], dict[str, object]], value: object, *path: str | int
    ) -> dict[str, Any]:
        """Return the attributes of a table, looked at one by one."""
        result: dict[str, Any] = {}
        for name, each in self.table(value, *path).items():
            try:
                result |= check({name: each})
            except InvalidValue as error:
                raise InvalidValue(
                    f"{self.place(*path, name)}: {error.message}",
                    detail=error.detail | {"path": list(path)},
                    hint=error.hint,
                ) from None
        return result

    def lanes(self, value: object, *path: str) -> list[dict[str, Any]]:
        """Return the lanes of an action."""
        if not isinstance(value, list):
            hint = "Write it like [[actions.deploy.lanes]]."
            raise self.wrong("is no array of tables", hint, *path, "lanes")
        result = []
        for number, lane in enumerate(value):
            here: tuple[str | int, ...] = (*path, "lanes", number)
            own = dict(self.table(lane, *here))
            group = own.pop("group", None)
            if not isinstance(group, str | Mapping):
                raise self.wrong("has no group", 'Write it like group = { env = "prod" }.', *here)
            values = self.values(own, "an action", *here)
            result.append({"group": groups.to_text(group)} | values)
        return result

    def wrong(self, what: str, hint: str, *path: str | int) -> InvalidValue:
        """Return the error for what a path leads to."""
        name = next((key for key in reversed(path) if isinstance(key, str)), "policies")
        return InvalidValue(
            f"{self.place(*path)} {what}", detail={"name": name, "path": list(path)}, hint=hint
        )

    def place(self, *path: str | int) -> str:
        """Say where something is."""
        line = self._line(*path)
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{_key(key)}" for key in path)[1:]
        name = name or "the document"
        return name if line is None else f"line {line}, {name}"


def _table(head: str, values: Mapping[str, Any]) -> str:
    lines = [head]
    if "group" in values:
        lines.append(f"group = {_group(values['group'])}")
    known = Policy.__annotations__ | SharedLimitValues.__annotations__
    lines += [f"{name} = {_value(name, values[name])}" for name in known if name in values]
    return "\n".join(lines)


def _value(name: str, value: object) -> str:
    """Return an attribute's value as TOML; what has been written reads as the same again."""
    if name in DURATIONS and isinstance(value, int | float):
        short = durations.text(float(value))
        return _string(short) if durations.seconds(short) == value else repr(float(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_string, value))}]"
    return _string(value) if isinstance(value, str) else repr(value)


def _group(text: str) -> str:
    """Return a group as a table in one line, where that is the same again, or as text."""
    group = groups.parse(text)
    if isinstance(group, dict) and json.dumps(group, ensure_ascii=False, separators=(",", ":")) == text:
        values = [_in_group(value) for value in group.values()]
        if None not in values:
            inside = ", ".join(f"{_key(path)} = {value}" for path, value in zip(group, values, strict=True))
            return f"{{ {inside} }}"
    return _string(text)


def _in_group(value: object) -> str | None:
    """Return a value of a group as TOML, or None where TOML has none for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return str(value)
    return _string(value) if isinstance(value, str) else None


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    # JSON's escapes are TOML's too; TOML wants one more character escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(text: str, path: tuple[str | int, ...]) -> int | None:
    """Return the number of the line that a key stands in; None where it is written in an unusual way."""
    head: list[str | int] = []
    seen: Counter[tuple[str | int, ...]] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            # A value may go on in the next lines; its key stands here all the same.
            key = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)
            found = {key[1]: True} if key else {}
        is_head = line.lstrip().startswith("[")
        keys: list[str | int] = [] if is_head else list(head)
        inside: Any = found
        while isinstance(inside, dict) and inside:
            [(name, inside)] = list(inside.items())[:1]
            keys.append(name)
            if is_head and isinstance(inside, list):
                keys.append(seen[tuple(keys)])
                seen[tuple(keys[:-1])] += 1
            if tuple(keys) == path:
                return number
        if is_head and found:
            head = keys
    return None
