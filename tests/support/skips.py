"""Make a run fail that skipped a test without leave: .ci/allowed-skips lists each, with its reason.

On Linux, which the suite is for: elsewhere, what is Linux's or POSIX's own is skipped where it stands.
"""

import fnmatch
import sys
from pathlib import Path

import pytest

LIST = Path(__file__).parents[2] / ".ci" / "allowed-skips"
GUARDED = sys.platform == "linux"


def allowed(text: str) -> list[str]:
    """Return the patterns of a list of allowed skips.

    Args:
        text: lines of the form ``nodeid-pattern  # reason``; empty ones and comments do not count.

    Raises:
        ValueError: a pattern stands there without a reason.
    """
    patterns = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, _, reason = line.partition("#")
        if not pattern.strip() or not reason.strip():
            raise ValueError(f"line {number} of {LIST.name}: a pattern needs a reason, as: nodeid  # reason")
        patterns.append(pattern.strip())
    return patterns


class SkipGuard:
    """Collects what was skipped, and judges it at the end."""

    def __init__(self, patterns: list[str]) -> None:
        self._patterns = patterns
        self.unlisted: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Look at a test's report."""
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Look at a module's report: a module can skip itself."""
        self._look(report)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn a run red that would be green."""
        if self.unlisted and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was skipped without leave."""
        if self.unlisted:
            terminalreporter.section("skipped without leave", sep="=", red=True)
            terminalreporter.line(
                f"List each in {LIST.parent.name}/{LIST.name} with its reason, or let it run."
            )
            for nodeid, reason in self.unlisted.items():
                terminalreporter.line(f"{nodeid}  # {reason}")

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        # fnmatch takes the [ of a parametrised test for a set of characters.
        if not any(fnmatch.fnmatchcase(report.nodeid, p.replace("[", "[[]")) for p in self._patterns):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.unlisted[report.nodeid] = reason


def pytest_configure(config: pytest.Config) -> None:
    """Put the guard in place."""
    if GUARDED:
        config.pluginmanager.register(SkipGuard(allowed(LIST.read_text())), "pgfifo-skip-guard")
