-- What each function, table and type is for, where psql's \df+ and \d+ show it. docs/sql-api.md says the same in one table.
SET LOCAL ROLE palisade_owner;

COMMENT ON TYPE palisade.answer IS 'What a function that changes something answers: outcome (applied, replayed, rejected), reason of a rejection, the newest token of the resource, result';

COMMENT ON TABLE palisade.epoch IS 'One row: which incarnation of the database hands out tokens, and under which number';
COMMENT ON TABLE palisade.established IS 'The same number where every call looks. Unlogged: a crash, a promotion and a restore empty it, and then nothing is granted or written';
COMMENT ON VIEW palisade.running_epoch IS 'The number of the epoch that was established for the running incarnation; no row: none was';
COMMENT ON TABLE palisade.session IS 'A worker process that is alive: one heartbeat for all its leases';
COMMENT ON TABLE palisade.lease IS 'The gate: the newest token of each resource and who holds it. Never deleted';
COMMENT ON TABLE palisade.progress IS 'Until when the owner of a lease must report progress';
COMMENT ON TABLE palisade.loss IS 'What a session that is still open has lost; its heartbeat tells it';
COMMENT ON TABLE palisade.grant_history IS 'Every token of every resource: to whom, when and why';
COMMENT ON TABLE palisade.operation IS 'The ledger: what became of each fenced write';
COMMENT ON TABLE palisade.refusal IS 'Each write that was refused: which fence, and why';
COMMENT ON TABLE palisade.request IS 'Writes of plain clients by their request id, each applied at most once';
COMMENT ON TABLE palisade.registered_model IS 'A model: a name for its versions';
COMMENT ON TABLE palisade.model_version IS 'A version of a model. Immutable; its number is never used again';
COMMENT ON TABLE palisade.alias IS 'A name for one version of a model. One with a guard changes only under that resource''s lease. Never deleted';
COMMENT ON TABLE palisade.plan IS 'What each deployment should be; the controller is its only writer';
COMMENT ON TABLE palisade.deployment IS 'What each deployment is; its owner is its only writer';
COMMENT ON TABLE palisade.queue IS 'Work that is due';
COMMENT ON TABLE palisade.event IS 'The outbox: what changed, in the transaction that changed it';

-- ---------------------------------------------------------------- sessions

COMMENT ON FUNCTION palisade.open_session IS 'Opens a session: a worker process that is alive. The same call again is replayed.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
worker text: 1–253 characters; a name for people
ttl interval: 1 second to 1 hour; how long it lives without a heartbeat
result: left_ms: milliseconds until it expires
reasons: epoch_not_established, wrong_key, session_closed';
COMMENT ON FUNCTION palisade.heartbeat IS 'Extends the session by its ttl from now, all its leases with it. An expired one is never revived.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
result: left_ms; lost: what it no longer owns (resource, token, reason)
reasons: no_session, wrong_key, session_closed, session_expired, epoch_not_established';
COMMENT ON FUNCTION palisade.held IS 'What the session owns: rows of resource, token, sequence (the highest used), progress_left_ms (null: no limit). Finds a grant whose answer was lost. No rows for a wrong key or a closed session.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
result: rows';
COMMENT ON FUNCTION palisade.close_session IS 'Gives all leases back and ends the session, for good.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
result: released: how many leases
reasons: no_session, wrong_key';

-- ---------------------------------------------------------------- grants

COMMENT ON FUNCTION palisade.acquire IS 'Asks for one resource. Every grant is a new token, also for the holder itself.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
progress interval: up to 30 days; the lease ends if no progress is reported for so long; null: the plan''s own span, or no limit
result: takeover: whether a former owner had not released it; the token is current_token. When held: owner, left_ms
reasons: held, no_session, wrong_key, session_closed, session_expired, epoch_not_established';
COMMENT ON FUNCTION palisade.claim IS 'Takes up to limit deployments whose work is due, the oldest first, in one round trip; skips what others hold or are claiming. Rows of resource, token, takeover, plan, deployment; one row with refused when the session may not claim.
id uuid: the session: a fresh UUID for each process, never a host name
key text: 16–512 characters; the session''s secret, chosen by the caller; only its hash is stored
limit integer: 1–1000; how many at most
progress interval: up to 30 days; the lease ends if no progress is reported for so long; null: the plan''s own span, or no limit
result: rows
reasons: no_session, wrong_key, session_closed, session_expired, epoch_not_established (in refused)';
COMMENT ON FUNCTION palisade.report_progress IS 'The work goes on: moves the lease''s progress deadline. May be repeated; has no sequence.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
key text: the key of the session that the token was granted to
progress interval: up to 30 days; the lease ends if no progress is reported for so long; null: the plan''s own span, or no limit
result: plan: which plan is the current one
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed';
COMMENT ON FUNCTION palisade.release IS 'Gives the lease back; the token is raised (`current_token`), so nothing of the owner''s can land afterwards.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
retry_in interval: the deployment''s work is due again after this; null: leave the queue alone
result: none
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded';
COMMENT ON FUNCTION palisade.revoke IS 'Takes a lease away from whoever holds it, by raising its token. The owner''s heartbeat tells it.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
reason text: 1–512 characters; what the owner and the history are told
result: revoked: the token that ended
reasons: no_lease, not_held';
COMMENT ON FUNCTION palisade.check_lease IS 'For a write of your own: call it first in the same READ COMMITTED transaction. Returns nothing, and holds the gate until the transaction ends; raises PS003 unless the token is the newest one.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
key text: the key of the session that the token was granted to
result: nothing
reasons: (raised as PS003)';

-- ---------------------------------------------------------------- tables of your own

COMMENT ON FUNCTION palisade.use_lease IS 'For protected tables: asks the gate as check_lease does, and names the lease that the statements from here on write under. Returns nothing; raises PS003 unless the token is the newest one.
resource text: 1–512 characters; what is owned
token bigint: the fencing token of the grant
key text: the key of the session that the token was granted to
for_session boolean: false: until the transaction ends; true: for the connection''s later transactions too
result: nothing
reasons: (raised as PS003)';
COMMENT ON FUNCTION palisade.protect IS 'From now on a row of this table changes only under the lease of its resource: triggers ask the gate. For the table''s owner. Again: with another expression, or to close a gap.
target regclass: the table; a partitioned one with all its partitions, also later ones
resource text: a column, or an expression over the row''s columns: what its resource is called. Immutable, as for an index
result: nothing
reasons: (raised as PS004, or 42501)';
COMMENT ON FUNCTION palisade.unprotect IS 'Takes the triggers of protect away. For the table''s owner.
target regclass: the table
result: true, or false where it was not protected
reasons: (raised as PS004, or 42501)';
COMMENT ON FUNCTION palisade.check_row IS 'What the triggers of protect call, and a trigger of yours may: raises PS005 unless the lease in use is that of the resource, and PS003 unless its token is the newest one.
target regclass: the table, for the message
resource text: what the row belongs to
result: nothing
reasons: (raised as PS003 or PS005)';
COMMENT ON FUNCTION palisade.guard IS 'The trigger of protected tables. Its argument is the expression for a row''s resource';
COMMENT ON VIEW palisade.protected IS 'The protected tables: target, resource (the expression), and gap: what is not checked, and null where all is';

-- ---------------------------------------------------------------- what became of a write

COMMENT ON FUNCTION palisade.operation_status IS 'What became of the write with this fence: applied or rejected (with its first result), never, pending (not arrived, or running), forgotten. For whom the token was granted to.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
result: the write''s first result
reasons: wrong_key, or the write''s own';
COMMENT ON FUNCTION palisade.abandon IS 'Closes a fence: waits for a write that is running, and makes sure that one that is still on its way is never applied, nor any with a lower sequence. Answers as operation_status, never pending.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
result: the write''s first result
reasons: wrong_key, or the write''s own';
COMMENT ON FUNCTION palisade.operation_show IS 'operation_status for people: without a key.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
result: the write''s first result
reasons: the write''s own';
COMMENT ON FUNCTION palisade.operation_abandon IS 'abandon for people: without a key.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
result: the write''s first result
reasons: the write''s own';

-- ---------------------------------------------------------------- fenced writes of a deployment's owner

COMMENT ON FUNCTION palisade.record_step IS 'Where the work stands. A repeated step keeps its start, so that its timeout spans takeovers.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
uid uuid: the UID of the ModelDeployment that the work is for
rollout bigint: the plan''s rollout that the work is for
step text: 1–63 characters; where the work stands
state jsonb: up to 256 KiB; what a worker that resumes must know
result: plan: the current plan''s mark; step_age_ms: since the step began
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_plan, newer_row';
COMMENT ON FUNCTION palisade.record_serving IS 'What serves now and, unless alias is null, the alias that says so: both or neither.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
uid uuid: the UID of the ModelDeployment that the work is for
rollout bigint: the plan''s rollout that the work is for
step text: 1–63 characters; where the work stands
state jsonb: up to 256 KiB; what a worker that resumes must know
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
version bigint: the version that serves
revision text: the name of the objects that serve it
alias text: 1–253 of A-Z a-z 0-9 . _ -; a name for one of the model''s versions
result: plan, version
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_plan, newer_row, no_such_version, no_such_model, guarded';
COMMENT ON FUNCTION palisade.record_done IS 'The plan is done: it leaves the queue, unless a newer one waits.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
uid uuid: the UID of the ModelDeployment that the work is for
rollout bigint: the plan''s rollout that the work is for
state jsonb: up to 256 KiB; what a worker that resumes must know
result: plan
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_plan, newer_row';
COMMENT ON FUNCTION palisade.record_failure IS 'Why the plan cannot be done now, for a person to read.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
uid uuid: the UID of the ModelDeployment that the work is for
rollout bigint: the plan''s rollout that the work is for
step text: 1–63 characters; where the work stands
state jsonb: up to 256 KiB; what a worker that resumes must know
reason text: 1–253 characters; a word for programs, such as NotReady
message text: 1–4096 characters; a sentence for people
retry_in interval: up to 30 days; it is due again after this; null: only a new plan brings it back
result: plan
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_plan, newer_row';
COMMENT ON FUNCTION palisade.record_removed IS 'Nothing is served any more. The aliases that the deployment guarded are free, and keep their versions.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
uid uuid: the UID of the ModelDeployment that the work is for
rollout bigint: the plan''s rollout that the work is for
result: none
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_plan, newer_row';
COMMENT ON FUNCTION palisade.set_alias IS 'Points an alias at a version, under the lease of its guard. An alias without a guard becomes this resource''s.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
alias text: 1–253 of A-Z a-z 0-9 . _ -; a name for one of the model''s versions
version bigint: null takes the alias away; its row stays
result: model, alias, version
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, no_such_model, no_such_version, guarded, newer_row';
COMMENT ON FUNCTION palisade.move_guard IS 'Hands a guarded alias to another resource. Both owners agree: both fences are needed, and both sequences are used.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
to_resource text: the new guard
to_token bigint: its token
to_sequence bigint: from 1; a sequence under it
to_key text: its session''s key
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
alias text: 1–253 of A-Z a-z 0-9 . _ -; a name for one of the model''s versions
result: model, alias, guard; when the other fence was refused, resource: its resource
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, guarded';

-- ---------------------------------------------------------------- fenced writes of the controller

COMMENT ON FUNCTION palisade.put_plan IS 'What a deployment should be. The same plan again changes nothing. Ordered by generation within the object''s uid.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
deployment text: the deployment''s resource: deployment/NAMESPACE/NAME
uid uuid: the UID of the ModelDeployment that the work is for
generation bigint: the object''s metadata.generation
spec jsonb: up to 1 MiB; the resolved plan
paused boolean: true: no work is due
removed boolean: true: the work is to take it down
progress interval: up to 30 days; a worker that reports no progress for so long loses the lease
wake boolean: true: due now even if nothing changed
result: the plan''s mark: uid, generation, rollout, paused, removed
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, not_a_controller, older_generation, newer_row';
COMMENT ON FUNCTION palisade.drop_plan IS 'Forgets a plan whose removal was recorded. The lease stays: it remembers the tokens.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
sequence bigint: from 1; the number of this write under the token, counted up by the owner; gaps are fine
key text: the key of the session that the token was granted to
deployment text: the deployment''s resource: deployment/NAMESPACE/NAME
uid uuid: the UID of the ModelDeployment that the work is for
result: none
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, superseded, not_a_controller, not_removed';
COMMENT ON FUNCTION palisade.next_revision IS 'A status revision above every one before. Has no sequence: a skipped number does no harm.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
token bigint: the fencing token of the grant
key text: the key of the session that the token was granted to
deployment text: the deployment''s resource: deployment/NAMESPACE/NAME
above bigint: the revision that the object''s status carries now
result: revision
reasons: no_lease, epoch_not_established, not_issued, stale, forgotten, wrong_key, session_closed, not_a_controller';

-- ---------------------------------------------------------------- plain clients of the registry: no lease, a request id

COMMENT ON FUNCTION palisade.register_model IS 'A new model.
name text: 1–253 of A-Z a-z 0-9 . _ -; its name
description text: up to 65536 characters
tags jsonb: up to 64 KiB; an object of strings
request uuid: a fresh UUID for each intended request; the same one again gives the first answer
result: model
reasons: model_exists';
COMMENT ON FUNCTION palisade.register_version IS 'A new version, immutable from now on. Its number is never used again.
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
source text: 1–4096 characters; the URI of its files
digest text: sha256: and 64 lower-case hexadecimal digits
tags jsonb: up to 64 KiB; an object of strings
request uuid: a fresh UUID for each intended request; the same one again gives the first answer
result: version
reasons: no_such_model';
COMMENT ON FUNCTION palisade.put_alias IS 'Points an alias that nobody guards at a version.
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
alias text: 1–253 of A-Z a-z 0-9 . _ -; a name for one of the model''s versions
version bigint: null takes the alias away; its row stays
request uuid: a fresh UUID for each intended request; the same one again gives the first answer
result: model, alias, version
reasons: no_such_model, no_such_version, guarded';

-- ---------------------------------------------------------------- reading

COMMENT ON FUNCTION palisade.version_show IS 'A version: source, digest, tags; no row where there is none.
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
version bigint: its number
result: row';
COMMENT ON FUNCTION palisade.plan_show IS 'The current plan as JSON; null where there is none.
resource text: 1–512 characters; what is owned: deployment/NAMESPACE/NAME, controller/SCOPE
result: JSON';
COMMENT ON FUNCTION palisade.observe IS 'Everything that the controller decides from, in one round trip. A null asks for nothing.
deployment text: the deployment''s resource: deployment/NAMESPACE/NAME
model text: 1–253 of A-Z a-z 0-9 . _ -; a registered model
version bigint: a version, or null to resolve alias
alias text: the alias that is followed
promote text: the alias that is moved when the version serves
result: JSON: plan, deployment, token, owner, model_exists, alias_version, version, promote_guard, promote_version';
COMMENT ON FUNCTION palisade.events IS 'The outbox in an order that misses nothing: start with 0 and 0, go on with the xid and id of the last row.
after_xid xid8: of the last row read
after_id bigint: of the last row read
limit integer: how many rows at most
result: rows: xid, id, resource, kind, token, sequence, data, at';
COMMENT ON FUNCTION palisade.figures IS 'Numbers for metrics: queue_depth, queue_age_ms, leases_held, sessions_open, oldest_transaction_ms, oldest_xmin_age.
result: row';

-- ---------------------------------------------------------------- epochs and upkeep

COMMENT ON FUNCTION palisade.schema_version IS 'The newest migration that was applied.
result: number';
COMMENT ON FUNCTION palisade.epoch_status IS 'The epoch''s number, whether it is established for the running incarnation, both incarnations'' names and timelines, and the highest token.
result: row';
COMMENT ON FUNCTION palisade.establish_epoch IS 'Lets this incarnation of the database hand out tokens, under a number that was never used. Closes all sessions.
number bigint: 1–2097151; the new epoch; above every one before
incarnation text: the name that epoch_status answered: the database may have been replaced since
result: number; when rejected, incarnation or number as they are
reasons: incarnation_changed, epoch_not_newer';
COMMENT ON FUNCTION palisade.withdraw_epoch IS 'Makes an established epoch count no longer: every call is refused until the next one is established. For a database beside which another one was given the next epoch.
number bigint: 1–2097151; the epoch that is established; of any other one nothing is changed
incarnation text: the name that epoch_status answered: the database may have been replaced since
result: number; when rejected, incarnation as it is
reasons: incarnation_changed';
COMMENT ON FUNCTION palisade.end_blockers IS 'Ends backends that idle in a transaction with leases locked; and those at work in one for longer than an hour. Answers how many. Superusers are spared.
older_than interval: from 1 second; idle for longer than this
result: count';
COMMENT ON FUNCTION palisade.clean IS 'Removes what is old of one kind, one batch. Never what a fence still needs: the ledger and the grant of a current token, the grant of a token whose ledger is kept, a session that stands in a lease. Whatever is locked is left for another time.
what text: ledger (of former tokens), refusals, history (former grants), events, requests (of plain clients), sessions (that ended)
older_than interval: 1 hour to 3650 days; rows older than this. For sessions and history no less than for the ledger
batch integer: 1–10000; how many rows are removed at most, and how many leases or sessions are looked at
after text: null, or the place that the last call answered
result: row of removed: how many rows, and place: call again with it as after; null: there is no more for now';
COMMENT ON FUNCTION palisade.sizes IS 'Bytes on disk of each table that grows, its indexes included: rows of name, bytes.
result: rows';

RESET ROLE;
