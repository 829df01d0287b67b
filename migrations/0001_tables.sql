-- Roles, schema and tables. Who may do what with them is in 0006_grants.sql.
--
-- Roles are shared by all databases of a server, so another database's migration may be making the same ones now:
-- each is made by itself, and "somebody else just made it" is not an error.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['palisade_owner', 'palisade_controller', 'palisade_worker', 'palisade_registry', 'palisade_reader'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;

    -- The owner sees when the checkpointer started (a backend's crash renews it), and may end a session that blocks a takeover.
    FOREACH wanted IN ARRAY ARRAY['pg_read_all_stats', 'pg_signal_backend'] LOOP
        CONTINUE WHEN pg_catalog.pg_has_role('palisade_owner', wanted, 'MEMBER');
        BEGIN
            EXECUTE format('GRANT %I TO palisade_owner', wanted);
        EXCEPTION
            WHEN internal_error OR unique_violation THEN
                NULL; -- granted by another database's migration in this moment
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role % may not grant % to palisade_owner', current_user, wanted
                    USING ERRCODE = 'insufficient_privilege',
                          HINT = format('Run the migration as a superuser once, or let one run: GRANT %s TO palisade_owner', wanted);
        END;
    END LOOP;

    -- From Postgres 16 on, whoever made a role is a member of it, and may yet not act as it.
    IF NOT pg_catalog.pg_has_role(current_user, 'palisade_owner',
            CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        EXECUTE format('GRANT palisade_owner TO %I', current_user);
    END IF;
END
$$;

-- The runner made the schema for its own table; from here on it belongs to the owner role.
CREATE SCHEMA IF NOT EXISTS palisade;
ALTER SCHEMA palisade OWNER TO palisade_owner;
SET LOCAL ROLE palisade_owner;

COMMENT ON SCHEMA palisade IS 'Palisade: leases with fencing tokens, and the model registry that checks them';

-- What every function that changes something answers. The reasons are listed in docs/sql-api.md.
CREATE TYPE palisade.answer AS (
    outcome       text,   -- applied, replayed, rejected
    reason        text,   -- why it was rejected; null otherwise
    current_token bigint, -- the newest token of the resource when this was answered
    result        jsonb
);

-- One row: which incarnation of the database hands out tokens, and under which number.
CREATE TABLE palisade.epoch (
    singleton          boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    number             bigint NOT NULL CHECK (number > 0 AND number < 2097152),
    system_id          bigint NOT NULL,
    database           oid NOT NULL, -- a copy or a restored dump carries this row along, and is not what it names
    timeline           integer NOT NULL,
    postmaster_start   timestamptz NOT NULL,
    checkpointer_start timestamptz NOT NULL,
    established_at     timestamptz NOT NULL
);

-- The same for every call to look at, because a look costs next to nothing. It is unlogged on purpose: crash recovery and
-- promotion empty it, and no backup has it. What they leave, a clean restart and a copy, its columns tell apart.
-- Without a key: establish_epoch() alone writes it, under a lock; and a transaction's first 16 relations are locked cheaply.
CREATE UNLOGGED TABLE palisade.established (
    number           bigint NOT NULL,
    place            text NOT NULL, -- the file that this very row lies in: another database's, or a restored dump's, is another
    timeline         text NOT NULL, -- as the names of WAL files begin
    postmaster_start timestamptz NOT NULL
);

-- A worker process that is alive. Heartbeats change nothing else, and no index hangs on what they change.
CREATE TABLE palisade.session (
    id         uuid PRIMARY KEY,
    key_hash   bytea NOT NULL,
    worker     text NOT NULL,
    ttl        interval NOT NULL,
    expires_at timestamptz NOT NULL,
    opened_at  timestamptz NOT NULL,
    closed_at  timestamptz
) WITH (fillfactor = 50);

-- The gate. A row is never deleted: its token is the memory of every grant.
CREATE TABLE palisade.lease (
    resource    text COLLATE "C" PRIMARY KEY CHECK (length(resource) BETWEEN 1 AND 512),
    token       bigint NOT NULL CHECK (token >= 0 AND token < 9007199254740992),
    sequence    bigint NOT NULL DEFAULT 0 CHECK (sequence >= 0),
    session     uuid,
    granted_at  timestamptz,
    released_at timestamptz,
    ledger_from bigint NOT NULL DEFAULT 0 -- from this token on, the ledger is whole
) WITH (fillfactor = 50);
CREATE INDEX lease_session ON palisade.lease (session) WHERE session IS NOT NULL;

-- A hung handler loses its lease, though its process beats.
CREATE TABLE palisade.progress (
    resource text COLLATE "C" PRIMARY KEY,
    token    bigint NOT NULL,
    deadline timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What a session that is still open has lost; its heartbeat tells it.
CREATE TABLE palisade.loss (
    session  uuid NOT NULL,
    resource text COLLATE "C" NOT NULL,
    token    bigint NOT NULL,
    reason   text NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (session, resource, token)
);

CREATE TABLE palisade.grant_history (
    resource    text COLLATE "C" NOT NULL,
    token       bigint NOT NULL,
    session     uuid,          -- null: the token was raised by a release or a revocation
    worker      text,
    kind        text NOT NULL CHECK (kind IN ('grant', 'takeover', 'release', 'revoke')),
    reason      text,          -- of a takeover or a revocation
    former_end  timestamptz,   -- of a takeover: when the former owner's lease had ended
    at          timestamptz NOT NULL,
    PRIMARY KEY (resource, token)
);

-- The ledger: what became of each fenced write.
CREATE TABLE palisade.operation (
    resource  text COLLATE "C" NOT NULL,
    token     bigint NOT NULL,
    sequence  bigint NOT NULL,
    kind      text NOT NULL,
    args_hash bytea NOT NULL,
    outcome   text NOT NULL CHECK (outcome IN ('applied', 'rejected')),
    reason    text,
    result    jsonb,
    at        timestamptz NOT NULL,
    PRIMARY KEY (resource, token, sequence)
);

CREATE TABLE palisade.refusal (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    resource      text COLLATE "C" NOT NULL,
    token         bigint NOT NULL,
    sequence      bigint,
    kind          text NOT NULL,
    reason        text NOT NULL,
    current_token bigint,
    at            timestamptz NOT NULL
);
CREATE INDEX refusal_resource ON palisade.refusal (resource, token, sequence);

-- Writes of plain clients, who hold no lease: at most once by a key of their own.
CREATE TABLE palisade.request (
    id        uuid PRIMARY KEY,
    kind      text NOT NULL,
    args_hash bytea NOT NULL,
    answer    palisade.answer NOT NULL,
    at        timestamptz NOT NULL
);
CREATE INDEX request_at ON palisade.request (at);

CREATE TABLE palisade.registered_model (
    name         text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$'),
    description  text NOT NULL DEFAULT '',
    tags         jsonb NOT NULL DEFAULT '{}',
    next_version bigint NOT NULL DEFAULT 1, -- a number is never used again
    created_at   timestamptz NOT NULL
);

-- Immutable once registered.
CREATE TABLE palisade.model_version (
    model      text COLLATE "C" NOT NULL REFERENCES palisade.registered_model,
    version    bigint NOT NULL CHECK (version > 0),
    source     text NOT NULL CHECK (length(source) BETWEEN 1 AND 4096),
    digest     text NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    tags       jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    PRIMARY KEY (model, version)
);

-- A row is never deleted: it carries the token of its last change (the second line behind the gate).
CREATE TABLE palisade.alias (
    model      text COLLATE "C" NOT NULL,
    alias      text COLLATE "C" NOT NULL,      -- its form is checked where a row is made: a CHECK would be paid for by each update
    version    bigint,             -- null: the alias was taken away
    guard      text COLLATE "C",               -- only this resource's owner may change it
    token      bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (model, alias)
) WITH (fillfactor = 70);
CREATE INDEX alias_guard ON palisade.alias (guard) WHERE guard IS NOT NULL;

-- What is wanted. The controller is its only writer.
CREATE TABLE palisade.plan (
    resource        text COLLATE "C" PRIMARY KEY,
    uid             uuid NOT NULL,
    generation      bigint NOT NULL,
    rollout         bigint NOT NULL,  -- counts changes of the plan: also those that no generation shows (an alias moved)
    spec            jsonb NOT NULL,
    paused          boolean NOT NULL,
    removed         boolean NOT NULL,
    progress_ttl    interval NOT NULL,
    status_revision bigint NOT NULL DEFAULT 0,
    token           bigint NOT NULL,
    updated_at      timestamptz NOT NULL
) WITH (fillfactor = 70);

-- What is. The deployment's owner is its only writer.
CREATE TABLE palisade.deployment (
    resource         text COLLATE "C" PRIMARY KEY,
    uid              uuid NOT NULL,
    rollout          bigint NOT NULL,
    step             text NOT NULL,
    step_started_at  timestamptz NOT NULL,
    state            jsonb NOT NULL,
    serving_model    text COLLATE "C",
    serving_version  bigint,
    serving_revision text,
    serving_since    timestamptz,
    failure_reason   text,
    failure_message  text,
    token            bigint NOT NULL,
    updated_at       timestamptz NOT NULL
) WITH (fillfactor = 70);

-- Work that is due: a row while a plan and its deployment differ. What was claimed stays in it, at the end: whoever looks for
-- work would walk past all that is being worked on, each time.
CREATE TABLE palisade.queue (
    resource   text COLLATE "C" PRIMARY KEY,
    due_at     timestamptz NOT NULL,
    attempts   integer NOT NULL DEFAULT 0,
    claimed_at timestamptz
);
CREATE INDEX queue_turn ON palisade.queue (greatest(due_at, claimed_at));

-- The outbox. Ids commit out of order: read it by (xid, id) below the oldest running transaction, as palisade.events() does.
CREATE TABLE palisade.event (
    id       bigint GENERATED ALWAYS AS IDENTITY,
    xid      xid8 NOT NULL DEFAULT pg_current_xact_id(),
    resource text COLLATE "C" NOT NULL,
    kind     text NOT NULL,
    token    bigint,
    sequence bigint,
    data     jsonb NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (xid, id)
);

RESET ROLE;
