-- With synchronous_commit off a crash can forget a commit that was already acted on, and hand the same (id, attempt) to
-- two workers. So whatever enqueues, claims or finishes raises it for its transaction. In the body, not in a set clause:
-- a set clause is undone when the function returns, which is before the commit.
create or replace function pgfifo._durable() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end $$;
