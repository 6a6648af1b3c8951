"""Workers that are killed, stopped, out of memory, blocked, or that their own handlers bring down."""

import sys
import time

import pytest

from pgfifo.verify.history import History
from tests.faults.ground import Ground, kinds, refused
from tests.faults.load import COMMAND, MAX_ATTEMPTS, ONE, SEVERAL, YIELDING
from tests.support.database import wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and ctypes as Linux has them"),
]


def attempts_of(history: History, id_: int) -> list[tuple[int, str]]:
    """Return the attempts of an execution that anybody saw, with their workers."""
    return sorted((each.attempt, each.worker) for each in history.attempts if each.id == id_)


def test_kill_while_they_work(ground: Ground) -> None:
    names = [ground.worker() for _ in range(3)]
    with ground.load():
        for nth in range(6):
            time.sleep(0.7)
            ground.kill(names[nth % 3])
            names[nth % 3] = ground.worker()
    ground.settle()
    history = ground.judge()
    assert len(history.faults) == 6
    assert kinds(history)["succeeded"] > 50


def test_a_zombie_is_refused_what_it_has_lost(ground: Ground) -> None:
    """Stopped past its lease while others go on, then continued: its sessions keep their locks meanwhile."""
    zombie = ground.worker()
    slow = ground.enqueue(ONE, 7, seconds=1.0)
    wait_for(lambda: ground.state(slow) == "running")
    behind = ground.enqueue(ONE, 7)
    with ground.stopped(zombie):
        ground.worker()
        ground.wait_for_state(slow, "succeeded")
        ground.wait_for_state(behind, "succeeded")
    wait_for(lambda: len(ground.registrations(zombie)) == 2, 20, "the zombie to begin a new life")
    ground.enqueue_all([(SEVERAL, {"lane": n}) for n in range(20)])
    ground.settle()
    history = ground.judge()
    assert [attempt for attempt, _ in attempts_of(history, slow)] == [1, 2]
    assert ground.registrations(zombie)[0][1] == "dead"


def test_zombies_one_after_the_other_under_load(ground: Ground) -> None:
    names = [ground.worker() for _ in range(3)]
    with ground.load():
        for name in names:
            with ground.stopped(name):
                wait_for(lambda name=name: not ground.is_alive(name), 30)  # type: ignore[misc]
    ground.settle()
    history = ground.judge()
    assert len(history.deaths) >= 1, "nobody was told that it had been declared dead"


@pytest.mark.parametrize("action", [ONE, SEVERAL])
def test_out_of_memory_is_a_failure_like_any_other(ground: Ground, action: str) -> None:
    """A real limit of the process's address space; sync and async handlers, with others beside them."""
    ground.worker(environment={"FAULTS_MEMORY": str(1_500_000_000)})
    ids = [ground.enqueue(action, 0, harm="memory", times=2), ground.enqueue(action, 0)]
    ground.enqueue_all([(ONE, {"lane": 1 + n % 3}) for n in range(30)])
    ground.settle()
    history = ground.judge()
    assert ground.fifo.execution(ids[0]).attempt == 3
    assert kinds(history) == {"succeeded": 32}
    assert not history.deaths


def test_a_command_that_runs_out_of_memory_or_is_killed_is_a_failure_like_any_other(ground: Ground) -> None:
    ground.worker(environment={"FAULTS_MEMORY": str(1_500_000_000)})
    ids = [ground.enqueue(COMMAND, n, harm=harm) for n, harm in enumerate(("memory", "crash"))]
    ground.settle()
    ground.judge()
    assert [ground.fifo.execution(id_).attempt for id_ in ids] == [2, 2]
    assert [ground.state(id_) for id_ in ids] == ["succeeded"] * 2


def test_a_worker_that_has_no_memory_left_gets_through_or_is_replaced(ground: Ground) -> None:
    """A handler keeps all memory for seconds: loop and heartbeat, which need some, have none meanwhile."""
    with ground.supervised(2, environment={"FAULTS_MEMORY": str(1_200_000_000)}):
        ground.enqueue(ONE, 0, harm="fill", seconds=4.0)
        with ground.load():
            time.sleep(6)
        ground.settle()
        history = ground.judge()
    assert kinds(history)["succeeded"] > 50
    assert set(kinds(history)) == {"succeeded"}


def test_what_kills_its_worker_every_time_is_given_up_and_the_lane_goes_on(ground: Ground) -> None:
    with ground.supervised(2):
        poison = [
            ground.enqueue(ONE, 0, harm="exit", times=99),
            ground.enqueue(YIELDING, 0, harm="crash", times=99),
        ]
        behind = [ground.enqueue(ONE, 0), ground.enqueue(YIELDING, 0)]
        for id_ in poison:
            ground.wait_for_state(id_, "failed", 60)
        for id_ in behind:
            ground.wait_for_state(id_, "succeeded")
        ground.settle()
        history = ground.judge()
    for id_ in poison:
        assert ground.fifo.execution(id_).attempt == MAX_ATTEMPTS
        assert "was lost" in str(ground.fifo.execution(id_).error)
    # One death may end an attempt of each.
    assert [fault.kind for fault in history.faults].count("kill") >= MAX_ATTEMPTS


@pytest.mark.parametrize(("action", "harm"), [(ONE, "hang"), (SEVERAL, "wait")])
def test_a_handler_that_hangs_without_a_timeout_keeps_its_slot_and_nothing_else(
    ground: Ground, action: str, harm: str
) -> None:
    """Nobody knows whether it will end, so nobody takes it away; its lane waits if it has no other slot."""
    name = ground.worker()
    hung = ground.enqueue(action, 0, harm=harm)
    wait_for(lambda: ground.state(hung) == "running")
    behind = ground.enqueue(action, 0)
    ids = ground.enqueue_all([(each, {"lane": 1 + n}) for n in range(10) for each in (ONE, SEVERAL)])
    for id_ in ids:
        ground.wait_for_state(id_, "succeeded")
    time.sleep(3 * ground.lease)
    assert ground.state(hung) == "running", "an execution was taken from a living worker"
    assert ground.state(behind) == ("waiting" if action == ONE else "succeeded")
    ground.kill(name)
    ground.worker()
    ground.settle()
    history = ground.judge()
    assert [attempt for attempt, _ in attempts_of(history, hung)] == [1, 2]


@pytest.mark.parametrize(("action", "harm"), [(ONE, "hang"), (SEVERAL, "wait")])
def test_a_handler_that_hangs_is_ended_by_its_timeout(ground: Ground, action: str, harm: str) -> None:
    """A coroutine is cancelled; a thread can only end with its process, which gives nothing away before."""
    ground.fifo.set_policy(action, timeout=0.5, kill_after=0.5)
    with ground.supervised(1):
        hung = ground.enqueue(action, 0, harm=harm)
        ground.enqueue(action, 0)
        ground.wait_for_state(hung, "succeeded", 60)
        ground.settle()
        history = ground.judge()
    assert [attempt for attempt, _ in attempts_of(history, hung)] == [1, 2]
    assert ground.fifo.execution(hung).attempt == 2


def test_an_event_loop_that_is_blocked_for_longer_than_the_lease_costs_nothing(ground: Ground) -> None:
    name = ground.worker()
    ground.worker()
    blocking = ground.enqueue(SEVERAL, 0, harm="block", seconds=3 * ground.lease)
    wait_for(lambda: ground.state(blocking) == "running")
    with ground.load():
        time.sleep(2 * ground.lease)
    ground.settle()
    history = ground.judge()
    assert not history.deaths, "the heartbeat stood still with the loop"
    assert len(attempts_of(history, blocking)) == 1
    assert len(ground.registrations(name)) == 1


def test_a_handler_that_holds_the_interpreter_for_longer_than_the_lease_is_fenced(ground: Ground) -> None:
    """No thread of its process runs, nor the heartbeat's: it counts as dead; what it hands in is refused."""
    names = [ground.worker(), ground.worker()]
    holding = ground.enqueue(ONE, 0, harm="interpreter", seconds=4 * ground.lease)
    wait_for(lambda: ground.state(holding) == "running")
    [first] = [each.name for each in ground.fifo.workers() if each.name in names and each.executions]
    behind = ground.enqueue(ONE, 0)
    ground.wait_for_state(behind, "succeeded")
    wait_for(lambda: len(ground.registrations(first)) == 2, 30, "the first to begin a new life")
    ground.settle()
    history = ground.judge()
    assert [attempt for attempt, _ in attempts_of(history, holding)] == [1, 2]
    assert len({worker for _, worker in attempts_of(history, holding)}) == 2
    assert history.deaths


def test_one_alone_that_holds_the_interpreter_loses_nothing(ground: Ground) -> None:
    """A lease is counted in rounds that happened, and while it stands still nobody is there for one."""
    holding = ground.enqueue(ONE, 0, harm="interpreter", seconds=2 * ground.lease)
    name = ground.worker()
    ground.wait_for_state(holding, "succeeded")
    history = ground.judge()
    assert len(attempts_of(history, holding)) == 1
    assert [state for _, state in ground.registrations(name)] == ["stopped"]
    assert refused(history) == 0


def test_threads_that_eat_all_processor_time_cost_nobody_his_lease(ground: Ground) -> None:
    """Pure Python in many threads beside the heartbeat: each gets the interpreter for its moments."""
    name = ground.worker()
    ground.worker(concurrency=1)
    ids = [ground.enqueue(ONE, n, harm="spin", seconds=2 * ground.lease) for n in range(8)]
    for id_ in ids:
        ground.wait_for_state(id_, "succeeded", 60)
    history = ground.judge()
    assert not history.deaths
    assert len(ground.registrations(name)) == 1
