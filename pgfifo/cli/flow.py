"""Stop and go on, shut and open: whole actions, single lanes, or everything."""

from typing import TYPE_CHECKING, Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import usage
from pgfifo.cli.options import OPERATE, Action, Dsn, Group, Reason, group_of
from pgfifo.cli.output import did, note

if TYPE_CHECKING:
    from pgfifo.client import Client

Paused = Annotated[str | None, typer.Argument(help="The action.", metavar="[ACTION]", show_default=False)]
Everything = Annotated[bool, typer.Option("--everything", help="All actions, those to come too.")]


@app.command(rich_help_panel=OPERATE)
def pause(
    action: Paused = None,
    group: Group = None,
    everything: Everything = False,
    reason: Reason = None,
    dsn: Dsn = None,
) -> None:
    """Let nothing more start in an action, with --group in one lane, or with --everything at all.

    What runs goes on to its end.
    """
    words = _what(action, group, everything=everything)
    with connected(dsn) as fifo:
        if action is None:
            changed = fifo.pause_everything(reason=reason)
        else:
            changed = fifo.pause(action, group_of(group), reason=reason)
    if changed:
        did(f"Paused {_said(action, group)}: nothing more starts.", command("resume", *words))
    else:
        note("Nothing to do: it is paused already.")


@app.command(rich_help_panel=OPERATE)
def resume(
    action: Paused = None, group: Group = None, everything: Everything = False, dsn: Dsn = None
) -> None:
    """Let a paused action go on, with --group a paused lane, or with --everything what is paused as a whole.

    A restored copy of a database begins paused as a whole.
    """
    words = _what(action, group, everything=everything)
    with connected(dsn) as fifo:
        changed = fifo.resume_everything() if action is None else fifo.resume(action, group_of(group))
        paused = _still_paused(fifo, action, group)
    if changed:
        did(f"Resumed {_said(action, group)}.", command("pause", *words))
    else:
        note("Nothing to do: it is not paused by itself." if paused else "Nothing to do: it is not paused.")
    if paused:
        note(paused)


def _what(action: str | None, group: list[str] | None, *, everything: bool) -> list[str]:
    """Return the arguments that name what is meant.

    Raises:
        Refused: it is not said, or said twice.
    """
    if everything == (action is not None) or (everything and group):
        raise usage("name an action, or say --everything")
    return ["--everything"] if action is None else _words(action, group)


def _said(action: str | None, group: list[str] | None) -> str:
    return "everything" if action is None else " ".join([action, *(group or [])])


def _still_paused(fifo: "Client", action: str | None, group: list[str] | None) -> str:
    """Say what keeps something that was resumed from starting all the same."""
    if action is None:
        paused = [each.action for each in fifo.stats() if each.paused]
        return f"Still paused by themselves: {', '.join(paused)}." if paused else ""
    stats = fifo.stats(action)
    if not stats.paused:
        return ""
    why = f" ({stats.paused_reason})" if stats.paused_reason else ""
    if group:
        return f"{action} is still paused as a whole{why}. To end that: {command('resume', action)}"
    return f"Everything is still paused{why}. To end that: {command('resume', '--everything')}"


@app.command(rich_help_panel=OPERATE)
def close(action: Action, group: Group = None, reason: Reason = None, dsn: Dsn = None) -> None:
    """Refuse all enqueues of an action or, with --group, of one lane. What waits is worked off."""
    with connected(dsn) as fifo:
        changed = fifo.close_action(action, group_of(group), reason=reason)
    words = _words(action, group)
    if changed:
        did(
            f"Closed {' '.join([action, *(group or [])])}: nothing more gets in, what waits is worked off.",
            command("open", *words),
        )
    else:
        note("Nothing to do: it is closed already.")


@app.command("open", rich_help_panel=OPERATE)
def open_(action: Action, group: Group = None, dsn: Dsn = None) -> None:
    """Let enqueues into a closed action or, with --group, into a closed lane again."""
    with connected(dsn) as fifo:
        changed = fifo.open_action(action, group_of(group))
    words = _words(action, group)
    if changed:
        did(f"Opened {' '.join([action, *(group or [])])}.", command("close", *words))
    else:
        note("Nothing to do: it is not closed.")


def _words(action: str, group: list[str] | None) -> list[str]:
    """Return the arguments that name the lane."""
    return [action, *(word for pair in group or [] for word in ("--group", pair))]
