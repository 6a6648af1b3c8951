"""The scenarios, S1 to S14: what each makes a system do, and what it takes as its result."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench import journal, pgbench
from bench.peers.common import DONE, Consume, Produce
from bench.systems import FLOOR, OURS, System
from bench.trial import Outcome, Trial, drained, drained_warm

Measure = Callable[[Trial], Outcome]


@dataclass(frozen=True)
class Case:
    """One thing to measure, of every system.

    Attributes:
        scenario: S1 to S14.
        title: what is done, in words.
        measure: does it.
        waiting: what is in the queue before: in bulk, or one by one where that would lose the order.
        unit: of the result: executions a second, or milliseconds.
        needs: features; what a system cannot do of them is a dash with its reason.
        keys: over how many keys.
        against: what a system is compared with, if with anything: the label of another one in the same case,
            or the title of another case, a colon, and the label.
        target: what the ratio of pgfifo shall be, at least (rates) or at most (milliseconds).
        pairs: how often pgfifo does it in each round.
        inessential: whether a brief run does without peers in it.
    """

    scenario: str
    title: str
    measure: Measure
    waiting: tuple[Produce, ...] = ()
    unit: str = "/s"
    needs: tuple[str, ...] = ("drain",)
    keys: int = 100
    against: Callable[[System], str | None] = lambda _: None
    target: Callable[[System], float | None] = lambda _: None
    pairs: int = 1
    inessential: bool = False


HEAD_TO_HEAD = frozenset({"S1", "S2", "S3", "S4", "S5"})
"""Scenarios in which peers are measured as often as pgfifo in any case; in others they come last."""

BRIEFLY = {
    "S1": "peers enqueue to 100 lanes only",
    "S5": "peers in their best settings only",
    "S6 and S8 to S14": "one setting of a peer (and that for one key), pgfifo async with 10 and 50 at once",
    "S9": "peers over 100 lanes and the most",
    "S11": "peers with 1 and 4 processes; pgfifo also with sync handlers",
    "S12": "peers with handlers that take 1 and 10 ms; pgfifo also with sync handlers",
}
"""What a brief run measures; the rest it leaves out."""


def left_out(case: Case, system: System) -> bool:
    """Whether a brief run does without a system in a case. No system is left out of a scenario."""
    if system.kind == FLOOR:
        return False
    if system.kind == OURS:
        kept = {"async", "async 50", *(("sync",) if case.scenario in ("S11", "S12") else ())}
        return case.scenario not in {*HEAD_TO_HEAD, "S7"} and system.setting not in kept
    if case.inessential or case.scenario in {"S1", "S2", "S3", "S4", "S7"}:
        return case.inessential
    # Groups are pg-boss's only way to a limit.
    every = case.scenario == "S5" or "limit" in case.needs
    return system.setting in {"default", *(() if every else ("batches", "groups"))}


def reason(case: Case, system: System) -> str | None:
    """Why a system has no result in a case; None where it has one."""
    for feature in (case.scenario, *case.needs):
        if feature in system.cannot:
            return system.cannot[feature]
    if case.scenario != "S7" and "drain" in case.needs and "consume" in system.cannot:
        return system.cannot["consume"]
    if system.is_pgbench and case.scenario not in pgbench.SCENARIOS:
        return "is a floor for single statements"
    if system.most_keys is not None and case.keys > system.most_keys:
        return system.cannot.get("keys", f"is not made for more than {system.most_keys:,} keys")
    return None


def cases(scale: float, most: int | None = None) -> list[Case]:
    """All cases.

    Args:
        scale: times all sizes.
        most: of anything: cuts down the sizes that are above it.
    """

    def sized(count: int, least: int = 20) -> int:
        wanted = round(count * scale)
        return max(least, wanted if most is None else min(most, wanted))

    return [
        *_enqueue(sized),
        *_drain(sized),
        *_hot_key(sized),
        *_behind_full_key(sized),
        *_latency(sized),
        *_to_finish(sized),
        *_keys(sized),
        *_snapshot(sized),
        *_processes(sized),
        *_working(sized),
        *_beside_idle(sized),
        *_failing(sized),
    ]


Sized = Callable[..., int]


def _ours(label: str) -> Callable[[System], str | None]:
    return lambda system: label if system.kind == OURS else None


def _is_worker(system: System) -> bool:
    """Whether it is what pgfifo is asked for: a worker as it comes, not bare SQL beside it."""
    return system.kind == OURS and "poll" not in system.options and system.options.get("handlers") != "none"


def _shall(value: float) -> Callable[[System], float | None]:
    return lambda system: value if _is_worker(system) else None


def _floor_of_same_batch(system: System) -> str | None:
    if system.kind != OURS:
        return None
    return f"F1b, batch {system.options.get('concurrency', 10)}, 1 connection"


def _of_floor(system: System) -> float | None:
    if not _is_worker(system):
        return None
    return 0.5 if system.options.get("handlers") == "sync" else 0.7


# S1, S2


def _enqueue(sized: Sized) -> Iterator[Case]:
    def case(scenario: str, title: str, task: Produce, target: float) -> Case:
        def measure(trial: Trial) -> Outcome:
            program = trial.producer(replace(task, seconds=trial.cap))
            before = trial.meter()
            program.go()
            answer = program.answer(600)
            outcome = trial.outcome(before, answer["sent"], (answer["ended"] - answer["began"]) / 1e9)
            outcome.stopped = answer["sent"] < task.count
            outcome.memory = None
            return outcome

        return Case(
            scenario,
            title,
            measure,
            inessential=task.keys == 1,
            needs=("produce", "bulk") if scenario == "S2" else ("produce",),
            keys=task.keys,
            against=_ours("bare insert"),
            target=_shall(target),
        )

    for connections, count in ((1, 2_000), (8, 8_000)):
        for lanes in (1, 100):
            yield case(
                "S1",
                f"Enqueue one by one, own commits, {connections} connection{'s' if connections > 1 else ''},"
                f" {lanes} lane{'s' if lanes > 1 else ''}",
                Produce(sized(count), keys=lanes, connections=connections),
                0.4 if lanes == 1 and connections > 1 else 0.7,
            )
    count = sized(20_000)
    yield case("S2", f"Enqueue {count:,} in bulk, 100 lanes", Produce(count, chunk=count), 0.5)


# S3, S4


def _drain(sized: Sized) -> Iterator[Case]:
    count = sized(10_000)

    def unordered(trial: Trial) -> Outcome:
        if trial.system.is_pgbench:
            return pgbench.drained(trial, count)
        outcome, _ = drained(trial, Consume(str(trial.journal), ordered=False), count, 100)
        outcome.violations = outcome.at_once = outcome.limit = None
        return outcome

    def ordered(trial: Trial) -> Outcome:
        outcome, _ = drained(trial, Consume(str(trial.journal)), count, 100)
        return outcome

    yield Case(
        "S3",
        f"Drain {count:,}, no order asked",
        unordered,
        (Produce(count, ordered=False, chunk=0),),
        against=_floor_of_same_batch,
        target=_of_floor,
    )
    yield Case(
        "S4",
        f"Drain {count:,} over 100 keys, in order, one at a time per key",
        ordered,
        (Produce(count, chunk=0),),
        against=_floor_of_same_batch,
        target=_of_floor,
    )


# S5


def _hot_key(sized: Sized) -> Iterator[Case]:
    count = sized(2_000)

    def case(limit: int) -> Case:
        def measure(trial: Trial) -> Outcome:
            if trial.system.is_pgbench:
                return pgbench.drained(trial, count)
            outcome, _ = drained(trial, Consume(str(trial.journal), keys=1, limit=limit), count, 1)
            return outcome

        return Case(
            "S5",
            f"Drain {count:,} on one key, limit {limit}",
            measure,
            (Produce(count, keys=1, limit=limit, chunk=0),),
            keys=1,
            needs=("drain", "limit") if limit > 1 else ("drain",),
            against=_ours("F2, batch 1, 1 client"),
            target=_shall(0.6 if limit == 1 else 2.4),
        )

    yield case(1)
    yield case(10)


# S6


def _behind_full_key(sized: Sized) -> Iterator[Case]:
    backlog, count = sized(100_000), sized(1_000, 200)
    alone = f"{count:,} on 100 keys, beside a full key"

    def case(title: str, chunk: int) -> Case:
        first = Produce(1, keys=1, prefix="full", first=10_000_000, work=3_600_000)
        behind = Produce(
            backlog,
            keys=1,
            prefix="full",
            first=20_000_000,
            chunk=chunk,
            connections=4 if chunk == 1 else 1,
        )

        def measure(trial: Trial) -> Outcome:
            task = Consume(str(trial.journal), extra=("full0",))
            producer = trial.producer(Produce(count, chunk=trial.system.fill, seconds=trial.cap))
            for consumer in trial.consumers(task, 2 if _one_at_a_time(trial.system) else 1):
                consumer.go()
            if not trial.wait_for(lambda: journal.has_begun(trial.journal), max(15, trial.cap)):
                raise RuntimeError("the key was not filled")
            time.sleep(1)  # with what waits behind it they have come to rest
            already = journal.count(trial.journal)
            before = trial.meter()
            producer.go()
            answer = trial.produced(producer)
            _, stopped = trial.wait_done_beside(answer["sent"], already, 1 + (backlog if chunk else 0))
            runs = [run for run in trial.runs() if run.number < count]
            began = answer["began"]
            ended = max((run.end for run in runs), default=began + 1)
            outcome = trial.outcome(before, max(1, len(runs)), (ended - began) / 1e9)
            if stopped:
                outcome.stopped = True
                outcome.value = len(runs) / trial.cap
            trial.judge(outcome, runs, 100)
            return outcome

        return Case(
            "S6",
            title,
            measure,
            (first, behind) if chunk else (first,),
            against=(lambda system: f"{alone}: {system.label}") if chunk else (lambda _: None),
            target=_shall(0.9) if chunk else (lambda _: None),
        )

    yield case(alone, 0)
    yield case(f"{alone} with {backlog:,} behind it, enqueued in bulk", 1000)
    yield case(f"{alone} with {backlog:,} behind it, enqueued one by one", 1)


def _one_at_a_time(system: System) -> bool:
    """Whether a long handler in a process of it would leave nobody for the others."""
    return system.blocks or 1 in (system.options.get("concurrency"), system.options.get("concurrentJobs"))


# S7


def _latency(sized: Sized) -> Iterator[Case]:
    count = sized(300, 50)

    def measure(trial: Trial) -> Outcome:
        for consumer in trial.consumers(Consume(str(trial.journal))):
            consumer.go()
        producer = trial.producer(Produce(count, interval=20, stamps=str(trial.stamps)))
        time.sleep(1)  # so that it has nothing to do for a while, as it is in life
        before = trial.meter()
        producer.go()
        trial.produced(producer)
        _, stopped = trial.wait_done(count)
        runs = trial.runs()
        lines = trial.stamps.read_text().splitlines()
        committed = {int(number): int(at) for number, at in (line.split() for line in lines)}
        took = sorted((run.begin - committed[run.number]) / 1e6 for run in runs if run.number in committed)
        outcome = trial.outcome(before, max(1, len(runs)), count * 0.02)
        outcome.stopped = stopped
        if took:
            outcome.value = journal.quantile(took, 0.5)
            outcome.more = {
                "p50": outcome.value,
                "p95": journal.quantile(took, 0.95),
                "p99": journal.quantile(took, 0.99),
            }
        trial.judge(outcome, runs, 100)
        return outcome

    yield Case(
        "S7",
        "From the commit of an enqueue to its handler's start, idle workers, one every 20 ms (median)",
        measure,
        unit="ms",
        needs=("latency", "consume"),
    )


# S8


def _to_finish(sized: Sized) -> Iterator[Case]:
    def case(count: int, limit: int, chunk: int) -> Case:
        def measure(trial: Trial) -> Outcome:
            task = Produce(count, keys=1, limit=limit, chunk=chunk, seconds=trial.cap)
            producer = trial.producer(task)
            for consumer in trial.consumers(Consume(str(trial.journal), keys=1, limit=limit)):
                consumer.go()
            time.sleep(1)
            before = trial.meter()
            producer.go()
            answer = trial.produced(producer)
            ended, stopped = trial.wait_done(answer["sent"])
            runs = trial.runs()
            outcome = trial.outcome(before, max(1, len(runs)), (ended - answer["began"]) / 1e9)
            outcome.stopped = stopped or answer["sent"] < count
            trial.judge(outcome, runs, 1, limit)
            return outcome

        how = "one by one" if chunk == 1 else "in hundreds"
        return Case(
            "S8",
            f"{count:,} on one key at concurrency {limit}, enqueued {how}, from the enqueue to the finish",
            measure,
            keys=1,
            needs=("drain", "limit", "latency", "produce-and-drain"),
            against=_ours("bare insert") if chunk == 1 else (lambda _: None),
        )

    yield case(sized(1_000), 5, 100)
    yield case(sized(10_000), 10, 100)
    yield case(sized(10_000), 10, 1)


# S9


def _keys(sized: Sized) -> Iterator[Case]:
    total = sized(100_000)

    def case(lanes: int) -> Case:
        def measure(trial: Trial) -> Outcome:
            outcome, _ = drained(trial, Consume(str(trial.journal), keys=lanes), total, lanes)
            return outcome

        middle = f"Drain {total:,} over 100 lanes"
        return Case(
            "S9",
            f"Drain {total:,} over {lanes:,} lanes",
            measure,
            (Produce(total, keys=lanes, chunk=0),),
            inessential=lanes not in (100, min(100_000, total)),
            keys=lanes,
            against=(lambda system: f"{middle}: {system.label}") if lanes > 1_000 else (lambda _: None),
            target=_shall(0.9) if lanes > 1_000 else (lambda _: None),
        )

    for lanes in dict.fromkeys((10, 100, min(1_000, total), min(100_000, total))):
        yield case(lanes)


# S10


def _snapshot(sized: Sized) -> Iterator[Case]:
    count = sized(200_000, 200)

    def case(held: bool) -> Case:
        def measure(trial: Trial) -> Outcome:
            with trial.snapshot(held):
                outcome, runs = drained(trial, Consume(str(trial.journal)), count, 100)
            parts = journal.rates([run for run in runs if run.state == DONE], 10)
            if parts:
                outcome.more |= {"tenths": parts, "last to first": parts[-1] / parts[0]}
            return outcome

        how = "a snapshot held open" if held else "no snapshot"
        return Case(
            "S10",
            f"Drain {count:,} over 100 lanes, {how}",
            measure,
            (Produce(count, chunk=0),),
            pairs=3,
            against=(lambda system: f"Drain {count:,} over 100 lanes, no snapshot: {system.label}")
            if held
            else (lambda _: None),
            target=_shall(0.9) if held else (lambda _: None),
        )

    yield case(False)
    yield case(True)


# S11


def _processes(sized: Sized) -> Iterator[Case]:
    count = sized(10_000)

    def case(processes: int) -> Case:
        def measure(trial: Trial) -> Outcome:
            return drained_warm(trial, Consume(str(trial.journal)), count, 100, processes)

        one = f"Drain {count:,} over 100 keys with 1 process"
        title = one if processes == 1 else f"Drain {count:,} over 100 keys with {processes} processes"
        return Case(
            "S11",
            title,
            measure,
            inessential=processes in (2, 8),
            against=(lambda system: f"{one}: {system.label}") if processes > 1 else (lambda _: None),
            target=_shall(1.0) if processes > 1 else (lambda _: None),
        )

    for processes in (1, 2, 4, 8):
        yield case(processes)


# S12


def _working(sized: Sized) -> Iterator[Case]:
    def case(work: float, count: int) -> Case:
        def measure(trial: Trial) -> Outcome:
            if trial.system.is_pgbench:
                outcome = pgbench.drained(trial, count)
                outcome.value = 1000 * outcome.seconds / outcome.done
                return outcome
            outcome, runs = drained(trial, Consume(str(trial.journal), keys=1), count, 1)
            between = journal.gaps(runs)
            if between:
                outcome.value = statistics.median(between)
                busy = sum(run.end - run.begin for run in runs) / (
                    max(run.end for run in runs) - runs[0].begin
                )
                outcome.more |= {"busy": busy, "p95": journal.quantile(between, 0.95)}
            return outcome

        return Case(
            "S12",
            f"The gap between two runs of a slot, handlers that take {work:g} ms (median)",
            measure,
            (Produce(count, keys=1, work=work, chunk=0),),
            unit="ms",
            keys=1,
            inessential=work == 100,
            needs=("drain", "work"),
            against=_ours("F2, batch 1, 1 client"),
            target=_shall(1.5),
        )

    yield case(1, sized(500, 50))
    yield case(10, sized(200, 50))
    yield case(100, sized(40, 10))


# S13


def _beside_idle(sized: Sized) -> Iterator[Case]:
    count, lanes = sized(10_000), sized(100_000)
    alone = f"Drain {count:,} over 100 keys, nothing beside"

    def case(title: str, queue: str | None) -> Case:
        paused = queue == "paused"
        also = (queue,) if queue is not None and paused else ()
        beside = Produce(lanes, keys=lanes, chunk=1000, queue=queue or "", paused=paused)

        def measure(trial: Trial) -> Outcome:
            outcome, _ = drained(trial, Consume(str(trial.journal), also=also), count, 100)
            return outcome

        return Case(
            "S13",
            title,
            measure,
            ((beside,) if queue else ()) + (Produce(count, chunk=0),),
            needs=("drain", "pause") if queue == "paused" else ("drain",),
            against=(lambda system: f"{alone}: {system.label}") if queue else (lambda _: None),
            target=_shall(0.9) if queue else (lambda _: None),
        )

    yield case(alone, None)
    yield case(f"Drain {count:,} beside {lanes:,} lanes of a queue that nobody serves", "idle")
    yield case(f"Drain {count:,} beside {lanes:,} lanes of a queue that is paused", "paused")


# S14


def _failing(sized: Sized) -> Iterator[Case]:
    count = sized(10_000, 200)

    def case(held: bool) -> Case:
        every = Produce(count, fail_every=10, delay_every=10, delay=3000, chunk=0, part="prompt")

        def measure(trial: Trial) -> Outcome:
            with trial.snapshot(held):
                # Those that are to come later are enqueued just before the others are worked off.
                trial.produce(replace(every, part="delayed", chunk=trial.system.fill))
                task = Consume(str(trial.journal))
                outcome, runs = drained(trial, task, count, 100, failures=count // 10)
            trial.judge(outcome, runs, 100, late=lambda number: number % 10 == 1)
            finished = sorted(run.end for run in runs if run.state == DONE)
            if len(finished) > 10:
                # To four fifths: the end is about waiting for backoffs and delays.
                most = finished[: len(finished) * 4 // 5]
                outcome.value = len(most) / ((most[-1] - min(run.begin for run in runs)) / 1e9)
            return outcome

        title = f"Drain {count:,}, every tenth fails once, every tenth delayed"
        return Case(
            "S14",
            title + (", a snapshot held open" if held else ""),
            measure,
            (every,),
            needs=("drain", "delay", "fail"),
            against=(lambda system: f"{title}: {system.label}") if held else (lambda _: None),
            target=_shall(0.9) if held else (lambda _: None),
        )

    yield case(False)
    yield case(True)
