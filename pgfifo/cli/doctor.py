"""Look for trouble all around; and the same for monitoring, with a line and codes as plugins have them."""

import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected, rows
from pgfifo.cli.exits import REFUSED, SCHEMA, UNREACHABLE, Refused, explained, usage
from pgfifo.cli.options import OPERATE, AsJson, Dsn, duration
from pgfifo.cli.output import count, flush, note, out, paint, print_json_rows, printable, span

if TYPE_CHECKING:
    from typing import LiteralString

    from pgfifo.client import Client
    from pgfifo.errors import SchemaMismatch, SchemaMissing
    from pgfifo.models import ActionStats, Diagnosis

_COLOURS = {"critical": "31", "warning": "33", "info": "2"}
_OFF_BY = 5.0
"""Seconds by which this machine's clock may differ from the server's before that is worth a word."""
_LOCK_TIMEOUT, _STATEMENT_TIMEOUT = "2s", "5min"
"""How long it waits for a table that somebody has locked, and how long one look may take."""
_LOCKED: "LiteralString" = """
    select l.pid, bool_and(l.granted) as granted,
           string_agg(distinct c.relname, ', ' order by c.relname) as tables,
           pg_blocking_pids(l.pid) as behind, a.usename::text as role,
           a.application_name as application, a.state, a.xact_start as since,
           extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
           nullif(a.query, '<insufficient privilege>') as query
    from pg_locks l
    join pg_class c on c.oid = l.relation
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and n.nspname = 'pgfifo'
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
    group by l.pid, a.usename, a.application_name, a.state, a.xact_start, a.query
    order by granted desc, a.xact_start, l.pid
"""
"""Who keeps others from reading pgfifo's tables, or waits to, which does the same. It reads none of them."""


class _Code(IntEnum):
    """How plugins say what they found."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class _Limit:
    """What the plugin measures, and from where on it is worth a warning, or is critical."""

    name: str
    warn: float | None
    crit: float | None

    def judge(self, value: float) -> _Code:
        """Return how bad a value is."""
        if self.crit is not None and value >= self.crit:
            return _Code.CRITICAL
        return _Code.WARNING if self.warn is not None and value >= self.warn else _Code.OK

    def data(self, value: float, unit: str = "") -> str:
        """Return a value as performance data."""
        limits = ["" if limit is None else f"{limit:g}" for limit in (self.warn, self.crit)]
        return f"{self.name}={value:.10g}{unit};{';'.join(limits)};0"


@app.command(rich_help_panel=OPERATE)
def doctor(
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="KIND", help="Leave out this kind of finding.", show_default=False),
    ] = None,
    open_after: Annotated[
        float,
        duration(
            "--open-after",
            "How long a transaction may keep others waiting, and a lane stand still. [default: 30s]",
        ),
    ] = 30.0,
    snapshot_after: Annotated[
        float,
        duration("--snapshot-after", "How old a transaction that keeps dead rows may be. [default: 5m]"),
    ] = 300.0,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Also do what `check` does, which reads everything; without limits it does.",
            show_default=False,
        ),
    ] = None,
    warn_length: Annotated[
        int | None,
        typer.Option(
            "--warn-length",
            metavar="N",
            min=0,
            help="Warn when so many wait in an action.",
            show_default=False,
        ),
    ] = None,
    crit_length: Annotated[
        int | None,
        typer.Option(
            "--crit-length", metavar="N", min=0, help="From so many on it is critical.", show_default=False
        ),
    ] = None,
    warn_wait: Annotated[
        float | None, duration("--warn-wait", "Warn when one has waited for so long in an action.")
    ] = None,
    crit_wait: Annotated[float | None, duration("--crit-wait", "From then on it is critical.")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            metavar="ACTION",
            help="Hold these limits against this action only (repeatable); without, against each.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Look for trouble all around, and say what it means and what mends it. Exit code 1 on findings.

    Settings, who holds a lane or a snapshot, workers, what nobody serves, lanes that stand still, upkeep,
    tables, and what `check` finds.

    With --warn-length, --crit-length, --warn-wait or --crit-wait it is a monitoring plugin: one line with
    performance data, and exit code 0 ok, 1 warning, 2 critical, 3 unknown.
    """
    is_plugin = any(limit is not None for limit in (warn_length, crit_length, warn_wait, crit_wait))
    asked = _Asked(
        frozenset(skip or ()), open_after, snapshot_after, not is_plugin if check is None else check
    )
    if is_plugin:
        limits = (
            _Limit("length", warn_length, crit_length),
            _Limit("oldest_wait", warn_wait, crit_wait),
        )
        code, line = _watched(asked, limits, action or [], dsn, json=json)
        out(f"PGFIFO {code.name} - {line}")
        raise typer.Exit(code)
    if action:
        raise usage("--action says which actions the limits are for, and there is no limit")
    asked.refuse_unknown()
    with connected(dsn, schema=False) as fifo:
        found = asked.look(fifo)
    if json:
        print_json_rows(map(asdict, found))
    else:
        _print(found)
    bad = [each for each in found if each.severity != "info"]
    if any(each.kind == "schema" for each in bad):
        raise typer.Exit(SCHEMA)
    if bad:
        raise typer.Exit(REFUSED)


@dataclass(frozen=True)
class _Asked:
    """What somebody wants to have looked at."""

    skip: frozenset[str]
    open_after: float
    snapshot_after: float
    check: bool

    def refuse_unknown(self) -> None:
        """Refuse kinds that there are not."""
        from pgfifo.models import DiagnosisKind

        kinds = get_args(DiagnosisKind)
        for kind in self.skip:
            if kind not in kinds:
                raise usage(f"there is no kind of finding {kind!r}", f"There are: {', '.join(kinds)}.")

    def look(self, fifo: "Client") -> "list[Diagnosis]":
        """Return what there is to say; where the schema does not fit or is locked, nothing but that."""
        import psycopg

        from pgfifo.errors import SchemaMismatch, SchemaMissing

        try:
            with _impatient(fifo) as own:
                newer = _schema(own)
                found = own.doctor(
                    open_after=self.open_after, snapshot_after=self.snapshot_after, check=self.check
                )
                found += [*newer, *_clock(own)]
        except psycopg.errors.LockNotAvailable:
            return _locked(fifo)
        except (SchemaMissing, SchemaMismatch) as error:
            return [_unfit(error)]
        except psycopg.errors.InsufficientPrivilege as error:
            raise Refused(
                (error.diag.message_primary or str(error)).strip(),
                "To look takes an observer. The schema's owner makes one: "
                + command("roles", "grant", "observer", _role(fifo)),
            ) from None
        return [each for each in found if each.kind not in self.skip]


@contextmanager
def _impatient(fifo: "Client") -> "Iterator[Client]":
    """Lend a client that waits for no lock for long. All it does is one transaction: through poolers, too."""
    from pgfifo.client import Client

    with fifo.transaction() as conn:
        conn.execute(
            "select set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
            (_LOCK_TIMEOUT, _STATEMENT_TIMEOUT),
        )
        yield Client(conn)


def _locked(fifo: "Client") -> "list[Diagnosis]":
    """Return who keeps everybody from the tables, as far as that is to be seen."""
    from psycopg.rows import dict_row

    from pgfifo.models import Diagnosis

    with fifo.transaction() as conn, conn.cursor(row_factory=dict_row) as cursor:
        holders = cursor.execute(_LOCKED).fetchall()
    meaning = "Nobody reads or writes there until this ends, and no more can be said: all may stand still."
    found = []
    for each in holders:
        who = "a prepared transaction" if each["pid"] is None else f"pid {each['pid']}"
        named = [each["application"], each["role"] and f"role {each['role']}"]
        said = ", ".join(filter(None, named))
        what = (
            "has locked"
            if each["granted"]
            else f"waits for pid {', '.join(map(str, each['behind']))} to lock"
        )
        detail = f"{who}{f' ({said})' if said else ''} {what} {each['tables']} against everybody"
        if each["since"] is not None:
            detail += f", since {each['since']:%H:%M:%S %Z} ({span(max(0.0, each['seconds']))} ago)"
        if each["query"]:
            detail += f"; it is {each['state']}; its last query: {' '.join(each['query'].split())[:200]}"
        ends = each["pid"] if each["granted"] or not each["behind"] else each["behind"][0]
        mend = "select * from pg_prepared_xacts;" if ends is None else f"select pg_terminate_backend({ends});"
        data = {**each, "since": each["since"] and each["since"].isoformat()}
        found.append(Diagnosis("critical", "lock", each["tables"], f"{detail}.", meaning, mend, data))
    return found or [
        Diagnosis(
            "critical",
            "lock",
            "tables",
            f"somebody had a table of pgfifo's locked against everybody for {_LOCK_TIMEOUT}; it is free now.",
            "While it lasts, nobody reads or writes there.",
            command("doctor"),
            {},
        )
    ]


def _role(fifo: "Client") -> str:
    """Return the role that asks."""
    [row] = rows(fifo, "select current_user::text as name")
    return str(row["name"])


def _schema(fifo: "Client") -> "list[Diagnosis]":
    """Say so where the schema is newer than this package.

    Raises:
        SchemaMissing: there is none.
        SchemaMismatch: the package and it do not understand each other.
    """
    from pgfifo import compatibility, schema
    from pgfifo.models import Diagnosis

    info = fifo.schema_info()
    compatibility.check(info.version, info.min_client)
    if info.version <= schema.VERSION:
        return []
    return [
        Diagnosis(
            "info",
            "schema",
            f"version {info.version}",
            f"the schema has version {info.version}, and this package would install {schema.VERSION}.",
            "It still serves this package, which does not know what is new in it.",
            "pip install --upgrade pgfifo",
            {"version": info.version, "package": schema.VERSION, "min_client": info.min_client},
        )
    ]


def _unfit(error: "SchemaMissing | SchemaMismatch") -> "Diagnosis":
    """Return the finding for a schema that is missing, or that this package does not fit."""
    from pgfifo import compatibility
    from pgfifo.errors import SchemaMissing
    from pgfifo.models import Diagnosis

    if isinstance(error, SchemaMissing):
        subject, meaning = "missing", "Nothing of pgfifo works here; or this role may not see it."
        mend = command("install")
    else:
        subject, meaning = "version", "Every call is refused."
        too_old = (error.min_client or 0) > compatibility.CLIENT
        mend = "pip install --upgrade pgfifo" if too_old else command("upgrade")
    return Diagnosis("critical", "schema", subject, f"{error.message}.", meaning, mend, error.detail)


def _clock(fifo: "Client") -> "Iterator[Diagnosis]":
    """Look whether this machine's clock is another one than the server's."""
    from pgfifo.models import Diagnosis

    before = time.time()
    [row] = rows(fifo, "select extract(epoch from clock_timestamp())::float8 as at")
    after = time.time()
    off = row["at"] - (before + after) / 2
    if abs(off) - (after - before) / 2 > _OFF_BY:
        yield Diagnosis(
            "info",
            "clock",
            "this machine",
            f"this machine's clock is {span(abs(off))} {'behind' if off > 0 else 'ahead of'} the server's.",
            "Workers' clocks decide nothing: all times are the server's. Logs of this machine are off.",
            "timedatectl timesync-status",
            {"seconds": off},
        )


def _print(found: "Sequence[Diagnosis]") -> None:
    """Print findings for people."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def tell(text: str) -> None:
        plain = printable(text)
        lines = textwrap.wrap(plain, width - 4, break_long_words=False) if width > 20 else [plain]
        for line in lines:
            out(f"  {line}")

    for each in found:
        head = paint(each.severity.upper().ljust(8), _COLOURS[each.severity], sys.stdout)
        out(f"{head}  {each.kind}: {printable(each.subject)}")
        tell(each.detail)
        tell(each.meaning)
        out(f"  Mend: {printable(each.mend)}")
    flush()
    note(_summary(found) or "Nothing is wrong.")


def _summary(found: "Sequence[Diagnosis]") -> str:
    """Say how many findings there are of each severity; nothing where there are none."""
    numbers = {name: sum(each.severity == name for each in found) for name in _COLOURS}
    words = {"critical": "critical finding", "warning": "warning", "info": "note"}
    said = ", ".join(count(number, words[name]) for name, number in numbers.items() if number)
    return f"{said}." if said else ""


def _watched(
    asked: _Asked, limits: tuple[_Limit, _Limit], actions: list[str], dsn: str | None, *, json: bool
) -> tuple[_Code, str]:
    """Look as a monitoring plugin does, and return its code and its line; whatever goes wrong is in them."""
    import psycopg

    from pgfifo.embedded import EmbeddedError

    try:
        if json:
            raise usage("a plugin prints one line; leave --json out, or the limits")
        for limit in limits:
            if limit.warn is not None and limit.crit is not None and limit.crit < limit.warn:
                raise usage(f"what is critical in {limit.name} lies below what is worth a warning")
        asked.refuse_unknown()
        with connected(dsn, schema=False) as fifo:
            found = asked.look(fifo)
            if any(each.kind == "schema" and each.severity == "critical" for each in found):
                return _Code.CRITICAL, _in_line(found[0].detail)
            try:
                with _impatient(fifo) as own:
                    stats = [own.stats(each) for each in actions] if actions else own.stats()
                    [row] = rows(own, "select pgfifo._time() as now")
            except psycopg.errors.LockNotAvailable:
                return _Code.CRITICAL, _in_line(_locked(fifo)[0].detail)
    except (Refused, psycopg.Error, EmbeddedError, OSError) as caught:
        refused = explained(caught)
        if refused is None:
            raise
        # A server that cannot be reached is what a monitor is for; of all else it cannot tell how things are.
        code = _Code.CRITICAL if refused.code == UNREACHABLE else _Code.UNKNOWN
        return code, _in_line(refused.message)
    return _judged(found, stats, row["now"], *limits)


def _judged(
    found: "Sequence[Diagnosis]", stats: "Sequence[ActionStats]", now: datetime, length: _Limit, wait: _Limit
) -> tuple[_Code, str]:
    """Return the plugin's code and line for what was found and counted."""
    lengths = [(each.queue_length, each.action) for each in stats]
    waits = [
        (max(0.0, (now - each.oldest_enqueued_at).total_seconds()), each.action)
        for each in stats
        if each.oldest_enqueued_at is not None
    ]
    longest, busiest = max(lengths, default=(0, ""))
    oldest, slowest = max(waits, default=(0.0, ""))
    critical = [each for each in found if each.severity == "critical"]
    warnings = [each for each in found if each.severity == "warning"]
    said = [
        (length.judge(longest), f"{longest:,} wait in {busiest}"),
        (wait.judge(oldest), f"one has waited for {span(oldest)} in {slowest}"),
        (_Code.CRITICAL if critical else _Code.OK, _named(critical, "critical finding")),
        (_Code.WARNING if warnings else _Code.OK, _named(warnings, "warning")),
    ]
    code = max(each for each, _ in said)
    told = [text for each, text in sorted(said, key=lambda one: -one[0]) if each]
    line = _in_line("; ".join(told) or f"at most {longest:,} wait in an action, for {span(oldest)}")
    data = [
        length.data(longest),
        wait.data(oldest, "s"),
        f"waiting={sum(each.queue_length for each in stats)};;;0",
        f"active={sum(each.active_count for each in stats)};;;0",
        f"critical_findings={len(critical)};;;0",
        f"warnings={len(warnings)};;;0",
    ]
    return code, f"{line} | {' '.join(data)}"


def _named(found: "Sequence[Diagnosis]", what: str) -> str:
    """Name findings in a few words, at most three of them."""
    names = [f"{each.kind} {each.subject}" for each in found[:3]]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{count(len(found), what)}: {', '.join(names)}{more}"


def _in_line(text: str) -> str:
    """Return a text as it may stand before performance data: one line, without a bar."""
    return printable(" ".join(text.split())).replace("|", "/")
