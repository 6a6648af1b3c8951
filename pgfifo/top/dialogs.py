"""What stands over a screen: a question before a change, a line to type, and the help."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar

import psycopg
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from pgfifo.cli.output import printable

HELP = """\
Screens  1 actions   2 lanes of all actions   3 workers, what they run
         Enter opens what is marked: an action's lanes, a lane's line,
         an execution.  Esc goes back.  g opens an execution by its id
Lists    / filter: part of a name; of lanes, of the group
         s sort by what comes next
         f in a lane: what has finished there, or the line again
Changes  p pause   r resume   l limit: the slots of a lane
         c cancel  t try again: put a finished execution back
         Each asks first, and then says how to undo it
Others   ? this    q quit

‖ paused (‖3: three lanes of it)   ⊘ closed
active     slots taken, of all slots
in/s out/s enqueued and finished a second, since the screen before
trend      how many waited, screen by screen

Each screen is of one instant, by the server's clock. One query is
made every 2 s (--every), and one more when you open something.\
"""


class Confirm(ModalScreen[bool]):
    """A question that only y answers with yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)"),
        Binding("n,escape,q,enter", "dismiss(False)"),
    ]

    def __init__(self, question: str, consequence: str) -> None:
        super().__init__()
        self._question = question
        self._consequence = consequence

    def compose(self) -> ComposeResult:
        """Show the question."""
        text = Text(printable(self._question), "bold")
        text.append(f"\n{printable(self._consequence)}\n\n", "not bold")
        text.append("y", "bold")
        text.append(" yes    ", "not bold")
        text.append("n", "bold")
        text.append(" no", "not bold")
        with Vertical(classes="dialog"):
            yield Static(text, markup=False)


class Ask(ModalScreen[str | None]):
    """A line to type; Esc leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", priority=True)]

    def __init__(
        self,
        question: str,
        value: str = "",
        *,
        digits: bool = False,
        present: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        super().__init__()
        self._present = present
        self._question = question
        self._value = value
        self._digits = digits

    def compose(self) -> ComposeResult:
        """Show the question and the line."""
        with Vertical(classes="dialog"):
            yield Static(Text(printable(self._question), "bold"), markup=False)
            yield Input(self._value, restrict=r"[0-9]*" if self._digits else None, max_length=300)

    def on_mount(self) -> None:
        """Ask what is so now; one may type meanwhile."""
        if self._present is not None:
            self.run_worker(self._tell(self._present), group="present")

    async def _tell(self, present: Callable[[], Awaitable[str]]) -> None:
        """Add to the question what is so now; without that it can be answered as well."""
        with suppress(psycopg.Error):
            text = f"{self._question} ({await present()})"
            self.query_one(Static).update(Text(printable(text), "bold"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the line back."""
        self.dismiss(event.value)


class Help(ModalScreen[None]):
    """The keys and the columns."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter,space", "dismiss(None)")]

    def compose(self) -> ComposeResult:
        """Show it."""
        with VerticalScroll(classes="dialog help"):
            yield Static(Text(HELP), markup=False)
