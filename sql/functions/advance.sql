-- Move pgfifo's clock, in a testing installation only.
create or replace function pgfifo.advance(p_by interval) returns timestamptz
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update pgfifo.installation i set clock_offset = i.clock_offset + p_by where i.testing;
  if not found then
    raise exception using errcode = 'QF022', message = 'the clock can be moved only where pgfifo was installed for testing',
      detail = '{"function": "advance"}', hint = 'Never set testing in pgfifo.installation in production.';
  end if;
  return pgfifo._now();
end $$;
comment on function pgfifo.advance is 'Move pgfifo''s clock, in a testing installation only.';
