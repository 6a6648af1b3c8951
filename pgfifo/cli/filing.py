"""Enqueue a file from the command line: check it, enqueue it, show how it goes, say how to go on."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import REFUSED, USAGE, Refused, explained, usage
from pgfifo.cli.output import count, did, note, out, print_json
from pgfifo.cli.progress import Shower, shown

if TYPE_CHECKING:
    from datetime import datetime

    from pgfifo.client import Client
    from pgfifo.groups import Group
    from pgfifo.importing import Importer
    from pgfifo.jsonlines import BadLine, Examine, Lines
    from pgfifo.models import ImportStatus


_ENVELOPE = ":envelope"
"""What the fingerprint of a file ends with whose lines are envelopes."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    Attributes:
        action: the action.
        file: the file; ``-`` is stdin, None the one that the import began with.
        group: a group for all lines.
        headers: headers for each.
        tags: tags for each.
        run_at: when they join their lanes.
        delay: in how many seconds from its enqueue each does.
        envelope: each line is an envelope.
        on_item: what becomes of what waits under the same ``item_key``.
        commit_every: lines in a batch; None for the usual.
        skip_bad: leave bad lines out.
        resume: the import to go on with.
        json: print the result as JSON.
        words: what else of the command line belongs into a command that goes on.
    """

    action: str
    file: str | None
    group: "Group | None"
    headers: "dict[str, object] | None"
    tags: Sequence[str] | None
    run_at: "datetime | None"
    delay: float | None
    envelope: bool
    on_item: str
    commit_every: int | None
    skip_bad: bool
    resume: int | None
    json: bool
    words: Sequence[str]


def enqueue_file(options: Options, dsn: str | None) -> None:
    """Enqueue a file, or the rest of one."""
    with ExitStack() as stack:
        stream = stack.enter_context(_opened(options.file)) if options.file is not None else None
        fifo = stack.enter_context(connected(dsn))
        known = _known(fifo, options)
        if known is not None and known.finished_at is not None:
            note(f"Nothing to do: import {options.resume} came to its end, line {known.upto:,}.")
            return
        source = options.file or (known.source if known else "-")
        if stream is None:
            if source == "-":
                raise usage(f"import {options.resume} read stdin", "Give the same lines again with: --file -")
            stream = stack.enter_context(_opened(source))
        _File(options, fifo, stream, source, known).enqueue()


class _File:
    """A file on its way in."""

    def __init__(
        self,
        options: Options,
        fifo: "Client",
        stream: IO[bytes],
        source: str,
        known: "ImportStatus | None",
    ) -> None:
        self._options = options
        self._fifo = fifo
        self._stream = stream
        self._source = source
        self._known = known
        self._name = "stdin" if source == "-" else source

    def enqueue(self) -> None:
        """Check and enqueue it, and say what has become of it."""
        from pgfifo.importing import examiner

        options = self._options
        examine = examiner(self._fifo, options.action, options.group, envelope=options.envelope)
        begin = time.monotonic()
        with shown() as progress:
            found = self._whole(examine, progress) if self._stream.seekable() else self._piecewise()
            if found is None:
                return
            lines, fingerprint = found
            job = self._importer(fingerprint)
            progress.next("Enqueueing", lines.end)
            try:
                job.run(lines, examine=examine, progress=progress.step)
                self._fifo.import_finish(job.number)
            except BaseException as caught:
                raise self._stopped(job, caught) from caught
        self._report(job, time.monotonic() - begin)

    def _whole(self, examine: "Examine | None", progress: Shower) -> "tuple[Lines, str] | None":
        """Check a file; return it from its beginning, with its fingerprint, or None if nothing is in it."""
        from pgfifo.jsonlines import Lines, check

        size = self._stream.seek(0, 2)
        self._stream.seek(0)
        end = size if self._known is None else int(_content(self._known).partition(":")[0])
        progress.next("Checking", end)
        lines = Lines(self._stream, end=end)
        report = check(lines, examine=examine, progress=progress.step)
        fingerprint = lines.fingerprint()
        if self._known is not None and fingerprint != _content(self._known):
            raise _another(self._name, self._options, self._known)
        if report.bad and not self._options.skip_bad:
            _tell_bad(report.first_bad, report.bad)
            raise Refused(
                f"{count(report.bad, 'bad line')} of {report.lines:,} in {self._name}"
                + (f", and {count(report.blank, 'blank one')}" if report.blank else "")
                + "; nothing was enqueued",
                "Put them right, or leave them out with --skip-bad.",
            )
        if size > end:
            note(f"{self._name} has grown since: lines after {report.lines:,} are not part of this import.")
        if not report.good:
            note(f"Nothing to do: there is nothing to enqueue in {self._name}.")
            return None
        self._stream.seek(0)
        return Lines(self._stream, end=end, like=lines), fingerprint

    def _piecewise(self) -> "tuple[Lines, str] | None":
        """Take a stream that can be read only once, with its beginning as its fingerprint; None if empty."""
        from pgfifo.importing import Rewound
        from pgfifo.jsonlines import Lines

        length = None if self._known is None else int(_content(self._known).partition(":")[0])
        stream = Rewound(self._stream, length)
        if self._known is not None and stream.fingerprint != _content(self._known):
            raise _another(self._name, self._options, self._known)
        if not stream.beginning:
            note(f"Nothing to do: there is nothing to enqueue in {self._name}.")
            return None
        return Lines(stream), stream.fingerprint

    def _importer(self, fingerprint: str) -> "Importer":
        """Begin the import, or go on with it."""
        from pgfifo.groups import to_text
        from pgfifo.importing import BATCH_ROWS, Common, Importer
        from pgfifo.jsontext import dumps

        options = self._options
        after = self._known.upto if self._known else 0
        number = options.resume
        if number is None:
            source = self._source if self._source == "-" else str(Path(self._source).absolute())
            number = self._fifo.import_start(
                options.action, source, fingerprint + _ENVELOPE * options.envelope
            )
        note(
            f"Import {number}: {self._name}{f', after line {after:,}' if after else ''}, in {options.action}."
        )
        headers = dumps(options.headers, "header") if options.headers else None
        common = Common(
            options.action,
            to_text(options.group),
            headers,
            options.tags,
            options.run_at,
            options.delay,
            options.envelope,
            options.on_item,
        )
        rows = options.commit_every or BATCH_ROWS
        return Importer(self._fifo, common, number, after=after, rows=rows, skip_bad=options.skip_bad)

    def _stopped(self, job: "Importer", caught: BaseException) -> BaseException:
        """Return an error that says how far the import has come, and how to go on."""
        from pgfifo.importing import BadBatch
        from pgfifo.jsonlines import Changed

        options = self._options
        if isinstance(caught, BadBatch):
            _tell_bad(caught.bad[:20], len(caught.bad))
            reason = Refused(
                f"{count(len(caught.bad), 'line')} cannot be enqueued", "Leave them out with --skip-bad."
            )
        elif isinstance(caught, Changed):
            reason = Refused(
                f"{self._name} was changed while it was read, in lines {caught.first:,} to {caught.last:,}",
                f"Go on when it is again what it was. {_as_new(self._name, job.done.upto, options)}",
            )
        else:
            refused = explained(caught)
            if refused is None:
                return caught
            reason = refused
        words = ["--file", options.file or self._source, *options.words, "--resume", str(job.number)]
        if options.commit_every is not None:
            words += ["--commit-every", str(options.commit_every)]
        if options.skip_bad:
            words.append("--skip-bad")
        upto = job.done.upto
        how_far = f"line {upto:,} and all before it are in" if upto else "nothing is in yet"
        go_on = f"To go on: {command('enqueue', options.action, *words)}"
        return Refused(
            f"{reason.message}; {how_far}",
            "\n".join(filter(None, [reason.hint, go_on])),
            code=REFUSED if reason.code == USAGE else reason.code,
        )

    def _report(self, job: "Importer", seconds: float) -> None:
        """Say what went in."""
        options, done = self._options, job.done
        whole = self._fifo.import_status(job.number)  # with the parts of earlier runs
        if done.skipped:
            _tell_bad(done.first_bad, done.skipped)
            note(f"Left out {count(done.skipped, 'bad line')}.")
        if done.blank:
            note(f"Passed over {count(done.blank, 'blank line')}.")
        if options.json:
            keys = ("enqueued", "known", "skipped", "blank", "upto", "first_id", "last_id")
            fields = {key: getattr(done, key) for key in keys} | {"enqueued_in_all": whole.enqueued}
            print_json(
                {"import": job.number, "action": options.action, **fields, "seconds": round(seconds, 3)}
            )
        else:
            out(str(job.number))
        rate = f" ({done.enqueued / seconds:,.0f} a second)" if seconds > 0.1 else ""
        there = f"; {done.known:,} were there already" if done.known else ""
        in_all = f"; {whole.enqueued:,} with those of before" if whole.enqueued > done.enqueued else ""
        lines = f"{count(done.enqueued, 'line')} of {self._name}"
        undo = _undo(options, whole)
        did(f"Enqueued {lines} in {options.action}{rate}{there}{in_all}.", undo)
        if whole.enqueued and not undo:
            note("No one command undoes it: in between others have enqueued too, or keys left ids out.")


def _undo(options: Options, whole: "ImportStatus") -> str | None:
    """Return the command that undoes an import; None where it would cancel others' executions too."""
    first, last = whole.first_id, whole.last_id
    if first is None or last is None or last - first + 1 != whole.enqueued:
        return None
    later = options.envelope or options.run_at is not None or options.delay is not None
    states = ["--state", "waiting", *["--state", "delayed"] * later]
    return command("cancel", "--action", options.action, *states, "--ids", f"{first}..{last}")


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """Open a file; a dash is stdin."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(name).open("rb", buffering=1024 * 1024)  # noqa: SIM115 - closed below
    except OSError as error:
        raise usage(f"cannot read {name}: {error.strerror}") from None
    with stream:
        yield stream


def _known(fifo: "Client", options: Options) -> "ImportStatus | None":
    """Return what is known of the import to go on with."""
    if options.resume is None:
        return None
    from pgfifo.errors import InvalidValue

    try:
        known = fifo.import_status(options.resume)
    except InvalidValue as unknown:
        raise Refused(unknown.message, unknown.hint) from None
    if known.action != options.action:
        raise usage(f"import {options.resume} is one of {known.action}, not of {options.action}")
    if known.fingerprint.endswith(_ENVELOPE) != options.envelope:
        took = "envelopes" if known.fingerprint.endswith(_ENVELOPE) else "payloads"
        raise usage(
            f"import {options.resume} takes its lines as {took}",
            "With --envelope, or without it, as it began.",
        )
    return known


def _content(known: "ImportStatus") -> str:
    """Return the fingerprint of the file that an import began with."""
    return known.fingerprint.removesuffix(_ENVELOPE)


def _another(name: str, options: Options, known: "ImportStatus") -> Refused:
    """Return the error for a file that is not the one that the import began with."""
    how_far = f"; line {known.upto:,} of that and all before it are in" if known.upto else ""
    return Refused(
        f"{name} is not what import {options.resume} began with: it was changed, or is another file{how_far}",
        f"Go on when it is again what it was. {_as_new(name, known.upto, options)}",
    )


def _as_new(name: str, upto: int, options: Options) -> str:
    """Say how to enqueue what is not in yet as a new import."""
    if not upto:
        return "To enqueue it as a new import, leave --resume out."
    rest = command("enqueue", options.action, "--file", "-", *options.words)
    if name == "stdin":
        return f"To enqueue the rest as a new import, leave --resume and the first {upto:,} lines out."
    return f"To enqueue the rest as a new import: {shlex.join(['tail', '-n', f'+{upto + 1}', name])} | {rest}"


def _tell_bad(first: "Sequence[BadLine]", number: int) -> None:
    """Name bad lines."""
    for line in first:
        note(f"  {line}")
    if number > len(first):
        note(f"  … and {number - len(first):,} more")
