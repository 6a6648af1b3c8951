"""When a worker looks for work, by a clock that the test moves."""

import pytest

from pgfifo._pace import LONGEST_SOON, SOON, Pace


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(60, clock)


def look(pace: Pace, room: int = 5, found: int = 0, status: str = "", seconds: float = 0.0) -> None:
    pace.begin()
    pace.end(room, found, status, seconds)


def test_it_looks_at_once_in_the_beginning_and_then_at_the_poll(pace: Pace, clock: Clock) -> None:
    assert pace.due
    look(pace)
    assert not pace.due
    assert 54 <= pace.at - clock.time <= 66, "not all workers at the same time"
    clock.time = pace.at
    assert pace.due


def test_it_looks_again_when_there_may_be_more(pace: Pace) -> None:
    look(pace, room=5, found=5)
    assert pace.due
    look(pace, room=5, found=4)
    assert not pace.due
    look(pace, status="now")
    assert pace.due


def test_it_looks_when_the_server_says_that_something_is_due(pace: Pace, clock: Clock) -> None:
    look(pace, status="later", seconds=2.5)
    assert pace.at == clock.time + 2.5
    look(pace, status="later", seconds=600)
    assert pace.at <= clock.time + 66, "never later than the poll"


def test_locked_lanes_are_tried_again_soon_and_then_less_often(pace: Pace, clock: Clock) -> None:
    waits = []
    for _ in range(30):
        look(pace, status="soon")
        waits.append(pace.at - clock.time)
    assert waits[0] <= 2 * SOON
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_SOON)
    look(pace, found=1, status="soon")
    assert pace.at - clock.time == pytest.approx(SOON)


def test_progress_a_call_is_heeded_at_once_however_long_nothing_happened(pace: Pace) -> None:
    for _ in range(5000):
        look(pace)
    pace.call()
    assert pace.due


def test_progress_a_call_while_a_look_is_under_way_asks_for_another(pace: Pace) -> None:
    """The look may have begun too early to see what the call is about."""
    pace.begin()
    pace.call()
    pace.end(5, 0, "", 0.0)
    assert pace.due


def test_calls_that_were_always_in_vain_are_heeded_more_slowly(pace: Pace, clock: Clock) -> None:
    delays = []
    for _ in range(40):
        pace.call()
        delays.append(max(0.0, pace.at - clock.time))
        clock.time = max(clock.time, pace.at)
        look(pace)
    assert delays[:3] == [0, 0, 0]
    assert delays[-1] == pytest.approx(LONGEST_SOON)
    pace.call()
    look(pace, found=1)
    pace.call()
    assert pace.due, "a find makes it eager again"
