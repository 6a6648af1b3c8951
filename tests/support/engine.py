"""The engine as tests call it, a method per SQL function; and races of several sessions."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import ExecStatus
from psycopg.types.json import Jsonb

from pgfifo.verify.history import Stay
from pgfifo.verify.order import order_faults
from pgfifo.verify.slots import slot_faults

Connection = psycopg.Connection[Any]
Call = tuple[Connection, str, Sequence[object]]


class Start(NamedTuple):
    """An execution that a claim has started."""

    id: int
    attempt: int
    token: str
    action: str
    group: str
    payload: Any
    start_no: int
    batch: int | None = None
    """The number of the start that leads its batch; None for that one, and for what runs alone."""


class Answer(NamedTuple):
    """What `work` answered."""

    starts: list[Start]
    refused: dict[int, str]
    """Finished items that were not accepted: 'lost' or 'retry', by id."""
    more: str | None
    seconds: float | None
    """With more = 'later': when the next timer is due."""

    @property
    def ids(self) -> list[int]:
        """The ids that were started, in the order of the answer."""
        return [start.id for start in self.starts]


class Engine:
    """pgfifo's functions, on a connection that does its own commits or not."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self._calls = 0

    # -- plain SQL -------------------------------------------------------------------------------------------

    def one(self, query: str, *parameters: object) -> Any:
        """Return the only value of the only row."""
        row = self.conn.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self.conn.execute(query, parameters).fetchall()

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return self.conn.info.backend_pid

    # -- producing -------------------------------------------------------------------------------------------

    def enqueue(self, action: str = "deploy", payload: object = None, group: str | None = None) -> int:
        return int(self.one("select pgfifo.enqueue(%s, %s, %s)", action, Jsonb(payload or {}), group))

    def enqueue_later(self, delay: str, action: str = "deploy", group: str | None = None) -> int:
        """Enqueue one that joins its line only after so long."""
        query = "select pgfifo.enqueue(%s, '{}', %s, p_delay => %s)"
        return int(self.one(query, action, group, delay))

    def enqueue_many(
        self,
        action: str,
        payloads: Sequence[object],
        groups: Sequence[str | None] | None = None,
        delays: Sequence[str | None] | None = None,
    ) -> list[int]:
        rows = self.rows(
            "select id from pgfifo.enqueue_many(%s, %s::jsonb[], %s::text[], p_run_ats => array("
            " select pgfifo._now() + d from unnest(%s::interval[]) with ordinality d(d, n) order by n))"
            " order by ordinal"
            if delays
            else "select id from pgfifo.enqueue_many(%s, %s::jsonb[], %s::text[]) order by ordinal",
            action,
            [Jsonb(payload) for payload in payloads],
            None if groups is None else list(groups),
            *([list(delays)] if delays else []),
        )
        return [new for (new,) in rows]

    def fill(self, count: int, action: str = "deploy", group: str | None = None) -> list[int]:
        """Enqueue so many at once."""
        return self.enqueue_many(action, [{}] * count, None if group is None else [group] * count)

    def cancel(self, execution: int, reason: str | None = None) -> str:
        return str(self.one("select pgfifo.cancel(%s, %s)", execution, reason))

    def cancel_many(self, executions: Sequence[int], reason: str | None = None) -> list[str]:
        query = "select answer from pgfifo.cancel_many(%s::bigint[], %s) order by ordinal"
        return [answer for (answer,) in self.rows(query, list(executions), reason)]

    def reschedule(self, execution: int, delay: str | None = None) -> Any:
        return self.one("select pgfifo.reschedule(%s, p_delay => %s)", execution, delay)

    def retry(self, execution: int, head: bool = False) -> int:
        return int(self.one("select pgfifo.retry(%s, %s)", execution, head))

    def retry_many(self, executions: Sequence[int], head: bool = False) -> list[tuple[str, int | None]]:
        query = "select answer, retry_id from pgfifo.retry_many(%s::bigint[], %s) order by ordinal"
        return [(answer, new) for answer, new in self.rows(query, list(executions), head)]

    # -- operating -------------------------------------------------------------------------------------------

    def policy(
        self, action: str = "deploy", group: str | None = None, force: bool = False, **values: object
    ) -> list[tuple[Any, ...]]:
        return self.rows(
            "select * from pgfifo.set_policy(%s, %s, %s, %s)", action, Jsonb(values), group, force
        )

    def effective(self, action: str | None, group: str | None = None) -> dict[str, tuple[Any, str]]:
        """Return value and source of each attribute in force."""
        rows = self.rows(
            "select attribute, value, source from pgfifo.effective_policy(%s, %s)", action, group
        )
        return {attribute: (value, source) for attribute, value, source in rows}

    def pause(self, action: str = "deploy", group: str | None = None) -> bool:
        return bool(self.one("select pgfifo.pause(%s, %s)", action, group))

    def resume(self, action: str = "deploy", group: str | None = None) -> bool:
        return bool(self.one("select pgfifo.resume(%s, %s)", action, group))

    def maintain(self) -> dict[str, Any]:
        answer = self.one("select pgfifo.maintain()")
        assert isinstance(answer, dict)
        return answer

    def advance(self, by: str) -> None:
        """Move the clock."""
        self.one("select pgfifo.advance(%s)", by)

    def tick(self, ticks: int = 1) -> None:
        """Let so many seconds pass, with a round of maintenance in each."""
        for _ in range(ticks):
            self.advance("1 s")
            assert self.maintain()["elected"], "somebody else was maintaining: the ticks can not be counted"

    # -- consuming -------------------------------------------------------------------------------------------

    def worker(self, *actions: str, lease: str = "30 s", locked: bool = False, concurrency: int = 10) -> int:
        query = "select pgfifo.worker_start('test', 'here', 1, %s, %s, %s, %s)"
        return int(self.one(query, list(actions or ["deploy"]), concurrency, lease, locked))

    def work(
        self,
        worker: int,
        limit: int = 1,
        actions: Sequence[str] = ("deploy",),
        finished: Iterable[dict[str, object]] | None = None,
        call: int | None = None,
        limits: Sequence[int | None] | None = None,
        batches: Sequence[int | None] | None = None,
        together: bool | None = None,
        turn: int | None = None,
    ) -> Answer:
        """Finish and claim.

        The server decides about one execution or one lane by itself in other statements than about many
        together. What a test says holds for both: half of the calls are made so that they go the common
        way, in turns of which claims and finishes that alternate get both. `together` says which. And a
        slot may be handed on to the next of its line, or not: half of the calls make a turn last for ever,
        half make each execution one. `turn` says how many milliseconds it lasts.
        """
        self._calls += 1
        if turn is None:
            turn = 600_000 if self._calls % 8 < 4 else 0
        if together or (together is None and self._calls % 4 in (2, 3)):
            limits = [None] * len(actions) if limits is None else limits
            finished = None if finished is None else list(finished)
            if finished and len(finished) == 1 and finished[0]["outcome"] == "succeeded":
                finished *= 2
        rows = self.rows(
            "select kind, id, attempt, token, action, group_text, payload, start_no, status, detail"
            " from set_config('pgfifo.turn', %s, false) as turn, lateral pgfifo.work("
            "case when turn is not null then %s end, %s::text[], %s, %s, %s,"
            " %s::int[], p_batches => %s::int[])",
            str(turn),
            worker,
            list(actions),
            limit,
            call,
            None if finished is None else Jsonb(list(finished)),
            None if limits is None else list(limits),
            None if batches is None else list(batches),
        )
        answer = Answer([], {}, None, None)
        for kind, id_, attempt, token, action, group, payload, start_no, status, detail in rows:
            if kind == "start":
                batch = (detail or {}).get("batch")
                answer.starts.append(Start(id_, attempt, token, action, group, payload, start_no, batch))
            elif kind == "finish":
                answer.refused[id_] = status
            else:
                answer = answer._replace(more=status, seconds=(detail or {}).get("seconds"))
        return answer

    def claim(self, worker: int, limit: int = 1, actions: Sequence[str] = ("deploy",)) -> list[Start]:
        return self.work(worker, limit, actions).starts

    def hand_in(
        self, worker: int, *starts: Start, outcome: str = "succeeded", **more: object
    ) -> dict[int, str]:
        """Finish without claiming; return what was refused."""
        return self.work(worker, 0, [], [item(start, outcome, **more) for start in starts]).refused

    def finish(
        self, start: Start, outcome: str = "succeeded", error: str | None = None, retry: bool = True
    ) -> str:
        query = "select pgfifo.finish(%s, %s, %s, null, %s, %s)"
        return str(self.one(query, start.id, start.attempt, outcome, error, retry))

    def release(self, start: Start) -> str:
        return str(self.one("select pgfifo.release(%s, %s)", start.id, start.attempt))

    def heartbeat(self, worker: int, call: int | None = None, held: Sequence[int] = ()) -> dict[int, str]:
        rows = self.rows("select * from pgfifo.heartbeat(%s, %s, %s::bigint[])", worker, call, list(held))
        return {id_: signal for id_, _, signal in rows}

    def drain(self, worker: int, actions: Sequence[str] = ("deploy",), limit: int = 10) -> list[int]:
        """Claim and finish until nothing is left to start; return the ids in the order of their starts."""
        order: list[int] = []
        finished: list[dict[str, object]] = []
        while True:
            answer = self.work(worker, limit, actions, finished)
            assert not answer.refused
            order += answer.ids
            finished = [item(start) for start in answer.starts]
            if not finished and answer.more not in ("now", "soon"):
                return order

    # -- looking ---------------------------------------------------------------------------------------------

    def stats(self, action: str = "deploy") -> dict[str, Any]:
        """Return an action's row of queue_stats by column."""
        return self._row("select * from pgfifo.queue_stats where action = %s", action)

    def lane(self, action: str = "deploy", group: str = "") -> dict[str, Any]:
        """Return a lane's row of lane_stats by column."""
        query = "select * from pgfifo.lane_stats where action = %s and group_text = %s"
        return self._row(query, action, group)

    def show(self, execution: int) -> dict[str, Any]:
        """Return an execution's row by column."""
        return self._row("select * from pgfifo.executions where id = %s", execution)

    def state(self, execution: int) -> str:
        return str(self.show(execution)["state"])

    def states(self, executions: Iterable[int]) -> list[str]:
        """Return the states of executions, in their order."""
        found = dict(self.rows("select id, state from pgfifo.executions"))
        return [found[execution] for execution in executions]

    def position(self, execution: int) -> int | None:
        position = self.one("select pos from pgfifo.position(%s)", execution)
        return None if position is None else int(position)

    def stays(self) -> list[Stay]:
        """Return recorded starts, and what still waits."""
        rows = self.rows(
            "select lane_id, id, attempt, ticket, joined_no, start_no, start_limit, end_no, batch_no"
            " from pgfifo.starts"
            " union all select e.lane_id, e.id, e.attempt + 1, e.ticket, coalesce(r.joined_no, 0),"
            " null, null, null, null from pgfifo.executions e left join pgfifo.runs r on r.id = e.id"
            " where e.state = 'waiting'"
        )
        return [Stay(*row) for row in rows]

    def started(self, action: str = "deploy", group: str = "") -> list[int]:
        """Return the ids of a lane's recorded starts, in the order of their numbers."""
        rows = self.rows(
            "select s.id from pgfifo.starts s join pgfifo.lanes l on l.id = s.lane_id"
            " join pgfifo.actions a on a.id = l.action_id"
            " where a.name = %s and l.group_text = %s order by s.start_no",
            action,
            group,
        )
        return [id_ for (id_,) in rows]

    def check(self) -> list[tuple[Any, ...]]:
        return self.rows("select * from pgfifo.check()")

    def assert_promises(self, *, strict: bool = True) -> None:
        """Judge everything on record: by Python's judges, the views, check() and the sweep's counter.

        Args:
            strict: whether all lanes were strict all the time.
        """
        self.conn.execute("set jit = off")  # compiling these takes longer than running them
        stays = self.stays()
        if strict:
            assert order_faults(stays) == [], "executions were started out of order"
        assert slot_faults(stays) == [], "more executions were started than there were slots"
        assert self.rows("select * from pgfifo.order_violations") == []
        assert self.rows("select * from pgfifo.slot_violations") == []
        violations = [row for row in self.check() if row[0] == "violation"]
        assert violations == [], "check() found something"
        assert self.sweep_found() == 0, "a wake-up was lost: only the sweep found the lane"
        self.conn.execute("reset jit")

    def sweep_found(self) -> int:
        """How often the net below the net had to help."""
        return int(self.one("select max(sweep_found) from pgfifo.ticks"))

    def _row(self, query: str, *parameters: object) -> dict[str, Any]:
        cursor = self.conn.execute(query, parameters)
        found = cursor.fetchall()
        assert len(found) == 1, f"{len(found)} rows: {query}"
        assert cursor.description is not None
        return dict(zip((column.name for column in cursor.description), found[0], strict=True))


class Hand:
    """A worker of the simplest kind, with a connection of its own. Nothing that it ends gets lost."""

    def __init__(self, conn: Connection, *actions: str) -> None:
        self.engine = Engine(conn)
        self.actions = actions or ("deploy",)
        self.id = self.engine.worker(*self.actions)
        self.to_hand_in: list[dict[str, object]] = []
        """Ended, and not accepted yet: somebody had the lane locked, so it must be handed in again."""

    def turn(self, limit: int, ended: Iterable[Start] = (), outcome: str = "succeeded") -> Answer:
        """Hand in what has ended, and claim."""
        items = [*self.to_hand_in, *(item(start, outcome) for start in ended)]
        answer = self.engine.work(self.id, limit, self.actions, items)
        assert "lost" not in answer.refused.values(), f"a living worker lost executions: {answer.refused}"
        self.to_hand_in = [each for each in items if each["id"] in answer.refused]
        return answer

    def is_idle(self, answer: Answer) -> bool:
        """Say whether there was nothing to do: nothing started, nothing to hand in, nothing locked."""
        return not answer.starts and not self.to_hand_in and answer.more is None


def item(start: Start, outcome: str = "succeeded", **more: object) -> dict[str, object]:
    """Make what a worker hands in for an execution."""
    return {"id": start.id, "attempt": start.attempt, "outcome": outcome, **more}


def race(*calls: Call) -> list[list[list[str | None]] | str]:
    """Send one statement on each connection, all at once; return each one's rows (as text) or its SQLSTATE.

    The statements reach their backends within microseconds of each other, so they run beside each other.
    """
    for conn, query, parameters in calls:
        conn.pgconn.send_query_params(query.encode(), [_as_text(parameter) for parameter in parameters])
    answers: list[list[list[str | None]] | str] = []
    for conn, _, _ in calls:
        answer: list[list[str | None]] | str = []
        while result := conn.pgconn.get_result():
            if result.status == ExecStatus.TUPLES_OK:
                answer = [
                    [_text(result.get_value(row, column)) for column in range(result.nfields)]
                    for row in range(result.ntuples)
                ]
            elif result.status != ExecStatus.COMMAND_OK:
                answer = (result.error_field(ord("C")) or b"?????").decode()
        answers.append(answer)
    return answers


def _as_text(parameter: object) -> bytes | None:
    if parameter is None:
        return None
    if isinstance(parameter, (dict, list)):
        return json.dumps(parameter).encode()
    return str(parameter).encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
