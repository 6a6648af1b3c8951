"""The program ``pgfifo``, up to the point where its command line takes over.

It is no part of the package: to import that takes a while, and Ctrl-C has to end the program meanwhile too.
"""

import os
import signal


def main() -> None:
    """Run the command line; from the first moment on, Ctrl-C ends it with status 130 and without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from pgfifo.cli import main as run

    try:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        _end()


def _end(*_of_the_signal: object) -> None:
    """End the program: nothing has begun that would have to be ended."""
    os._exit(130)
