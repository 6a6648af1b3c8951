"""How much memory a process has taken."""

import resource
import sys
from pathlib import Path


def peak_kib() -> int:
    """Return the most memory this process has had resident, in KiB.

    Linux keeps the maximum of getrusage(2) across fork and exec, so that a child of a large process would
    start with its parent's; what /proc says begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most
