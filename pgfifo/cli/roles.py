"""Who may do what: roles of the database, and what they were granted."""

from dataclasses import asdict
from typing import Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import usage
from pgfifo.cli.options import SET_UP, AsJson, Dsn
from pgfifo.cli.output import did, note, print_json_rows, print_table

roles = typer.Typer(
    name="roles",
    help="Who may do what: execute-only roles for producers, workers, observers and admins.",
    no_args_is_help=True,
)
app.add_typer(roles, rich_help_panel=SET_UP)

May = Annotated[
    str,
    typer.Argument(
        metavar="MAY",
        help="producer, worker, observer, admin; or enqueue, with --action.",
        show_default=False,
    ),
]
Role = Annotated[str, typer.Argument(metavar="ROLE", help="A role of the database.", show_default=False)]
Actions = Annotated[
    list[str] | None,
    typer.Option(
        "--action", metavar="ACTION", help="With enqueue: the action; once for each.", show_default=False
    ),
]


@roles.command("list")
def list_(as_json: AsJson = False, dsn: Dsn = None) -> None:
    """Show which roles were granted what."""
    with connected(dsn) as fifo:
        found = fifo.grants()
    rows = [asdict(each) for each in found]
    if as_json:
        print_json_rows(rows)
    else:
        print_table(rows, "Nothing is granted: only the owner of the schema may do anything.")


@roles.command()
def create(dsn: Dsn = None) -> None:
    """Make pgfifo_producer, pgfifo_worker, pgfifo_observer, pgfifo_admin, and grant them what they are for.

    Roles belong to the whole server; the schema's owner needs CREATEROLE for those that are not there yet.
    """
    with connected(dsn) as fifo:
        before = fifo.grants()
        made = fifo.create_roles()
        new = [each for each in fifo.grants() if each not in before]
    if made:
        did(f"Made {', '.join(made)}.", f'in SQL, without pgfifo: "drop role {", ".join(made)}"')
    for each in new:
        undo = command("roles", "revoke", each.may, each.role)
        did(f"{each.role} is {_article(each.may)} of this database.", undo)
    if not made and not new:
        note("Nothing to do: the roles are there and have their rights.")


@roles.command()
def grant(may: May, role: Role, actions: Actions = None, dsn: Dsn = None) -> None:
    """Let a role of the database be a producer, worker, observer or admin, or enqueue to some actions."""
    _change(may, role, actions, dsn, grant=True)


@roles.command()
def revoke(may: May, role: Role, actions: Actions = None, dsn: Dsn = None) -> None:
    """Take back what was granted to a role of the database."""
    _change(may, role, actions, dsn, grant=False)


def _change(may: str, role: str, actions: list[str] | None, dsn: str | None, *, grant: bool) -> None:
    """Grant or revoke, and say so."""
    if (may == "enqueue") != bool(actions):
        raise usage(
            "enqueue takes actions, and nothing else does",
            f"As in: {command('roles', 'grant', 'enqueue', role, '--action', 'deploy')}",
        )
    verb, back = ("grant", "revoke") if grant else ("revoke", "grant")
    with connected(dsn) as fifo:
        if actions:
            change = fifo.grant_enqueue if grant else fifo.revoke_enqueue
            with fifo.transaction() as conn:
                changed = [action for action in actions if change(action, role, connection=conn)]
            what = f"enqueue to {', '.join(changed)}" if changed else ""
            words = [word for action in changed for word in ("--action", action)]
        else:
            given = fifo.grant_role if grant else fifo.revoke_role
            what = f"do what {_article(may)} does" if given(may, role) else ""  # type: ignore[arg-type]
            words = []
    if what:
        did(f"{role} may {'' if grant else 'no longer '}{what}.", command("roles", back, may, role, *words))
    else:
        note(f"Nothing to do: there is nothing to {verb}.")


def _article(may: str) -> str:
    """Return the word with its article."""
    return f"{'an' if may[0] in 'ao' else 'a'} {may}"
