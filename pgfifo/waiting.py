"""How the client waits for the end of an execution: told by a notification where that can be, else looking.

Made by tools/gen_sync.py from its asynchronous twin: change that one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from time import monotonic
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from pgfifo._unwrap import begins_transaction, unwrap
from pgfifo.calls import Calls, fetch
from pgfifo.durations import Duration, seconds
from pgfifo.errors import ExecutionFailed, InTransaction, UnknownExecution, WaitTimeout
from pgfifo.groups import lane
from pgfifo.models import Explanation

_LOOK = """
    select e.action, e.group_text, e.state, e.finished_at is not null, e.result, e.error, e.reason
    from pgfifo.executions e where e.id = %s::bigint
"""
EXPLAIN = """
    select (x.data ->> 'id')::bigint, x.data ->> 'state',
      array(select jsonb_array_elements_text(x.data -> 'reasons')), x.explanation, x.data
    from pgfifo.explain(%s::bigint) x
"""
# Where nobody can tell us we look again after a tenth of the time that we have waited; these are the bounds.
_SOONEST, _LATEST = 0.02, 1.0


class _Seen(NamedTuple):
    """What an execution looks like to those who wait for it."""

    action: str
    group_text: str
    state: str
    finished: bool
    result: Any
    error: str | None
    reason: str | None


class Waiting(Calls):
    """Calls that wait."""

    def _outcome(self, id: int, limit: Duration | None, connection: object) -> Any:  # noqa: A002, ANN401
        """Return an execution's result when it has succeeded; raise if it ends otherwise, or not in time."""
        patience = math.inf if limit is None else seconds(limit, "timeout")
        given = self._outside_of_transactions(connection)
        begun = monotonic()
        seen = self._look(id, given)
        if not seen.finished and given is None and patience > 0:
            seen = self._listen(id, begun + patience, seen)
        while not seen.finished:
            waited = monotonic() - begun
            if waited >= patience:
                raise self._timed_out(id, seen, patience, given)
            time.sleep(min(max(_SOONEST, waited / 10), _LATEST, patience - waited))
            seen = self._look(id, given)
        if seen.state == "succeeded":
            return seen.result
        said = seen.error if seen.state == "failed" else seen.reason or seen.error
        brief = f": {said.splitlines()[0]}" if said else ""
        raise ExecutionFailed(
            f"execution {id} ({lane(seen.action, seen.group_text)}) "
            f"{'was cancelled' if seen.state == 'cancelled' else seen.state}{brief}",
            detail={"id": id, "outcome": seen.state, "error": said},
        )

    def _timed_out(
        self,
        id: int,  # noqa: A002
        seen: _Seen,
        patience: float,
        given: psycopg.Connection[Any] | None,
    ) -> WaitTimeout:
        """Return the error for a wait in vain; with what holds the execution up, if that can be had."""
        name = f"execution {id} ({lane(seen.action, seen.group_text)})"
        message = f"{name} was still {seen.state} after {patience:g} s"
        detail: dict[str, object] = {"id": id, "state": seen.state, "timeout": patience}
        with suppress(psycopg.Error):
            found = self._row(EXPLAIN, (id,), Explanation, connection=given)
            message += f". {found.data['why']}" if found.data["why"] else ""
            detail |= {"reasons": found.reasons, "explanation": found.explanation}
        return WaitTimeout(message, detail=detail, hint="It goes on. Wait again, or cancel it.")

    def _outside_of_transactions(self, connection: object) -> psycopg.Connection[Any] | None:
        """Return the caller's connection, if he gave one; refuse one that could never see the end."""
        given: psycopg.Connection[Any] | None = self._one
        if connection is not None:
            given = None if begins_transaction(connection) else unwrap(connection)
        elif given is None:
            return None
        if (
            given is None
            or not given.autocommit
            or given.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
        ):
            raise InTransaction(
                "one cannot wait for an execution on a connection that is in a transaction,"
                " or begins one with its next statement",
                hint="Commit first, and wait without connection=, or on a connection in autocommit mode.",
            )
        return given

    def _look(self, id: int, given: psycopg.Connection[Any] | None) -> _Seen:  # noqa: A002
        rows = self._rows(_LOOK, (id,), _Seen, connection=given)
        return _only(id, rows)

    def _listen(self, id: int, until: float, seen: _Seen) -> _Seen:  # noqa: A002
        """Wait for the end on a connection that hears of it; return what was seen last.

        At the latest when time is up; at once, where there is no such connection.
        """
        with self._ear() as conn:
            try:
                if conn is None:
                    return seen
                with _watching(conn, id):
                    while True:
                        seen = _only(id, [_Seen(*row) for row in fetch(conn, _LOOK, (id,))])
                        left = until - monotonic()
                        if seen.finished or left <= 0:
                            return seen
                        with closing(conn.notifies(timeout=min(left, _LATEST), stop_after=1)) as told:
                            for _ in told:
                                pass
            except psycopg.OperationalError:
                return seen  # a lost connection, or a standby: look instead
            except psycopg.errors.ReadOnlySqlTransaction:
                return seen

    @contextmanager
    def _ear(self) -> Iterator[psycopg.Connection[Any] | None]:
        """Lend a connection to listen on, if there is one to spare and no pooler is in between."""
        if not self._ears.enter(0):
            yield None
            return
        try:
            with self._lend() as conn:
                yield conn
        finally:
            self._ears.leave()


@contextmanager
def _watching(conn: psycopg.Connection[Any], id: int) -> Iterator[None]:  # noqa: A002
    """Have this connection hear of an execution's end."""
    try:
        conn.execute(f"listen pgfifo_done; select pgfifo.watch({id:d})".encode())
        yield
        conn.execute(f"unlisten pgfifo_done; select pgfifo.unwatch({id:d})".encode())
    except BaseException:
        conn.close()  # nobody else should inherit what it hears
        raise


def _only(id: int, rows: list[_Seen]) -> _Seen:  # noqa: A002
    if not rows:
        raise UnknownExecution(
            f"there is no execution {id}",
            detail={"id": id},
            hint="It may not be committed yet, or be older than its action's retention.",
        )
    return rows[0]
