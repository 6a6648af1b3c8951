"""What became of one attempt, in the form in which a worker hands it in."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import dataclass
from typing import Literal

from pgfifo.errors import InvalidValue
from pgfifo.jsontext import dumps
from pgfifo.retrying import Abort, Retry

Kind = Literal["succeeded", "failed", "released", "cancelled"]

ERROR_LIMIT = 16 * 1024
"""The most bytes of error text that are kept."""
RESULT_LIMIT = 1024 * 1024
"""The most bytes of JSON that a result may have."""

_MESSAGE_LIMIT = 4 * 1024
# PostgreSQL's text has no NUL, and UTF-8 no half of a surrogate pair.
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. A handler may return one instead of a result; commands do.

    Attributes:
        kind: What to record: succeeded, failed, cancelled, or released (back to its place, and no failure).
        result: The result as JSON text, or None.
        error: What to keep as error text.
        retry: Whether a failed one may be tried again.
        after: In how many seconds, in place of the policy's backoff.
        count: Whether it counts as a failure; if not, it is only put off.
        result_error: Why it succeeded and has no result all the same.
    """

    kind: Kind
    result: str | None = None
    error: str | None = None
    retry: bool = True
    result_error: str | None = None
    after: float | None = None
    count: bool = True

    def as_json(self, execution_id: int, attempt: int) -> str:
        """Return it as an item of the JSON array that SQL's ``work`` takes as ``p_finished``."""
        text = f'{{"id":{execution_id},"attempt":{attempt},"outcome":"{self.kind}"'
        if self.result is not None:
            text += f',"result":{self.result}'
        if self.error is not None:
            text += f',"error":{_encode(self.error)}'
        if not self.retry:
            text += ',"retry":false'
        if self.after is not None:
            text += f',"after":{self.after!r}'
        if not self.count:
            text += ',"count":false'
        if self.result_error is not None:
            text += f',"result_error":{_encode(self.result_error)}'
        return text + "}"

    def without_result(self, reason: str) -> Outcome:
        """Return the same outcome for a result that PostgreSQL refuses."""
        return Outcome(self.kind, None, self.error, self.retry, storable(reason, _MESSAGE_LIMIT))


NO_RESULT = Outcome("succeeded")
RELEASED = Outcome("released")
CANCELLED = Outcome("cancelled")


def succeeded(result: object = None) -> Outcome:
    """Return the outcome of a handler that returned this value, which may turn out not to be JSON."""
    if result is None:
        return NO_RESULT
    if isinstance(result, Outcome):
        return result
    try:
        text = dumps(result, "result")
    except InvalidValue as error:
        return NO_RESULT.without_result(error.message)
    size = len(text) if text.isascii() else len(text.encode())
    if size > RESULT_LIMIT:
        return NO_RESULT.without_result(f"the result has {size} bytes of JSON; the limit is {RESULT_LIMIT}")
    return Outcome("succeeded", text)


def failed(error: str, *, retry: bool = True) -> Outcome:
    """Return the outcome of an attempt that failed for a reason that is told in words."""
    return Outcome("failed", error=storable(error), retry=retry)


def raised(error: BaseException) -> Outcome:
    """Return the outcome of a handler that raised: ``Type: message``, then the end of the traceback."""
    message = storable("".join(traceback.format_exception_only(error)).strip(), _MESSAGE_LIMIT)
    lines = storable("".join(traceback.format_exception(error)).strip(), None)
    return Outcome("failed", error=f"{message}\n\n{tail(lines, ERROR_LIMIT - _MESSAGE_LIMIT - 8)}")


def asked(error: Retry | Abort) -> Outcome:
    """Return the outcome of a handler that raised one of these, with the traceback of what was behind it."""
    said = [error.reason] if error.reason else []
    if error.__cause__ is not None:
        said.append(raised(error.__cause__).error or "")
    if isinstance(error, Abort):
        return failed("\n\n".join(said) or "the handler gave up", retry=False)
    if not said and error.count:
        said.append("the handler asked to be tried again")
    text = storable("\n\n".join(said)) if said else None
    return Outcome("failed", error=text, after=error.after, count=error.count)


def storable(text: str, limit: int | None = ERROR_LIMIT) -> str:
    """Return a text that PostgreSQL can hold, cut off after so many bytes."""
    text = _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
    if limit is None or len(text) * 4 <= limit:
        return text
    encoded = text.encode()
    return text if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "…"


def tail(text: str, limit: int) -> str:
    """Return the end of a text, at most so many bytes of it."""
    encoded = text.encode()
    return text if len(encoded) <= limit else "…" + encoded[3 - limit :].decode(errors="ignore")
