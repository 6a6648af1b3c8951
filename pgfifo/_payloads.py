"""Payloads against the JSON Schemas of their actions, before they are sent."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgfifo.errors import InvalidPayload, InvalidValue

if TYPE_CHECKING:
    from pgfifo.actions import Actions

_LONGEST = 300


class Payloads:
    """What a client knows of the payloads of some actions."""

    def __init__(self, actions: Actions) -> None:
        """Read the actions' schemas.

        Raises:
            InvalidValue: There are any, and jsonschema is not installed.
        """
        self._validators = {
            action.name: _validator(action.name, action.schema)
            for action in actions
            if action.schema is not None
        }

    def check(self, action: str, texts: Sequence[str], *, many: bool = False) -> None:
        """Refuse payloads (JSON text) that the action's schema does.

        Args:
            action: The action; all goes where it is not known, or has no schema.
            texts: The payloads.
            many: Whether they are a batch, so that the error has the index.

        Raises:
            InvalidPayload: One does not fit.
        """
        validator = self._validators.get(action)
        if validator is None:
            return
        from jsonschema.exceptions import best_match

        for index, text in enumerate(texts):
            found = best_match(validator.iter_errors(json.loads(text)))
            if found is None:
                continue
            said = found.message if len(found.message) <= _LONGEST else f"{found.message[:_LONGEST]}…"
            place = f" of item {index}" if many else ""
            raise InvalidPayload(
                f"the payload{place} does not fit the schema of {action}: {said} - at `{found.json_path}`",
                detail={"action": action, "path": found.json_path, "reason": said}
                | ({"index": index} if many else {}),
                hint="Nothing was enqueued.",
            )


def check_schema(name: str, schema: Mapping[str, Any]) -> None:
    """Refuse what is no JSON Schema; where jsonschema is not installed, only what is no mapping."""
    if not isinstance(schema, Mapping):
        raise _no_schema(name, "it is no mapping")
    if importlib.util.find_spec("jsonschema") is not None:
        _validator(name, schema)


def _validator(name: str, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of jsonschema, which may not be there
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
    except ImportError:
        raise InvalidValue(
            f"the action {name!r} has a schema, and jsonschema is not installed to check payloads with it",
            detail={"name": "actions"},
            hint="pip install 'pgfifo[schema]'",
        ) from None
    kind: Any = validator_for(schema, default=Draft202012Validator)  # its stubs want a dict
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise _no_schema(name, f"{error.message} - at `{error.json_path}`") from None
    return kind(schema)


def _no_schema(name: str, why: str) -> InvalidValue:
    return InvalidValue(
        f"the schema of {name!r} is no JSON Schema: {why}",
        detail={"name": "schema"},
        hint='Give one such as {"type": "object", "required": ["env"]}.',
    )
