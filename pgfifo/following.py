"""How the client follows events: it reads from a cursor on, and sleeps until it is notified, or a second.

Made by tools/gen_sync.py from its asynchronous twin: change that one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg

from pgfifo.calls import fetch
from pgfifo.models import Event
from pgfifo.waiting import Waiting

_EVENTS = """
    select kind, at, action, group_text, id, attempt, detail, cursor
    from pgfifo.events(%s::text, 1000, %s::jsonb)
"""
# Between two looks: while much happens, so that one look brings much; what is held back, which mostly is free
# soon; and the longest, where nothing notifies us.
_BUSY, _SOONEST, _LATEST = 0.05, 0.01, 1.0


class Following(Waiting):
    """Calls that follow."""

    def _follow(
        self, cursor: str | None, selection: str, actions: list[str] | None, *, follow: bool
    ) -> Iterator[Event]:
        """Yield what happens after a cursor, for ever or until there is no more now."""
        with self._ear() as conn:
            ear = _Ear(conn if follow else None, actions)
            try:
                pause = _SOONEST
                while True:
                    *events, last = self._rows(_EVENTS, (cursor, selection), Event)
                    for event in events:
                        cursor = event.cursor
                        yield event
                    cursor = last.cursor
                    if last.detail["more"]:
                        continue
                    if not follow and (pause >= _LATEST or not last.detail["held_back"]):
                        return
                    if last.detail["held_back"]:
                        ear.wake_up()
                        time.sleep(pause)
                        pause = min(2 * pause, _LATEST)
                        continue
                    pause = _SOONEST
                    if events:
                        ear.wake_up()
                        time.sleep(_BUSY)
                    else:
                        ear.sleep()
            finally:
                ear.close()


class _Ear:
    """A connection that hears of events, or none: then every second will do."""

    def __init__(self, conn: psycopg.Connection[Any] | None, actions: list[str] | None) -> None:
        self._conn = conn
        self._actions = actions
        self._listening = self._asleep = False

    def sleep(self) -> None:
        """Sleep until something happens; the first time only say so, since one has to look once more then."""
        conn = self._conn
        if conn is None:
            time.sleep(_LATEST)
            return
        try:
            if not self._listening:
                conn.execute("listen pgfifo")
                conn.execute("listen pgfifo_events")
                self._listening = True
            if not self._asleep:
                fetch(conn, "select pgfifo.follow(%s::text[])", (self._actions,))
                self._asleep = True
                return
            with closing(conn.notifies(timeout=_LATEST, stop_after=1)) as told:
                for _ in told:
                    pass
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
            self._conn = None  # lost, or a standby
            conn.close()

    def wake_up(self) -> None:
        """Ask for no notifications while reading."""
        if self._conn is not None and self._asleep:
            self._asleep = False
            try:
                fetch(self._conn, "select pgfifo.unfollow(%s::text[])", (self._actions,))
            except psycopg.OperationalError:
                self._conn = None

    def close(self) -> None:
        """Leave a connection that hears nothing, or none."""
        if self._conn is not None and self._listening:
            self._conn.close()
