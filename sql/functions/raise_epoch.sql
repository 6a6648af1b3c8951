-- Begin a new epoch: the first part of every token. After a failover that lost commits or a restore, ids and attempts may
-- be given out twice; with a new epoch no token is. Returns the epoch that holds now.
create or replace function pgfifo.raise_epoch() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_epoch integer;
begin
  perform pgfifo._durable();
  update pgfifo.installation i set epoch = i.epoch + 1 returning i.epoch into strict v_epoch;
  perform pgfifo._audit('raise_epoch', null, null, jsonb_build_object('epoch', v_epoch));
  return v_epoch;
end $$;
comment on function pgfifo.raise_epoch is 'Begin a new epoch of tokens, after a lossy failover or a restore; returns it.';
