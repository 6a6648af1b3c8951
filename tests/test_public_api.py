"""What is public, all of it and nothing else."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pgfifo
from pgfifo import errors, models

ROOT = Path(__file__).parents[1]


def test_all_is_sorted_and_complete() -> None:
    assert pgfifo.__all__ == sorted(set(pgfifo.__all__))
    for name in pgfifo.__all__:
        assert hasattr(pgfifo, name)
    imported = {
        alias.asname or alias.name
        for node in ast.parse((ROOT / "pgfifo" / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported | {"__version__"} == set(pgfifo.__all__)


def test_every_error_and_every_model_is_public() -> None:
    for module in (errors, models):
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and not name.startswith("_"):
                assert name in pgfifo.__all__, name


def test_the_version_is_the_packages() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{pgfifo.__version__}"' in text


def test_what_comes_back_cannot_be_changed_by_mistake() -> None:
    for kind in vars(models).values():
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]


def test_public_things_say_what_they_are() -> None:
    for name in pgfifo.__all__:
        thing = getattr(pgfifo, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(value):
                    assert inspect.getdoc(value), f"{name}.{method}"


def test_both_clients_have_the_same_methods_arguments_and_docstrings() -> None:
    def shape(kind: type) -> dict[str, tuple[list[str], int]]:
        return {
            name: (
                [str(p).replace("Async", "") for p in inspect.signature(value).parameters.values()],
                len((inspect.getdoc(value) or "").replace("async ", "").replace("await ", "")),
            )
            for name, value in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    asynchronous, synchronous = shape(pgfifo.AsyncClient), shape(pgfifo.Client)
    assert synchronous == asynchronous


def test_the_synchronous_modules_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.gen_sync", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_does_not_touch_the_environment_or_print() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import pgfifo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PGFIFO_DSN": "mysql://broken", "DATABASE_URL": "nonsense"},
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("module", ["fcntl", "resource", "pwd", "grp", "termios"])
def test_the_client_can_be_imported_where_there_is_no_posix(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; import pgfifo; pgfifo.Client('host=nowhere')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
