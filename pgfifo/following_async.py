"""How the client follows events: it reads from a cursor on, and sleeps until it is notified, or a second.

`AsyncFollowing` is written by hand; `pgfifo.following.Following` is made from it by tools/gen_sync.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import psycopg

from pgfifo.calls_async import fetch
from pgfifo.models import Event
from pgfifo.waiting_async import AsyncWaiting

_EVENTS = """
    select kind, at, action, group_text, id, attempt, detail, cursor
    from pgfifo.events(%s::text, 1000, %s::jsonb)
"""
# Between two looks: while much happens, so that one look brings much; what is held back, which mostly is free
# soon; and the longest, where nothing notifies us.
_BUSY, _SOONEST, _LATEST = 0.05, 0.01, 1.0


class AsyncFollowing(AsyncWaiting):
    """Calls that follow."""

    async def _follow(
        self, cursor: str | None, selection: str, actions: list[str] | None, *, follow: bool
    ) -> AsyncIterator[Event]:
        """Yield what happens after a cursor, for ever or until there is no more now."""
        async with self._ear() as conn:
            ear = _Ear(conn if follow else None, actions)
            try:
                pause = _SOONEST
                while True:
                    *events, last = await self._rows(_EVENTS, (cursor, selection), Event)
                    for event in events:
                        cursor = event.cursor
                        yield event
                    cursor = last.cursor
                    if last.detail["more"]:
                        continue
                    if not follow and (pause >= _LATEST or not last.detail["held_back"]):
                        return
                    if last.detail["held_back"]:
                        await ear.wake_up()
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LATEST)
                        continue
                    pause = _SOONEST
                    if events:
                        await ear.wake_up()
                        await asyncio.sleep(_BUSY)
                    else:
                        await ear.sleep()
            finally:
                await ear.close()


class _Ear:
    """A connection that hears of events, or none: then every second will do."""

    def __init__(self, conn: psycopg.AsyncConnection[Any] | None, actions: list[str] | None) -> None:
        self._conn = conn
        self._actions = actions
        self._listening = self._asleep = False

    async def sleep(self) -> None:
        """Sleep until something happens; the first time only say so, since one has to look once more then."""
        conn = self._conn
        if conn is None:
            await asyncio.sleep(_LATEST)
            return
        try:
            if not self._listening:
                await conn.execute("listen pgfifo")
                await conn.execute("listen pgfifo_events")
                self._listening = True
            if not self._asleep:
                await fetch(conn, "select pgfifo.follow(%s::text[])", (self._actions,))
                self._asleep = True
                return
            async with aclosing(conn.notifies(timeout=_LATEST, stop_after=1)) as told:
                async for _ in told:
                    pass
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
            self._conn = None  # lost, or a standby
            await conn.close()

    async def wake_up(self) -> None:
        """Ask for no notifications while reading."""
        if self._conn is not None and self._asleep:
            self._asleep = False
            try:
                await fetch(self._conn, "select pgfifo.unfollow(%s::text[])", (self._actions,))
            except psycopg.OperationalError:
                self._conn = None

    async def close(self) -> None:
        """Leave a connection that hears nothing, or none."""
        if self._conn is not None and self._listening:
            await self._conn.close()
