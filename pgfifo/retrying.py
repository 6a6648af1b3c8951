"""What a handler raises to say itself whether, and when, its execution is tried again."""

from __future__ import annotations

from pgfifo.durations import Duration, seconds


class Retry(Exception):  # noqa: N818 - it says what is to be done
    """Raised by a handler: try this execution again, after a time of its own choice.

    ::

        raise pgfifo.Retry("the API asks us to slow down", after=60)
        raise pgfifo.Retry(after=60, count=False)  # not ready yet; look again in a minute

    Attributes:
        reason: Why; it is kept as the attempt's error.
        after: In how many seconds; None for the backoff of the action's policy.
        count: Whether the attempt counts as one that failed.
    """

    def __init__(
        self, reason: str | None = None, *, after: Duration | None = None, count: bool = True
    ) -> None:
        """Say when.

        Args:
            reason: Why, for those who look.
            after: When to try again: in so many seconds, or a timedelta, or text (``1m30s``). Defaults to the
                backoff of the action's policy.
            count: Whether it counts as a failure, up to ``max_attempts`` of which there may be. Without that
                an execution can be put off as often as its handler likes. Defaults to true.

        Raises:
            InvalidValue: ``after`` is no duration, or negative.
        """
        super().__init__(reason or "")
        self.reason = reason or None
        self.after = None if after is None else seconds(after, "after")
        self.count = bool(count)


class Abort(Exception):  # noqa: N818 - it says what is to be done
    """Raised by a handler: this execution has failed for good, and is not tried again.

    Attributes:
        reason: Why; it is kept as the execution's error.
    """

    def __init__(self, reason: str | None = None) -> None:
        """Say why.

        Args:
            reason: For those who look.
        """
        super().__init__(reason or "")
        self.reason = reason or None
