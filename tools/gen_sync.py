"""Make the synchronous modules from the asynchronous ones, token by token.

    python -m tools.gen_sync            write them
    python -m tools.gen_sync --check    exit with status 1 if one of them is not what would be written

A sentence that cannot be the same in both has a replacement of its own below.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAIRS = {
    "pgfifo/pool_async.py": "pgfifo/pool.py",
    "pgfifo/calls_async.py": "pgfifo/calls.py",
    "pgfifo/waiting_async.py": "pgfifo/waiting.py",
    "pgfifo/slots_async.py": "pgfifo/slots.py",
    "pgfifo/following_async.py": "pgfifo/following.py",
    "pgfifo/client_async.py": "pgfifo/client.py",
}

REPLACEMENTS = [
    (
        r"^`Async\w+` is written by hand; .*$",
        "Made by tools/gen_sync.py from its asynchronous twin: change that one.",
    ),
    (r"Many tasks of one event loop can use it at\n    once;", "Many threads can use it at\n    once;"),
    (r", from asyncio\.", "."),
    (r"\bimport asyncio\b", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bAbstractAsyncContextManager\b", "AbstractContextManager"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\bAsync(Iterator|ConnectionPool|Connection|Cursor|Gate|Pool|Bell)\b", r"\1"),
    (r"\bAsync(Calls|Waiting|Following|Holding|Slot|Client)\b", r"\1"),
    (r"  # noqa: ASYNC109.*$", ""),
    (r"\baclosing\b", "closing"),
    (r"\b(unwrap|result|apart)_async\b", r"\1"),
    (r"\b(pool|calls|waiting|following|slots|client)_async\b", r"\1"),
]


def converted(source: str) -> str:
    """Return the synchronous form of a module, given by its path in the repository."""
    text = (ROOT / source).read_text()
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = _ruff(["check", "--select", "I", "--fix-only", "--quiet"], text, PAIRS[source])
    return _ruff(["format", "--quiet"], text, PAIRS[source])


def _ruff(command: list[str], text: str, path: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout


def main(arguments: list[str]) -> int:
    """Write the modules, or compare them."""
    stale = []
    for source, target in PAIRS.items():
        text = converted(source)
        path = ROOT / target
        if not path.exists() or path.read_text() != text:
            stale.append(target)
            if "--check" not in arguments:
                path.write_text(text)
                print(f"wrote {target}")
    if stale and "--check" in arguments:
        print(f"stale, run `python -m tools.gen_sync`: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
