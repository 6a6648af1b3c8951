"""Shared limits: slots and rates that several actions draw from."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.options import OPERATE, AsJson, Dsn
from pgfifo.cli.output import note, out, print_fields, print_json, print_json_rows, print_table

if TYPE_CHECKING:
    from pgfifo.client import Client
    from pgfifo.models import SharedLimit
    from pgfifo.policies import SharedLimitValues

limit = typer.Typer(
    name="limit",
    help="Shared limits: slots and rates that several actions draw from, over all their lanes together.",
    no_args_is_help=True,
)
app.add_typer(limit, rich_help_panel=OPERATE)

Name = Annotated[str, typer.Argument(help="The limit, as billing-api.", metavar="NAME", show_default=False)]

NOTHING: dict[str, object] = {
    "max_concurrent": None,
    "rate": None,
    "burst": None,
    "actions": [],
    "packs": [],
    "everything": False,
}
"""What each attribute is when it says nothing."""


@limit.command("set")
def set_(
    name: Name,
    max_concurrent: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many that draw from it run at once.", show_default=False),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="N/TIME", help="How many of them start per time, as 100/s or 10/min.", show_default=False
        ),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many of them may start at once after a quiet time; all if not set.",
            show_default=False,
        ),
    ] = None,
    actions: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            metavar="ACTION",
            help="An action that draws from it, and is there already; once for each, all of them anew.",
            show_default=False,
        ),
    ] = None,
    packs: Annotated[
        list[str] | None,
        typer.Option(
            "--pack",
            metavar="PACK",
            help="A pack whose actions draw from it, those to come too; once for each, all of them anew.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool | None,
        typer.Option(help="Whether every action draws from it.", show_default=False),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Set what is named, and leave the rest as it is; a new name makes a new limit."""
    given = {
        "max_concurrent": max_concurrent,
        "rate": rate,
        "burst": burst,
        "actions": actions or None,
        "packs": packs or None,
        "everything": everything,
    }
    values: SharedLimitValues = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    if not values:
        raise usage(
            "nothing to set", "Name an attribute, as --max-concurrent 20. See: pgfifo limit set --help"
        )
    _change(name, values, dsn)


@limit.command()
def unset(
    name: Name,
    attributes: Annotated[
        list[str],
        typer.Argument(
            metavar="ATTRIBUTE...", help="What to take away, as rate or packs.", show_default=False
        ),
    ],
    dsn: Dsn = None,
) -> None:
    """Take numbers, or those who draw, away from a limit."""
    values: SharedLimitValues = {_attribute(each): NOTHING[_attribute(each)] for each in attributes}  # type: ignore[assignment]
    with connected(dsn) as fifo:
        _found(fifo, name)
    _change(name, values, dsn)


@limit.command("list")
def list_(json: AsJson = False, dsn: Dsn = None) -> None:
    """Show the shared limits, who draws from them, and how much of them is taken."""
    with connected(dsn) as fifo:
        found = fifo.shared_limits()
    if json:
        print_json_rows(map(asdict, found))
        return
    print_table(
        (
            {
                "name": each.name,
                "active": each.active_count,
                "max_concurrent": each.max_concurrent,
                "rate": each.rate,
                "burst": each.burst,
                "waiting_lanes": each.waiting_lanes,
                "next_start": each.next_start_at,
                "drawn_from_by": _who(each),
            }
            for each in found
        ),
        "No shared limits.",
        wide=["drawn_from_by"],
    )


@limit.command()
def show(name: Name, json: AsJson = False, dsn: Dsn = None) -> None:
    """Show one shared limit."""
    with connected(dsn) as fifo:
        found = asdict(_found(fifo, name))
    if json:
        print_json(found)
    else:
        print_fields(found)


@limit.command()
def drop(name: Name, dsn: Dsn = None) -> None:
    """Take a shared limit away; what waited for it goes on."""
    with connected(dsn) as fifo:
        before = _found(fifo, name)
        fifo.drop_shared_limit(name)
    out(f"limit {name}: dropped")
    tell_undo(name, asdict(before), dict(NOTHING), dropped=True)


def tell_undo(
    name: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    created: bool = False,
    dropped: bool = False,
) -> None:
    """Say how to undo a change of a limit.

    Args:
        name: The limit.
        old: What its attributes were; others do not matter.
        new: What they are now.
        created: It was not there before.
        dropped: It is there no more.
    """
    if created:
        note(f"Undo: {command('limit', 'drop', name)}")
        return
    changed = [each for each in NOTHING if each in new and (old[each] != new[each] or dropped)]
    setting = [word for each in changed if old[each] != NOTHING[each] for word in _option(each, old[each])]
    # In this order: so it limits something at each step.
    if setting:
        note(f"Undo: {command('limit', 'set', name, *setting)}")
    unsetting = [each for each in changed if old[each] == NOTHING[each] and not dropped]
    if unsetting:
        note(f"Undo: {command('limit', 'unset', name, *unsetting)}")


def shown(value: object) -> str:
    """Return the value of a limit's attribute as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _change(name: str, values: "SharedLimitValues", dsn: str | None) -> None:
    """Change a limit, and say what that has changed and how to undo it."""
    from pgfifo.errors import UnknownAction

    with connected(dsn) as fifo:
        created = all(each.name != name for each in fifo.shared_limits())
        try:
            changes = fifo.set_shared_limit(name, **values)
        except UnknownAction as unknown:
            make = command("policy", "set", unknown.action or "ACTION", "--max-concurrent", "1")
            hint = f"{unknown.hint}\nTo make it: {make}\nA pack may be yet to come: --pack PACK"
            raise Refused(unknown.message, hint) from None
        now = [each for each in fifo.shared_limits() if each.name == name]
    # What a new one said before is nothing.
    old = {each.attribute: NOTHING[each.attribute] if each.old is None else each.old for each in changes}
    new = {each.attribute: each.new for each in changes}
    changed = [each for each in NOTHING if each in new and old[each] != new[each]]
    if created:
        out(f"limit {name}: created")
    elif not changed:
        note(f"Nothing to do: limit {name} has these values already.")
    for each in changed:
        out(f"limit {name}: {each} {shown(old[each])} → {shown(new[each])}")
    if not all(each.actions or each.packs or each.everything for each in now):
        note("No action draws from it. Say which do: --action ACTION, --pack PACK, or --everything.")
    if created or changed:
        tell_undo(name, old, new, created=created)


def _found(fifo: "Client", name: str) -> "SharedLimit":
    """Return a limit by its name."""
    limits = {each.name: each for each in fifo.shared_limits()}
    if name not in limits:
        raise Refused(f"there is no shared limit {name!r}", _instead(name, list(limits)))
    return limits[name]


def _instead(name: str, names: Sequence[str]) -> str:
    """Say what there is where a name is not."""
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"There are: {', '.join(names)}." if names else "There are none. See: pgfifo limit set --help"


def _attribute(name: str) -> str:
    """Return an attribute's name, as it was given or as its option is written."""
    found = name.removeprefix("--").replace("-", "_")
    found = {"action": "actions", "pack": "packs"}.get(found, found)
    if found not in NOTHING:
        raise usage(f"a shared limit has no attribute {name!r}", _instead(found, list(NOTHING)))
    return found


def _option(name: str, value: object) -> list[str]:
    """Return the words that set a value."""
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name}"]
    if isinstance(value, list):
        return [word for each in value for word in (f"--{name.removesuffix('s')}", str(each))]
    return [f"--{name.replace('_', '-')}", str(value)]


def _who(found: "SharedLimit") -> str | None:
    """Say who draws from a limit."""
    if found.everything:
        return "everything"
    return ", ".join([*(f"pack {pack}" for pack in found.packs), *found.actions]) or None
