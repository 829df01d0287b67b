-- The work of a worker in plain SQL, for psql. examples/worker.sh opens the session, beats beside it, and runs this;
-- each statement is a call of its own, outside a transaction block.
\set ON_ERROR_STOP 1
-- From the environment: what stands on a command line can be read by everybody on the machine.
\getenv id WORKER_ID
\getenv key WORKER_KEY

-- Ask for the resource. Each grant has a new token.
SELECT outcome = 'applied' AS granted, reason, current_token AS token
  FROM palisade.acquire(:'id', :'key', :'resource') \gset
\if :granted
  \echo acquired :token

  -- The slow work. (A long statement of your own is fine too; but no transaction that waits for something else.)
  \echo working :work
  SELECT pg_sleep(:work) \g /dev/null

  -- The write, under the fence TOKEN/1: applied once however often it is sent, and refused after a takeover.
  SELECT concat_ws(' ', outcome, :'token' || '/1', reason)
    FROM palisade.set_alias(:'resource', :token, 1, :'key', :'model', :'alias', :version);

  -- Give it back, by the next fence. After a refusal this is refused too, and does no harm.
  SELECT outcome AS released FROM palisade.release(:'resource', :token, 2, :'key') \g /dev/null
\else
  \echo :reason
\endif
