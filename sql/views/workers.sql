-- Workers, living and recently gone, with how many executions each has.
create or replace view pgfifo.workers as
select w.id, w.name, w.host, w.pid, w.actions, w.concurrency, w.state, w.started_at, w.last_seen, w.ended_at, w.lease, w.locked,
  (select count(*) from pgfifo.runs r where r.worker_id = w.id) as executions
from pgfifo._workers w;
comment on view pgfifo.workers is 'Worker processes, living and recently gone.';
