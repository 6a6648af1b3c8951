"""``python -m pgfifo`` is the command line."""

from pgfifo.cli import main

if __name__ == "__main__":
    main()
