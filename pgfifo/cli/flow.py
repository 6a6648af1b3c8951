"""Stop and go on, shut and open: whole actions, or single lanes."""

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.options import OPERATE, Action, Dsn, Group, Reason, group_of
from pgfifo.cli.output import did, note


@app.command(rich_help_panel=OPERATE)
def pause(action: Action, group: Group = None, reason: Reason = None, dsn: Dsn = None) -> None:
    """Let nothing more start in an action or, with --group, in one lane. What runs goes on to its end."""
    with connected(dsn) as fifo:
        changed = fifo.pause(action, group_of(group), reason=reason)
    words = _words(action, group)
    if changed:
        did(f"Paused {' '.join([action, *(group or [])])}: nothing more starts.", command("resume", *words))
    else:
        note("Nothing to do: it is paused already.")


@app.command(rich_help_panel=OPERATE)
def resume(action: Action, group: Group = None, dsn: Dsn = None) -> None:
    """Let a paused action or, with --group, a paused lane go on."""
    with connected(dsn) as fifo:
        changed = fifo.resume(action, group_of(group))
    words = _words(action, group)
    if changed:
        did(f"Resumed {' '.join([action, *(group or [])])}.", command("pause", *words))
    else:
        note("Nothing to do: it is not paused.")


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
