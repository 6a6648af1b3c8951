"""See it work."""
