-- Numbers in messages, as people read them.
create or replace function pgfifo._number(p_number numeric) returns text
language sql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$ select to_char(p_number, 'FM999,999,999,999,999,990') $$;

-- A number and what there are so many of: '1 execution', '2,000 executions'.
create or replace function pgfifo._counted(p_number numeric, p_one text, p_many text) returns text
language sql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$ select pgfifo._number(p_number) || ' ' || case when p_number = 1 then p_one else p_many end $$;

-- A word as one types it in a shell, for hints that name a command.
create or replace function pgfifo._shell_word(p_text text) returns text
language sql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$ select case when p_text ~ '^[A-Za-z0-9_@%+=:,./-]+$' then p_text else '''' || replace(p_text, '''', '''"''"''') || '''' end $$;
