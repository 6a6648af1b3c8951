"""Exit codes, and how what goes wrong is told: in words, on stderr, with what to do; never as a traceback."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pgfifo.cli.output import error, flush

if TYPE_CHECKING:
    import psycopg

DONE, REFUSED, USAGE, UNREACHABLE, SCHEMA, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
_CLOSED_PIPE = 141  # what a shell reports for a program that SIGPIPE has ended
_TERMINATED = 143  # and for one that SIGTERM has ended

MEANINGS = {
    DONE: "done",
    REFUSED: "refused or failed, or `check` or `doctor` has findings",
    USAGE: "the command line is wrong",
    UNREACHABLE: "the server cannot be reached",
    SCHEMA: "pgfifo is not installed there, or in a version that does not fit",
    TIMED_OUT: "what was waited for did not happen in time",
    INTERRUPTED: "interrupted with Ctrl-C",
    _CLOSED_PIPE: "whoever read the output has gone, as in `pgfifo list | head`",
    _TERMINATED: "ended with SIGTERM; a worker that has stopped for it ends with 0",
}
"""What each exit code means. `doctor` with limits has those of monitoring plugins."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command ends for it as for Ctrl-C, with all that it has to give back and to say."""


class Refused(Exception):  # noqa: N818 - it is one
    """What the command line itself refuses.

    Attributes:
        message: what is wrong.
        hint: what to do about it.
        code: the exit code.
    """

    def __init__(self, message: str, hint: str | None = None, *, code: int = REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def usage(message: str, hint: str | None = None) -> Refused:
    """Return the error for a command line that is wrong in a way that the parser does not see."""
    return Refused(message, hint, code=USAGE)


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise `Terminated` in the block, where nobody else has seen to it."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def told() -> Iterator[None]:
    """Tell in words what goes wrong in the block, and exit with the code for it."""
    try:
        yield
        flush()
    except BrokenPipeError:
        # Whoever read has seen enough. Nothing must be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_CLOSED_PIPE) from None
    except BaseException as caught:
        refused = explained(caught)
        if refused is None:
            raise
        error(refused.message, refused.hint)
        raise typer.Exit(refused.code) from None


def explained(caught: BaseException) -> Refused | None:
    """Return in words what comes from outside; None for the parser's own errors and this program's."""
    if isinstance(caught, Refused):
        return caught
    if isinstance(caught, Terminated):
        return Refused("terminated", code=_TERMINATED)
    if isinstance(caught, KeyboardInterrupt):
        return Refused("interrupted", code=INTERRUPTED)
    if "psycopg" in sys.modules:
        import psycopg

        from pgfifo.embedded import EmbeddedError

        if isinstance(caught, psycopg.Error):
            return _of_database(caught)
        if isinstance(caught, EmbeddedError):
            return Refused(str(caught), code=UNREACHABLE)
    if isinstance(caught, OSError):
        name = f"{caught.filename}: " if caught.filename else ""
        return Refused(f"{name}{caught.strerror or caught}")
    return None


def _of_database(caught: "psycopg.Error") -> Refused:
    """Return in words an error of pgfifo's or PostgreSQL's."""
    import psycopg

    from pgfifo import errors
    from pgfifo.cli.hints import in_shell
    from pgfifo.dsn import redact

    problem = errors.translated(caught)
    if isinstance(problem, errors.PgfifoError):
        code = REFUSED
        if isinstance(problem, errors.SchemaMissing | errors.SchemaMismatch):
            code = SCHEMA
        elif isinstance(problem, errors.InvalidValue):
            # A schedule that is not there is what an unknown action is: no mistake of form.
            code = REFUSED if "nearest" in problem.detail else USAGE
        elif isinstance(problem, TimeoutError):
            code = TIMED_OUT
        return Refused(redact(problem.message), in_shell(problem.hint, problem.detail), code=code)
    said = problem.diag
    message = redact((said.message_primary or str(problem) or type(problem).__name__).strip())
    hint = said.message_hint
    if isinstance(problem, psycopg.errors.InsufficientPrivilege):
        hint = hint or "Connect as the role that installed pgfifo, or ask its owner for the right to do this."
    return Refused(message, hint, code=UNREACHABLE if _unreachable(problem) else REFUSED)


def _unreachable(problem: "psycopg.Error") -> bool:
    """Tell whether there is no server to talk to, or it does not let this role in."""
    import psycopg

    state = problem.sqlstate
    if state is None:
        return isinstance(problem, psycopg.OperationalError)
    return state[:2] in ("08", "28") or state[:3] == "57P" or state in ("3D000", "53300")
