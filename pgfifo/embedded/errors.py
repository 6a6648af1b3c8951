"""The one error of this package."""


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be found, started, reached or stopped; the message says what to do."""
