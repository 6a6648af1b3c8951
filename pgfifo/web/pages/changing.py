"""Changes: a page that says what will happen, and the form on it. What was done is told with its undoing."""

from __future__ import annotations

import json
import secrets
import shlex
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pgfifo import groups
from pgfifo.client_async import AsyncClient
from pgfifo.web.pages import formats
from pgfifo.web.pages.looking import limit_value
from pgfifo.web.problems import ProblemError, of_status

Form = Mapping[str, str]

_MOST_MESSAGES = 500


@dataclass(frozen=True, slots=True)
class Input:
    """A field that somebody fills in.

    Attributes:
        name: Its name in the form.
        label: What it is called.
        hint: What to write there.
        value: What stands there at first.
        kind: ``text`` or ``checkbox``.
    """

    name: str
    label: str
    hint: str = ""
    value: str = ""
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What is asked before something is done.

    Attributes:
        title: What would be done.
        text: What comes of it.
        button: What the button says.
        back: Where somebody goes who does not want it.
        inputs: What there is to fill in.
        danger: Whether it cannot be undone.
    """

    title: str
    text: str
    button: str
    back: str
    inputs: tuple[Input, ...] = ()
    danger: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What was done.

    Attributes:
        message: That, in words.
        there: Where to look at it.
        undo: Which change undoes it, and with which values; None where nothing does.
        command: What undoes it on the command line.
    """

    message: str
    there: str
    undo: tuple[str, dict[str, str]] | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Something that can be done on the pages.

    Attributes:
        fields: What it is done to, as the form has it.
        ask: Returns what is asked before.
        do: Does it.
    """

    fields: tuple[str, ...]
    ask: Callable[[Form], Confirmation]
    do: Callable[[AsyncClient, Form], Awaitable[Done]]


@dataclass
class Messages:
    """What was done, until it has been shown once: kept here, so that nobody else can put words into it."""

    _kept: OrderedDict[str, Done] = field(default_factory=OrderedDict)

    def keep(self, done: Done) -> str:
        """Keep a message, and return the key to it."""
        key = secrets.token_urlsafe(12)
        self._kept[key] = done
        while len(self._kept) > _MOST_MESSAGES:
            self._kept.popitem(last=False)
        return key

    def take(self, key: str | None) -> Done | None:
        """Return a message, once."""
        return self._kept.pop(key, None) if key else None


def _target(form: Form) -> tuple[str, str | None, str]:
    """Return action, group and the name of both."""
    action, group = form.get("action", ""), form.get("group") or None
    if not action:
        raise ProblemError(of_status(422, "It is not said which action."))
    return action, group, formats.lane(action, group)


def _of(form: Form) -> dict[str, str]:
    action, group, _ = _target(form)
    return {"action": action} | ({"group": group} if group else {})


def _page_of(form: Form) -> str:
    action, group, _ = _target(form)
    if group:
        return formats.query("/lane", {"action": action, "group": group})
    return formats.query("/action", {"name": action})


def _command(*words: str, form: Form | None = None) -> str:
    given = list(words)
    if form is not None:
        action, group, _ = _target(form)
        given.append(action)
        if group:
            parsed = groups.parse(group)
            shown = (
                [formats.group(group)]
                if isinstance(parsed, str)
                else [formats.group(_single(path, value)) for path, value in parsed.items()]
            )
            for each in shown:
                given += ["--group", each]
    return shlex.join(["pgfifo", *given])


def _single(path: str, value: object) -> str:
    return json.dumps({path: value}, ensure_ascii=False)


_REASON = Input("reason", "Reason", "Whoever asks why is told this; it is in the audit, too.")


def _ask_pause(form: Form) -> Confirmation:
    *_, name = _target(form)
    return Confirmation(
        f"Pause {name}",
        "Nothing more starts there until it is resumed. What runs goes on, and enqueues are still let in.",
        "Pause",
        _page_of(form),
        (_REASON,),
    )


async def _pause(fifo: AsyncClient, form: Form) -> Done:
    action, group, name = _target(form)
    changed = await fifo.pause(action, group, reason=form.get("reason", "").strip() or None)
    message = f"{name} is paused: nothing more starts there." if changed else f"{name} was paused already."
    return Done(message, _page_of(form), ("resume", _of(form)), _command("resume", form=form))


def _ask_resume(form: Form) -> Confirmation:
    *_, name = _target(form)
    return Confirmation(
        f"Resume {name}", "What waits there starts again, in its order.", "Resume", _page_of(form)
    )


async def _resume(fifo: AsyncClient, form: Form) -> Done:
    action, group, name = _target(form)
    changed = await fifo.resume(action, group)
    message = f"{name} goes on." if changed else f"{name} was not paused."
    return Done(message, _page_of(form), ("pause", _of(form)), _command("pause", form=form))


def _ask_pause_all(_: Form) -> Confirmation:
    return Confirmation(
        "Pause everything",
        "Nothing more starts in any lane until everything is resumed. What runs goes on.",
        "Pause everything",
        "/",
        (_REASON,),
    )


async def _pause_all(fifo: AsyncClient, form: Form) -> Done:
    changed = await fifo.pause_everything(reason=form.get("reason", "").strip() or None)
    message = "Everything is paused." if changed else "Everything was paused already."
    return Done(message, "/", ("resume-everything", {}), _command("resume", "--everything"))


def _ask_resume_all(_: Form) -> Confirmation:
    return Confirmation(
        "Resume everything",
        "Lanes start again, except those whose action is paused, or that are paused themselves.",
        "Resume everything",
        "/",
    )


async def _resume_all(fifo: AsyncClient, _: Form) -> Done:
    changed = await fifo.resume_everything()
    message = "Everything goes on." if changed else "Everything was not paused."
    return Done(message, "/", ("pause-everything", {}), _command("pause", "--everything"))


def _number(form: Form) -> int:
    text = form.get("id", "")
    if not text.isdecimal():
        raise ProblemError(of_status(422, "It is not said which execution."))
    return int(text)


def _execution(number: int) -> str:
    return formats.query("/execution", {"id": number})


def _ask_cancel(form: Form) -> Confirmation:
    number = _number(form)
    return Confirmation(
        f"Cancel execution {number}",
        "If it waits, it ends now. If it runs, its worker is asked to stop it; what it has done stays done.",
        "Cancel it",
        _execution(number),
        (_REASON,),
        danger=True,
    )


_CANCELLED = {
    "cancelled": "Execution {} is cancelled.",
    "requested": "Execution {} runs: its worker was asked to stop it.",
}


async def _cancel(fifo: AsyncClient, form: Form) -> Done:
    number = _number(form)
    answer = await fifo.cancel(number, reason=form.get("reason", "").strip() or None)
    message = _CANCELLED.get(answer, "Execution {} had ended before: " + answer + ".").format(number)
    if answer != "cancelled":
        return Done(message, _execution(number))
    return Done(message, _execution(number), ("retry", {"id": str(number)}), _command("retry", str(number)))


def _ask_retry(form: Form) -> Confirmation:
    number = _number(form)
    return Confirmation(
        f"Put execution {number} back",
        "A new execution with the same payload joins the line. What has become of this one stays on record.",
        "Put it back",
        _execution(number),
        (Input("head", "In its old place, before all that were enqueued since", kind="checkbox"),),
    )


async def _retry(fifo: AsyncClient, form: Form) -> Done:
    number = _number(form)
    new = await fifo.retry(number, head=bool(form.get("head")))
    return Done(
        f"Execution {number} is put back, as execution {new}.",
        _execution(new),
        ("cancel", {"id": str(new)}),
        _command("cancel", str(new)),
    )


def _ask_limit(form: Form) -> Confirmation:
    *_, name = _target(form)
    attribute = form.get("attribute", "")
    limit_value(attribute, "")
    return Confirmation(
        f"Change {attribute} of {name}",
        "It holds at once: a raised limit fills, a lowered one drains. Left empty, it is inherited again."
        + ("" if form.get("group") else " It is a default for each lane of the action, not a sum over them."),
        "Change it",
        formats.query("/policies", _of(form)),
        (Input("value", attribute, _HINTS.get(attribute, "A number."), form.get("value", "")),),
    )


_HINTS = (
    {
        "rate": "Starts per time: 100/s, 10/min, 5/2h; or unlimited.",
        "max_queue_length": "A number, or unlimited.",
    }
    | dict.fromkeys(("spacing", "gap"), "A duration: 500ms, 30s, 5m.")
    | dict.fromkeys(("timeout", "max_wait"), "A duration, as 30s or 2h; or unlimited.")
)


async def _limit(fifo: AsyncClient, form: Form) -> Done:
    action, group, name = _target(form)
    attribute = form.get("attribute", "")
    value = limit_value(attribute, form.get("value", ""))
    [change] = await fifo.set_policy(action, group, **{attribute: value})  # type: ignore[arg-type]  # checked
    old, new = formats.setting(change.old, attribute), formats.setting(change.new, attribute)
    before = "" if change.old is None else str(change.old)
    undo = (
        _command("policy", "unset", form=form) + f" {attribute}"
        if change.old is None
        else _command("policy", "set", form=form) + f" --{attribute.replace('_', '-')} {shlex.quote(before)}"
    )
    return Done(
        f"{attribute} of {name}: {old} → {new}." + (f" {change.note}" if change.note else ""),
        formats.query("/policies", _of(form)),
        ("limit", _of(form) | {"attribute": attribute, "value": before}),
        undo,
    )


CHANGES: dict[str, Change] = {
    "pause": Change(("action", "group"), _ask_pause, _pause),
    "resume": Change(("action", "group"), _ask_resume, _resume),
    "pause-everything": Change((), _ask_pause_all, _pause_all),
    "resume-everything": Change((), _ask_resume_all, _resume_all),
    "cancel": Change(("id",), _ask_cancel, _cancel),
    "retry": Change(("id",), _ask_retry, _retry),
    "limit": Change(("action", "group", "attribute"), _ask_limit, _limit),
}
"""What can be done on the pages."""
