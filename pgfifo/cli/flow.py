"""Stop and go on: whole actions, or single lanes."""

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


def _words(action: str, group: list[str] | None) -> list[str]:
    """Return the arguments that name the lane."""
    return [action, *(word for pair in group or [] for word in ("--group", pair))]
