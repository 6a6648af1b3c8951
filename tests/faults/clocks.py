"""Clocks that are wrong, by libfaketime (on Debian: apt install libfaketime)."""

from pathlib import Path

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"))), None)


def wrong(by: str) -> dict[str, str]:
    """Return the environment of a process whose clock is wrong.

    Args:
        by: as ``+5h`` or ``-3h``.
    """
    # What measures lengths of time is not changed, as no wrong clock changes it.
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Clock:
    """The clock of the processes that are started with its environment; it can be set while they run."""

    def __init__(self, folder: Path) -> None:
        """Begin with the right time.

        Args:
            folder: where the file is that they look into, each second.
        """
        self._file = folder / "clock"
        self.jump("+0")
        folder.chmod(0o755)
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, to: str) -> None:
        """Set it.

        Args:
            to: how far from the right time, as ``+1h``.
        """
        new = self._file.with_suffix(".new")
        new.write_text(f"{to}\n")
        new.chmod(0o644)
        new.replace(self._file)
