"""F2: the statements of the floors through `pgbench -M prepared`, that is the server's own limit."""

import re
import subprocess

from bench.trial import Outcome, Trial
from pgfifo.embedded.binaries import find_binaries, program

SCENARIOS = frozenset({"S3", "S5", "S12"})

FILL = """
insert into {table} (lane, payload)
select n % 100, jsonb_build_object('customer', 'k' || n % 100, 'n', n - 1, 'work', 0, 'fail', false,
  'event', 'invoice.paid', 'invoice', 100000 + n, 'amount', 1000 + n % 977,
  'url', 'https://customer-' || n % 100 || '.example.com/hooks/invoices')
from generate_series(1, {count}) n
"""

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


def fill(trial: Trial, count: int) -> None:
    """Put rows into a floor's table, with what handlers need to know in them, and vacuum it."""
    table = trial.system.options["floor"]
    trial.execute(FILL.format(table=table, count=count))
    trial.execute(f"vacuum analyze {table}")


def drained(trial: Trial, count: int) -> Outcome:
    """Let pgbench take as many rows as there are."""
    options = trial.system.options
    clients, batch = options.get("threads", 1), options["batch"]
    fill(trial, count)
    script = trial.journal.with_name("script.sql")
    script.write_text((_F1 if options["floor"] == "f1" else _F1B).format(batch=batch))
    turns = max(1, count // batch // clients)
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
    outcome.client_cpu = None
    return outcome
