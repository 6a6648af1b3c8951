"""A file is refused before its first line is enqueued, and what is let through is what jsonb takes."""

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgfifo import jsonlines
from pgfifo.embedded import PrivateServer
from pgfifo.jsonlines import Batch, Lines, batches, check, check_line

GOOD = {
    "an object": b'{"customer":1}\n',
    "the last line without its end": b'{"a":1}',
    "Windows line ends": b'{"a":1}\r\n',
    "blanks around it": b'  {"a":1}\t\n',
    "an empty object": b"{}\n",
    "unicode": '{"name":"Zoë 日本 🙂"}\n'.encode(),
    "an escaped pair of surrogates": b'{"a":"\\ud83d\\ude00"}\n',
    "an escaped backslash before u0000": b'{"a":"\\\\u0000"}\n',
    "a big integer": b'{"n":123456789012345678901234567890}\n',
    "a number beyond a double": b'{"n":1e400,"m":-1e-400}\n',
    "the largest exponents": b'{"n":1e131071,"m":1e-16383}\n',
    "zero with any exponent": b'{"n":0e99999}\n',
    "the same key twice": b'{"a":1,"a":2}\n',
    "deep": b'{"a":' + b"[" * 499 + b"]" * 499 + b"}\n",
    "many brackets in a string": b'{"a":"' + b"[" * 1000 + b'\\""}\n',
}

BAD = {
    "no JSON": (b"hello\n", "Expecting value at column 1"),
    "half of an object": (b'{"a":1\n', "Expecting ',' delimiter at column 7"),
    "something behind it": (b'{"a":1} {"b":2}\n', "Extra data at column 9"),
    "a trailing comma": (b'{"a":1,}\n', "at column"),
    "single quotes": (b"{'a':1}\n", "Expecting property name"),
    "NaN": (b'{"a":NaN}\n', "NaN is not JSON"),
    "infinity": (b'{"a":-Infinity}\n', "-Infinity is not JSON"),
    "an array": (b'[{"a":1}]\n', "an array, not an object"),
    "a number": (b"12\n", "a number, not an object"),
    "a string": (b'"x"\n', "a string, not an object"),
    "null": (b"null\n", "null, not an object"),
    "true": (b"true\n", "a boolean, not an object"),
    "an escaped NUL": (b'{"a":"\\u0000"}\n', "jsonb cannot keep"),
    "an escaped NUL behind an escaped backslash": (b'{"a":"\\\\\\u0000"}\n', "jsonb cannot keep"),
    "an escaped NUL in a key": (b'{"\\u0000":1}\n', "jsonb cannot keep"),
    "a bare NUL": (b'{"a":"\x00"}\n', "Invalid control character"),
    "half of a surrogate pair": (b'{"a":"\\ud83d"}\n', "surrogate"),
    "the second half first": (b'{"a":"\\uDE00\\uD83D"}\n', "surrogate"),
    "a tab in a string": (b'{"a":"\t"}\n', "Invalid control character"),
    "Latin-1": (b'{"a":"caf\xe9"}\n', "not UTF-8 at byte 10"),
    "a surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}\n', "not UTF-8"),
    "an exponent out of range": (b'{"a":1e131072}\n', "out of range"),
    "an exponent that no decimal has": (b'{"a":1e9999999999999999999999}\n', "out of range"),
    "a zero with such an exponent": (b'{"a":0e9999999999999999999999}\n', "out of range"),
    "a tiny exponent that no decimal has": (b'{"a":1e-9999999999999999999999}\n', "out of range"),
    "a tiny exponent": (b'{"a":1e-16384}\n', "out of range"),
    "a long fraction": (b'{"a":0.' + b"1" * 16384 + b"}\n", "out of range"),
    "too deep": (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}\n", "nested more than 500 deep"),
    "far too deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested more than 500 deep"),
    "far too deep and not closed": (b'{"a":' + b"[" * 100_000 + b"\n", "nested more than 500 deep"),
}


@pytest.mark.parametrize("line", GOOD.values(), ids=GOOD.keys())
def test_import_takes(line: bytes) -> None:
    assert check_line(line) == line.decode().strip()


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD.keys())
def test_import_refuses(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("\\", "\\\\")):
        check_line(line)


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n"])
def test_import_passes_over_blank_lines(line: bytes) -> None:
    assert check_line(line) == ""


@pytest.fixture(scope="module")
def judge(server: PrivateServer) -> Iterator[Callable[[bytes], bool]]:
    """Whether PostgreSQL takes a line as jsonb."""
    conn = psycopg.connect(server.dsn(), autocommit=True)

    def takes(line: bytes) -> bool:
        try:
            conn.execute("select %s::jsonb", [line.strip().decode()])
        except (psycopg.DataError, psycopg.errors.StatementTooComplex, UnicodeDecodeError):
            return False
        return True

    yield takes
    conn.close()


def test_import_and_jsonb_are_of_one_mind(judge: Callable[[bytes], bool]) -> None:
    for name, line in GOOD.items():
        assert judge(line), f"{name}: let through, and the server refuses it half-way through a file"
    for name, (line, reason) in BAD.items():
        if not ("not an object" in reason or "deep" in reason):
            assert not judge(line), f"{name}: refused, and the server would take it"


_strings = st.text(st.characters(exclude_categories=())) | st.sampled_from(["\ud800", "\x00", '"', "\\"])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _strings
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_strings, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_strings, _values, max_size=4), st.booleans(), st.data())
def test_import_lets_nothing_through_that_jsonb_refuses(
    judge: Callable[[bytes], bool], value: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    if data.draw(st.booleans(), "damage it"):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    if b"\n" in raw or b"\r" in raw:
        return
    try:
        text, reason = check_line(raw), ""
    except ValueError as error:
        text, reason = "", str(error)
    if text:
        assert judge(raw), "let through, and the server refuses it half-way through a file"
    elif reason and "not an object" not in reason:
        assert not judge(raw), f"refused ({reason}), and the server would take it"


def lines_of(data: bytes, end: int | None = None) -> Lines:
    return Lines(io.BytesIO(data), end=end)


def test_report_counts_and_numbers_lines() -> None:
    report = check(lines_of(b'{"a":1}\n\nbad\n{"a":2}\r\n  \n[]'))
    assert (report.lines, report.good, report.blank, report.bad) == (6, 2, 2, 2)
    assert [str(line) for line in report.first_bad] == [
        "line 3: Expecting value at column 1",
        "line 6: an array, not an object",
    ]


def test_report_keeps_the_first_twenty_bad_lines_of_many() -> None:
    report = check(lines_of(b"bad\n" * 1000))
    assert report.bad == 1000
    assert [line.number for line in report.first_bad] == list(range(1, 21))


def test_byte_order_mark_is_passed_over_at_the_start_only() -> None:
    assert check(lines_of(b'\xef\xbb\xbf{"a":1}\n')).good == 1
    assert check(lines_of(b'{"a":1}\n\xef\xbb\xbf{"a":1}\n')).bad == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"a":1}\n'.encode("utf-16"), "iconv -f UTF-16"),
        (b"\x1f\x8b\x08\x00rest", "gunzip -c"),
    ],
)
def test_another_format_is_named_with_the_way_out(data: bytes, said: str) -> None:
    assert said in check(lines_of(data)).first_bad[0].reason


def test_a_line_without_end_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "MAX_LINE", 1 << 20)
    data = b'{"a":1}\n"' + b"x" * (10 << 20) + b'"\n{"a":2}\n'
    stream = io.BytesIO(data)
    tracemalloc.start()
    report = check(Lines(stream))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert (report.lines, report.good, report.bad) == (3, 2, 1)
    assert "longer than 1 MiB" in report.first_bad[0].reason
    assert report.first_bad[0].number == 2


def numbered(count: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % n for n in range(1, count + 1))


def batches_of(data: bytes, rows: int = 1000, size: int = 1 << 20, after: int = 0) -> list[Batch]:
    return list(batches(lines_of(data), rows=rows, size=size, after=after))


def test_batches_cover_each_line_once_in_order() -> None:
    found = batches_of(numbered(10), rows=3)
    assert [len(batch.texts) for batch in found] == [3, 3, 3, 1]
    assert [batch.upto for batch in found] == [3, 6, 9, 10]
    assert [json.loads(text)["n"] for batch in found for text in batch.texts] == list(range(1, 11))


def test_batches_are_limited_in_bytes_too() -> None:
    line = b'{"a":"' + b"x" * 100 + b'"}\n'
    assert [len(batch.texts) for batch in batches_of(line * 10, size=3 * len(line))] == [3, 3, 3, 1]
    assert [len(batch.texts) for batch in batches_of(line * 3, size=10)] == [1, 1, 1]


def test_batches_begin_after_a_line() -> None:
    found = batches_of(numbered(10), rows=4, after=5)
    assert [batch.upto for batch in found] == [9, 10]
    assert found[0].numbers == [6, 7, 8, 9]


def test_batches_carry_bad_and_blank_lines() -> None:
    (batch,) = batches_of(b'\nbad\n{"a":1}\n\n\n')
    assert (batch.texts, batch.numbers, batch.upto, batch.blank) == (['{"a":1}'], [3], 5, 3)
    assert [line.number for line in batch.bad] == [2]


def test_batches_of_bad_lines_alone_move_on() -> None:
    (batch,) = batches_of(b"bad\n" * 5)
    assert (batch.texts, batch.upto, len(batch.bad)) == ([], 5, 5)


def test_no_lines_no_batches() -> None:
    assert batches_of(b"") == []
    assert batches_of(numbered(3), after=3) == []


def test_fingerprint_names_what_was_read() -> None:
    whole, part, longer = (
        lines_of(numbered(10)),
        lines_of(numbered(20), end=len(numbered(10))),
        lines_of(numbered(20)),
    )
    reports = [check(whole), check(part), check(longer)]
    assert [report.good for report in reports] == [10, 10, 20]
    assert whole.fingerprint() == part.fingerprint() != longer.fingerprint()
    assert whole.fingerprint().startswith(f"{len(numbered(10))}:")
