"""Numbers in messages, as people read them."""


def count(number: int, what: str, plural: str | None = None) -> str:
    """Return a number with its noun, as ``1 execution`` or ``2,000 executions``."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
