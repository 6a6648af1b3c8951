"""``python -m pgfifo`` is the command line."""

from pgfifo.cli import main

main()
