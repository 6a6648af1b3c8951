"""A worker that writes down what it asks and what it is told: claims, hand-ins, heartbeats, its own death.

It is the worker that everybody uses; only the places where it talks to the database are listened to. What the
handlers do they write down themselves (`Recorder.running`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg

from pgfifo._claims import Answer, Claims
from pgfifo._connections import Link
from pgfifo._engine import Engine
from pgfifo._run import Run
from pgfifo.errors import LeaseLost
from pgfifo.heartbeat import Heartbeat, Registration
from pgfifo.verify.recorder import Recorder, now
from pgfifo.worker import Worker

if TYPE_CHECKING:
    from pgfifo.actions import Actions


class RecordedWorker(Worker):
    """As `Worker`, with a recorder."""

    def __init__(
        self,
        dsn: str,
        actions: "Actions",
        recorder: Recorder,
        **options: Any,  # noqa: ANN401 - those of Worker
    ) -> None:
        """Prepare the worker; it goes by the recorder's name.

        Args:
            dsn: the database.
            actions: the handlers.
            recorder: where to write.
            options: those of `Worker`.
        """
        super().__init__(dsn, actions, name=recorder.who, on_start=self._serving, **options)
        self._recorder = recorder
        self._engine_type = _listening(recorder)

    def _serving(self, registration: int) -> None:
        self._recorder.note("serving", registration=registration, room=self._plan.concurrency)


def _listening(recorder: Recorder) -> type[Engine]:
    """Return an engine whose calls are written down."""

    class Listening(Engine):
        claims = type("RecordedClaims", (_Claims,), {"recorder": recorder})
        heartbeat = type("RecordedHeartbeat", (_Heartbeat,), {"recorder": recorder})

    return Listening


class _Claims(Claims):
    recorder: Recorder

    async def call(
        self, registration: Registration, room: int, running: Mapping[str, int], batch: list[Run]
    ) -> Answer:
        note, who = self.recorder.note, registration.worker
        call = f"{who}.{registration.calls + 1}"
        if batch:
            note("handing in", call=call, items=[_said(run) for run in batch])
        called = now()
        try:
            answer = await super().call(registration, room, running, batch)
        except LeaseLost:
            note("handed in", call=call, refused=[(*run.key, "lost") for run in batch])
            note("dead", registration=who)
            raise
        if batch:
            note("handed in", call=call, refused=[(*key, said) for key, said in answer.refused.items()])
        if answer.starts:
            starts = [
                (*run.key, run.execution.action, run.execution.group_text, _batch(run))
                for run in answer.starts
            ]
            note("claimed", called=called, registration=who, starts=starts)
        return answer


def _batch(run: Run) -> int | None:
    """Return the id of the first of a run's batch, if it shares its slot with others."""
    batch = run.together
    return batch.execution.id if batch is not None and len(batch.members) > 1 else None


def _said(run: Run) -> tuple[int, int, str, bool]:
    """Return what is said of the end of an attempt, and whether no other may follow it."""
    outcome = run.outcome
    assert outcome is not None  # noqa: S101 - only what has ended is handed in
    final = outcome.kind in ("succeeded", "cancelled") or (outcome.kind == "failed" and not outcome.retry)
    return (*run.key, outcome.kind, final)


class _Heartbeat(Heartbeat):
    recorder: Recorder

    def _register(self, link: Link) -> None:
        called = now()
        super()._register(link)
        self._heard(called)

    def _beat(self, link: Link) -> None:
        called = now()
        super()._beat(link)
        self._heard(called)

    def _heard(self, called: float) -> None:
        registration = self._registration
        if registration is not None and not registration.dead:
            self.recorder.note("beat", called=called, registration=registration.worker, heard=True)

    def _get_over(self, error: psycopg.Error) -> None:
        # Whatever failed there: its session, which speaks for the worker, may be gone.
        registration = self._registration
        if registration is not None:
            self.recorder.note("beat", called=now(), registration=registration.worker, heard=False)
        super()._get_over(error)

    def _bury(self, registration: Registration) -> None:
        if not registration.dead:
            self.recorder.note("dead", registration=registration.worker)
        super()._bury(registration)
