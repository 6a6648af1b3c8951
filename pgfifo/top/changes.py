"""What the keys change, by the client's own calls; each says what it did, and the command that undoes it."""

import json
from typing import TYPE_CHECKING

from pgfifo import groups
from pgfifo._words import count
from pgfifo.cli.database import command

if TYPE_CHECKING:
    from pgfifo.client_async import AsyncClient

MOST_SLOTS = 1_000_000
"""How many slots a lane may have."""


async def pause(fifo: "AsyncClient", action: str, group: str | None) -> str:
    """Let nothing more of an action or a lane start."""
    if not await fifo.pause(action, group):
        return f"Nothing to do: {name(action, group)} is paused already."
    return f"Paused {name(action, group)}: nothing more starts. Undo: {_command('resume', action, group)}"


async def resume(fifo: "AsyncClient", action: str, group: str | None) -> str:
    """End a pause."""
    if not await fifo.resume(action, group):
        return f"Nothing to do: {name(action, group)} is not paused by itself."
    return f"Resumed {name(action, group)}. Undo: {_command('pause', action, group)}"


async def slots(fifo: "AsyncClient", action: str, group: str | None) -> str:
    """Return how many slots a lane has now, or each lane of an action."""
    found = await fifo.effective_policy(action, group)
    [value] = [each.value for each in found if each.attribute == "max_concurrent"]
    return f"now {value:,}"


async def limit(fifo: "AsyncClient", action: str, group: str | None, slots: int) -> str:
    """Set how many slots a lane has, or each lane of an action."""
    for change in await fifo.set_policy(action, group, max_concurrent=slots):
        if change.attribute == "max_concurrent" and change.old != change.new:
            words = _words(action, group)
            undo = (
                command("policy", "unset", *words, "max_concurrent")
                if change.old is None
                else command("policy", "set", *words, "--max-concurrent", str(change.old))
            )
            each = " in each lane" if group is None else ""
            return f"{name(action, group)} has {count(slots, 'slot')}{each} now. Undo: {undo}"
    return f"Nothing to do: it is {slots:,} already."


async def cancel(fifo: "AsyncClient", id_: int) -> str:
    """Cancel an execution."""
    answer = await fifo.cancel(id_)
    if answer == "cancelled":
        return f"Cancelled execution {id_}. Undo: {command('retry', str(id_))}"
    if answer == "requested":
        undo = command("retry", str(id_))
        return f"Execution {id_} runs; its worker was asked to stop it. Undo, when it has stopped: {undo}"
    return f"Nothing to do: execution {id_} has {answer} already."


async def retry(fifo: "AsyncClient", id_: int) -> str:
    """Put a finished execution back, at the end of its line."""
    new = await fifo.retry(id_)
    return f"Put back as execution {new}, at the end of its line. Undo: {command('cancel', str(new))}"


def name(action: str, group: str | None) -> str:
    """Return what is meant, as people read it."""
    return f"the lane of {action} without a group" if group == "" else groups.lane(action, group or "")


def _command(word: str, action: str, group: str | None) -> str:
    return command(word, *_words(action, group))


def _words(action: str, group: str | None) -> list[str]:
    """Return the arguments of a command that name an action or a lane."""
    if group is None:
        return [action]
    parsed = groups.parse(group)
    if isinstance(parsed, str):
        return [action, "--group", parsed]
    pairs = [groups.display(json.dumps({path: value})) for path, value in parsed.items()]
    return [action, *(word for pair in pairs for word in ("--group", pair))]
