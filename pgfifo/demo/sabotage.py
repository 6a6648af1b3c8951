"""Take a safeguard out of the SQL, to see that the verdict notices."""

import re
from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a safeguard stands.

    Attributes:
        function: the function that it is taken out of, with its schema.
        pattern: the regular expression of the text that stands for it there.
        replacement: what stands there afterwards.
        times: how often it stands there.
    """

    function: str
    pattern: str
    replacement: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A safeguard that can be taken out.

    Attributes:
        what: what is done.
        cuts: where.
    """

    what: str
    cuts: tuple[Cut, ...]


SABOTAGES = {
    "order": Sabotage(
        "enqueue does not take the lane's enqueue lock: ids are no longer in the order of the commits",
        (
            Cut(
                "pgfifo._enqueue",
                r"perform pg_advisory_xact_lock(_shared)?\(c_class, pgfifo\._key\(v_lane_id\)\);",
                "null;",
                times=2,
            ),
        ),
    ),
    "slots": Sabotage(
        "a claim does not count what is active in the lane",
        (
            Cut(
                "pgfifo.work",
                r"greatest\(0, a\.max - g\.running - g\.held \+ g\.riding\)",
                "a.max",
                times=2,
            ),
            Cut(
                "pgfifo._start_single",
                r"p_max\[v_nth\] - v_lane\.running \+ v_lane\.riding",
                "p_max[v_nth]",
            ),
        ),
    ),
    "lost": Sabotage(
        "a finish does not keep each fiftieth outcome",
        (
            Cut(
                "pgfifo._finish_batch",
                r"(where e\.ctid = w\.content\) e)\),(\s+newest as)",
                r"\1 where w.id % 50 <> 0),\2",
            ),
            Cut(
                "pgfifo._finish_single",
                r"from gone e;\s+if not found then",
                "from gone e where v_id % 50 <> 0; if false then",
            ),
        ),
    ),
}
"""The safeguards that can be taken out, by the promise that they hold up."""


def apply(conn: psycopg.Connection[Any], name: str) -> str:
    """Take a safeguard out, for good.

    Args:
        conn: an autocommit connection to a database that is thrown away afterwards.
        name: a key of `SABOTAGES`.

    Returns:
        What was done.

    Raises:
        LookupError: the safeguard does not stand where it is looked for.
    """
    sabotage = SABOTAGES[name]
    for cut in sabotage.cuts:
        row = conn.execute("select pg_get_functiondef(%s::regproc)", [cut.function]).fetchone()
        assert row is not None  # noqa: S101 - a select without from has one row
        text, times = re.subn(cut.pattern, cut.replacement, row[0])
        if times != cut.times:
            raise LookupError(f"the safeguard of {name!r} stands {times} times in {cut.function}")
        conn.execute(text)
    return sabotage.what
