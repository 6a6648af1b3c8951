"""Calls of every public function, made from the catalog: new functions are called too."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

HOSTILE = [
    "'; drop table pgfifo._executions; --",
    "' || (select string_agg(payload::text, '') from pgfifo._executions) || '",
    '"; drop schema pgfifo cascade; --',
    "$$; select pg_sleep(60); $$",
    "$f$ %s %I %L %1$s %% {} {0} :name ? $1 @> \\",
    "deploy') or true --",
    "E'\\x00\\'",
    "pgfifo._executions",
    "*",
    "..//../etc/passwd\n\r\t\x1b[31m\x07",
]
"""Texts that would do something if they were ever taken for SQL, a format or a terminal's commands."""


@dataclass(frozen=True)
class Parameter:
    """One of a function's parameters."""

    name: str
    type: str


@dataclass(frozen=True)
class Function:
    """A public function, by its name (none is overloaded)."""

    name: str
    parameters: tuple[Parameter, ...]

    def call(self, conn: Connection, arguments: dict[str, object]) -> list[tuple[Any, ...]]:
        """Call it with arguments by their names; the others have their defaults. Rows come back as text."""
        types = {each.name: each.type for each in self.parameters}
        given = ", ".join(f"{name} => %s::{types[name]}" for name in arguments)
        query = f"select row::text from pgfifo.{self.name}({given}) row"
        return conn.execute(query.encode(), list(arguments.values())).fetchall()


def functions(conn: Connection) -> Iterator[Function]:
    """Return all public functions."""
    for name, names, types in conn.execute(
        "select p.proname, coalesce(p.proargnames[:p.pronargs], '{}'),"
        " array(select format_type(t.t, null) from unnest(p.proargtypes) with ordinality t(t, n) order by n)"
        " from pg_proc p where p.pronamespace = 'pgfifo'::regnamespace and p.proname !~ '^_' order by 1"
    ).fetchall():
        yield Function(name, tuple(Parameter(*each) for each in zip(names, types, strict=True)))


def plausible(function: Function, ids: dict[str, Any]) -> dict[str, object]:
    """Return arguments that a function takes, one for each of its parameters.

    Args:
        function: the function.
        ids: by parameter names, what is there: an execution, a worker, an import.
    """
    return {each.name: _plausible(function.name, each, ids) for each in function.parameters}


_BY_NAME: dict[str, object] = {
    "p_action": "deploy",
    "p_actions": ["deploy"],
    "p_group": None,
    "p_pack": "billing",
    "p_outcome": "succeeded",
    "p_state": "waiting",
    "p_sort": "depth",
    "p_time_zone": "UTC",
    "p_cron": "0 3 * * *",
    "p_on_item": "immutable",
    "p_missed": "one",
    "p_kind": "worker",
    "p_order": None,
    "p_role": "worker",
    "p_to": "nobody in particular",
    "p_from": None,
    "p_item_key": None,
    "p_item_keys": None,
    "p_dedup_key": None,
    "p_dedup_keys": None,
    "p_request_ids": None,
    "p_request_id": None,
    "p_groups": None,
    "p_headers": None,
    "p_run_at": None,
    "p_run_ats": None,
    "p_delay": None,
    "p_limit": 2,
    "p_limits": None,
    "p_finished": None,
    "p_lane_id": None,
    "p_call": None,
    "p_locked": False,
    "p_fraction": 0.5,
    "p_payloads": ['{"env": "a"}'],
    "p_until": "1 h",
    "p_for": "1 h",
    "p_lasting": "1 h",
    "p_scope": None,
    "p_force": False,
    "p_what": None,
}
_BY_FUNCTION: dict[tuple[str, str], object] = {
    ("declare_action", "p_values"): '{"max_attempts": 3}',
    ("set_shared_limit", "p_values"): '{"max_concurrent": 4, "actions": ["deploy"]}',
    ("apply_policies", "p_policies"): '{"actions": {"deploy": {"max_concurrent": 2}}}',
    ("declare_schedules", "p_schedules"): "[]",
    ("worker_start", "p_actions"): ["deploy"],
    ("revoke_role", "p_from"): "nobody in particular",
    ("revoke_enqueue", "p_from"): "nobody in particular",
    ("raise_epoch", "p_by"): 1,
    ("advance", "p_by"): "1 ms",
}
_BY_TYPE: dict[str, object] = {
    "text": "api",
    "text[]": ["a"],
    "jsonb": "{}",
    "jsonb[]": ["{}"],
    "bigint": 1,
    "bigint[]": [1],
    "integer": 1,
    "integer[]": [1],
    "boolean": False,
    "double precision": 1.0,
    "interval": "1 s",
    "timestamp with time zone": "2030-01-01 00:00Z",
    "timestamp with time zone[]": None,
}


def _plausible(function: str, parameter: Parameter, ids: dict[str, Any]) -> object:
    """Return a value for one parameter."""
    if (function, parameter.name) in _BY_FUNCTION:
        return _BY_FUNCTION[function, parameter.name]
    if parameter.name in ids:
        return ids[parameter.name]
    if parameter.name in _BY_NAME:
        return _BY_NAME[parameter.name]
    if parameter.name == "p_filter":
        return json.dumps({"action": "deploy"})
    if parameter.name == "p_values":
        return '{"max_attempts": 3}'
    return _BY_TYPE[parameter.type]
