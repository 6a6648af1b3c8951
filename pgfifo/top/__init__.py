"""`pgfifo top`: a live view of the queue, for a terminal. Needs the extra ``top`` (Textual)."""

from pgfifo.top.app import Top

__all__ = ["Top"]
