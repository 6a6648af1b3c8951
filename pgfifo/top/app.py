"""The application: which screen is before one, the loop that reads for it, the keys that change something."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import psycopg
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from pgfifo._given import BIGINT
from pgfifo.client_async import AsyncClient
from pgfifo.dsn import describe
from pgfifo.errors import PgfifoError
from pgfifo.top import changes
from pgfifo.top.dialogs import Ask, Confirm, Help
from pgfifo.top.source import Lost, Source
from pgfifo.top.views import Actions, Execution, Lane, Lanes, View, Workers

if TYPE_CHECKING:
    from pgfifo.dsn import Dsn

_STYLE = """
Screen { layers: base; }
#head { height: 1; background: $primary-darken-2; color: $text; }
#sums { height: 1; }
#why { height: auto; max-height: 5; padding: 0 1; color: $text-warning; }
#table { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
#details { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
#said { height: auto; max-height: 3; background: $surface-lighten-1; padding: 0 1; display: none; }
#said.lost { background: $error-darken-1; color: $text; }
#keys { height: 1; background: $surface-lighten-2; }
Ask, Confirm, Help { align: center middle; }
.dialog { width: 74; max-width: 96%; height: auto; max-height: 100%; }
.dialog { border: round $primary; padding: 0 1; background: $surface; }
"""


class Top(App[None]):
    """The live view.

    One loop reads what the screen that is before one shows, by one statement, every so often and when one
    opens something; a read begins when the last one is over.
    """

    CSS = _STYLE
    TITLE = "pgfifo top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", show=False),
        Binding("ctrl+c", "interrupt", priority=True, show=False),
        Binding("1", "tab('actions')", show=False),
        Binding("2", "tab('lanes')", show=False),
        Binding("3", "tab('workers')", show=False),
        Binding("escape", "back", show=False),
        Binding("question_mark", "help", show=False),
        Binding("slash", "filter", show=False),
        Binding("s", "sort", show=False),
        Binding("f", "finished", show=False),
        Binding("g", "go", show=False),
        Binding("p", "pause", show=False),
        Binding("r", "resume", show=False),
        Binding("l", "limit", show=False),
        Binding("c", "cancel", show=False),
        Binding("t", "retry", show=False),
    ]

    def __init__(self, dsn: "Dsn", every: float = 2.0) -> None:
        """Make it.

        Args:
            dsn: the database.
            every: seconds from one read to the next.
        """
        super().__init__()
        self.database = describe(dsn.conninfo)
        self.lost = ""
        """Why there is no connection now; empty while there is one."""
        self.said = ""
        """What the last change, or the last refusal, had to say."""
        self.reads = 0
        """How often something was read."""
        self.every = every
        """Seconds from one read to the next."""
        self._source = Source(dsn.conninfo)
        self._fifo = AsyncClient(
            dsn, max_size=1, timeout=5.0, prepare_threshold=None, application_name="pgfifo top"
        )
        self._at_once = asyncio.Event()
        self._since: str | None = None

    # Reading

    def get_default_screen(self) -> Screen[None]:
        """Begin with the actions."""
        return Actions()

    def on_mount(self) -> None:
        """Begin to read; and give the terminal back when somebody ends the program."""
        for each in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(each, partial(self.exit, return_code=128 + each))
        self.run_worker(self._reading(), exit_on_error=True)

    async def on_unmount(self) -> None:
        """Close the connections."""
        await self._source.close()
        await self._fifo.close()

    def look(self) -> None:
        """Read what is before one now, and not only when its time has come."""
        self._at_once.set()

    @property
    def view(self) -> View:
        """The screen that is before one, a dialog aside."""
        return next(each for each in reversed(self.screen_stack) if isinstance(each, View))

    async def _reading(self) -> None:
        """Read, draw, and wait, for ever."""
        while True:
            self._at_once.clear()
            await self._read(self.view)
            try:
                await asyncio.wait_for(self._at_once.wait(), self.every)
            except TimeoutError:
                continue

    async def _read(self, view: View) -> None:
        """Read what a screen shows, and draw it; say so where that is not to be had."""
        asked = view.query_text
        view.read_at = time.monotonic()
        try:
            found = await self._source.read(asked, view.arguments())
        except Lost as lost:
            self._since = self._since or time.strftime("%H:%M:%S")
            self.lost = f"No connection since {self._since}, trying again: {lost}"
            self.view.tell()
            return
        except (PgfifoError, psycopg.Error) as refused:
            self.lost = ""
            self._since = None
            self.say(_words(refused))
            return
        finally:
            self.reads += 1
        back = bool(self.lost)
        self.lost = ""
        self._since = None
        if back:
            self.said = "Connected again."
        if view.query_text == asked:
            view.show(found)

    def say(self, text: str) -> None:
        """Show a message until there is another."""
        self.said = text
        self.view.tell()

    # Going about

    def action_interrupt(self) -> None:
        """End as programs do that are interrupted."""
        self.exit(return_code=128 + signal.SIGINT)

    async def action_tab(self, name: str) -> None:
        """Show one of the three first screens."""
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        if name == "lanes":
            await self.push_screen(Lanes())
        elif name == "workers":
            await self.push_screen(Workers())

    async def action_back(self) -> None:
        """Go back to where one came from; on the first screen, drop the filter."""
        self.said = ""
        if self.view.filter:
            self.view.filter = ""
            self._again()
        elif len(self.screen_stack) > 1:
            await self.pop_screen()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_filter(self) -> None:
        """Ask for a filter."""
        view = self.view
        if isinstance(view, Lane | Execution):
            return

        def apply(text: str | None) -> None:
            if text is not None:
                view.filter = text.strip()
                self._again()

        what = (
            "Only lanes whose group has this in it:" if isinstance(view, Lanes) else "Only those with this:"
        )
        self.push_screen(Ask(what, view.filter), apply)

    def action_sort(self) -> None:
        """Sort by what comes next."""
        sorts = list(self.view.SORTS)
        if sorts:
            self.view.sort = sorts[(sorts.index(self.view.sort) + 1) % len(sorts)]
            self._again()

    def action_finished(self) -> None:
        """Show what has finished in a lane, or its line again."""
        view = self.view
        if isinstance(view, Lane):
            view.finished = not view.finished
            view.found = {}
            view.tell()
            self.look()

    def action_go(self) -> None:
        """Ask for an execution's id, and show it."""

        def go(text: str | None) -> None:
            if text and int(text) > BIGINT:
                self.say(f"There is no such execution: the largest id is {BIGINT}.")
            elif text:
                self.push_screen(Execution(int(text)))

        self.push_screen(Ask("The id of an execution:", digits=True), go)

    def _again(self) -> None:
        """Draw the screen by what has changed about it: from what is there, or from a new read."""
        view = self.view
        if isinstance(view, Lanes):
            self.look()
        elif view.found:
            view.draw()
        view.tell()

    # Changing

    def action_pause(self) -> None:
        """Pause what is marked."""
        at = self.view.target()
        if at.action is not None:
            action, group = at.action, at.group
            self._confirm(
                f"Pause {changes.name(action, group)}?",
                "Nothing more of it starts; what runs goes on to its end.",
                lambda: changes.pause(self._fifo, action, group),
            )

    def action_resume(self) -> None:
        """Let what is marked go on."""
        at = self.view.target()
        if at.action is not None:
            action, group = at.action, at.group
            self._confirm(
                f"Resume {changes.name(action, group)}?",
                "What waits starts as soon as there are slots and workers.",
                lambda: changes.resume(self._fifo, action, group),
            )

    def action_limit(self) -> None:
        """Ask for another number of slots."""
        at = self.view.target()
        if at.action is None:
            return
        action, group = at.action, at.group

        def confirm(text: str | None) -> None:
            if text is None:
                return
            slots = int(text or 0)
            if not 1 <= slots <= changes.MOST_SLOTS:
                self.say(f"Refused: max_concurrent is 1 to {changes.MOST_SLOTS:,}. Nothing is changed.")
            else:
                self._confirm(
                    f"{slots:,} slots for {changes.name(action, group)}?",
                    "For each lane that has no limit of its own." if group is None else "For this lane only.",
                    lambda: changes.limit(self._fifo, action, group, slots),
                )

        of = changes.name(action, group) + (", in each lane" if group is None else "")
        self.push_screen(
            Ask(
                f"How many slots (max_concurrent) for {of}:",
                digits=True,
                present=lambda: changes.slots(self._fifo, action, group),
            ),
            confirm,
        )

    def action_cancel(self) -> None:
        """Cancel the execution that is marked."""
        id_ = self.view.target().id
        if id_ is not None:
            self._confirm(
                f"Cancel execution {id_}?",
                "If it waits it never starts; if it runs, its worker is asked to stop it.",
                lambda: changes.cancel(self._fifo, id_),
            )

    def action_retry(self) -> None:
        """Put the finished execution that is marked back."""
        id_ = self.view.target().id
        if id_ is not None:
            self._confirm(
                f"Put execution {id_} back?",
                "A new one with the same content joins the end of its line; the old one keeps its outcome.",
                lambda: changes.retry(self._fifo, id_),
            )

    def _confirm(self, question: str, consequence: str, change: Callable[[], Awaitable[str]]) -> None:
        """Ask, and make a change if the answer is yes."""

        async def make() -> None:
            try:
                self.say(await change())
            except (PgfifoError, psycopg.Error) as refused:
                self.say(_words(refused))
            self.look()

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(make(), group="change")

        self.push_screen(Confirm(question, consequence), answered)


def _words(error: psycopg.Error) -> str:
    """Say what the database or the client refuses, and what to do."""
    from pgfifo.cli.exits import explained

    told = explained(error)
    return str(error) if told is None else " ".join(filter(None, [f"Refused: {told.message}.", told.hint]))
