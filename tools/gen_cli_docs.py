"""Write docs/cli.md from the command line itself.

    python -m tools.gen_cli_docs          # write it
    python -m tools.gen_cli_docs --check  # fail if it is not what it should be

Only names, help texts and defaults are taken from typer, so that its next version does not change the page.
"""

# ruff: noqa: ANN401 - typer's own classes differ between its versions

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from pgfifo.cli import app as cli
from pgfifo.cli.exits import MEANINGS
from pgfifo.cli.options import FAMILIES

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

_HEAD = """\
# The command line

<!-- Made by tools/gen_cli_docs.py from the commands' own help: change that. -->

What a command reads goes to stdout, as a table or, with `--json`, as JSON; everything else it says goes to
stderr. Each change says what it did and how to undo it. Times are given as `30s`, `5m`, `1h30m` or `2d`.

The database is the one that `--dsn` names, else `PGFIFO_DSN`, else `DATABASE_URL`, else that of libpq's own
variables (`PGHOST`, `PGSERVICE`, …). With none of them, an embedded PostgreSQL of pgfifo's own is used, and
said so in one line; there the schema installs itself. URLs may begin with `postgres://`, `postgresql://` or
`postgresql+driver://`.

## Exit codes

| code | meaning |
|---|---|
"""


def page() -> str:
    """Return the page."""
    cli.load()
    root = typer.main.get_command(cli.app)
    meanings = {code: meaning.replace("|", "\\|") for code, meaning in MEANINGS.items()}
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in meanings.items())
    parts = [_HEAD, codes]
    commands: dict[str, Any] = root.commands  # type: ignore[attr-defined]  # it is a group
    for family in FAMILIES:
        parts.append(f"\n## {family}\n")
        for name, command in sorted(commands.items()):
            if command.rich_help_panel == family:
                parts += _command(f"pgfifo {name}", command)
    return "".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    """Yield the section of a command, or those of its subcommands."""
    if subcommands := getattr(command, "commands", None):
        for word, subcommand in subcommands.items():
            yield from _command(f"{name} {word}", subcommand)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [
        p for p in command.params if p.param_type_name == "option" and p.name != "help" and not p.hidden
    ]
    words = [_argument(argument) for argument in arguments]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *words])
    yield f"\n### {name}\n\n    {usage}\n\n{_prose(command.help)}\n"
    if arguments or options:
        yield "\n| | |\n|---|---|\n"
    for parameter in [*arguments, *options]:
        yield f"| {_name(parameter)} | {_meaning(parameter)} |\n"


def _argument(argument: Any) -> str:
    """Return an argument as the usage line shows it."""
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _name(parameter: Any) -> str:
    """Return what to type for an argument or an option."""
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`".replace("|", "\\|")
    value = "" if parameter.is_flag else f" {_value(parameter)}"
    longest_last = [*sorted(parameter.opts, key=len), *parameter.secondary_opts]
    return ", ".join(
        f"`{option}{value if option is longest_last[-1] else ''}`" for option in longest_last
    ).replace("|", "\\|")


def _value(parameter: Any) -> str:
    """Return what stands for an option's value."""
    if parameter.metavar:
        return str(parameter.metavar)
    descriptor = getattr(parameter, "type_descriptor", None)
    choices = getattr(descriptor, "choices", None) or getattr(
        getattr(parameter, "type", None), "choices", None
    )
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    return "N" if isinstance(parameter.default, int) else "TEXT"


def _meaning(parameter: Any) -> str:
    """Return what an argument or an option means, with its default."""
    text = re.sub(r"\s*\[default: (.*?)\]$", r" Defaults to `\1`.", parameter.help or "")
    if parameter.param_type_name == "option" and not parameter.is_flag and "Defaults to" not in text:
        default = parameter.default
        if default not in (None, (), [], "") and not callable(default):
            text += f" Defaults to `{default}`."
    return text.replace("|", "\\|")


def _prose(text: str | None) -> str:
    """Return a help text as paragraphs."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """Write the page, or compare it."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is stale; write it anew with: python -m tools.gen_cli_docs")


if __name__ == "__main__":
    main()
