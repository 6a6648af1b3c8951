"""Enqueue a file of JSON lines, in batches that can be taken up again exactly where they stopped.

Each batch is a transaction of its own, which also records how far the import has come. So after whatever
happened, a crash or a connection that broke during a commit, the database itself says which line is the next.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any

import psycopg
from psycopg.rows import tuple_row

from pgfifo import errors
from pgfifo.client import Client
from pgfifo.envelopes import Run, opened, runs
from pgfifo.groups import Group, to_text
from pgfifo.jsonlines import SHOWN, BadLine, Batch, Examine, Lines, batches
from pgfifo.jsontext import array, read

BATCH_ROWS = 1000
"""Lines in a batch, unless told otherwise."""

BATCH_BYTES = 4 * 1024 * 1024
"""A batch of long lines is smaller, so that memory stays small too."""

PATIENCE = 30.0
"""Seconds for which a lost connection is made anew."""

_DEADLOCKS = 5
_GROUP_ROOM = 900
_OF_A_LINE = (errors.PayloadTooLarge, errors.GroupTooLong, errors.GroupMismatch, errors.InvalidValue)

_PLAIN = """
select min(id), max(id), count(*) from pgfifo.enqueue_many(%s, %s::jsonb[], %s, %s, %s::text[],
  p_run_ats => array_fill(%s::timestamptz, array[%s::integer]), p_delay => make_interval(secs => %s::float8))
"""
# What a line says is taken out of it by the server, so that a payload stays exactly what stood there.
_ENVELOPES = """
select min(e.id) filter (where e.created), max(e.id) filter (where e.created),
  count(*) filter (where e.created)
from (
  select array_agg(coalesce(l.line -> 'payload', '{}') order by l.n) as payloads,
    array_agg(coalesce(l.line ->> 'group', %(group)s::text) order by l.n) as groups,
    array_agg(coalesce(nullif(l.line -> 'headers', 'null'), %(headers)s::jsonb) order by l.n) as headers,
    array_agg(l.line ->> 'request_id' order by l.n) as request_ids,
    array_agg(l.line ->> 'dedup_key' order by l.n) as dedup_keys,
    array_agg(l.line ->> 'item_key' order by l.n) as item_keys
  from unnest(%(lines)s::jsonb[]) with ordinality l(line, n)) a
cross join lateral pgfifo.enqueue_many(%(action)s, a.payloads, a.groups, a.headers, %(tags)s::text[],
  a.request_ids, a.dedup_keys, a.item_keys, %(run_ats)s::timestamptz[],
  make_interval(secs => %(delay)s::float8), %(on_item)s) e
"""


@dataclass(frozen=True, slots=True)
class Common:
    """What all lines of an import have in common.

    Attributes:
        action: the action.
        group: a group for all, in place of what each payload says.
        headers: headers for each, as a JSON object.
        tags: tags for each.
        run_at: when they join their lanes.
        delay: in how many seconds from its enqueue each does.
        envelope: each line says more than its payload (see `envelopes`), and wins over what is said here.
        on_item: with an envelope, what becomes of what waits under the same ``item_key``.
    """

    action: str
    group: str | None = None
    headers: str | None = None
    tags: Sequence[str] | None = None
    run_at: datetime | None = None
    delay: float | None = None
    envelope: bool = False
    on_item: str = "immutable"


@dataclass(slots=True)
class Done:
    """How far an import has come.

    Attributes:
        upto: the last line that is in, with all before it.
        enqueued: how many lines were enqueued in this run.
        known: how many found, by a key, that their execution was there already.
        skipped: how many bad ones were left out in this run.
        first_bad: the first of those.
        blank: how many without anything in them were passed over in this run.
        first_id: the first execution of this run; None while there is none.
        last_id: the last one.
    """

    upto: int = 0
    enqueued: int = 0
    known: int = 0
    skipped: int = 0
    first_bad: list[BadLine] = field(default_factory=list)
    blank: int = 0
    first_id: int | None = None
    last_id: int | None = None


class BadBatch(Exception):  # noqa: N818 - it is a batch
    """Lines of a batch are bad, and bad ones are not to be skipped; nothing of the batch was enqueued.

    Attributes:
        bad: the bad lines.
    """

    def __init__(self, bad: Sequence[BadLine]) -> None:
        super().__init__("; ".join(map(str, bad)))
        self.bad = bad


class Importer:
    """One run through a file, or through the rest of one.

    Attributes:
        number: the import, by which it can be taken up again.
        done: how far it has come.
    """

    def __init__(
        self,
        fifo: Client,
        common: Common,
        number: int,
        *,
        after: int = 0,
        rows: int = BATCH_ROWS,
        skip_bad: bool = False,
    ) -> None:
        """Prepare the run; `Client.import_start` and `Client.import_status` know number and line.

        Args:
            fifo: the client.
            common: what all lines have in common.
            number: the import.
            after: the last line that is in already.
            rows: lines in a batch.
            skip_bad: leave bad lines out, in place of stopping before them.
        """
        self.number = number
        self.done = Done(upto=after)
        self._fifo = fifo
        self._common = common
        self._rows = rows
        self._most = rows
        self._skip_bad = skip_bad
        self._before: int | None = None  # how many executions earlier runs have made
        self._lanes: int | None = None  # how many lanes a transaction may touch

    def run(
        self, lines: Lines, *, examine: Examine | None = None, progress: Callable[[Lines], None] | None = None
    ) -> Done:
        """Enqueue the lines after those that are in.

        Args:
            lines: the file from its beginning.
            examine: has the last word on each good line. Defaults to nobody.
            progress: called after each batch. Defaults to nobody.

        Raises:
            BadBatch: bad lines, and not to be skipped. What was before their batch is in.
            PgfifoError: the server refuses a batch, such as QueueFull. What was before it is in.
            psycopg.OperationalError: the server is gone, and has not come back within `PATIENCE` seconds.
        """
        after = self.done.upto
        self._before = self._fifo.import_status(self.number).enqueued
        found = batches(lines, rows=self._rows, size=BATCH_BYTES, after=after, examine=examine)
        # A stream may keep its reader waiting, and a thread that waits cannot be interrupted.
        for batch in found if lines.end is None else _ahead(found):
            self._leave_out(batch.bad)
            self.done.blank += batch.blank
            for part in self._parts(batch):
                self._put(part)
            if progress:
                progress(lines)
        return self.done

    def _leave_out(self, bad: Sequence[BadLine]) -> None:
        """Count bad lines, or stop before them."""
        if bad and not self._skip_bad:
            raise BadBatch(bad)
        self.done.skipped += len(bad)
        self.done.first_bad += bad[: max(0, SHOWN - len(self.done.first_bad))]

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Cut a batch into parts of the size that has turned out to be possible, in order."""
        texts, numbers = batch.texts, batch.numbers
        while len(texts) > self._most:
            cut = self._most
            yield Batch(texts[:cut], numbers[:cut], numbers[cut - 1])
            texts, numbers = texts[cut:], numbers[cut:]
        yield Batch(texts, numbers, batch.upto)

    def _put(self, batch: Batch) -> None:
        """Enqueue a batch, whatever it takes."""
        if self._is_too_wide(batch):
            for part in self._parts(batch):
                self._put(part)
            return
        deadlocks = 0
        while True:
            try:
                self._commit(batch)
            except errors.TooManyLanes as refused:
                size = len(batch.texts)
                if size == 1:
                    raise
                # As many lines as there may be lanes fit in any case; a proportional part probably does.
                most, lanes = refused.limit or 1, refused.lanes or size
                self._most = min(size - 1, max(int(most), int(size * most / lanes * 0.9)))
                for part in self._parts(batch):
                    self._put(part)
                return
            except _OF_A_LINE as refused:
                batch = self._without(batch, refused)
            except psycopg.errors.DeadlockDetected:
                deadlocks += 1
                if deadlocks == _DEADLOCKS:
                    raise
            except (psycopg.OperationalError, errors.CommitUnknown) as broken:
                if not _lost(broken):
                    raise
                made = self._made(batch)
                if made is not None:
                    self._count(batch, made, None, None)
                    return
            else:
                return

    def _commit(self, batch: Batch) -> None:
        """Enqueue a batch and record it, in one transaction."""
        made, first, last = 0, None, None
        with self._fifo.transaction() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            # First: it waits for a lost connection's transaction that may still be on its way to its commit.
            cursor.execute(
                "select pgfifo.import_commit(%s, %s, %s)", [self.number, batch.upto, self.done.upto]
            )
            if batch.texts:
                made, first, last = self._enqueue(cursor, batch.texts)
                numbers = [self.number, made, first, last]
                cursor.execute("select pgfifo.import_enqueued(%s, %s, %s, %s)", numbers)
        self._count(batch, made, first, last)

    def _enqueue(
        self, cursor: psycopg.Cursor[Any], texts: Sequence[str]
    ) -> tuple[int, int | None, int | None]:
        """Enqueue lines; return how many executions that made, and the first and the last of them."""
        common, size = self._common, len(texts)
        if not common.envelope:
            given = [
                common.action,
                array(texts),
                None if common.group is None else array([common.group] * size),
                None if common.headers is None else array([common.headers] * size),
                None if common.tags is None else list(common.tags),
                common.run_at,
                size,
                common.delay,
            ]
            cursor.execute(_PLAIN, given)
            first, last, made = cursor.fetchone() or (None, None, 0)
            return made, first, last
        total, ids = 0, []
        for run in self._runs(texts):
            timed = common.delay is not None and run.run_ats[0] is None
            values = {
                "action": common.action,
                "lines": array(run.texts),
                "group": common.group,
                "headers": common.headers,
                "tags": None if run.tags is None else list(run.tags),
                "run_ats": None if timed else [each or common.run_at for each in run.run_ats],
                "delay": common.delay if timed else None,
                "on_item": common.on_item,
            }
            try:
                cursor.execute(_ENVELOPES, values)
            except errors.PgfifoError as refused:
                if isinstance(refused.detail.get("index"), int):
                    refused.detail["index"] += run.start
                raise
            first, last, made = cursor.fetchone() or (None, None, 0)
            total += made
            ids += [each for each in (first, last) if each is not None]
        return total, min(ids, default=None), max(ids, default=None)

    def _runs(self, texts: Sequence[str]) -> list[Run]:
        """Cut lines with envelopes into what one call can take."""
        seen = [opened(read(text)) for text in texts]
        return list(runs(texts, seen, self._common.tags, timed=self._common.delay is not None))

    def _is_too_wide(self, batch: Batch) -> bool:
        """Tell whether a batch of several calls may be in more lanes than one should lock; cut it then.

        One call is looked at by the server. A line with an ``item_key`` may lock its lane twice.
        """
        if not self._common.envelope or len(self._runs(batch.texts)) < 2:
            return False
        if self._lanes is None:
            with self._fifo.transaction() as conn, conn.cursor(row_factory=tuple_row) as cursor:
                (self._lanes,) = cursor.execute("select pgfifo.max_batch_lanes()").fetchone() or (1,)
        most = max(1, self._lanes // 2)
        if len(batch.texts) <= most:
            return False
        self._most = min(self._most, most)
        return True

    def _count(self, batch: Batch, made: int, first: int | None, last: int | None) -> None:
        """Take note of a batch that is in."""
        self.done.upto = batch.upto
        self.done.enqueued += made
        self.done.known += len(batch.texts) - made
        self.done.first_id = first if self.done.first_id is None else self.done.first_id
        self.done.last_id = self.done.last_id if last is None else last

    def _without(self, batch: Batch, refused: errors.PgfifoError) -> Batch:
        """Return a batch without the line that the server refuses."""
        at = refused.detail.get("index")
        if not isinstance(at, int) or at >= len(batch.texts):
            raise refused
        self._leave_out([BadLine(batch.numbers[at], refused.message)])
        texts, numbers = batch.texts, batch.numbers
        return Batch(texts[:at] + texts[at + 1 :], numbers[:at] + numbers[at + 1 :], batch.upto)

    def _made(self, batch: Batch) -> int | None:
        """Find out, once the server is there again, how many a batch made whose connection broke.

        None: it is not in.
        """
        deadline = time.monotonic() + PATIENCE
        pause = 0.05
        while True:
            try:
                status = self._fifo.import_status(self.number)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            else:
                if status.upto < batch.upto:
                    return None
                return status.enqueued - (self._before or 0) - self.done.enqueued
            time.sleep(pause)
            pause = min(1.0, pause * 2)


def _ahead(found: Iterator[Batch]) -> Iterator[Batch]:
    """Read a batch ahead in a thread, while the server is at work on the one before."""
    with ThreadPoolExecutor(1, "pgfifo-import") as reader:
        coming = reader.submit(next, found, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, found, None)
            yield batch


def _lost(broken: psycopg.Error) -> bool:
    """Tell whether an error means that the connection is gone, and not that the server refuses something."""
    state = broken.sqlstate or ""
    return isinstance(broken, errors.CommitUnknown) or not state or state[:2] == "08" or state[:3] == "57P"


def examiner(fifo: Client, action: str, group: Group | None, *, envelope: bool = False) -> Examine | None:
    """Return what has the last word on lines that are good JSON.

    It asks the server about those that this one may refuse. They are few: long ones, ones with a long group,
    and of envelopes the first with each kind of group. None where there is nothing to look at.

    Args:
        fifo: the client.
        action: the action.
        group: the group of lines that say none.
        envelope: the lines are envelopes.
    """
    try:
        policy = {each.attribute: each.value for each in fifo.effective_policy(action)}
    except errors.UnknownAction:
        return _examine_envelope if envelope else None
    most = float(policy["max_payload"])
    paths = [path.split(".") for path in policy["group_by"] or []]
    common = to_text(group)
    query = (
        "select octet_length((l.line -> 'payload')::text),"
        " pgfifo.group_text(%(action)s, l.line -> 'payload', coalesce(l.line ->> 'group', %(group)s))"
        " from (select case when %(envelope)s then '{\"payload\": {}}' || %(line)s::jsonb"
        " else jsonb_build_object('payload', %(line)s::jsonb) end) l(line)"
    )
    allowed: set[frozenset[str]] = set()

    def examine(text: str, value: dict[str, Any]) -> None:
        given, kind = None, None
        if envelope:
            _examine_envelope(text, value)
            given = value.get("group")
            kind = _kind(given)
        if len(text) * 2 <= most:
            if given is not None:
                if kind in allowed and len(json.dumps(given)) < _GROUP_ROOM:
                    return
            else:
                payload = value.get("payload") if envelope else value
                if common is not None or _group_size(payload, paths) < _GROUP_ROOM:
                    return
        try:
            with fifo.transaction() as conn, conn.cursor(row_factory=tuple_row) as cursor:
                asked = {"action": action, "line": text, "group": common, "envelope": envelope}
                cursor.execute(query, asked)
                size, _ = cursor.fetchone() or (0, "")
        except (errors.GroupTooLong, errors.GroupMismatch, psycopg.DataError) as refused:
            raise ValueError(refused.diag.message_primary or str(refused)) from None
        if size > most:
            raise ValueError(f"{size:,} bytes, and a payload of {action} has at most {most:,.0f}")
        if kind is not None:
            allowed.add(kind)

    return examine


def _kind(group: object) -> frozenset[str] | None:
    """Return what groups have in common that are taken or refused alike; None where that is not plain."""
    if isinstance(group, dict):
        return frozenset(group)
    return frozenset() if isinstance(group, str) and "{" not in group else None


def _examine_envelope(text: str, value: dict[str, Any]) -> None:  # noqa: ARG001 - of the type of all that examine
    opened(value)


def _group_size(value: object, paths: list[list[str]]) -> int:
    """Return about how long the group of a payload is, rather too much than too little."""
    size = 0
    for path in paths:
        found: Any = value
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        length = len(found) * 6 if isinstance(found, str) else len(json.dumps(found))
        size += length + 6 * sum(map(len, path)) + 10
    return size


class Rewound:
    """A stream that can be read only once, with its beginning looked at before.

    Attributes:
        beginning: what was looked at.
        fingerprint: its length and hash.
    """

    def __init__(self, stream: IO[bytes], length: int | None = None) -> None:
        """Look at the beginning.

        Args:
            stream: the stream.
            length: how many bytes to look at. Defaults to what is there at once.
        """
        self._stream = stream
        self.beginning = _at_once(stream) if length is None else stream.read(length)
        self.fingerprint = f"{len(self.beginning)}:{hashlib.sha256(self.beginning).hexdigest()}"
        self._at = 0

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or so many bytes of it."""
        end = self.beginning.find(b"\n", self._at, self._at + limit) + 1 or min(
            self._at + limit, len(self.beginning)
        )
        part = self.beginning[self._at : end]
        self._at = end
        if len(part) == limit or part.endswith(b"\n"):
            return part
        return part + self._stream.readline(limit - len(part))


def _at_once(stream: IO[bytes]) -> bytes:
    """Return what a stream has to give without waiting for more than something."""
    read = getattr(stream, "read1", stream.read)
    return bytes(read(65536))
