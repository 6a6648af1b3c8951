"""Python values as JSON text for PostgreSQL, refused early and in words where jsonb would refuse them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn, Self

from psycopg.types.json import JsonbLoader

from pgfifo.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from psycopg.abc import Buffer


def _plain(value: object) -> object:
    """Return what JSON has for an instance of a dataclass, or of a model."""
    if hasattr(value, "__pydantic_serializer__") and not isinstance(value, type):
        dump: Callable[..., object] = value.__pydantic_serializer__.to_python
        return dump(value, mode="json")
    if any(hasattr(type(value), name) for name in _MODELS):
        import msgspec

        return msgspec.to_builtins(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_MODELS = ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
_MAX_DEPTH = 500
"""The deepest nesting that is let through; the server's own limit depends on its settings, some thousands."""
_LONGEST_FLOAT = 308
_MAX_EXPONENT = 131_071
_MAX_FRACTION = 16_383
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class UnstorableError(ValueError):
    """It is JSON, and holds a character that jsonb has not."""


class JsonText(str):
    """JSON that is text already, such as a line of a file: it is sent as it stands.

    Raises:
        InvalidValue: It is no JSON, or none that PostgreSQL can store.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Make it from a text."""
        if not isinstance(text, str):
            raise _wrong("JSON text", None, f"it is no text but a {type(text).__name__}", "Give a str.")
        try:
            text.encode()
            read(text)
        except UnicodeEncodeError:
            raise _wrong("JSON text", None, "it holds half of a surrogate pair", "Remove it.") from None
        except ValueError as error:
            hint = "Give what json.dumps returns; or leave JsonText out, if it is a text and no JSON."
            raise _wrong("JSON text", None, str(error), hint) from None
        return super().__new__(cls, text)


def dumps(value: object, what: str = "payload", index: int | None = None) -> str:
    """Return a value as JSON text.

    Args:
        value: What JSON knows: None, bool, int, float, str, and lists and dicts of them; instances of
            dataclasses and of pydantic, attrs or msgspec models; or a `JsonText`.
        what: What the error message calls it.
        index: Its place in a batch, counted from 0, for the error.

    Raises:
        InvalidValue: JSON or jsonb has no such value: another type, NaN or an infinity, a NUL character, half
            of a surrogate pair, a structure that contains itself.
    """
    if isinstance(value, JsonText):
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


def read(text: str) -> Any:  # noqa: ANN401 - that is what JSON is
    """Return what a JSON text says, read as strictly as jsonb would.

    Raises:
        ValueError: jsonb would not take it; the message says why.
    """
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if "\\u" in text:
        _check_escapes(text, value)
    return value


def stored(text: str) -> Any:  # noqa: ANN401 - that is what JSON is
    """Return what jsonb holds; its text as a `JsonText` where Python has no value for it.

    That is where it is nested more than 500 deep, or a number in it is longer than Python reads. Nobody shall
    keep others from reading a list by putting such a value into it.
    """
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        return str.__new__(JsonText, text)
    try:
        return json.loads(text, parse_float=_finite if len(text) > _LONGEST_FLOAT else None)
    except (ValueError, RecursionError):
        return str.__new__(JsonText, text)


class StoredLoader(JsonbLoader):
    """Reads jsonb as `stored` does."""

    def load(self, data: Buffer) -> Any:  # noqa: ANN401 - that is what JSON is
        """Return the value."""
        return stored(bytes(data).decode())


def _finite(text: str) -> float:
    """Refuse a number that would become an infinity."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number beyond Python's")
    return number


def _refuse_constant(name: str) -> NoReturn:
    """Refuse what Python's reader takes for a number and JSON does not know."""
    raise ValueError(f"{name} is not JSON")


def _check_float(text: str) -> float:
    """Refuse a number that does not fit into PostgreSQL's numeric, which is what jsonb keeps."""
    number = float(text)
    if number == 0 or number in (float("inf"), float("-inf")) or len(text) > 1000:
        try:
            exact = Decimal(text)
        except ArithmeticError:  # not even a decimal has such an exponent
            raise _out_of_range(text) from None
        fraction = -int(exact.as_tuple().exponent)
        if (exact and exact.adjusted() > _MAX_EXPONENT) or fraction > _MAX_FRACTION:
            raise _out_of_range(text)
    return number


def _out_of_range(text: str) -> ValueError:
    return ValueError(f"the number {text if len(text) < 30 else text[:30] + '…'} is out of range")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_check_float)
_decode: Callable[[str], Any] = _decoder.decode


def _check_escapes(text: str, value: object) -> None:
    """Refuse the escapes that jsonb cannot keep: NUL, and halves of surrogate pairs."""
    if "\\u0000" in text and _NUL.search(text):
        raise UnstorableError("a NUL character, \\u0000, which PostgreSQL's jsonb cannot keep")
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UnstorableError("half of a surrogate pair, which PostgreSQL's jsonb cannot keep") from None


def _depth(text: str) -> int:
    """Return how deep the brackets outside of strings nest."""
    deepest = depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest
