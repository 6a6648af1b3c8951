-- Who changed what: policies, pauses, cancels by hand. Inserted in the transaction of the change.
create table if not exists pgfifo.audit (
  id bigint generated always as identity primary key,
  at timestamptz not null,
  who name not null,
  application text not null,
  actor text,
  what text not null,
  action text,
  group_text text,
  detail jsonb
);
create index if not exists audit_at on pgfifo.audit (at);
comment on table pgfifo.audit is 'Changes made by people and programs to how the queue runs.';
