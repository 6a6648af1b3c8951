"""The screens: actions, lanes, workers; one lane, one execution. Each is drawn from one query's answer."""

import json
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import DataTable, Static

from pgfifo.cli.output import attempt_line, count, printable, span
from pgfifo.top import source
from pgfifo.top.cells import age, cell, fitted, group, joined, moment, number, of, rate, short, spark

if TYPE_CHECKING:
    from typing import LiteralString

    from pgfifo.top.app import Top

Row = dict[str, Any]
_SAMPLES = 120
_TREND = 8


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and how wide it is; 0: as wide as there is room for."""

    heading: str
    width: int
    right: bool = False


@dataclass(frozen=True)
class Target:
    """What a key is about: an action, one of its lanes, an execution."""

    action: str | None = None
    group: str | None = None
    id: int | None = None


class View(Screen[None]):
    """A screen of the program's.

    What is abstract is held by the type checker: at run time, Textual's metaclass stands where ABC's would.
    """

    QUERY: "ClassVar[LiteralString]" = ""
    KEYS: ClassVar[str] = ""
    SORTS: ClassVar[Sequence[str]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.found: Row = {}
        self.read_at = 0.0
        """When it was last read, by the monotonic clock."""
        self.filter = ""
        self.sort = self.SORTS[0] if self.SORTS else ""

    @property
    def top(self) -> "Top":
        """The application."""
        return cast("Top", self.app)

    @property
    def query_text(self) -> "LiteralString":
        """The statement that reads what it shows."""
        return self.QUERY

    def arguments(self) -> dict[str, object]:
        """Return the statement's arguments."""
        return {}

    @abstractmethod
    def heading(self) -> str:
        """Say what it shows."""

    def target(self) -> Target:
        """Return what the keys are about now."""
        return Target()

    def compose(self) -> ComposeResult:
        """Lay it out: a line for where one is, what it shows, what was said last, the keys."""
        yield Static(id="head", markup=False)
        yield from self.body()
        yield Static(id="said", markup=False)
        yield Static(self.KEYS, id="keys", markup=False)

    @abstractmethod
    def body(self) -> ComposeResult:
        """Lay out what it shows."""

    @property
    def is_laid_out(self) -> bool:
        """Whether it can be drawn: it is there, down to its last line, and has not been left."""
        return self.is_attached and bool(self.query("#keys"))

    def on_mount(self) -> None:
        """Draw what was read already, if anything was."""
        if self.found:
            self.draw()
        self.tell()

    def on_screen_resume(self) -> None:
        """Read anew what may have changed while another screen was before it."""
        self.tell()
        if time.monotonic() - self.read_at >= self.top.every:
            self.top.look()

    def show(self, found: Row) -> None:
        """Draw what was read; before it is laid out, keep it for then."""
        self.found = found
        if self.is_laid_out:
            self.draw()
            self.tell()

    @abstractmethod
    def draw(self) -> None:
        """Draw `found`."""

    def tell(self) -> None:
        """Draw the lines around it: where one is, the state of the connection, what was said last."""
        if not self.is_laid_out:
            return
        left = self.heading()
        if self.filter:
            left += f" · filter {self.filter}"
        if self.sort:
            left += f" · by {self.sort}"
        now = f"{self.now:%H:%M:%S}" if self.found else "…"
        room = max(0, self.size.width - len(now) - 2)
        left = fitted(printable(left), min(room, cell_len(printable(left))))
        where = fitted(printable(self.top.database), max(0, room - cell_len(left) - 2))
        self.query_one("#head", Static).update(Text.assemble((left, "bold"), f"  {where}  {now}"))
        said = self.query_one("#said", Static)
        said.update(Text(printable(self.top.lost or self.top.said)))
        said.set_class(bool(self.top.lost), "lost")
        said.display = bool(self.top.lost or self.top.said)

    @property
    def now(self) -> datetime:
        """The server's time of what is shown."""
        return moment(self.found["now"]) if isinstance(self.found["now"], str) else self.found["now"]

    def on_resize(self, _: Resize) -> None:
        """Draw it for another width."""
        if self.found:
            self.draw()
        self.tell()


class Table(DataTable[Text]):
    """A table that is filled anew and keeps what is marked, and how far it is scrolled."""

    def __init__(self, columns: Sequence[Column], id: str = "table") -> None:  # noqa: A002 - as its base class
        super().__init__(cursor_type="row", id=id)
        self._fixed = columns
        self._room = -1

    def fill(self, rows: Iterable[tuple[str, Sequence[Text]]]) -> None:
        """Show rows, each with a key that says what it is about.

        Args:
            rows: keys and cells.
        """
        marked, scrolled = self.marked, self.scroll_y
        # A space on each side of a cell, and the scrollbar.
        room = self.app.size.width - sum(each.width + 2 for each in self._fixed) - 1
        with self.app.batch_update():
            if room != self._room:
                self._room = room
                self.clear(columns=True)
                for each in self._fixed:
                    heading = Text(each.heading, justify="right" if each.right else "left")
                    self.add_column(heading, width=each.width or max(6, room))
            else:
                self.clear()
            at = 0
            for place, (key, cells) in enumerate(rows):
                self.add_row(*cells, key=key)
                if key == marked:
                    at = place
            if self.row_count:
                self.move_cursor(row=at, scroll=False)
                self.scroll_to(y=scrolled, animate=False, force=True)

    @property
    def marked(self) -> str | None:
        """The key of the row that is marked."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value


class Listing(View):
    """A screen that is a table, below a line of sums."""

    COLUMNS: ClassVar[Sequence[Column]] = ()

    def body(self) -> ComposeResult:
        """Lay out the line of sums and the table."""
        yield Static(id="sums", markup=False)
        yield Table(self.COLUMNS)

    @property
    def table(self) -> Table:
        """The table."""
        return self.query_one("#table", Table)

    def sums(self, text: str) -> None:
        """Show the line of sums."""
        self.query_one("#sums", Static).update(
            Text(printable(text), "dim", no_wrap=True, overflow="ellipsis")
        )

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open what is marked."""
        if event.row_key.value is not None:
            self.open(event.row_key.value)

    def open(self, key: str) -> None:
        """Open a row."""


class Actions(Listing):
    """All actions: their depth, slots, oldest wait, rates and trend."""

    QUERY = source.ACTIONS
    SORTS = ("depth", "oldest", "in", "out", "name")
    KEYS = " Enter lanes  p pause  r resume  l limit  / filter  s sort  2 lanes  ? help"
    COLUMNS = (
        Column("action", 0),
        Column("waiting", 10, right=True),
        Column("active", 9, right=True),
        Column("oldest", 7, right=True),
        Column("in/s", 5, right=True),
        Column("out/s", 5, right=True),
        Column("trend", _TREND),
    )

    def __init__(self) -> None:
        super().__init__()
        self._depths: dict[str, deque[float]] = {}
        self._before: dict[str, tuple[datetime, int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    def heading(self) -> str:
        """Say what it shows."""
        return "pgfifo top · actions"

    def show(self, found: Row) -> None:
        """Count what has come and gone since the screen before."""
        depths: dict[str, deque[float]] = {}
        for row in found["actions"]:
            name, at = row["action"], moment(row["at"])
            depths[name] = self._depths.get(name, deque(maxlen=_SAMPLES))
            depths[name].append(row["queue_length"])
            gone = sum(row[f"total_{each}"] for each in ("succeeded", "failed", "cancelled", "expired"))
            if before := self._before.get(name):
                seconds = (at - before[0]).total_seconds()
                if seconds > 0:
                    come = row["total_enqueued"] - before[1]
                    self._rates[name] = max(0.0, come / seconds), max(0.0, (gone - before[2]) / seconds)
            self._before[name] = at, row["total_enqueued"], gone
        self._depths = depths
        super().show(found)

    def draw(self) -> None:
        """Draw the sums and the table."""
        rows = self.found["actions"]
        total = sum(row["queue_length"] for row in rows)
        taken = sum(row["slots_taken"] for row in rows)
        lanes = sum(row["lanes"] for row in rows)
        rates = [self._rates[row["action"]] for row in rows if row["action"] in self._rates]
        self.sums(
            f" {count(len(rows), 'action')}  {count(lanes, 'lane')}  {total:,} waiting"
            f"  {taken:,} of {short(sum(row['slots_total'] for row in rows))} slots"
            f"  in {sum(come for come, _ in rates):.3g}/s  out {sum(gone for _, gone in rates):.3g}/s"
        )
        shown = [row for row in rows if self.filter.lower() in row["action"].lower()]
        self.table.fill((row["action"], self._cells(row)) for row in sorted(shown, key=self._order))

    def _order(self, row: Row) -> tuple[Any, ...]:
        come, gone = self._rates.get(row["action"], (0.0, 0.0))
        first: object = {
            "depth": -row["queue_length"],
            "oldest": row["oldest_enqueued_at"] or "~",
            "in": -come,
            "out": -gone,
            "name": "",
        }[self.sort]
        return first, row["action"]

    def _cells(self, row: Row) -> list[Text]:
        name = row["action"]
        come, gone = self._rates.get(name, (None, None))
        mark = "‖ " if row["paused"] else "⊘ " if row["closed"] else ""
        more = f" ‖{row['paused_lanes']:,}" if row["paused_lanes"] and not row["paused"] else ""
        return [
            cell(f"{mark}{name}{more}", "yellow" if mark or more else ""),
            number(row["queue_length"]),
            of(row["slots_taken"], row["slots_total"]),
            cell(age(row["oldest_enqueued_at"], self.now), right=True),
            rate(come),
            rate(gone),
            cell(spark(self._depths[name], _TREND), "cyan"),
        ]

    def target(self) -> Target:
        """Return the action that is marked."""
        return Target(self.table.marked)

    def open(self, key: str) -> None:
        """Show an action's lanes."""
        self.top.push_screen(Lanes(key))


class Lanes(Listing):
    """Lanes of one action, or of all: those first that somebody should look at."""

    QUERY = source.LANES
    SORTS = ("depth", "oldest", "active", "group")
    KEYS = " Enter line  p pause  r resume  l limit  / filter  s sort  Esc back  ? help"
    COLUMNS = (
        Column("action", 16),
        Column("group", 0),
        Column("waiting", 9, right=True),
        Column("active", 9, right=True),
        Column("oldest", 7, right=True),
        Column("out/s", 5, right=True),
    )

    def __init__(self, action: str | None = None) -> None:
        super().__init__()
        self.action = action
        self._before: dict[int, tuple[datetime, int]] = {}
        self._rates: dict[int, float] = {}

    def heading(self) -> str:
        """Say what it shows."""
        return "pgfifo top · lanes" if self.action is None else f"lanes of {self.action}"

    def arguments(self) -> dict[str, object]:
        """Return which lanes, and in which order."""
        return {"action": self.action, "search": self.filter or None, "sort": self.sort}

    def show(self, found: Row) -> None:
        """Count what has gone since the screen before."""
        self.found = found
        before, self._before = self._before, {}
        for row in found["lanes"]:
            key, gone = row["lane_id"], row["total_completed"]
            self._before[key] = self.now, gone
            if key in before and self.now > before[key][0]:
                seconds = (self.now - before[key][0]).total_seconds()
                self._rates[key] = max(0.0, (gone - before[key][1]) / seconds)
        super().show(found)

    def draw(self) -> None:
        """Draw the table."""
        rows = self.found["lanes"]
        first = "the first " if len(rows) == 100 else ""
        waiting = sum(row["queue_length"] for row in rows)
        self.sums(f" {first}{count(len(rows), 'lane')}, with {waiting:,} waiting")
        self.table.fill(
            (
                json.dumps([row["action"], row["group_text"]]),
                [
                    cell(row["action"]),
                    cell(
                        ("‖ " if row["paused"] else "⊘ " if row["closed"] else "") + group(row["group_text"]),
                        "yellow" if row["paused"] or row["closed"] else "",
                    ),
                    number(row["queue_length"]),
                    of(row["slots_taken"], row["max_concurrent"]),
                    cell(age(row["oldest_enqueued_at"], self.now), right=True),
                    rate(self._rates.get(row["lane_id"])),
                ],
            )
            for row in rows
        )

    def target(self) -> Target:
        """Return the lane that is marked."""
        key = self.table.marked
        return Target(*json.loads(key)) if key else Target(self.action)

    def open(self, key: str) -> None:
        """Show a lane's line."""
        self.top.push_screen(Lane(*json.loads(key)))


class Workers(Listing):
    """Workers, and what they run."""

    QUERY = source.WORKERS
    KEYS = " 1 actions  2 lanes  / filter  g go to an execution  ? help  q quit"
    COLUMNS = (
        Column("id", 6, right=True),
        Column("worker", 18),
        Column("state", 7),
        Column("busy", 7, right=True),
        Column("seen", 6, right=True),
        Column("runs", 0),
    )

    def heading(self) -> str:
        """Say what it shows."""
        return "pgfifo top · workers"

    def draw(self) -> None:
        """Draw the sums and the table."""
        rows = self.found["workers"]
        alive = [row for row in rows if row["state"] == "alive"]
        self.sums(
            f" {len(alive):,} alive  {sum(row['executions'] for row in alive):,} running"
            f" of {sum(row['concurrency'] for row in alive if row['kind'] == 'worker'):,}"
        )
        runs: dict[int, list[Row]] = {}
        for run in self.found["runs"]:
            runs.setdefault(run["worker_id"], []).append(run)
        shown = [
            row
            for row in rows
            if self.filter.lower() in f"{row['name']} {row['host']} {row['actions']}".lower()
        ]
        self.table.fill((str(row["id"]), self._cells(row, runs.get(row["id"], []))) for row in shown)

    def _cells(self, row: Row, runs: list[Row]) -> list[Text]:
        silent = row["silent"]
        where = f"{row['host']}:{row['pid']}"
        style = "red" if silent or row["state"] == "dead" else "" if row["state"] == "alive" else "dim"
        told = ", ".join(
            f"{each['action']} {group(each['group_text'])} #{each['id']} {age(each['since'], self.now)}"
            if each["group_text"]
            else f"{each['action']} #{each['id']} {age(each['since'], self.now)}"
            for each in runs[:20]
        )
        return [
            cell(str(row["id"]), style, right=True),
            cell(where if row["name"] in ("", where) else f"{row['name']} {where}", style),
            cell("silent" if silent else row["state"], style),
            cell(f"{row['executions']}/{row['concurrency']}", style, right=True),
            cell(age(row["last_seen"], self.now), style, right=True),
            cell(told or f"({', '.join(row['actions'])})", style or ("" if told else "dim")),
        ]

    def open(self, key: str) -> None:
        """Show the execution that a worker has run for longest."""
        for run in self.found["runs"]:
            if str(run["worker_id"]) == key:
                self.top.push_screen(Execution(run["id"]))
                return


class Lane(View):
    """One lane: who is active, who is next, and why the head waits; or what has finished there."""

    KEYS = " Enter open  c cancel  t again  p pause  r resume  l limit  f finished  ? help"
    LINE = (
        Column("pos", 5, right=True),
        Column("id", 9, right=True),
        Column("state", 8),
        Column("since", 7, right=True),
        Column("starts in", 9, right=True),
        Column("payload", 0),
    )

    def __init__(self, action: str, group_text: str) -> None:
        super().__init__()
        self.action = action
        self.group_text = group_text
        self.finished = False

    @property
    def query_text(self) -> "LiteralString":
        """The statement for the line, or for what has finished."""
        return source.FINISHED if self.finished else source.LANE

    def arguments(self) -> dict[str, object]:
        """Return which lane."""
        return {"action": self.action, "group": self.group_text}

    def heading(self) -> str:
        """Say what it shows."""
        what = "what has finished in" if self.finished else "the line of"
        return f"{what} {self.action} {group(self.group_text)}"

    def body(self) -> ComposeResult:
        """Lay out its numbers, why the head waits, and the line."""
        yield Static(id="sums", markup=False)
        yield Static(id="why", markup=False)
        yield Table(self.LINE)

    @property
    def table(self) -> Table:
        """The line."""
        return self.query_one("#table", Table)

    def draw(self) -> None:
        """Draw the lane."""
        lane = self.found["lane"]
        if lane is None:
            sums = " This lane is not there: idle ones are removed."
        else:
            sums = " " + joined(
                [
                    f"{lane['queue_length']:,} waiting",
                    f"{lane['slots_taken']:,} of {count(lane['max_concurrent'], 'slot')}",
                    f"{lane['held_count']:,} held" if lane["held_count"] else None,
                    f"{lane['delayed_count']:,} delayed" if lane["delayed_count"] else None,
                    f"{lane['total_succeeded']:,} succeeded",
                    f"{lane['total_failed']:,} failed" if lane["total_failed"] else None,
                    "paused" if lane["paused"] else None,
                    "closed" if lane["closed"] else None,
                ]
            )
        self.query_one("#sums", Static).update(
            Text(printable(sums), "dim", no_wrap=True, overflow="ellipsis")
        )
        why = self.query_one("#why", Static)
        why.display = bool(self.found.get("why"))
        why.update(Text(printable(self.found.get("why") or "")))
        self.table.fill(self._finished() if self.finished else self._line())

    def _line(self) -> Iterable[tuple[str, list[Text]]]:
        for row in self.found["active"]:
            place = f"{row['host'] or ''}:{row['pid'] or ''}".strip(":")
            # A worker's name is host:pid, unless it was given another one.
            where = joined([row["holder"], place if place not in (row["holder"] or "") else None])
            yield (
                str(row["id"]),
                [
                    cell("slot", "green", right=True),
                    cell(str(row["id"]), right=True),
                    cell(row["state"], "green" if row["state"] == "running" else "yellow"),
                    cell(age(row["since"], self.now), right=True),
                    cell("-", right=True),
                    cell(joined([where, f"attempt {row['attempt']}"]), "dim"),
                ],
            )
        for row in self.found["line"]:
            eta = row["eta"]
            yield (
                str(row["id"]),
                [
                    cell(row["pos"], "bold" if row["pos"] == 1 else "", right=True),
                    cell(str(row["id"]), right=True),
                    cell(f"again {row['attempt'] + 1}" if row["attempt"] else "waiting"),
                    cell(age(row["enqueued_at"], self.now), right=True),
                    cell("-" if eta is None else "now" if eta < 1 else span(eta), right=True),
                    cell(row["payload"], "dim"),
                ],
            )

    def _finished(self) -> Iterable[tuple[str, list[Text]]]:
        for row in self.found["finished"]:
            yield (
                str(row["id"]),
                [
                    cell("", right=True),
                    cell(str(row["id"]), right=True),
                    cell(row["state"], "" if row["state"] == "succeeded" else "red"),
                    cell(age(row["finished_at"], self.now), right=True),
                    cell(f"attempt {row['attempt']}", right=True),
                    cell(row["error"] or "", "dim"),
                ],
            )

    def target(self) -> Target:
        """Return the lane, and the execution that is marked."""
        key = self.table.marked
        return Target(self.action, self.group_text, int(key) if key else None)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show the execution that is marked."""
        if event.row_key.value is not None:
            self.top.push_screen(Execution(int(event.row_key.value)))


class Execution(View):
    """One execution: everything that is known of it, and why it does not run."""

    QUERY = source.EXECUTION
    KEYS = " c cancel  t try again  p pause the lane  r resume  l limit  Esc back  ? help"

    def __init__(self, id: int) -> None:  # noqa: A002 - as the client has it
        super().__init__()
        self.execution_id = id

    def arguments(self) -> dict[str, object]:
        """Return which execution."""
        return {"id": self.execution_id}

    def heading(self) -> str:
        """Say what it shows."""
        return f"execution {self.execution_id}"

    def body(self) -> ComposeResult:
        """Lay out a text that can be scrolled."""
        with VerticalScroll(id="details"):
            yield Static(id="text", markup=False)

    def on_mount(self) -> None:
        """Let the keys of the cursor scroll."""
        self.query_one("#details").focus()

    def draw(self) -> None:
        """Draw its fields, one a line."""
        row = self.found.get("execution")
        text = Text()
        if self.found.get("explanation"):
            text.append(printable(self.found["explanation"]) + "\n\n")
        for name, value in (row or {}).items():
            if value is None:
                continue
            label = "group" if name == "group_text" else name.replace("_", " ")
            text.append(f"{label:20} ", "bold")
            text.append(self._shown(name, value) + "\n")
        self.query_one("#text", Static).update(text)

    def _shown(self, name: str, value: object) -> str:
        if name == "group_text":
            return printable(group(str(value)))
        if name.endswith("_at"):
            at = moment(str(value))
            return (
                f"{at:%Y-%m-%d %H:%M:%S %Z} ({age(str(value), self.now)} ago)"
                if at <= self.now
                else f"{at:%c}"
            )
        if name == "attempts" and isinstance(value, list):
            lines = [printable(attempt_line(each)) for each in value]
            return ("\n" + " " * 21).join(lines)
        if name == "error":
            return ("\n" + " " * 21).join(printable(line) for line in str(value).splitlines())
        return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))

    def target(self) -> Target:
        """Return the execution and its lane."""
        row = self.found.get("execution") or {}
        return Target(row.get("action"), row.get("group_text"), self.execution_id)
