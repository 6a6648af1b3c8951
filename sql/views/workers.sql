-- Workers, living and recently gone, with how many executions each has.
create or replace view pgfifo.workers as
select w.id, w.name, w.host, w.pid, w.actions, w.concurrency, w.state, w.started_at, w.last_seen, w.ended_at, w.lease, w.locked,
  (select count(*) from pgfifo.runs r where r.worker_id = w.id) as executions, w.kind
from pgfifo._workers w;
comment on view pgfifo.workers is 'Worker processes, living and recently gone.';
comment on column pgfifo.workers.id is 'The id; never used twice.';
comment on column pgfifo.workers.name is 'The name it gave itself.';
comment on column pgfifo.workers.host is 'The host it runs on.';
comment on column pgfifo.workers.pid is 'Its process id there.';
comment on column pgfifo.workers.actions is 'What it serves.';
comment on column pgfifo.workers.concurrency is 'How many executions it runs at once.';
comment on column pgfifo.workers.state is 'alive, dead (declared after a missed lease or a lost session) or stopped.';
comment on column pgfifo.workers.started_at is 'When it registered.';
comment on column pgfifo.workers.last_seen is 'When it last sent a heartbeat.';
comment on column pgfifo.workers.ended_at is 'When it stopped or was declared dead.';
comment on column pgfifo.workers.lease is 'How long it may be silent.';
comment on column pgfifo.workers.locked is 'Whether a session lock speaks for it, so that its end is noticed at once.';
comment on column pgfifo.workers.executions is 'How many executions it has now.';
comment on column pgfifo.workers.kind is 'worker, or slot: a program that holds slots or waits for them (pgfifo.slots says which).';
