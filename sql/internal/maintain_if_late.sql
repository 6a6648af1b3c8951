-- Where nobody calls maintain, a claim does when the last tick is old. After the claim's own work, in its transaction.
-- Not in a testing installation: there time moves when a test says so, and what a round does must not come by chance.
create or replace function pgfifo._maintain_if_late() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from (select t.at from pgfifo.ticks t order by t.tick desc limit 1) n
             where pgfifo._now() - n.at not between interval '0' and interval '3 s')
    and not (select i.testing from pgfifo.installation i)
  then
    perform pgfifo.maintain();
  end if;
end $$;
