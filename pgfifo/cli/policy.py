"""Policies: the limits and rules of an action, a lane, a pack, or everything."""

import copy
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from pgfifo.cli import limit
from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import REFUSED, usage
from pgfifo.cli.options import OPERATE, AsJson, Dsn, Group, Limit, Reason, group_of
from pgfifo.cli.output import as_json, note, out, print_json_rows, print_table, span

if TYPE_CHECKING:
    from pgfifo.client import Client
    from pgfifo.groups import Group as GroupValue
    from pgfifo.models import PolicyChange, PolicyDifference, PolicyValue
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

_LIMITS = {"max_concurrent", "max_queue_length", "rate", "burst", "spacing", "gap"}


def _number(help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(metavar="N", help=help, show_default=False)


def _text(metavar: str, help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(metavar=metavar, help=help, show_default=False)


_OPTIONS: dict[str, Any] = {
    "group_by": Annotated[
        list[str] | None,
        _text("PATHS", "Payload paths that split the action into lanes, as customer or env,target.region."),
    ],
    "max_concurrent": Annotated[int | None, _number("Slots of a lane: how many run at once.")],
    "ordering": Annotated[
        Literal["strict", "relaxed"] | None,
        _text(
            "HOW", "strict: the commit order of the enqueues; relaxed: producers do not wait for each other."
        ),
    ],
    "max_queue_length": Annotated[
        str | None, _text("N|unlimited", "How many may wait in a lane; more are refused.")
    ],
    "max_action_queue_length": Annotated[
        str | None,
        _text(
            "N|unlimited",
            "How many may wait in all lanes of an action; more are refused. Its enqueues go one at a time,"
            " each to its commit.",
        ),
    ],
    "on_limit": Annotated[
        Literal["enqueue", "cancel"] | None,
        _text(
            "HOW",
            "What cannot start at once; enqueue: it waits; cancel: it is refused, and enqueues to one lane go"
            " one at a time, each to its commit.",
        ),
    ],
    "rate": Annotated[
        str | None, _text("N/TIME|unlimited", "How many start in a lane per time, as 100/s, 10/min or 5/2h.")
    ],
    "burst": Annotated[
        int | None, _number("How many of them may start at once after a quiet time; all if not set.")
    ],
    "spacing": Annotated[str | None, _text("TIME", "The least time from start to start in a lane.")],
    "gap": Annotated[str | None, _text("TIME", "The least time from an end in a lane to the next start.")],
    "quota": Annotated[
        str | None,
        _text(
            "N/day|N/month",
            "Enqueues accepted per calendar day or month, as '1000/day Europe/Berlin'; for the scope as a"
            " whole, whose enqueues go one at a time, each to its commit.",
        ),
    ],
    "max_wait": Annotated[
        str | None, _text("TIME|unlimited", "How long an execution may wait before it expires.")
    ],
    "timeout": Annotated[str | None, _text("TIME|unlimited", "How long an attempt may run.")],
    "kill_after": Annotated[
        str | None,
        _text(
            "TIME|unlimited", "How long after its timeout, or after being asked to stop, a command is killed."
        ),
    ],
    "max_attempts": Annotated[int | None, _number("How many attempts may fail.")],
    "failure_mode": Annotated[
        Literal["hold", "yield", "tail"] | None,
        _text(
            "HOW",
            "What a failed attempt does to its lane; hold: it keeps its place and slot; yield: its place;"
            " tail: it goes to the end of the line.",
        ),
    ],
    "backoff": Annotated[
        Literal["exponential", "constant"] | None, _text("HOW", "How the pause after a failure grows.")
    ],
    "backoff_initial": Annotated[str | None, _text("TIME", "The first pause.")],
    "backoff_factor": Annotated[float | None, _number("What each next pause is multiplied with.")],
    "backoff_cap": Annotated[str | None, _text("TIME", "The longest pause.")],
    "backoff_jitter": Annotated[float | None, _number("By which part of itself a pause varies, 0 to 1.")],
    "on_exhausted": Annotated[
        Literal["continue", "pause"] | None,
        _text("HOW", "What the lane does after the last attempt; continue: it goes on; pause: it stops."),
    ],
    "retention": Annotated[
        str | None, _text("TIME|unlimited", "How long a finished execution can be looked up.")
    ],
    "lane_retention": Annotated[str | None, _text("TIME|unlimited", "How long an empty lane is kept.")],
    "max_payload": Annotated[int | None, _number("The largest payload and the largest result, in bytes.")],
    "declared_actions_only": Annotated[
        bool | None,
        typer.Option(
            help="With --default: refuse enqueues to actions that are not known, in place of creating them.",
            show_default=False,
        ),
    ],
    "audit_retention": Annotated[
        str | None, _text("TIME|unlimited", "With --default: how long the audit is kept.")
    ],
}
"""The option of each attribute."""
_SCOPES = "An action (with --group for one of its lanes), --pack PACK, or --default."
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_TAKES_A_WORD = ("max_queue_length", "max_action_queue_length")
_NOT_OVERRIDDEN = ("group_by", "ordering", "max_wait", "declared_actions_only", "audit_retention")


def _hidden(annotation: Any) -> Any:  # noqa: ANN401 - a type that typer reads
    """Return an option that the help does not show: it is there to be refused with a reason."""
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.hidden = True
    return Annotated[kind, option]


def _with_options(
    *names: str, hidden: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of attributes, for its ``**values``.

    Args:
        names: the attributes.
        hidden: those of them that the help does not show.
    """
    annotations = {name: _hidden(_OPTIONS[name]) if name in hidden else _OPTIONS[name] for name in names}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        options = [
            inspect.Parameter(name, _KEYWORD, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
        shown = []
        for each in inspect.signature(function).parameters.values():
            if each.kind is not each.VAR_KEYWORD:
                shown += [each.replace(kind=_KEYWORD), *(options if each.name == "default" else [])]
        function.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        function.__annotations__ |= annotations
        return function

    return decorate


def _values(given: dict[str, Any]) -> "Policy":
    """Return the attributes that were given on the command line."""
    values = {name: value for name, value in given.items() if value is not None}
    if "group_by" in values:
        values["group_by"] = [path for paths in values["group_by"] for path in paths.split(",") if path]
    for name in _TAKES_A_WORD:
        if name in values:
            values[name] = _count_or_word(values[name])
    return values  # type: ignore[return-value]


@policy.command("set")
@_with_options(*_OPTIONS)
def set_(
    action: Scope = None,
    group: Group = None,
    pack: Pack = None,
    default: Default = False,
    force: Annotated[
        bool, typer.Option("--force", help="Change group_by even while executions wait.")
    ] = False,
    dsn: Dsn = None,
    **values: object,
) -> None:
    """Set what is named, and leave the rest as it is."""
    wanted = _values(values)
    if not wanted:
        raise usage(
            "nothing to set", "Name an attribute, as --max-concurrent 3. See: pgfifo policy set --help"
        )
    _change(action, group, pack, default, wanted, force=force, dsn=dsn)


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
    action, names = (None, attributes) if pack or default else (attributes[0], attributes[1:])
    if not names:
        raise usage("nothing to unset", "Name an attribute, as max_concurrent.")
    values: Policy = dict.fromkeys(map(_attribute, names))  # type: ignore[assignment]
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
    lines = [
        {
            "attribute": each.attribute,
            "value": _shown(each.attribute, each.value),
            "source": each.source,
            "of": _of(each),
        }
        for each in found
    ]
    print_table(lines, "Nothing is set.")


@policy.command()
@_with_options(*_OPTIONS, hidden=_NOT_OVERRIDDEN)
def override(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ACTION] [ATTRIBUTE...]",
            help="The action, unless --pack or --default; with --end, which attributes. [default: all]",
            show_default=False,
        ),
    ] = None,
    group: Group = None,
    pack: Pack = None,
    default: Default = False,
    lasting: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="For how long, as 1h.", show_default=False)
    ] = None,
    reason: Reason = None,
    end: Annotated[bool, typer.Option("--end", help="End overrides now.")] = False,
    dsn: Dsn = None,
    **values: object,
) -> None:
    """Let values win over every scope's for a time; they end by themselves."""
    attributes = list(names or ())
    action = attributes.pop(0) if attributes and not pack and not default else None
    scope = _Scope.given(action, group, pack, default)
    wanted = _values(values)
    if end:
        if wanted or lasting:
            raise usage("--end ends overrides", "Name attributes without values, or none to end all.")
        _end_overrides(scope, [_attribute(name) for name in attributes], dsn)
        return
    if attributes:
        raise usage(f"{attributes[0]!r} is too much", "An attribute is named with its value, as --rate 10/s.")
    if not wanted:
        raise usage("nothing to override", "Name an attribute, as --max-concurrent 3.")
    if lasting is None:
        raise usage(
            "for how long?", "Say it with --for, as --for 1h. To change it for good: pgfifo policy set"
        )
    with connected(dsn) as fifo:
        before = scope.overridden(fifo)
        changes = scope.override(fifo, lasting, reason, wanted)
    for change in changes:
        old = _shown(change.attribute, change.old, none="as set")
        out(f"{scope}: {change.attribute} {old} → {_shown(change.attribute, change.new)}, {change.note}")
    for text in _below(scope, changes):
        note(text)
    if new := [change.attribute for change in changes if change.old is None]:
        note(f"Undo: {command('policy', 'override', *scope.words, '--end', *new)}")
    _tell_undos(scope, changes, before)


@policy.command()
def overrides(json: AsJson = False, dsn: Dsn = None) -> None:
    """Show the overrides that are in force, those that end first in front."""
    from pgfifo import groups

    with connected(dsn) as fifo:
        found = fifo.overrides()
    if json:
        print_json_rows(map(asdict, found))
        return
    print_table(
        (
            {
                "scope": each.scope,
                "of": groups.lane(each.action, each.group_text or "") if each.action else each.pack,
                "attribute": each.attribute,
                "value": _shown(each.attribute, each.value),
                "ends in": span(each.remaining),
                "until": each.until,
                "by": each.actor or each.set_by,
                "reason": each.reason,
            }
            for each in found
        ),
        "No overrides.",
        wide=["reason"],
    )


@policy.command()
def history(
    action: Scope = None,
    group: Group = None,
    pack: Pack = None,
    default: Default = False,
    limit: Limit = 50,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show who changed which attribute, when, from what to what; newest first."""
    from pgfifo import groups

    if [action is not None, pack is not None, default].count(True) > 1:
        raise usage(
            "name one scope, or none",
            "An action (with --group for one of its lanes), --pack PACK, or --default.",
        )
    if group and action is None:
        raise usage("--group needs the action whose lane it is")
    with connected(dsn) as fifo:
        scope: Literal["everything"] | None = "everything" if default else None
        found = fifo.policy_history(action, group_of(group), pack=pack, scope=scope, limit=limit)
    if json:
        print_json_rows(map(asdict, found))
        return
    print_table(
        (
            {
                "at": each.at,
                "by": each.actor or each.who,
                "scope": each.scope,
                "of": groups.lane(each.action, each.group_text or "") if each.action else each.pack,
                "attribute": each.attribute,
                "from": _shown(each.attribute, each.old),
                "to": _shown(each.attribute, each.new),
                "until": each.until,
                "application": each.application,
                "reason": each.reason,
            }
            for each in found
        ),
        "No changes on record.",
        wide=["application", "reason"],
    )


@policy.command()
def export(
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="Where to; - or nothing is stdout.", show_default=False)
    ] = "-",
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Write what operators have set as a TOML file, for version control."""
    from pgfifo import policyfile

    with connected(dsn) as fifo:
        policies = fifo.export_policies()
    text = f"{as_json(policies)}\n" if json else policyfile.dumps(policies)
    if file == "-":
        sys.stdout.write(text)
        return
    Path(file).write_text(text, encoding="utf-8")
    note(f"Wrote {file}. To bring a database to it: {command('policy', 'apply', file)}")


@policy.command()
def apply(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The TOML file; - is stdin.", show_default=False)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="As --dry-run, with exit status 1 if anything would change.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Unset what the file does not name, too; else it stays.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Change group_by even while executions wait.")
    ] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Bring policies and shared limits to what a file says, all or nothing, and show what has changed."""
    from pgfifo import policyfile

    policies = policyfile.loads(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    only_look = dry_run or check
    with connected(dsn) as fifo:
        before = {each.name for each in fifo.shared_limits()}
        found = fifo.apply_policies(policies, prune=prune, dry_run=only_look, force=force)
        after = {each.name for each in fifo.shared_limits()}
    if json:
        print_json_rows(map(asdict, found))
    scopes: dict[_Scope, list[PolicyDifference]] = {}
    limits: dict[str, list[PolicyDifference]] = {}
    for each in found:
        if each.limit_name is None:
            scopes.setdefault(_Scope.of(each), []).append(each)
        else:
            limits.setdefault(each.limit_name, []).append(each)
    for name, differences in limits.items():
        for each in differences if not json else ():
            out(f"limit {name}: {each.attribute} {limit.shown(each.old)} → {limit.shown(each.new)}")
        if differences[0].note:
            note(f"limit {name}: {differences[0].note}.")
    for scope, differences in scopes.items():
        for each in differences if not json else ():
            out(f"{scope}: {_from_to(each)}")
        for said in dict.fromkeys(each.note for each in differences if each.note):
            note(f"{scope}: {said}.")
    if not found:
        note("Nothing to do: the policies are what the file says.")
    elif only_look:
        words = ["--prune", file] if prune else [file]
        note(f"Nothing was changed. To apply it: {command('policy', 'apply', *words)}")
    else:
        for name, differences in limits.items():
            limit.tell_undo(
                name,
                {each.attribute: each.old for each in differences},
                {each.attribute: each.new for each in differences},
                created=name not in before,
                dropped=name not in after,
            )
        for scope, differences in scopes.items():
            _tell_undo(scope, differences)
    if check and found:
        raise typer.Exit(REFUSED)


@dataclass(frozen=True)
class _Scope:
    """What a change is for: an action, one of its lanes, a pack, or everything."""

    action: str | None
    pairs: tuple[str, ...]
    pack: str | None

    @classmethod
    def given(cls, action: str | None, group: list[str] | None, pack: str | None, default: bool) -> "_Scope":
        """Return what the command line names."""
        if [action is not None, pack is not None, default].count(True) != 1:
            raise usage("name one scope", _SCOPES)
        if group and action is None:
            raise usage("--group needs the action whose lane it is")
        return cls(action, tuple(group or ()), pack)

    @classmethod
    def of(cls, difference: "PolicyDifference") -> "_Scope":
        """Return where a difference is."""
        group = difference.group_text
        return cls(difference.action, (group,) if group is not None else (), difference.pack)

    @property
    def group(self) -> "GroupValue | None":
        """The lane's group, if it is one."""
        return group_of(self.pairs)

    @property
    def is_wide(self) -> bool:
        """Whether it is more than one action."""
        return self.action is None

    @property
    def words(self) -> list[str]:
        """How it is said on the command line."""
        if self.action is not None:
            return [self.action, *(word for pair in self.pairs for word in ("--group", pair))]
        return ["--default"] if self.pack is None else ["--pack", self.pack]

    def __str__(self) -> str:
        from pgfifo import groups

        if self.action is not None:
            return " ".join([self.action, *map(groups.display, self.pairs)])
        return "everything" if self.pack is None else f"pack {self.pack}"

    def set(self, fifo: "Client", force: bool, values: "Policy") -> "list[PolicyChange]":
        """Set attributes of it."""
        if self.action is not None:
            return fifo.set_policy(self.action, self.group, force=force, **values)
        if self.pack is not None:
            return fifo.set_pack_policy(self.pack, **values)
        return fifo.set_default_policy(**values)

    def override(
        self, fifo: "Client", lasting: str | None, reason: str | None, values: "Policy"
    ) -> "list[PolicyChange]":
        """Override attributes of it."""
        if self.action is not None:
            return fifo.override_policy(self.action, self.group, lasting=lasting, reason=reason, **values)
        if self.pack is not None:
            return fifo.override_pack_policy(self.pack, lasting=lasting, reason=reason, **values)
        return fifo.override_default_policy(lasting=lasting, reason=reason, **values)

    def has_no_rate(self, fifo: "Client") -> bool:
        """Tell whether no rate is in force there; of a pack, whose actions may have their own, never."""
        if self.pack is not None:
            return False
        found = {each.attribute: each.value for each in fifo.effective_policy(self.action, self.group)}
        return found.get("rate") in (None, "unlimited")

    def overridden(self, fifo: "Client") -> dict[str, float]:
        """Return what is overridden there, and for how many seconds more."""
        from pgfifo.errors import UnknownAction

        if self.action is None:
            here = [each for each in fifo.overrides() if each.action is None and each.pack == self.pack]
            return {each.attribute: each.remaining for each in here}
        kind = "lane " if self.pairs else "action "
        try:
            found = fifo.effective_policy(self.action, self.group)
        except UnknownAction:  # who overrides something of it, makes it
            return {}
        return {
            value.attribute: value.remaining
            for value in found
            if value.remaining is not None and (value.origin or "").startswith(kind)
        }


def _end_overrides(scope: _Scope, names: list[str], dsn: str | None) -> None:
    """End overrides of a scope, and say how to set them again for the time that was left."""
    with connected(dsn) as fifo:
        before = scope.overridden(fifo)
        values: Policy = dict.fromkeys(names or before)  # type: ignore[assignment]
        changes = [change for change in scope.override(fifo, None, None, values) if change.old is not None]
    if not changes:
        note(f"Nothing to do: nothing of {scope} is overridden{'' if not names else ' there'}.")
    for change in changes:
        out(f"{scope}: the override of {change.attribute}, {_shown(change.attribute, change.old)}, has ended")
    _tell_undos(scope, changes, before)


def _tell_undos(scope: _Scope, changes: "Sequence[PolicyChange]", before: dict[str, float]) -> None:
    """Say how overrides that were there before are set again, for the time that was left."""
    from pgfifo import durations

    for change in changes:
        if change.old is not None:
            left = max(1, round(before.get(change.attribute, 1)))
            words = [*_option(change.attribute, change.old), "--for", durations.text(left)]
            note(f"Undo: {command('policy', 'override', *scope.words, *words)}")


def _of(value: "PolicyValue") -> str | None:
    """Say which scope a value is from, and until when."""
    if value.remaining is None:
        return value.origin
    return f"{value.origin}, for another {span(value.remaining)}"


def _attribute(name: str) -> str:
    """Return an attribute's name, as it was given or as its option is written."""
    from pgfifo.policies import Policy

    name = name.removeprefix("--").replace("-", "_")
    if name in Policy.__annotations__:
        return name
    near = difflib.get_close_matches(name, Policy.__annotations__, 1)
    there_are = f"There are: {', '.join(Policy.__annotations__)}."
    raise usage(f"a policy has no attribute {name!r}", f"Did you mean {near[0]!r}?" if near else there_are)


def _below(scope: _Scope, changed: "Sequence[PolicyChange]") -> list[str]:
    """Say what limits of a wide scope are, and what they are not."""
    limits = {c.attribute for c in changed if c.new not in (None, "unlimited")} if scope.is_wide else set()
    said = []
    if limits & _LIMITS:
        below = f"This is a default for each lane below {scope}"
        said.append(f"{below}, not a cap over all of them together: that is a shared limit.")
        # What a shared limit can say of it, in the words of its command.
        also = [c for c in changed if c.attribute in limits & {"max_concurrent", "rate", "burst"}]
        if {c.attribute for c in also} - {"burst"}:
            words = [word for c in also for word in _option(c.attribute, c.new)]
            who = ["--everything"] if scope.pack is None else ["--pack", scope.pack]
            name = re.sub("[^A-Za-z0-9_.:-]", "-", scope.pack or "everything").lstrip("-.:") or "shared"
            instead = command("limit", "set", name, *words, *who)
            said.append(f"For a cap over all of them together: {instead}")
    if "max_action_queue_length" in limits:
        said.append(f"max_action_queue_length is a default for each action below {scope}.")
    if "quota" in limits:
        said.append(f"The quota is one for all of {scope} together.")
    return said


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
    """Change a scope's values, and say what that has changed, what it means, and how to undo it."""
    scope = _Scope.given(action, group, pack, default)
    with connected(dsn) as fifo:
        changes = scope.set(fifo, force, values)
        idle_burst = values.get("burst") is not None and "rate" not in values and scope.has_no_rate(fifo)
    changed = [change for change in changes if change.old != change.new]
    if not changed:
        note(f"Nothing to do: {scope} has these values already.")
    for change in changed:
        out(f"{scope}: {_from_to(change)}")
    for text in _below(scope, changed):
        note(text)
    if idle_burst:
        note(f"No rate is set for {scope}: a burst has no effect until there is one, as --rate 10/s.")
    for text in dict.fromkeys(change.note for change in changes if change.note):
        note(f"{text[0].upper()}{text[1:]}.")
    _tell_undo(scope, changed)


def _from_to(change: "PolicyChange | PolicyDifference") -> str:
    """Say what has changed."""
    old, new = (_shown(change.attribute, value, none="inherited") for value in (change.old, change.new))
    return f"{change.attribute} {old} → {new}"


def _tell_undo(scope: _Scope, changed: "Sequence[PolicyChange | PolicyDifference]") -> None:
    """Say how to undo changes of one scope."""
    words = scope.words
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
    from pgfifo.policies import DURATIONS

    if value is None:
        return none
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "(none)"
    if name in DURATIONS and isinstance(value, int | float):
        return durations.text(float(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count_or_word(text: str | None) -> object:
    """Read a number; leave a word as it is."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else text
