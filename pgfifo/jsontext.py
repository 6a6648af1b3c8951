"""Python values as JSON text for PostgreSQL, refused early and in words where jsonb would refuse them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pgfifo.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class JsonText(str):
    """JSON that is text already, such as a line of a file: it is sent as it is, and PostgreSQL checks it."""

    __slots__ = ()


def dumps(value: object, what: str = "payload", index: int | None = None) -> str:
    """Return a value as JSON text.

    Args:
        value: What JSON knows: None, bool, int, float, str, and lists and dicts of them; or a `JsonText`.
        what: What the error message calls it.
        index: Its place in a batch, counted from 0, for the error.

    Raises:
        InvalidValue: JSON or jsonb has no such value: another type, NaN or an infinity, a NUL character, half
            of a surrogate pair, a structure that contains itself.
    """
    if type(value) is JsonText:
        return value
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except TypeError as error:
        hint = "Convert it first, for example with str() or .isoformat()."
        raise _wrong(what, index, str(error), hint) from None
    except RecursionError:
        raise _wrong(what, index, "it is nested too deeply") from None
    except UnicodeEncodeError:
        raise _wrong(what, index, "it holds half of a surrogate pair, which is no character") from None
    except ValueError as error:
        if "Out of range" in str(error):
            raise _wrong(what, index, "it holds NaN or an infinity", "JSON has neither; use null.") from None
        raise _wrong(what, index, str(error)) from None
    if "\\u0000" in text and _NUL.search(text):
        raise _wrong(what, index, "it holds a NUL character", "PostgreSQL has none in text; remove it.")
    return text


def dumps_each(values: Iterable[object], what: str) -> list[str]:
    """Return each value of a batch as JSON text; the error names the first that has none (see `dumps`)."""
    return [dumps(value, what, index) for index, value in enumerate(values)]


def array(texts: Sequence[str | None]) -> str:
    """Return texts as one PostgreSQL array literal, many times faster than a driver that goes through them.

    Raises:
        InvalidValue: A text has a NUL character, which PostgreSQL cannot store.
    """
    if None in texts:
        for index, text in enumerate(texts):
            if "\0" in (text or ""):
                raise _nul(index)
        return "{" + ",".join(["NULL" if text is None else _quoted(text) for text in texts]) + "}"
    if not texts:
        return "{}"
    # NUL is in no valid text, so it can stand between them while all are escaped in one go.
    joined = "\0".join(texts)  # type: ignore[arg-type]  # no None is left
    if joined.count("\0") != len(texts) - 1:
        raise _nul(next(index for index, text in enumerate(texts) if text and "\0" in text))
    return '{"' + joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","') + '"}'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _nul(index: int) -> InvalidValue:
    return _wrong("text", index, "it holds a NUL character", "PostgreSQL has none in text; remove it.")


def _wrong(what: str, index: int | None, reason: str, hint: str | None = None) -> InvalidValue:
    place = "" if index is None else f" of item {index}"
    detail: dict[str, object] = {"name": what, "reason": reason}
    if index is not None:
        detail["index"] = index
    return InvalidValue(f"the {what}{place} cannot be stored: {reason}", detail=detail, hint=hint)
