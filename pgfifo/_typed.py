"""Handlers that take their payload built: a dataclass, a pydantic model, or what msgspec knows besides.

Which parameter takes what is read from the handler's annotations. Building checks the payload; what does not
fit is `InvalidPayload`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgfifo._around import called, innermost
from pgfifo.errors import InvalidPayload, InvalidValue
from pgfifo.groups import lane

if TYPE_CHECKING:
    from pgfifo.execution import Execution

Build = Callable[[str], Any]
"""Makes an object of a payload's JSON text, or raises ValueError with what does not fit."""

_HINT = (
    "A handler takes the execution: def handler(execution): …; or its payload: def handler(order: Order): …, "
    "where Order is a dataclass or a pydantic model; or both."
)


def caller(name: str, handler: Callable[..., Any]) -> Callable[[Execution], Any]:
    """Return a function of the execution that calls a handler with what its parameters ask for.

    Args:
        name: The action, for errors.
        handler: The handler.

    Raises:
        InvalidValue: It cannot be called with an execution, a payload, or both.
    """
    if not callable(handler):
        raise InvalidValue(
            f"the handler of {name!r} cannot be called: {handler!r}", detail={"name": "handler"}
        )
    signature = _signature(handler)
    if signature is None:
        return handler
    given = _given(signature)
    if given is None or len(given) > 2:
        raise _odd(name, handler, f"{signature}, cannot be called with one argument")
    models = [_model(name, handler, parameter) for parameter in given]
    built = [model for model in models if model is not None]
    if not built and len(given) == 1:
        return handler
    if len(built) != 1:
        raise _odd(
            name, handler, f"{signature}, cannot be told which of its parameters is the payload", _HINT
        )
    try:
        build = _builder(built[0])
    except (TypeError, NameError) as error:
        raise _odd(name, handler, f" takes a {_named(built[0])}, which cannot be built: {error}") from None
    if len(given) == 1:
        return lambda execution: handler(_built(build, built[0], execution))
    if models[0] is None:
        return lambda execution: handler(execution, _built(build, built[0], execution))
    return lambda execution: handler(_built(build, built[0], execution), execution)


class Many:
    """A handler of batches: how it is called with executions, with their payloads built, or with both."""

    def __init__(self, name: str, handler: Callable[..., Any]) -> None:
        """Read what its parameters ask for.

        Args:
            name: The action, for errors.
            handler: The handler.

        Raises:
            InvalidValue: It cannot be called with a list of executions, of payloads, or both.
        """
        if not callable(handler):
            raise InvalidValue(
                f"the handler of {name!r} cannot be called: {handler!r}", detail={"name": "handler"}
            )
        self._handler = handler
        self._build: Build | None = None
        self._order = "executions"
        signature = _signature(handler)
        if signature is None:
            return
        given = _given(signature)
        if given is None or len(given) > 2:
            raise _odd(name, handler, f"{signature}, cannot be called with one argument", _HINT_MANY)
        models = [_element(name, handler, parameter) for parameter in given]
        built = [model for model in models if model is not None]
        if not built and len(given) == 1:
            return
        if len(built) != 1:
            said = f"{signature}, cannot be told which of its parameters is the list of payloads"
            raise _odd(name, handler, said, _HINT_MANY)
        self._model = built[0]
        try:
            self._build = _builder(self._model)
        except (TypeError, NameError) as error:
            said = f" takes a list of {_named(self._model)}, which cannot be built: {error}"
            raise _odd(name, handler, said) from None
        if len(given) == 1:
            self._order = "payloads"
        else:
            self._order = "executions, payloads" if models[0] is None else "payloads, executions"

    def payload(self, execution: Execution) -> Any:  # noqa: ANN401 - the model's own
        """Return the payload of one execution, built; None where the handler does not ask for that.

        Raises:
            InvalidPayload: It does not fit.
        """
        return None if self._build is None else _built(self._build, self._model, execution)

    def __call__(self, executions: list[Execution], payloads: list[Any]) -> Any:  # noqa: ANN401
        """Call the handler."""
        match self._order:
            case "payloads":
                return self._handler(payloads)
            case "executions, payloads":
                return self._handler(executions, payloads)
            case "payloads, executions":
                return self._handler(payloads, executions)
        return self._handler(executions)


def _element(name: str, handler: object, parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - a type, or None
    """Return the type that each element of a parameter's list is to be built as; None for executions."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        if _EXECUTIONS.fullmatch(annotation):
            return None  # perhaps imported for the type checker only
        annotation = _resolved(name, handler, parameter.name, annotation)
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if annotation in (None, inspect.Parameter.empty, typing.Any, object) or annotation in _LISTS:
        return None
    elements = typing.get_args(annotation)
    if typing.get_origin(annotation) in _LISTS and elements:
        if _is_model(elements[0]):
            return elements[0]
        if elements[0] in (typing.Any, object) or getattr(elements[0], "__name__", "") == "Execution":
            return None
    raise _odd(
        name,
        handler,
        f" takes {parameter.name} as {inspect.formatannotation(annotation)}, "
        "which is neither a list of executions nor one of a dataclass or model",
        _HINT_MANY,
    )


def _signature(handler: Callable[..., Any]) -> inspect.Signature | None:
    """Return a handler's signature; None for built-in functions that do not tell."""
    try:
        return inspect.signature(handler)
    except (TypeError, ValueError):
        return None
    except NameError:  # Python 3.14 evaluates annotations here, and a name may be the type checker's only
        annotationlib: Any = importlib.import_module("annotationlib")
        text: Any = {"annotation_format": annotationlib.Format.STRING}
        return inspect.signature(handler, **text)


def _given(signature: inspect.Signature) -> list[inspect.Parameter] | None:
    """Return the parameters that a call fills: those without a default, or the first; None if none can be."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in signature.parameters.values() if each.kind in kinds]
    required = [each for each in positional if each.default is each.empty]
    given = required or positional[:1] or [_UNNAMED]
    try:
        signature.bind(*given)
    except TypeError:
        return None
    return given


def _model(name: str, handler: object, parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - a type, or None
    """Return the type that a parameter's argument is to be built as; None for the execution."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _resolved(name, handler, parameter.name, annotation)
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if _is_model(annotation):
        return annotation
    if (typing.get_origin(annotation) or annotation) in _VALUES:
        raise _odd(
            name,
            handler,
            f" takes {parameter.name} as {inspect.formatannotation(annotation)}, "
            "which is neither an Execution nor a dataclass or model",
        )
    return None


_HINT_MANY = (
    "A handler of batches takes the executions: def handler(executions: list[Execution]): …; or their "
    "payloads: def handler(orders: list[Order]): …, where Order is a dataclass or a pydantic model; or both."
)
_LISTS = (list, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
_EXECUTIONS = re.compile(r"[\w.]+\[([\w.]+\.)?(Execution|Any|object)\]")
_UNNAMED = inspect.Parameter("execution", inspect.Parameter.POSITIONAL_ONLY)
_VALUES = (dict, list, tuple, set, str, int, float, bool, bytes)


def _resolved(name: str, handler: object, parameter: str, annotation: str) -> object:
    """Return what an annotation that is text stands for; None where it stands for the execution."""
    function: Any = innermost(handler)
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307 - the application's own
    except (NameError, AttributeError, TypeError, SyntaxError):
        if annotation.rpartition(".")[2] in ("Execution", "Any", "object"):
            return None  # imported for the type checker only
        raise _odd(
            name,
            handler,
            f" takes {parameter} as {annotation}, and there is no such name where it is defined",
        ) from None


def _is_model(annotation: object) -> bool:
    """Return whether it is a class that can be built, also a generic one, or a union of such."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return all(_is_model(each) or each is types.NoneType for each in typing.get_args(annotation))
    model = origin or annotation
    return inspect.isclass(model) and (
        dataclasses.is_dataclass(model)
        or _is_pydantic(model)
        or hasattr(model, "__struct_fields__")  # msgspec.Struct
        or hasattr(model, "__attrs_attrs__")
        or typing.is_typeddict(model)
    )


def _is_pydantic(model: object) -> bool:
    return "pydantic" in sys.modules and any(
        hasattr(each, "__pydantic_validator__") for each in (model, *typing.get_args(model))
    )


def _builder(model: Any) -> Build:  # noqa: ANN401 - a type
    """Return what builds a model from JSON text."""
    if not _is_pydantic(model):
        import msgspec

        return msgspec.json.Decoder(model).decode
    import pydantic

    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(model)

    def build(text: str) -> Any:  # noqa: ANN401 - the model's own
        try:
            return adapter.validate_json(text)
        except pydantic.ValidationError as error:
            # Not its own text: that shows values, and payloads may be nobody's business.
            found = error.errors(include_url=False, include_input=False, include_context=False)
            raise ValueError(
                "; ".join(f"{each['msg']} - at `{'.'.join(['$', *map(str, each['loc'])])}`" for each in found)
            ) from None

    return build


def _built(build: Build, model: Any, execution: Execution) -> Any:  # noqa: ANN401 - the model's own
    try:
        return build(execution.payload_text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPayload(
            f"the payload of execution {execution.id} ({lane(execution.action, execution.group_text)}) "
            f"is no {_named(model)}: {error}",
            detail={"action": execution.action, "id": execution.id, "reason": str(error)},
            hint="Another attempt would fail as well. Enqueue it anew, with a payload that fits.",
        ) from None


def _named(model: object) -> str:
    return getattr(model, "__name__", None) or str(model)


def _odd(name: str, handler: object, what: str, hint: str = _HINT) -> InvalidValue:
    return InvalidValue(
        f"the handler of {name!r}, {called(handler)}{what}", detail={"name": "handler"}, hint=hint
    )
