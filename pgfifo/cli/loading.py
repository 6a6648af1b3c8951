"""Find an application's actions."""

import difflib
import importlib
import sys
import traceback
from typing import TYPE_CHECKING

from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.output import count, note

if TYPE_CHECKING:
    from types import ModuleType

    from pgfifo.actions import Actions


def load_actions(place: str) -> "Actions":
    """Return the registry that ``module:name`` names; ``module`` alone will do if it has only one.

    Raises:
        Refused: there is no such module or name, it is something else, or the module cannot be imported.
    """
    from pgfifo.actions import Actions

    module_name, colon, name = place.partition(":")
    module = _imported(module_name)
    registries = {key: value for key, value in vars(module).items() if isinstance(value, Actions)}
    if not colon:
        if len(registries) == 1:
            return next(iter(registries.values()))
        named = ", ".join(f"{module_name}:{key}" for key in registries) or "none"
        raise usage(
            f"{module_name} has {count(len(registries), 'registry', 'registries')} of actions: {named}",
            "Name one of them.",
        )
    found = getattr(module, name, None)
    if isinstance(found, Actions):
        return found
    if found is not None:
        raise usage(
            f"{place} is no pgfifo.Actions but {type(found).__qualname__!r}", _named(module_name, registries)
        )
    near = difflib.get_close_matches(name, registries, 1)
    hint = f"Did you mean {module_name}:{near[0]}?" if near else _named(module_name, registries)
    raise usage(f"{module_name} has no {name!r}", hint)


def _imported(name: str) -> "ModuleType":
    """Import a module, telling what goes wrong in it in its author's terms."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise usage(
                f"there is no module {error.name!r}",
                "It is looked for in the current folder and where Python looks for modules.",
            ) from None
        _show(error)
        raise Refused(f"{name} cannot be imported: {error}") from None
    except Exception as error:  # noqa: BLE001 - whatever somebody's module raises
        _show(error)
        raise Refused(f"{name} cannot be imported: {type(error).__name__}: {error}") from None


def _show(error: Exception) -> None:
    """Show where in the application an error comes from; our own part of the way is of no interest."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen importlib")]
    library = importlib.__file__ or ""
    for line in traceback.format_list([f for f in theirs if f.filename != library]):
        note(line.rstrip())
    sys.stderr.flush()


def _named(module_name: str, registries: "dict[str, Actions]") -> str:
    """Name the registries that there are."""
    if registries:
        return f"It has: {', '.join(f'{module_name}:{key}' for key in registries)}."
    return "Make one with: actions = pgfifo.Actions()"
