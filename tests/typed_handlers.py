"""Handlers whose annotations are text, as `from __future__ import annotations` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decimal import Decimal as NotThere

    import pgfifo
    from pgfifo import Execution

from decimal import Decimal

seen: list[Any] = []
unused: NotThere


@dataclass
class Line:
    """What the handlers take."""

    article: str
    amount: Decimal


def take(line: Line) -> None:
    """Take the payload."""
    seen.append(line)


def take_turned(execution: pgfifo.Execution, line: Line) -> None:
    """Take both."""


def plain(execution: Execution) -> None:
    """Take the execution, whose name is the type checker's only."""


def only_for_the_type_checker(execution: pgfifo.Execution) -> None:
    """Take the execution, by a module that is the type checker's only."""


def anything(execution: Any) -> None:
    """Take the execution."""


def unannotated(execution):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Take the execution."""
