"""`pgfifo limit`: what it sets, says and undoes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.cli import CommandLine
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(dsn, monkeypatch, capsys)


def limits(cli: CommandLine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cli.ok("limit", "list", "--json").out)
    return [{k: v for k, v in each.items() if k != "changed_at"} for each in found]


def test_limit_set_says_what_changed_and_each_undo_works(cli: CommandLine) -> None:
    for action in ("a", "b"):
        cli.ok("policy", "set", action, "--max-attempts", 3)
    said = cli.ok(
        *("limit", "set", "billing-api", "--max-concurrent", 20, "--action", "a", "--action", "b"),
        *("--pack", "billing"),
    )
    assert said.out.splitlines() == [
        "limit billing-api: created",
        "limit billing-api: max_concurrent - → 20",
        "limit billing-api: actions - → a, b",
        "limit billing-api: packs - → billing",
    ]
    assert said.undo == [["limit", "drop", "billing-api"]]
    first = limits(cli)
    said = cli.ok(
        *("limit", "set", "billing-api", "--max-concurrent", 5, "--rate", "100/s", "--burst", 10),
        *("--action", "b", "--everything"),
    )
    assert said.out.splitlines() == [
        "limit billing-api: max_concurrent 20 → 5",
        "limit billing-api: rate - → 100/s",
        "limit billing-api: burst - → 10",
        "limit billing-api: actions a, b → b",
        "limit billing-api: everything no → yes",
    ]
    assert said.undo == [
        ["limit", "set", "billing-api", "--max-concurrent", "20", "--action", "a", "--action", "b"],
        ["limit", "unset", "billing-api", "rate", "burst", "everything"],
    ]
    second = limits(cli)
    for undo in said.undo:
        cli.ok(*undo)
    assert limits(cli) == first
    cli.ok("limit", "set", "billing-api", "--rate", "100/s", "--burst", 10, "--everything", "--action", "b")
    cli.ok("limit", "set", "billing-api", "--max-concurrent", 5)
    assert limits(cli) == second
    said = cli.ok("limit", "drop", "billing-api")
    assert said.out == "limit billing-api: dropped\n"
    assert limits(cli) == []
    [undo] = said.undo
    cli.ok(*undo)
    assert limits(cli) == second


def test_limit_unset_takes_numbers_and_drawers_away_and_the_undo_works(cli: CommandLine) -> None:
    cli.ok("limit", "set", "api", "--max-concurrent", 2, "--rate", "5/s", "--pack", "x", "--everything")
    before = limits(cli)
    said = cli.ok("limit", "unset", "api", "--", "--rate", "pack", "everything")
    assert said.out.splitlines() == [
        "limit api: rate 5/s → -",
        "limit api: packs x → -",
        "limit api: everything yes → no",
    ]
    assert "No action draws from it." in said.err
    assert said.undo == [["limit", "set", "api", "--rate", "5/s", "--pack", "x", "--everything"]]
    for undo in said.undo:
        cli.ok(*undo)
    assert limits(cli) == before
    said = cli.ok("limit", "set", "api", "--max-concurrent", 2)
    assert (said.out, said.undo) == ("", [])
    assert "Nothing to do" in said.err


def test_limit_list_and_show_say_how_much_is_taken(cli: CommandLine, conn: Connection) -> None:
    assert "No shared limits." in cli.ok("limit", "list").err
    assert cli.ok("limit", "list", "--json").out == "[]\n"
    cli.ok("enqueue", "mail")
    cli.ok("enqueue", "core.get")
    cli.ok("limit", "set", "api", "--max-concurrent", 1, "--action", "mail", "--pack", "core")
    engine = Engine(conn)
    engine.claim(engine.worker("mail", "core.get"), 5, ["mail", "core.get"])
    lines = cli.ok("limit", "list").out.splitlines()
    assert lines[0].split()[:3] == ["name", "active", "max"]
    assert lines[1].split() == ["api", "1", "1", "-", "-", "1", "-", "pack", "core,", "mail"]
    [found] = limits(cli)
    assert (found["active_count"], found["waiting_lanes"]) == (1, 1)
    assert found["actions"] == ["mail"]
    fields = dict(line.split("  ", 1) for line in cli.ok("limit", "show", "api").out.splitlines())
    assert fields["packs"].strip() == "core"
    assert json.loads(cli.ok("limit", "show", "api", "--json").out)["name"] == "api"


def test_a_limit_on_a_pack_or_everything_names_the_command_for_a_cap(cli: CommandLine) -> None:
    said = cli.ok("policy", "set", "--pack", "billing", "--max-concurrent", 20, "--rate", "100/s")
    [line] = [line for line in said.err.splitlines() if "pgfifo limit set" in line]
    words = line.partition("pgfifo ")[2].split()
    assert words[:5] == ["limit", "set", "billing", "--max-concurrent", "20"]
    assert words[5:] == ["--rate", "100/s", "--pack", "billing"]
    cli.ok(*words)
    assert (limits(cli)[0]["rate"], limits(cli)[0]["packs"]) == ("100/s", ["billing"])
    said = cli.ok("policy", "set", "--default", "--max-concurrent", 7)
    assert "pgfifo limit set everything --max-concurrent 7 --everything" in said.err
    assert "pgfifo limit" not in cli.ok("policy", "set", "--default", "--gap", "1s").err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["set"], 2, "NAME"),
        (["set", "api"], 2, "nothing to set"),
        (["set", "api", "--max-concurrent", "many"], 2, "--max-concurrent"),
        (["set", "api", "--max-concurrent", "0"], 2, "max_concurrent cannot be 0"),
        (["set", "api", "--rate", "fast"], 2, "rate cannot be 'fast'"),
        (["set", "api", "--burst", "5"], 2, "needs max_concurrent, a rate, or both"),
        (["set", "two words", "--rate", "5/s"], 2, "is no name for a shared limit"),
        (["set", "api", "--rate", "5/s", "--action", "delpoy"], 1, "Did you mean 'deploy'"),
        (
            ["set", "api", "--rate", "5/s", "--action", "qqqqqqq"],
            1,
            "pgfifo policy set qqqqqqq --max-concurrent 1",
        ),
        (["set", "api", "--rate", "5/s", "--pack", ""], 2, "is no name for a pack"),
        (["unset", "api", "rate"], 1, "Did you mean 'apis'"),
        (["unset", "apis"], 2, "ATTRIBUTE"),
        (["unset", "apis", "rates"], 2, "Did you mean 'rate'"),
        (["unset", "apis", "rate"], 2, "would limit nothing"),
        (["show", "xyz"], 1, "There are: apis"),
        (["drop", "xyz"], 1, "there is no shared limit 'xyz'"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(
    cli: CommandLine, words: list[str], code: int, said: str
) -> None:
    cli.ok("enqueue", "deploy")
    cli.ok("limit", "set", "apis", "--rate", "5/s", "--everything")
    before = limits(cli)
    found = cli("limit", *words)
    assert (found.code, found.out) == (code, "")
    assert said in found.err
    assert limits(cli) == before


def test_a_file_of_policies_carries_limits_and_each_undo_works(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    cli.ok("limit", "set", "old", "--rate", "5/s", "--pack", "x")
    cli.ok("limit", "set", "api", "--max-concurrent", 3)
    before = limits(cli)
    file.write_text('[limit.api]\nmax_concurrent = 4\nrate = "9/s"\n[limit.new]\nrate = "1/s"\n')
    said = cli.ok("policy", "apply", "--dry-run", "--prune", file)
    lines = [
        "limit api: max_concurrent 3 → 4",
        "limit api: rate - → 9/s",
        "limit new: rate - → 1/s",
        "limit old: packs x → -",
        "limit old: rate 5/s → -",
    ]
    assert said.out.splitlines() == lines
    assert limits(cli) == before
    said = cli.ok("policy", "apply", "--prune", file)
    assert said.out.splitlines() == lines
    assert "limit new: it is new." in said.err
    assert said.undo == [
        ["limit", "set", "api", "--max-concurrent", "3"],
        ["limit", "unset", "api", "rate"],
        ["limit", "drop", "new"],
        ["limit", "set", "old", "--rate", "5/s", "--pack", "x"],
    ]
    exported = cli.ok("policy", "export").out
    assert "[limit.new]" in exported
    for undo in said.undo:
        cli.ok(*undo)
    assert limits(cli) == before
    file.write_text(exported)
    cli.ok("policy", "apply", "--prune", file)
    assert cli.ok("policy", "apply", "--prune", "--check", file).out == ""
    file.write_text("[limit.api]\nmax_concurrent = 0\n")
    refused = cli("policy", "apply", file)
    assert (refused.code, "line 2, limit.api.max_concurrent" in refused.err) == (2, True), refused.err
