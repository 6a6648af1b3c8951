"""Give the parsers what no user would: bytes that libFuzzer makes up, led by the lines that they reach.

``python -m tests.fuzz_parsers jsonlines -max_total_time=60`` (`make fuzz-parsers` for all of them). Needs
atheris, which has wheels for a few platforms only, and no PostgreSQL: what that takes is for other tests to
say, which ask it. Here a parser must answer, or refuse in the one way that is documented, whatever comes.
"""

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any

atheris: Any = importlib.import_module("atheris")
with atheris.instrument_imports(include=["pgfifo"]):
    from pgfifo import dsn, envelopes, jsonlines, jsontext
    from pgfifo.errors import InvalidValue

SECRET = "hunter2"


def lines(data: bytes) -> None:
    """A file: what is let through is an object, stands in the file, and is kept by an import as it is."""
    report = jsonlines.check(jsonlines.Lines(io.BytesIO(data)))
    batches = jsonlines.batches(jsonlines.Lines(io.BytesIO(data)), rows=3, size=100)
    good = [text for batch in batches for text in batch.texts]
    assert len(good) == report.good
    for text in good:
        assert isinstance(jsontext.read(text), dict)
        assert text.encode() in data
        assert "\n" not in text


def json_text(data: bytes) -> None:
    """JSON: what is taken is what Python's reader takes, and comes back from what is written of it."""
    text = data.decode(errors="surrogateescape")
    # Of numbers that a double or Python cannot hold there is nothing to compare.
    with contextlib.suppress(ValueError):
        value = jsontext.read(text)
        assert jsontext.stored(text) is not None or value is None
        assert json.loads(text) == value
        assert jsontext.read(jsontext.dumps(value)) == value
    try:
        taken = jsontext.JsonText(text)
    except InvalidValue:
        return
    assert taken == text
    jsontext.array([taken, None])


def a_dsn(data: bytes) -> None:
    """An address: understood or refused, and never told with the password in it."""
    text = data.decode(errors="surrogateescape")
    for each in (text, f"postgresql://ada:{SECRET}@{text}", f"{text} password={SECRET}"):
        try:
            conninfo = dsn.normalise(each)
        except InvalidValue as error:
            told = f"{error} {error.detail}"
        else:
            told = dsn.describe(conninfo)
            dsn.with_defaults(conninfo)
        assert SECRET in text or SECRET not in told, told


def envelope(data: bytes) -> None:
    """A line that says more than a payload: opened or refused, and cut into calls that have all lines."""
    try:
        line = jsontext.read(data.decode(errors="surrogateescape"))
        opened = envelopes.opened(line if isinstance(line, dict) else {"payload": line})
    except ValueError:
        return
    texts = [str(n) for n in range(3)]
    cut = list(envelopes.runs(texts, [opened, envelopes.Envelope(None, None), opened], None, timed=True))
    assert [text for run in cut for text in run.texts] == texts


TARGETS: dict[str, Callable[[bytes], None]] = {
    "jsonlines": lines,
    "jsontext": json_text,
    "dsn": a_dsn,
    "envelopes": envelope,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
