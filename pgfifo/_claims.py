"""The calls in which a worker hands in and claims, and what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import psycopg

from pgfifo._connections import AsyncLink, Pauses, Session, brief, is_passing
from pgfifo._plan import Plan
from pgfifo._run import Run
from pgfifo._together import Together
from pgfifo._words import count
from pgfifo.errors import LeaseLost, translated
from pgfifo.execution import Execution
from pgfifo.heartbeat import Registration

logger = logging.getLogger("pgfifo")

_WORK = """
    select kind, id, attempt, token, action, group_text, payload::text, headers::text, tags, enqueued_at,
      wait_seconds, status, (detail ->> 'seconds')::float8, (detail ->> 'timeout')::float8,
      (detail ->> 'kill_after')::float8, lane_id, start_no, (detail ->> 'batch')::int8
    from pgfifo.work(%s, %s, %s, %s, %s::jsonb, %s, p_batches => %s)
"""
_REMAINING = "select waiting + coming, active, startable from pgfifo.remaining(%s)"
_FREE = """
    select exists (select from pgfifo.lane_stats where action = any (%s) and queue_length > 0 and not paused
      and slots_taken < max_concurrent)
"""
_STATES = """
    select asked.id, asked.attempt, case when e.attempt = asked.attempt then e.state else 'started again' end
    from unnest(%s::bigint[], %s::integer[]) as asked(id, attempt)
    cross join lateral (select e.attempt, e.state from pgfifo.executions e where e.id = asked.id offset 0) e
"""
_CHECK_JSON = "select %s::jsonb is null"
_BAD_VALUE = (psycopg.DataError, psycopg.errors.StatementTooComplex)

Key = tuple[int, int]
"""An execution's id and attempt."""


@dataclass(slots=True)
class Answer:
    """What a call brought.

    Attributes:
        starts: What was started, in this order. Those that run as a batch say so (`Run.together`).
        limits: How long some of those may run, and how long after that they are to be killed; by id.
        refused: What was handed in and not taken: ``lost``, ``retry`` because its lane was locked, or
            ``unstarted`` because one before it in its batch has failed.
        status: When to call again: ``now``, ``soon``, ``later``, or empty for when there is a reason.
        seconds: In how many seconds, for ``later``.
    """

    starts: list[Run] = field(default_factory=list)
    limits: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)
    status: str = ""
    seconds: float = 0.0


class Claims:
    """The connection for these calls. It is opened when it is needed, and again when it was lost."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = list(plan.actions)
        batches = [action.batch for action in plan.actions.values()]
        self._batches = batches if any(batches) else None
        self._link: AsyncLink | None = None
        self._session: Session | None = None

    async def connect(self) -> AsyncLink:
        """Return the connection.

        Raises:
            psycopg.OperationalError: The server cannot be reached.
        """
        if self._link is None:
            plan = self._plan
            self._link = await AsyncLink.connect(
                plan.conninfo, pooled=plan.direct != plan.conninfo, after=self._session
            )
            self._session = self._link.session
        return self._link

    async def close(self) -> None:
        """Close the connection."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def call(
        self, registration: Registration, room: int, running: Mapping[str, int], batch: list[Run]
    ) -> Answer:
        """Hand in and claim. It is repeated until it is answered: it has a number, so nothing is done twice.

        Args:
            registration: Who calls.
            room: How many to claim at most.
            running: How many of each action run now.
            batch: What to hand in.

        Raises:
            LeaseLost: The worker was declared dead.
            psycopg.Error: What cannot be got over.
        """
        registration.calls += 1
        caps = self._plan.caps
        limits = [max(0, caps[name] - running[name]) if name in caps else None for name in self._names]
        call = (registration.worker, self._names, room, registration.calls)
        pauses = Pauses()
        complained = cleaned = False
        refusal: psycopg.Error | None = None
        while True:
            try:
                link = await self.connect()
                if refusal is not None and not cleaned:
                    cleaned = await _drop_bad_results(link, batch)
                    if not cleaned:
                        raise refusal
                items = f"[{','.join(map(_as_json, batch))}]" if batch else None
                rows = await link.rows(_WORK, (*call, items, limits if caps else None, self._batches))
                if complained:
                    logger.info("worker %s reaches the queue again", self._plan.name)
                break
            except _BAD_VALUE as error:
                if refusal is not None:
                    raise translated(error) from None
                refusal = error
            except psycopg.Error as error:
                if registration.dead:
                    raise LeaseLost("the worker was declared dead") from error
                if not is_passing(error):
                    raise translated(error) from None
                if not complained:
                    complained = True
                    said = "worker %s could not reach the queue, trying again: %s"
                    logger.warning(said, self._plan.name, brief(error))
                await self._let_go_after(error)
                await asyncio.sleep(pauses.next())
        answer = Answer()
        actions = self._plan.actions
        # Of each batch, by its lane and the number of its first start: the numbers of all starts.
        batches: dict[tuple[int, int], list[tuple[int, Run]]] = {}
        for (
            kind,
            id_,
            attempt,
            token,
            action,
            group,
            payload,
            headers,
            tags,
            at,
            waited,
            status,
            seconds,
            timeout,
            kill_after,
            lane_id,
            start_no,
            leader,
        ) in rows:
            if kind == "start":
                execution = Execution(id_, attempt, token, action, group, payload, headers, tags, at, waited)
                run = Run(execution, actions[action], registration)
                answer.starts.append(run)
                if run.action.batch is not None:
                    execution.in_batch = True
                    batches.setdefault((lane_id, leader or start_no), []).append((start_no, run))
            elif kind == "limit":
                answer.limits[id_] = (timeout, kill_after)
            elif kind == "finish":
                answer.refused[id_, attempt] = status
            else:
                answer.status, answer.seconds = status, seconds or 0.0
        if answer.limits:
            for execution in (run.execution for run in answer.starts):
                execution.timeout, execution.kill_after = answer.limits.get(execution.id, (None, None))
        for started in batches.values():
            Together([run for _, run in sorted(started, key=lambda each: each[0])])
        return answer

    async def is_startable(self) -> bool:
        """Return whether it looks as if something could start: it waits in a lane with a free slot.

        Raises:
            psycopg.Error: What cannot be got over.
        """
        [(startable,)] = await (await self.connect()).rows(_FREE, (self._names,))
        return bool(startable)

    async def is_empty(self) -> bool:
        """Return whether nothing waits, runs, is held or is to be tried again any more, here or elsewhere.

        What waits in a paused lane, or of a paused action, is not waited for; nor is what is to join its lane
        for the first time, later.

        Raises:
            psycopg.Error: What cannot be got over.
        """
        try:
            link = await self.connect()
            [(waiting, active, startable)] = await link.rows(_REMAINING, (self._names,))
        except psycopg.Error as error:
            if not is_passing(error):
                raise translated(error) from None
            await self._let_go_after(error)
            return False
        if active or startable:
            return False
        if waiting:
            left = count(waiting, "execution waits", "executions wait")
            logger.warning("worker %s ends; %s in paused lanes", self._plan.name, left)
        return True

    async def states(self, keys: Iterable[Key]) -> dict[Key, str]:
        """Return what has become of executions after these attempts: a state, or ``started again``.

        Nothing, where that cannot be told because the connection was lost.
        """
        ids, attempts = zip(*keys, strict=True)
        try:
            rows = await (await self.connect()).rows(_STATES, (list(ids), list(attempts)))
        except psycopg.Error as error:
            if not is_passing(error):
                raise translated(error) from None
            logger.warning(
                "worker %s cannot tell what became of its failures: %s", self._plan.name, brief(error)
            )
            await self._let_go_after(error)
            return {}
        return {(id_, attempt): state for id_, attempt, state in rows}

    async def _let_go_after(self, error: psycopg.Error) -> None:
        if self._link is not None and not self._link.is_of_use_after(error):
            await self.close()


async def _drop_bad_results(link: AsyncLink, batch: list[Run]) -> bool:
    """Take the results that PostgreSQL refuses out of a batch; false if there are none."""
    found = False
    for run in batch:
        if run.outcome is None or run.outcome.result is None:
            continue
        try:
            await link.rows(_CHECK_JSON, (run.outcome.result,))
        except _BAD_VALUE as error:
            run.outcome = run.outcome.without_result(str(error))
            found = True
    return found


def _as_json(run: Run) -> str:
    assert run.outcome is not None  # noqa: S101 - only what has ended is handed in
    return run.outcome.as_json(run.execution.id, run.execution.attempt)
