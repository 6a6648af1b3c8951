"""Locks on files that the kernel drops when their holder is gone, however it went."""

import os
import sys
import time
from pathlib import Path

from .errors import EmbeddedError


class FileLock:
    """A lock on a file: shared by many, or exclusive. Each object is a holder of its own, in one process too.

    The lock belongs to the open file. A forked child inherits it; it is free when both have let go.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `try_lock` and `lock`; this only keeps what they opened."""
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go. Doing so twice is harmless."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> "FileLock":
        """Hold the lock for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go at the end of the block."""
        self.release()


def try_lock(path: Path, *, shared: bool) -> FileLock | None:
    """Take a lock if it is free now.

    Args:
        path: the file, made when it is missing (readable by its owner only).
        shared: several holders at a time, as long as nobody holds it exclusively.

    Returns:
        The lock, or None when somebody holds it in a way that excludes this one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        taken = _try_lock(descriptor, shared)
    except BaseException:
        os.close(descriptor)
        raise
    if not taken:
        os.close(descriptor)
        return None
    return FileLock(path, descriptor)


def lock(path: Path, *, shared: bool, timeout: float, what: str) -> FileLock:
    """Take a lock, waiting for it.

    Args:
        path: the file, made when it is missing.
        shared: several holders at a time.
        timeout: seconds to wait at most.
        what: what the lock stands for, for the error.

    Raises:
        EmbeddedError: another process kept it all the time.
    """
    deadline = time.monotonic() + timeout
    while True:
        taken = try_lock(path, shared=shared)
        if taken is not None:
            return taken
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"{what} is busy: another process has held {path} for {timeout:g} s. "
                "It may hang; find it with fuser or lsof and end it."
            )
        time.sleep(0.01)  # a wait in the system could not be given up after a time


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    class _Overlapped(ctypes.Structure):
        """The OVERLAPPED structure: here, the place in the file where the lock is."""

        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        )

    def _try_lock(descriptor: int, shared: bool) -> bool:
        fail_immediately, exclusive, lock_violation = 1, 2, 33
        flags = fail_immediately if shared else fail_immediately | exclusive
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle = wintypes.HANDLE(msvcrt.get_osfhandle(descriptor))
        if kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(_Overlapped())):
            return True
        error = ctypes.get_last_error()
        if error != lock_violation:
            raise ctypes.WinError(error)
        return False

else:

    def _try_lock(descriptor: int, shared: bool) -> bool:
        import fcntl

        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
