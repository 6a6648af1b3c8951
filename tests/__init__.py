"""The tests of pgfifo, on a real server."""
