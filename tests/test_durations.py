"""Durations are read as people write them, and refused when they are not."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgfifo import durations
from pgfifo.errors import InvalidValue


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("2d", 172800.0),
        ("1w", 604800.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("90", 90.0),
        (" 5M ", 300.0),
        ("0s", 0.0),
        (0, 0.0),
        (2.5, 2.5),
        (timedelta(minutes=2, milliseconds=500), 120.5),
    ],
)
def test_a_duration_is_read_as_it_is_written(written: durations.Duration, expected: float) -> None:
    assert durations.seconds(written) == pytest.approx(expected)


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "soon",
        "5 parsecs",
        "1h30",
        "m5",
        "-5s",
        "5s!",
        "1:30",
        float("nan"),
        float("inf"),
        1e300,
        "36525d1s",
        -1,
        True,
        None,
        [5],
    ],
)
def test_what_is_no_duration_is_refused_with_a_hint_how_to_write_it(written: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        durations.seconds(written, "retention")  # type: ignore[arg-type]
    assert caught.value.detail["name"] == "retention"
    assert repr(written) in str(caught.value)
    assert "1h30m" in str(caught.value)


def test_a_negative_timedelta_is_refused() -> None:
    with pytest.raises(InvalidValue, match="negative"):
        durations.seconds(timedelta(seconds=-1))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (0.000_000_01, "0.00001ms"),
        (1.5, "1.5s"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (604800, "7d"),
        (86401, "1d1s"),
        (-5, "-5s"),
    ],
)
def test_a_duration_is_shown_as_people_write_it(value: float, shown: str) -> None:
    assert durations.text(value) == shown


@given(st.integers(0, 10**12))
def test_what_is_shown_can_be_read_again(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert durations.seconds(durations.text(value)) == pytest.approx(value, abs=0.001)
