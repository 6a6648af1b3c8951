"""Whether a server has said something unasked, which is how it says goodbye."""

from __future__ import annotations

import select


def has_news(fileno: int) -> bool:
    """Return whether there is something to read on a socket, without waiting."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])
