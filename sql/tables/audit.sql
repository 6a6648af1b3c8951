-- Who changed what: policies, pauses, cancels by hand. Inserted in the transaction of the change; deleted by maintenance when
-- older than audit_retention.
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
comment on column pgfifo.audit.id is 'Number of the entry.';
comment on column pgfifo.audit.at is 'When.';
comment on column pgfifo.audit.who is 'The session''s user.';
comment on column pgfifo.audit.application is 'The session''s application name.';
comment on column pgfifo.audit.actor is 'The person behind the role, if set_config(''pgfifo.actor'', …) named one.';
comment on column pgfifo.audit.what is 'What was done.';
comment on column pgfifo.audit.action is 'The action it was done to.';
comment on column pgfifo.audit.group_text is 'The lane''s group, if it was done to one lane.';
comment on column pgfifo.audit.detail is 'Values before and after, ids, reasons.';
