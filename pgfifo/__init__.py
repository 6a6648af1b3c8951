"""An ordered queue with limits, inside your own PostgreSQL."""

__version__ = "0.1.0"
