"""Take one safeguard at a time out of pgfifo; a named test must notice.

``python -m tests.mutations`` runs all of `tests.safeguards`, ``python -m tests.mutations NAME …`` some, each
with its own tests only; ``--whole NAME`` runs the whole suite on one (``--whole NAME -- -m faults tests``:
what pytest is told), ``--list`` shows them all. ``--write`` puts what was noticed, and by which test, into
the table of docs/testing.md.

Each mutation replaces text of one file, and each text must be there exactly once: one that does not apply
any more fails the run instead of passing for one that was noticed. A file of SQL functions is replaced on a
server that several runs of the tests have in common. What cannot be replaced there, and what nobody has
noticed there, is tried in a copy of the repository, in which the tests then run in a process of their own.
The product knows nothing of all this.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from pgfifo.embedded import PrivateServer
from tests.safeguards import MUTATIONS, ROOT, Mutation
from tests.support import server as servers
from tests.support.database import Databases

PAGE = ROOT / "docs" / "testing.md"
BEGIN = "<!-- mutations -->\n"
END = "<!-- /mutations -->\n"
_HEAD = (
    "| safeguard | promise | without it | where it is | a test that turns red |",
    "|---|---|---|---|---|",
)
_LEFT_OUT = shutil.ignore_patterns(".venv", ".git", ".cache", ".hypothesis", ".*_cache", "dist", "build")
# What a test says when a mutation has made SQL that does not run at all: it has shown nothing then.
_BROKEN = re.compile(r"errors\.(SyntaxError|Undefined\w+|Ambiguous\w+|DatatypeMismatch|WrongObjectType)\b")
_QUIET = ("-q", "-x", "-p", "no:cacheprovider", "--tb=short")
_BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


@dataclass(frozen=True)
class Verdict:
    """What became of one mutation: the tests that have noticed it, or what was wrong."""

    name: str
    noticed_by: tuple[str, ...]
    problem: str
    seconds: float


def mutated(script: str, name: str) -> str:
    """Return the install script with the mutation of that name applied."""
    return _BY_NAME[name].apply(script)


# -- the table -----------------------------------------------------------------------------------------------


def rows(page: str) -> dict[str, str]:
    """Return the rows of the table in the documentation, by the names of the safeguards."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()[len(_HEAD) :]
    return {line.split("|")[1].strip(): line for line in lines}


def with_rows(page: str, verdicts: list[Verdict]) -> str:
    """Return the page with new rows for these, and the old ones for the others that there are still."""
    table = rows(page)
    for one in verdicts:
        what = _BY_NAME[one.name]
        columns = (what.name, what.promise, what.without, f"`{what.path}`", f"`test_{one.noticed_by[0]}`")
        table[what.name] = f"| {' | '.join(columns)} |"
    lines = [*_HEAD, *(table[each.name] for each in MUTATIONS if each.name in table)]
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


# -- running tests -------------------------------------------------------------------------------------------


def judge(mutation: Mutation, status: int, output: str, began: float) -> Verdict:
    """Say what a run of pytest without a safeguard has shown."""
    failed = tuple(dict.fromkeys(re.findall(r"^FAILED \S+?::test_(\w+)", output, re.MULTILINE)))
    broken = _BROKEN.search(output)
    noticed = failed if status == 1 and not broken else ()
    problem = "" if noticed else broken.group() if broken else f"pytest ended with {status}"
    return Verdict(mutation.name, noticed, problem, time.monotonic() - began)


class Bench:
    """A server with pgfifo on it, in which files of functions are replaced between runs of pytest here."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        databases = Databases(server)
        self._databases = [databases.template(), Databases.SHARED]
        databases.shared()

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator["Bench"]:
        """Start the server."""
        servers.clean_environment()
        with tempfile.TemporaryDirectory() as home, servers.make_server() as server:
            os.environ["PGFIFO_HOME"] = home
            servers.kept = server
            yield cls(server)
            servers.kept = None

    def run(self, nodes: list[str]) -> tuple[int, str]:
        """Run tests; return the exit status and what pytest printed."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = pytest.main([*_QUIET, *nodes])
        return int(status), printed.getvalue()

    def take_out(self, mutation: Mutation) -> Verdict:
        """Run its tests without one safeguard, and put it back."""
        began = time.monotonic()
        original = (ROOT / mutation.path).read_text()
        try:
            self._replace(mutation.apply(original))
            return judge(mutation, *self.run(mutation.nodes), began)
        finally:
            self._replace(original)

    def confirm(self, mutation: Mutation, verdict: Verdict) -> Verdict:
        """Run the test that has noticed it while the safeguard is there: it must be green then."""
        files = {node.partition("::")[0] for node in mutation.nodes}
        red = f"::test_{verdict.noticed_by[0]}"
        nodes = [path + red for path in sorted(files) if f"def test_{verdict.noticed_by[0]}(" in _read(path)]
        status, _ = self.run(nodes)
        problem = "" if status == 0 else f"{red} is red with the safeguard, too"
        return replace(verdict, noticed_by=() if problem else verdict.noticed_by, problem=problem)

    def _replace(self, text: str) -> None:
        for name in self._databases:
            with psycopg.connect(self._server.dsn(name)) as conn:
                conn.execute("set local search_path = pg_catalog, pg_temp")
                conn.execute("set local check_function_bodies = off")
                conn.execute("set local client_min_messages = warning")
                conn.execute(text.encode())


def _read(path: str) -> str:
    return (ROOT / path).read_text()


def can_be_replaced(mutation: Mutation) -> bool:
    """Say whether a file has nothing but functions, and its change is one of those."""
    return mutation.file.startswith(("functions/", "internal/")) and not any(
        "create or replace trigger" in old for old, _ in mutation.change
    )


def in_a_copy(mutation: Mutation, tests: list[str], *more: str) -> tuple[Verdict, str]:
    """Run tests in a copy of the repository without one safeguard."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pgfifo-mutation-") as place:
        folder = Path(shutil.copytree(ROOT, Path(place) / "copy", ignore=_LEFT_OUT))
        file = folder / mutation.path
        file.write_text(mutation.apply(file.read_text()))
        # Before the checkout that is installed: also for the programs that tests start.
        environment = os.environ | {"PYTHONPATH": str(folder)}
        command = [sys.executable, "-m", "pytest", *_QUIET, *more, *tests]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    output = done.stdout + done.stderr
    return judge(mutation, done.returncode, output, began), output


def one_share(names: list[str]) -> None:
    """Try these in this process, and print what has become of each as a line of JSON."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tests print is none of that
    with Bench.start() as bench:
        for mutation in map(_BY_NAME.__getitem__, names):
            verdict = bench.take_out(mutation) if can_be_replaced(mutation) else None
            if verdict is None or not (verdict.noticed_by or "errors." in verdict.problem):
                verdict, _ = in_a_copy(mutation, mutation.nodes)
            if verdict.noticed_by:
                verdict = bench.confirm(mutation, verdict)
            print(json.dumps(vars(verdict)), file=told, flush=True)


def in_shares(names: list[str], jobs: int) -> list[Verdict]:
    """Try these in several processes, and print what has become of each."""

    def share(number: int) -> list[Verdict]:
        command = [sys.executable, "-m", "tests.mutations", "--share", *names[number::jobs]]
        found = []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told = json.loads(line)
                verdict = Verdict(**told | {"noticed_by": tuple(told["noticed_by"])})
                found.append(verdict)
                how = "noticed" if verdict.noticed_by else "SURVIVED"
                by = ", ".join(verdict.noticed_by) or verdict.problem
                print(f"{verdict.name:<52} {how:<9} {verdict.seconds:5.1f}  {by}", flush=True)
        return found

    print(f"{'safeguard taken out':<52} {'verdict':<9} {'s':>5}  noticed by")
    with ThreadPoolExecutor(jobs) as pool:
        return [verdict for found in pool.map(share, range(jobs)) for verdict in found]


def main(arguments: list[str]) -> int:
    """Run the mutations and print a table; return 1 if one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="safeguards to take out; all by default")
    parser.add_argument("--list", action="store_true", help="show the safeguards")
    parser.add_argument("--whole", metavar="NAME", help="run the whole suite without this one")
    parser.add_argument("--jobs", default="auto", help="how many at a time (default: one a core)")
    parser.add_argument("--write", action="store_true", help="put what was noticed into docs/testing.md")
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        for mutation in MUTATIONS:
            print(f"{mutation.name}  ({mutation.promise}, {mutation.path})")
        return 0
    names = [options.whole] if options.whole else options.names or list(_BY_NAME)
    unknown = set(names) - set(_BY_NAME)
    if unknown:
        print(f"No such mutation: {', '.join(sorted(unknown))}. See --list.", file=sys.stderr)
        return 2
    for name in names:
        mutation = _BY_NAME[name]
        mutation.apply((ROOT / mutation.path).read_text())  # fails early where the file has changed under it
    if options.share:
        one_share(names)
        return 0
    jobs = (os.cpu_count() or 1) if options.jobs == "auto" else int(options.jobs)
    if options.whole:
        suite = ["--numprocesses", str(jobs), "--dist", "worksteal"]
        verdict, output = in_a_copy(_BY_NAME[options.whole], options.names or suite, "--maxfail=1000")
        print(output)
        return 0 if verdict.noticed_by else 1
    verdicts = in_shares(names, min(jobs, len(names)))
    noticed = [verdict for verdict in verdicts if verdict.noticed_by]
    print(f"{len(noticed)} of {len(names)} mutations were noticed.")
    if options.write:
        PAGE.write_text(with_rows(PAGE.read_text(), noticed))
    return 0 if len(noticed) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
