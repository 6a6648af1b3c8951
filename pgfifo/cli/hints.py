"""Hints of the engine and of the Python client, in the words of the command line."""

from collections.abc import Callable, Mapping
from typing import Any

from pgfifo.cli.database import command

_Detail = Mapping[str, Any]


def _lane(detail: _Detail) -> list[str]:
    """Return the words that name the action or the lane which an error speaks of."""
    group = ["--group", detail["group"]] if detail.get("group") else []
    return [detail.get("action") or "ACTION", *group]


def _role(detail: _Detail) -> str:
    """Return the role that an error speaks of."""
    return detail.get("role") or "ROLE"


IN_SHELL: dict[str, Callable[[_Detail], str]] = {
    "pgfifo.schedules has those that there are.": lambda _: (
        f"For all there are: {command('schedule', 'list')}"
    ),
    "pgfifo.open lets enqueues in again.": lambda about: (
        f"To let enqueues in again: {command('open', *_lane(about))}"
    ),
    "as enqueue has returned it: job.id.": lambda _: (
        f"as {command('enqueue')} and {command('list')} print it."
    ),
    ", as a number of seconds, or as a timedelta.": lambda _: ", or as a number of seconds.",
    " See pgfifo.import_status.": lambda _: "",
    "in pgfifo.executions,": lambda _: f"with {command('list')},",
    "call pgfifo.release.": lambda about: command("release", str(about.get("id", "ID"))),
    "call pgfifo.drop_shared_limit.": lambda _: f"drop it: {command('limit', 'drop')} NAME",
    "That is for an admin: see pgfifo.grant_role.": lambda about: (
        "That is for an admin. The schema's owner makes it one: "
        + command("roles", "grant", "admin", _role(about))
    ),
    "with pgfifo.grant_enqueue, all with pgfifo.grant_role.": lambda about: (
        f"with: {command('roles', 'grant', 'enqueue', _role(about), '--action', *_lane(about))}\n"
        f"All: {command('roles', 'grant', 'producer', _role(about))}"
    ),
}
"""What names a function, a view or a value of Python's, and what says the same in a shell."""


def in_shell(hint: str | None, detail: _Detail) -> str | None:
    """Return a hint as somebody in a shell can follow it.

    Args:
        hint: what the engine or the client says.
        detail: the values that its error speaks of.
    """
    for words, said in IN_SHELL.items():
        if hint and words in hint:
            hint = hint.replace(words, said(detail))
    return hint
