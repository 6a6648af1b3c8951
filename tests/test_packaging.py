"""What people install: the wheel holds the SQL and works away from the checkout."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import psycopg
import pytest

import pgfifo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Built with what is installed here, so without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    build += ["--no-index", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("pgfifo-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


def run_installed(installed: Path, code: str, *arguments: str) -> str:
    """Run code that sees the installed wheel and not the checkout; its dependencies come from here."""
    preamble = (
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        f"sys.path.insert(0, {str(installed)!r})\n"
        f"import pgfifo; assert pgfifo.__file__.startswith({str(installed)!r}), pgfifo.__file__\n"
    )
    # -I: neither the current folder nor PYTHONPATH leads back to the checkout.
    done = subprocess.run(
        [sys.executable, "-I", "-c", preamble + code, *arguments],
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_sql_file_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {f"pgfifo/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("sql/**/*.sql")}
    assert ours, "there is SQL to ship"
    assert ours <= names, "without these files a schema cannot be installed"
    assert "pgfifo/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_what_the_pages_are_made_of(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("pgfifo/web/[st]*/*.*")}
    assert {"pgfifo/web/static/pgfifo.js", "pgfifo/web/templates/base.html"} <= ours <= names


def test_the_wheel_holds_nothing_but_the_package_and_its_program(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"pgfifo", "_pgfifo.py", "_pgfifo_pytest.py", f"pgfifo-{pgfifo.__version__}.dist-info"}


def test_the_installed_wheel_reads_the_same_sql_as_the_checkout(installed: Path) -> None:
    import pgfifo.schema

    text = run_installed(installed, "import pgfifo.schema; sys.stdout.write(pgfifo.schema.sql_text())")
    assert text == pgfifo.schema.sql_text()


def test_the_installed_wheel_installs_a_schema_that_works(installed: Path, empty_dsn: str) -> None:
    code = """
import psycopg, pgfifo.schema
with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    pgfifo.schema.install(conn)
"""
    run_installed(installed, code, empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("""select pgfifo.enqueue('deploy', '{"env": "prod"}')""")


def test_the_installed_wheel_has_the_command(wheel: Path, installed: Path) -> None:
    entry_points = f"pgfifo-{pgfifo.__version__}.dist-info/entry_points.txt"
    assert "pgfifo = _pgfifo:main" in zipfile.ZipFile(wheel).read(entry_points).decode()
    run_installed(installed, "from pgfifo.cli import main; assert callable(main)")


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pgfifo.__version__


def test_the_changelog_speaks_of_this_version_or_of_what_comes_next() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", pgfifo.__version__)


def test_extras_are_written_alike_and_are_there() -> None:
    """A shell takes `[web]` for a pattern, so all are quoted; and what is gone is named nowhere."""
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("pgfifo/**/*.py"),
        ROOT / "_pgfifo.py",
    ]
    named: set[str] = set()
    for path in texts:
        for quote, names in re.findall(r"pip\s+install (\S?)(?:pgfifo|\.)\[([\w,]+)\]", path.read_text()):
            assert quote == "'", f"{path}: pip install with {names}, and no quotes"
            named |= set(names.split(","))
    assert known - {"dev", "docs"} == named
