"""Policies: the limits and rules of an action, a lane, a pack, or everything."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import usage
from pgfifo.cli.options import OPERATE, AsJson, Dsn, Group, group_of
from pgfifo.cli.output import note, out, print_json_rows, print_table

if TYPE_CHECKING:
    from pgfifo.models import PolicyChange
    from pgfifo.policies import Policy

policy = typer.Typer(
    name="policy",
    help="Limits and rules, per lane, action, pack or for everything; the most specific value wins.",
    no_args_is_help=True,
)
app.add_typer(policy, rich_help_panel=OPERATE)

Scope = Annotated[
    str | None,
    typer.Argument(metavar="[ACTION]", help="The action, unless --pack or --default.", show_default=False),
]
Pack = Annotated[
    str | None,
    typer.Option(
        "--pack",
        metavar="PACK",
        help="The pack: what stands before an action's last dot.",
        show_default=False,
    ),
]
Default = Annotated[bool, typer.Option("--default", help="Everything: what holds where nothing else is set.")]

_DURATIONS = (
    "spacing",
    "gap",
    "max_wait",
    "timeout",
    "kill_after",
    "backoff_initial",
    "backoff_cap",
    "retention",
    "lane_retention",
)
_LIMITS = {"max_concurrent", "max_queue_length", "rate", "burst", "spacing", "gap"}


def _number(help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(metavar="N", help=help, show_default=False)


def _text(metavar: str, help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(metavar=metavar, help=help, show_default=False)


@policy.command("set")
def set_(
    action: Scope = None,
    group: Group = None,
    pack: Pack = None,
    default: Default = False,
    group_by: Annotated[
        list[str] | None,
        _text("PATHS", "Payload paths that split the action into lanes, as customer or env,target.region."),
    ] = None,
    max_concurrent: Annotated[int | None, _number("Slots of a lane: how many run at once.")] = None,
    ordering: Annotated[
        Literal["strict", "relaxed"] | None,
        _text(
            "HOW", "strict: the commit order of the enqueues; relaxed: producers do not wait for each other."
        ),
    ] = None,
    max_queue_length: Annotated[
        str | None, _text("N|unlimited", "How many may wait in a lane; more are refused.")
    ] = None,
    max_action_queue_length: Annotated[
        str | None, _text("N|unlimited", "How many may wait in all lanes of an action; more are refused.")
    ] = None,
    on_limit: Annotated[
        Literal["enqueue", "cancel"] | None,
        _text("HOW", "What cannot start at once; enqueue: it waits; cancel: it is refused."),
    ] = None,
    rate: Annotated[
        str | None, _text("N/TIME|unlimited", "How many start in a lane per time, as 100/s, 10/min or 5/2h.")
    ] = None,
    burst: Annotated[
        int | None, _number("How many of them may start at once after a quiet time; all if not set.")
    ] = None,
    spacing: Annotated[str | None, _text("TIME", "The least time from start to start in a lane.")] = None,
    gap: Annotated[
        str | None, _text("TIME", "The least time from an end in a lane to the next start.")
    ] = None,
    quota: Annotated[
        str | None,
        _text(
            "N/day|N/month",
            "Enqueues accepted per calendar day or month, as '1000/day Europe/Berlin'; for the scope as a"
            " whole.",
        ),
    ] = None,
    max_wait: Annotated[
        str | None, _text("TIME|unlimited", "How long an execution may wait before it expires.")
    ] = None,
    timeout: Annotated[str | None, _text("TIME|unlimited", "How long an attempt may run.")] = None,
    kill_after: Annotated[
        str | None,
        _text(
            "TIME|unlimited", "How long after its timeout, or after being asked to stop, a command is killed."
        ),
    ] = None,
    max_attempts: Annotated[int | None, _number("How many attempts may fail.")] = None,
    failure_mode: Annotated[
        Literal["hold", "yield", "tail"] | None,
        _text(
            "HOW",
            "What a failed attempt does to its lane; hold: it keeps its place and slot; yield: its place;"
            " tail: it goes to the end of the line.",
        ),
    ] = None,
    backoff: Annotated[
        Literal["exponential", "constant"] | None, _text("HOW", "How the pause after a failure grows.")
    ] = None,
    backoff_initial: Annotated[str | None, _text("TIME", "The first pause.")] = None,
    backoff_factor: Annotated[float | None, _number("What each next pause is multiplied with.")] = None,
    backoff_cap: Annotated[str | None, _text("TIME", "The longest pause.")] = None,
    backoff_jitter: Annotated[
        float | None, _number("By which part of itself a pause varies, 0 to 1.")
    ] = None,
    on_exhausted: Annotated[
        Literal["continue", "pause"] | None,
        _text("HOW", "What the lane does after the last attempt; continue: it goes on; pause: it stops."),
    ] = None,
    retention: Annotated[
        str | None, _text("TIME|unlimited", "How long a finished execution can be looked up.")
    ] = None,
    lane_retention: Annotated[str | None, _text("TIME|unlimited", "How long an empty lane is kept.")] = None,
    max_payload: Annotated[
        int | None, _number("The largest payload and the largest result, in bytes.")
    ] = None,
    declared_actions_only: Annotated[
        bool | None,
        typer.Option(
            help="With --default: refuse enqueues to actions that are not known, in place of creating them.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Change group_by even while executions wait.")
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Set what is named, and leave the rest as it is."""
    given: dict[str, object] = {
        "group_by": [path for paths in group_by for path in paths.split(",") if path]
        if group_by is not None
        else None,
        "max_concurrent": max_concurrent,
        "ordering": ordering,
        "max_queue_length": _count_or_word(max_queue_length),
        "max_action_queue_length": _count_or_word(max_action_queue_length),
        "on_limit": on_limit,
        "rate": rate,
        "burst": burst,
        "spacing": spacing,
        "gap": gap,
        "quota": quota,
        "max_wait": max_wait,
        "timeout": timeout,
        "kill_after": kill_after,
        "max_attempts": max_attempts,
        "failure_mode": failure_mode,
        "backoff": backoff,
        "backoff_initial": backoff_initial,
        "backoff_factor": backoff_factor,
        "backoff_cap": backoff_cap,
        "backoff_jitter": backoff_jitter,
        "on_exhausted": on_exhausted,
        "retention": retention,
        "lane_retention": lane_retention,
        "max_payload": max_payload,
        "declared_actions_only": declared_actions_only,
    }
    values: Policy = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    if not values:
        raise usage(
            "nothing to set", "Name an attribute, as --max-concurrent 3. See: pgfifo policy set --help"
        )
    _change(action, group, pack, default, values, force=force, dsn=dsn)


@policy.command()
def unset(
    attributes: Annotated[
        list[str],
        typer.Argument(
            metavar="[ACTION] ATTRIBUTE...", help="What to unset, as max_concurrent.", show_default=False
        ),
    ],
    group: Group = None,
    pack: Pack = None,
    default: Default = False,
    force: Annotated[
        bool, typer.Option("--force", help="Change group_by even while executions wait.")
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Take values back, so that those of the wider scope hold again."""
    from pgfifo.policies import Policy

    action, names = (None, attributes) if pack or default else (attributes[0], attributes[1:])
    names = [name.removeprefix("--").replace("-", "_") for name in names]
    if not names:
        raise usage("nothing to unset", "Name an attribute, as max_concurrent.")
    for name in names:
        if name not in Policy.__annotations__:
            near = difflib.get_close_matches(name, Policy.__annotations__, 1)
            there_are = f"There are: {', '.join(Policy.__annotations__)}."
            raise usage(
                f"a policy has no attribute {name!r}", f"Did you mean {near[0]!r}?" if near else there_are
            )
    values: Policy = dict.fromkeys(names)  # type: ignore[assignment]
    _change(action, group, pack, default, values, force=force, dsn=dsn)


@policy.command()
def show(
    action: Annotated[
        str | None,
        typer.Argument(metavar="[ACTION]", help="The action, unless --default.", show_default=False),
    ] = None,
    group: Group = None,
    default: Default = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show what is in force for an action or a lane, and where each value comes from."""
    if (action is None) is not default:
        raise usage("name one scope", "An ACTION (with --group for one of its lanes), or --default.")
    if group and action is None:
        raise usage("--group needs the action whose lane it is")
    with connected(dsn) as fifo:
        found = fifo.effective_policy(action, group_of(group))
    if json:
        print_json_rows(map(asdict, found))
        return
    lines = [asdict(value) | {"value": _shown(value.attribute, value.value)} for value in found]
    print_table(lines, "Nothing is set.")


def _change(
    action: str | None,
    group: list[str] | None,
    pack: str | None,
    default: bool,
    values: "Policy",
    *,
    force: bool,
    dsn: str | None,
) -> None:
    """Change a scope's values, and say what that has changed."""
    if [action is not None, pack is not None, default].count(True) != 1:
        raise usage(
            "name one scope", "An action (with --group for one of its lanes), --pack PACK, or --default."
        )
    if group and action is None:
        raise usage("--group needs the action whose lane it is")
    with connected(dsn) as fifo:
        if action is not None:
            scope = " ".join([action, *(group or [])])
            words = [action, *(word for pair in group or [] for word in ("--group", pair))]
            changes = fifo.set_policy(action, group_of(group), force=force, **values)
        elif pack is not None:
            scope, words = f"pack {pack}", ["--pack", pack]
            changes = fifo.set_pack_policy(pack, **values)
        else:
            scope, words = "everything", ["--default"]
            changes = fifo.set_default_policy(**values)
    _tell(scope, words, changes, wide=action is None)


def _tell(scope: str, words: list[str], changes: "Sequence[PolicyChange]", *, wide: bool) -> None:
    """Say what was changed, what that means, and how to undo it."""
    changed = [change for change in changes if change.old != change.new]
    if not changed:
        note(f"Nothing to do: {scope} has these values already.")
    for change in changed:
        old, new = (_shown(change.attribute, value, none="inherited") for value in (change.old, change.new))
        out(f"{scope}: {change.attribute} {old} → {new}")
    notes = [change.note for change in changes if change.note]
    if (
        wide
        and not notes
        and any(c.attribute in _LIMITS and c.new not in (None, "unlimited") for c in changed)
    ):
        below = f"This is a default for each lane below {scope}"
        notes = [f"{below}, not a cap over all of them together: that is a shared limit."]
    for text in dict.fromkeys(notes):
        note(text)
    # What waited when group_by was changed waits still.
    words = [*words, "--force"] if any(c.attribute == "group_by" and c.note for c in changed) else words
    setting = [word for c in changed if c.old is not None for word in _option(c.attribute, c.old)]
    if setting:
        note(f"Undo: {command('policy', 'set', *words, *setting)}")
    unsetting = [c.attribute for c in changed if c.old is None]
    if unsetting:
        note(f"Undo: {command('policy', 'unset', *words, *unsetting)}")


def _option(name: str, value: object) -> list[str]:
    """Return the words that set a value."""
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
    return [f"--{name.replace('_', '-')}", _shown(name, value)]


def _shown(name: str, value: object, none: str = "-") -> str:
    """Return a value in the form in which it is given on the command line."""
    from pgfifo import durations

    if value is None:
        return none
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "(none)"
    if name in _DURATIONS and isinstance(value, int | float):
        return durations.text(float(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count_or_word(text: str | None) -> object:
    """Read a number; leave a word as it is."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else text
