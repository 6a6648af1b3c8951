"""F2: the statements of the floors through `pgbench -M prepared`, that is the server's own limit."""

import re
import resource
import subprocess

from bench.trial import PGBENCH_LEAST, Outcome, Trial
from pgfifo.embedded.binaries import find_binaries, program

SCENARIOS = frozenset({"S3", "S5", "S12"})

_MOST = 4_000
"""Transactions, so that it takes no longer than others' trials may: its rate is steady."""

_F1 = """
delete from f1 where id = any (array(select id from f1 order by id limit {batch} for update skip locked))
returning id, lane, payload;
"""

_F1B = """
with claimed as (
  update f1b set claimed_by = 1, claimed_at = now()
  where id = any (array(
    select id from f1b where claimed_by is null order by id limit {batch} for update skip locked))
  returning id, lane, payload)
select array_agg(id) as ids, array_agg(payload) as payloads from claimed \\gset
delete from f1b where id = any (:ids::bigint[]);
"""


def drained(trial: Trial, count: int) -> Outcome:
    """Let pgbench take the rows that there are: so many, or the least that it is given; or all it may."""
    options = trial.system.options
    clients, batch = options.get("threads", 1), options["batch"]
    script = trial.journal.with_name("script.sql")
    script.write_text((_F1 if options["floor"] == "f1" else _F1B).format(batch=batch))
    turns = max(1, min(_MOST, max(count, PGBENCH_LEAST) // batch) // clients)
    client = _cpu_of_children()
    before = trial.meter()
    done = subprocess.run(
        [
            str(program(find_binaries(), "pgbench")),
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={clients}",
            f"--transactions={turns}",
            f"--file={script}",
            trial.dsn,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise RuntimeError(f"pgbench: {(done.stderr or done.stdout).strip()[-500:]}")
    taken = turns * clients * batch
    outcome = trial.outcome(before, taken, turns * clients / float(found[1]))
    outcome.client_cpu = _cpu_of_children() - client
    return outcome


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
