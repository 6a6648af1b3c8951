"""The pages for people: their examples run, their tables are the program's, what they name is there.

How a page's code is read: ```bash, ```python and ```sql are run in order, in one folder and against one
database, with PGFIFO_DSN set. A ```python block whose first line is a comment with a file name is that file.
A ```text output block is what the block before it printed; "…" stands for anything. ```python not run: why
is not run, for that reason; a ```yaml docs/deploy/file.yaml block is a piece of that file, whatever the
language. ```sh is what one types in a checkout of this repository, ```text is no code.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo
import pytest

import pgfifo
from pgfifo import durations, errors, policyfile, schema
from tests.support.database import wait_for
from tests.support.quick import quick_program
from tests.support.server import binaries_of_this_run, make_server

ROOT = Path(__file__).resolve().parent.parent
# See test_cli_docs.py, test_sql_docs.py and test_web_api.py.
GENERATED = ["docs/cli.md", "docs/http-api.md", "docs/sql.md", "docs/sql.preface.md"]
MEASURED = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/benchmarks").rglob("*.md"))
ALL = [
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    *MEASURED,
]
RECORDS = ["CHANGELOG.md", "docs/decisions.md"]
PAGES = [page for page in ALL if page not in (*GENERATED, *MEASURED)]
PROMISES = ["order", "slots", "progress", "durability", "fencing", "independence", "flat cost", "exact stats"]
RUN = ("bash", "python", "sql")
SHOWN = ("text", "mermaid", "sh", "toml")


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says, its lines, and in which line of the page it begins."""

    info: str
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def runs(self) -> bool:
        return self.info in RUN

    @property
    def file(self) -> str | None:
        named = re.match(r"# ([\w./-]+\.py)\n", self.text) if self.language == "python" else None
        return named[1] if named else None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    begun: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(read(page).splitlines(), 1):
        if begun is None and line.startswith("```"):
            begun, lines = (line.removeprefix("```").strip(), number + 1), []
        elif begun is not None and line == "```":
            yield Block(begun[0], "".join(f"{each}\n" for each in lines), begun[1])
            begun = None
        else:
            lines.append(line)
    assert begun is None, f"{page}: the block that begins in line {begun} has no end"


def prose(page: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a page that are outside of its blocks."""
    inside = False
    found = []
    for number, line in enumerate(read(page).splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next of its level or a higher one."""
    text = read(page)
    begin = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert begin, f"{page} has no section {heading!r}"
    rest = text[begin.end() :]
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", re.sub(r"(?ms)^```.*?^```", _blank, rest), re.MULTILINE)
    return rest[: end.start()] if end else rest


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows, without its heading, without back quotes."""
    cells = [
        [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells[1:] if not set("".join(row)) <= set("-: ")]


# The examples

DRIVER = r"""
import contextlib, io, json, os, subprocess, sys
import psycopg

sys.path.insert(0, os.getcwd())
names = {"__name__": "page"}
said = []
with open(sys.argv[1], encoding="utf-8") as plan:
    steps = json.load(plan)
for step in steps:
    where, text = f"{step['page']}:{step['line']}", step["text"]
    if step["language"] == "bash":
        bash = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(bash, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{where}: exit status {done.returncode}\n{text}\n{done.stdout}{done.stderr}")
        said.append(done.stdout)
    elif step["language"] == "sql":
        with psycopg.connect(os.environ["PGFIFO_DSN"], autocommit=True) as conn:
            try:
                conn.execute(text.encode())
            except psycopg.Error as error:
                sys.exit(f"{where}: {error}\n{text}")
        said.append("")
    else:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * (step["line"] - 1) + text, step["page"], "exec"), names)
        said.append(out.getvalue())
json.dump(said, open(sys.argv[1], "w", encoding="utf-8"))
"""


@pytest.fixture(scope="module")
def quick() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pgfifo-") as folder, quick_program(Path(folder)) as program:
        yield program


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))])
def test_the_examples_of_a_page_run_and_print_what_it_shows(
    page: str, request: pytest.FixtureRequest, tmp_path: Path, quick: Path
) -> None:
    # A page that does not install the schema itself speaks of a database that has it.
    installs = any("install" in block.text for block in blocks(page))
    dsn = request.getfixturevalue("empty_dsn" if installs else "fresh_dsn")
    folder = tmp_path / "page"
    folder.mkdir()
    steps: list[Block] = []
    shown: list[tuple[Block, int]] = []
    for block in blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.runs:
            steps.append(block)
        elif block.info == "text output":
            shown.append((block, len(steps) - 1))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([asdict(s) | {"language": s.language, "page": page} for s in steps]), "utf-8")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER, encoding="utf-8")
    path = [
        str(quick),
        str(Path(sys.executable).parent),
        os.environ.get("PATH", ""),
        str(binaries_of_this_run()),
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", driver, plan],
        cwd=folder,
        env=os.environ | {"PGFIFO_DSN": dsn, "PATH": os.pathsep.join(path), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(plan.read_text(encoding="utf-8"))
    for block, step in shown:
        assert alike(block.text, said[step]), (
            f"{page}:{block.line} shows\n{block.text}\nbut line {steps[step].line} printed\n{said[step]}"
        )


def alike(shown: str, said: str) -> bool:
    """Compare without regard to the width of spaces; … stands for anything, alone in a line for lines."""

    def lines(text: str) -> list[str]:
        return [" ".join(line.split()) for line in text.strip().splitlines()]

    patterns = [
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines(shown)
    ]
    return re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in lines(said))) is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        _, _, more = block.info.partition(" ")
        if (ROOT / more).is_file():
            assert block.text in read(more), f"{page}:{block.line}: that is not in {more}"
        elif block.language in RUN and more:
            assert re.fullmatch(r"not run: \w.+", more), f"{page}:{block.line}: {block.info!r}"
        else:
            assert block.info in (*RUN, *SHOWN, "text output"), f"{page}:{block.line}: {block.info!r}"


def test_what_is_shown_and_not_run_is_at_least_there() -> None:
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.splitlines() if block.language == "sh" else ():
                words = line.partition("#")[0].split()
                known = words[0] in ("make", "export") or words[:2] == ["pip", "install"]
                assert known, f"{page}: {line}"
                assert words[0] != "make" or words[1] in targets, f"{page}: {line}"


def test_the_policies_that_are_shown_are_such_as_can_be_applied() -> None:
    shown = [block for page in PAGES for block in blocks(page) if block.language == "toml"]
    assert shown
    for block in shown:
        document = policyfile.loads(block.text)
        assert document["actions"], "the file says nothing of actions"


# What pages say of each other, and of the repository


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for number, line in prose(page):
        for target in re.findall(r"\]\(([^)]+)\)", line):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            there = (here.parent / file).resolve() if file else here
            assert there.exists(), f"{page}:{number}: there is no {target}"
            assert not anchor or anchor in anchors(there), f"{page}:{number}: there is no {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS])
def test_lines_fit_the_screen(page: str) -> None:
    for number, line in prose(page):
        assert len(line) <= 132 or line.startswith(("|", "[")) or "](" in line, f"{page}:{number}"


def names_of_tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_are_there(page: str) -> None:
    for path, name in re.findall(r"(tests/(?:faults/)?test_\w+\.py)(?:::(test_\w+))?", read(page)):
        assert (ROOT / path).is_file(), f"{page} names {path}"
        assert not name or name in names_of_tests(path), f"{page} names {path}::{name}"


@pytest.mark.parametrize("promise", PROMISES)
def test_each_promise_is_stated_with_the_tests_that_hold_it(promise: str) -> None:
    text = section("docs/guarantees.md", promise)
    assert re.search(r"tests/test_\w+\.py::test_\w+", text), f"no test is named that holds {promise}"


# Migrations


class RunSQL:
    """What Django's class of this name does: one text, as it is, without parameters."""

    def __init__(self, sql: str, reverse_sql: str) -> None:
        self.forwards, self.backwards = sql, reverse_sql


def test_the_examples_of_migrations_install_and_remove_the_schema(
    empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither Alembic nor Django is needed for the suite: these stand for the few names that the examples use.
    conn = psycopg.connect(empty_dsn)
    op = types.SimpleNamespace(get_bind=lambda: types.SimpleNamespace(connection=conn), execute=conn.execute)
    django = types.SimpleNamespace(migrations=types.SimpleNamespace(Migration=object, RunSQL=RunSQL))
    monkeypatch.setitem(sys.modules, "alembic", types.SimpleNamespace(op=op))
    monkeypatch.setitem(sys.modules, "django", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "django.db", django)
    found = {block.file: block for block in blocks("docs/migrations.md") if block.file}
    (tmp_path / "pgfifo_0_1_0.sql").write_text(schema.sql_text(), encoding="utf-8")

    def load(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__file__": str(tmp_path / "migration.py"), "__name__": name}
        exec(compile(found[name].text, name, "exec"), names)
        return names

    def installed() -> int | None:
        return schema.version(conn)

    with conn:
        alembic = load("migrations/versions/0001_pgfifo.py")
        alembic["upgrade"]()
        assert installed() == schema.VERSION
        alembic["downgrade"]()
        assert installed() is None
        [operation] = load("myapp/migrations/0002_pgfifo.py")["Migration"].operations
        conn.execute(operation.forwards)
        assert installed() == schema.VERSION
        conn.execute(operation.backwards)
        assert installed() is None


def test_the_roles_of_the_migrations_page_can_do_what_it_says(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        for block in blocks("docs/migrations.md"):
            if block.language == "sql":  # roles belong to the whole server: not those of the page's own run
                conn.execute(re.sub(r"\bapp\b", "an_app", block.text.replace("app_", "a_")).encode())
    with pgfifo.Client(psycopg.conninfo.make_conninfo(fresh_dsn, user="a_producer")) as producer:
        job = producer.enqueue("a", {"n": 1})
        producer.enqueue_many("a", [2, 3])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.pause("a")
    actions = pgfifo.Actions()
    actions.add("a", lambda execution: execution.payload)
    dsn = psycopg.conninfo.make_conninfo(fresh_dsn, user="an_app")
    pgfifo.Worker(dsn, actions, until_empty=True).run()
    with pgfifo.Client(dsn) as app:
        assert app.stats("a").total_succeeded == 3
        assert app.execution(job.id).result == {"n": 1}
        assert [app.check(), app.order_violations("a")] == [[], []]
        assert app.set_policy("a", max_concurrent=2)
        assert app.pause("a")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.install()
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("select count(*) from pgfifo.audit").fetchone() != (0,)
        for forbidden in ("select from pgfifo._executions", "select pgfifo._append(1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(forbidden.encode())


def test_a_standby_answers_what_the_architecture_page_says() -> None:
    with make_server() as primary:
        with pgfifo.Client(primary.dsn()) as fifo:
            fifo.install()
            fifo.set_policy("a", group_by=["k"])
            job = fifo.enqueue("a", {"k": "x"})
        with primary.standby() as standby, pgfifo.Client(standby.dsn()) as fifo:
            wait_for(lambda: fifo.stats() != [], message="the standby to follow")
            wait_for(lambda: fifo.stats("a").queue_length == 1, message="the enqueue to arrive")
            assert [lane.queue_length for lane in fifo.lanes("a", {"k": "x"})] == [1]
            assert fifo.execution(job.id).state == "waiting"
            assert fifo.position(job.id).position == 1
            assert fifo.effective_policy("a")[0].value == ["k"]
            assert fifo.check() == []
            assert {each.value for each in fifo.metrics(5) if each.name.endswith("queue_length")} == {1}
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                fifo.enqueue("a", {"k": "x"})


# What pages say of the program


def test_the_defaults_of_policies_are_those_of_a_new_action(conn: psycopg.Connection[Any]) -> None:
    conn.execute("select pgfifo.enqueue('new')")
    inquiry = conn.execute("select attribute, value, source from pgfifo.effective_policy('new')")
    in_force = {attribute: value for attribute, value, source in inquiry if source == "default"}
    documented = {row[0]: _value(row[1]) for row in rows(section("docs/python.md", "Policies"))}
    assert documented == in_force


def _value(text: str) -> object:
    words: dict[str, object] = {"none": [], "n of rate": None, "no": False}
    if text in words:
        return words[text]
    if re.fullmatch(r"\d[\d.,]*", text):
        return float(text.replace(",", ""))
    size = re.fullmatch(r"(\d+) MiB", text)
    if size:
        return int(size[1]) * 1024 * 1024
    if re.fullmatch(r"\d+ (s|min|h|days?)", text):
        return durations.seconds(
            text.replace(" ", "").replace("min", "m").replace("days", "d").replace("day", "d")
        )
    return text


def test_the_defaults_of_a_worker_are_those_of_its_arguments() -> None:
    arguments = inspect.signature(pgfifo.Worker).parameters
    for name, default, *_ in rows(section("docs/python.md", "Arguments of a worker")):
        given = arguments[name].default
        assert _value(default) == (given if isinstance(given, str) else float(given)), name


def test_every_public_name_is_in_the_python_page() -> None:
    text = read("docs/python.md")
    for name in pgfifo.__all__:
        assert re.search(rf"\b{name}\b", text), f"pgfifo.{name} is not in docs/python.md"
    for owner in (pgfifo.Client, pgfifo.Actions, pgfifo.Worker, pgfifo.Execution):
        for name, _ in inspect.getmembers(owner):
            if not name.startswith("_"):
                assert re.search(rf"\b{name}\b", text), f"{owner.__name__}.{name} is not in docs/python.md"


def test_the_errors_and_their_codes_are_in_the_python_page() -> None:
    documented = {row[0]: row[1] for row in rows(section("docs/python.md", "Errors"))}
    classes = {
        name: found.sqlstate
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.PgfifoError)
        and found is not errors.PgfifoError
        and not name.startswith("_")
    }
    assert documented == classes


def test_no_error_of_the_python_page_is_one_that_nothing_raises() -> None:
    sql = "".join(path.read_text() for path in (ROOT / "sql").rglob("*.sql"))
    paths = (ROOT / "pgfifo").rglob("*.py")
    python = "".join(path.read_text() for path in paths if path.name != "errors.py")
    python += read("pgfifo/errors.py").partition("def translated")[2]
    for name, code, when in rows(section("docs/python.md", "Errors")):
        assert f"'{code}'" in sql or re.search(rf"(raise|return) {name}\(", python), name
        assert "reserved" not in when


def catalog(conn: psycopg.Connection[Any], query: str) -> set[str]:
    return {name for (name,) in conn.execute(query.encode()).fetchall()}


def test_the_public_views_are_those_of_the_stability_page(conn: psycopg.Connection[Any]) -> None:
    views = catalog(conn, "select viewname from pg_views where schemaname = 'pgfifo' and viewname !~ '^_'")
    documented = {row[0] for row in rows(section("docs/stability.md", "Views"))}
    assert documented - {"audit"} == views  # the audit is a table that is read like a view


def test_every_table_is_in_the_architecture_page(conn: psycopg.Connection[Any]) -> None:
    tables = catalog(
        conn,
        "select relname from pg_class where relnamespace = 'pgfifo'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition",
    )
    documented = {row[0] for row in rows(section("docs/architecture.md", "Tables"))}
    assert documented == tables


def test_every_lock_class_is_in_the_architecture_page() -> None:
    sql = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "sql").rglob("*.sql"))
    classes = set(re.findall(r"lock\w*\(\s*'pgfifo\.(\w+)'::regclass", sql))
    classes |= set(re.findall(r"c_\w+ constant integer := 'pgfifo\.(\w+)'::regclass", sql))
    documented = {row[0] for row in rows(section("docs/architecture.md", "Locks"))}
    assert {name.removeprefix("_") for name in documented} == {name.removeprefix("_") for name in classes}
