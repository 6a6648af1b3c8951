"""The page on the command line says what the command line does."""

import re

from pgfifo.cli.app import app, load
from tools.gen_cli_docs import PAGE, page


def test_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == page(), (
        "docs/cli.md is stale; write it anew with: python -m tools.gen_cli_docs"
    )


def test_page_has_every_command() -> None:
    load()
    names = {
        info.name or (info.callback.__name__ if info.callback else "") for info in app.registered_commands
    }
    shown = set(re.findall(r"^### pgfifo (\w+)", PAGE.read_text(), re.MULTILINE))
    assert names | {"policy", "limit", "schedule", "embedded", "roles"} == shown
