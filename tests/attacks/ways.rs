//! Ways around the functions. What is generated from the catalogue (every direct statement on every table, every function
//! that was not granted) is in tests/sql/roles.rs; here are the others, one by one.

use super::database::{Arena, By};
use super::expect::Expect::{self, Harmless, Limited, Refused};

pub struct Way {
    pub by: By,
    pub name: &'static str,
    pub sql: &'static str,
    pub expect: Expect,
    /// What sets it right again, as the superuser: only after what is limited by rights, and what needs a preparation.
    pub undo: &'static str,
    /// What there must be before, as the superuser.
    pub given: &'static str,
    /// Whether the owner is kept waiting until the attacker's connection ends.
    pub holds: bool,
}

const fn way(by: By, name: &'static str, sql: &'static str, expect: Expect) -> Way {
    Way { by, name, sql, expect, undo: "", given: "", holds: false }
}

const fn worker(name: &'static str, sql: &'static str, expect: Expect) -> Way {
    way(By::Worker, name, sql, expect)
}

/// Not allowed.
const NO: Expect = Refused("42501");

const ROLES: &[Way] = &[
    worker("become the owner of the schema", "SET ROLE palisade_owner", NO),
    worker("become the controller", "SET ROLE palisade_controller", NO),
    worker("become a superuser", "SET SESSION AUTHORIZATION postgres", NO),
    worker("become the owner by `set_config`", "SELECT set_config('role', 'palisade_owner', false)", NO),
    worker("become a superuser by `set_config`", "SELECT set_config('session_authorization', 'postgres', false)", NO),
    worker("become the owner in a `DO` block", "DO $$ BEGIN EXECUTE 'SET ROLE palisade_owner'; END $$", NO),
    worker(
        "become its own group",
        "SET ROLE palisade_worker",
        Harmless("a group has the rights that its members have"),
    ),
    way(By::Reader, "a reader becomes a worker", "SET ROLE palisade_worker", NO),
    way(By::Registry, "a registry's client becomes a worker", "SET ROLE palisade_worker", NO),
    way(By::Controller, "the controller becomes the owner", "SET ROLE palisade_owner", NO),
    way(By::Controller, "the controller becomes a worker", "SET ROLE palisade_worker", NO),
    worker("grant itself the owner's role", "GRANT palisade_owner TO CURRENT_USER", NO),
    worker("grant itself `pg_signal_backend`", "GRANT pg_signal_backend TO CURRENT_USER", NO),
    worker("grant itself a table", "GRANT ALL ON palisade.lease TO CURRENT_USER", NO),
    worker("grant itself a function", "GRANT EXECUTE ON FUNCTION palisade.establish_epoch TO CURRENT_USER", NO),
    worker(
        "take a function away from its group",
        "REVOKE EXECUTE ON FUNCTION palisade.heartbeat FROM palisade_worker",
        Harmless("a warning: there is nothing that it granted"),
    ),
    worker("let the owner log in", "ALTER ROLE palisade_owner LOGIN PASSWORD 'x'", NO),
    worker("make itself a superuser", "ALTER ROLE CURRENT_USER SUPERUSER", NO),
    worker("make itself one that may replicate", "ALTER ROLE CURRENT_USER REPLICATION", NO),
    worker("make a role", "CREATE ROLE evil SUPERUSER", NO),
    worker("drop a role", "DROP ROLE palisade_reader", NO),
    worker("settings of its group", "ALTER ROLE palisade_worker SET synchronous_commit = off", NO),
    Way {
        undo: "ALTER ROLE {me} RESET ALL",
        ..worker(
            "settings of its own login",
            "ALTER ROLE CURRENT_USER SET statement_timeout = '1ms'",
            Limited(
                "all who share the login fail: give each part a login of its own. `palisade doctor` shows it; a superuser resets it",
            ),
        )
    },
    Way {
        undo: "ALTER ROLE {me} PASSWORD NULL",
        ..worker(
            "the password of its own login",
            "ALTER ROLE CURRENT_USER PASSWORD 'another one'",
            Limited("those who share the login are locked out until a superuser sets it again"),
        )
    },
    worker("take over what the owner has", "REASSIGN OWNED BY palisade_owner TO CURRENT_USER", NO),
    worker("drop what the owner has", "DROP OWNED BY palisade_owner", NO),
    worker(
        "rights on what will be made",
        "ALTER DEFAULT PRIVILEGES FOR ROLE palisade_owner GRANT ALL ON TABLES TO PUBLIC",
        NO,
    ),
];

const DEFINITIONS: &[Way] = &[
    worker("a table in the schema", "CREATE TABLE palisade.mine (x int)", NO),
    worker(
        "an overload in the schema",
        "CREATE FUNCTION palisade.key_fits(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        NO,
    ),
    worker(
        "replace a function",
        "CREATE OR REPLACE FUNCTION palisade.key_hash(key text) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
        NO,
    ),
    worker(
        "an operator in the schema",
        "CREATE OPERATOR palisade.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
        NO,
    ),
    worker("a cast to the answer's type", "CREATE CAST (text AS palisade.answer) WITH INOUT AS IMPLICIT", NO),
    worker("a cast between Postgres' own types", "CREATE CAST (bigint AS text) WITH INOUT AS IMPLICIT", NO),
    worker("a type in the schema", "CREATE TYPE palisade.mine AS (x int)", NO),
    worker("a collation in the schema", "CREATE COLLATION palisade.mine FROM \"C\"", NO),
    worker("a function that runs as its caller", "ALTER FUNCTION palisade.heartbeat(uuid, text) SECURITY INVOKER", NO),
    worker("a function's search path", "ALTER FUNCTION palisade.heartbeat(uuid, text) SET search_path = pg_temp", NO),
    worker("a function's owner", "ALTER FUNCTION palisade.heartbeat(uuid, text) OWNER TO CURRENT_USER", NO),
    worker("drop the gate", "DROP FUNCTION palisade.enter", NO),
    worker("comment on a function", "COMMENT ON FUNCTION palisade.heartbeat(uuid, text) IS 'x'", NO),
    worker("a security label", "SECURITY LABEL ON TABLE palisade.lease IS 'x'", Refused("42501|22023")),
    worker("switch the triggers off", "ALTER TABLE palisade.lease DISABLE TRIGGER ALL", NO),
    worker("a table's owner", "ALTER TABLE palisade.lease OWNER TO CURRENT_USER", NO),
    worker("drop a constraint", "ALTER TABLE palisade.lease DROP CONSTRAINT lease_token_check", NO),
    worker(
        "row security, so that the functions see nothing",
        "ALTER TABLE palisade.lease ENABLE ROW LEVEL SECURITY",
        NO,
    ),
    worker("a policy", "CREATE POLICY p ON palisade.lease USING (false)", NO),
    worker("a rule that swallows writes", "CREATE RULE r AS ON UPDATE TO palisade.lease DO INSTEAD NOTHING", NO),
    worker(
        "a trigger that swallows writes",
        "CREATE TRIGGER t BEFORE UPDATE ON palisade.lease FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        NO,
    ),
    worker("an index", "CREATE INDEX ON palisade.lease (token)", NO),
    worker("statistics", "CREATE STATISTICS s ON token, sequence FROM palisade.lease", NO),
    worker(
        "an event trigger",
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
        NO,
    ),
    worker("drop the schema", "DROP SCHEMA palisade CASCADE", NO),
    worker("rename the schema", "ALTER SCHEMA palisade RENAME TO other", NO),
    worker("a schema of its own", "CREATE SCHEMA evil", NO),
    worker("a table in `public`", "CREATE TABLE public.lease (x int)", NO),
    worker("a database", "CREATE DATABASE evil", NO),
    worker(
        "the database's settings",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$",
        NO,
    ),
    worker("the server's settings", "ALTER SYSTEM SET fsync = off", NO),
    worker("an extension", "CREATE EXTENSION dblink", Refused("42501|0A000|58P01")),
    worker("a foreign server", "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw", Refused("42501|42704")),
    worker("a foreign data wrapper", "CREATE FOREIGN DATA WRAPPER w", NO),
    worker(
        "a function in C",
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler'",
        NO,
    ),
    worker(
        "an internal function under another name",
        "CREATE FUNCTION pg_temp.f(text) RETURNS text LANGUAGE internal AS 'lo_import'",
        NO,
    ),
    worker("load a library", "LOAD '$libdir/../bin/postgres'", NO),
    worker("a trusted language", "CREATE TRUSTED LANGUAGE plperl", Refused("42501|0A000|58P01")),
];

const TABLES: &[Way] = &[
    worker("read a table by `COPY`", "COPY palisade.lease TO STDOUT", NO),
    worker("write a table by `COPY`", "COPY palisade.lease FROM STDIN", NO),
    worker("read a table by a query in `COPY`", "COPY (SELECT * FROM palisade.session) TO STDOUT", NO),
    worker("write by `MERGE`", "MERGE INTO palisade.lease USING (SELECT 1) AS o ON true WHEN MATCHED THEN UPDATE SET token = 0", NO),
    worker(
        "write by `ON CONFLICT`",
        "INSERT INTO palisade.lease (resource, token) VALUES ('deployment/ns/a', 0) ON CONFLICT (resource) DO UPDATE SET token = 0",
        NO,
    ),
    worker("write in a `WITH`", "WITH w AS (UPDATE palisade.lease SET token = 0 RETURNING 1) SELECT 1", NO),
    worker("read under `EXPLAIN ANALYZE`", "EXPLAIN ANALYZE SELECT * FROM palisade.session", NO),
    worker("read by a cursor", "BEGIN; DECLARE c CURSOR FOR SELECT * FROM palisade.session", NO),
    worker("read by a view of its own", "CREATE TEMP VIEW v AS SELECT * FROM palisade.session; SELECT * FROM v", NO),
    worker(
        "read by a security barrier's leak",
        "CREATE FUNCTION pg_temp.leak(bigint) RETURNS boolean COST 0.0000001 LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END';
         SELECT * FROM palisade.running_epoch WHERE pg_temp.leak(number)",
        NO,
    ),
    worker("inherit from a table", "CREATE TEMP TABLE t () INHERITS (palisade.lease)", NO),
    worker("copy a table's form", "CREATE TEMP TABLE t (LIKE palisade.session INCLUDING ALL)", NO),
    worker("refer to a table", "CREATE TEMP TABLE t (r text REFERENCES palisade.lease)", Refused("42501|42P16")),
    worker("lock rows", "SELECT FROM palisade.lease FOR NO KEY UPDATE", NO),
    worker("lock rows lightly", "SELECT FROM palisade.lease FOR KEY SHARE", NO),
    way(By::Reader, "a reader locks rows", "SELECT FROM palisade.lease FOR UPDATE", NO),
    way(By::Reader, "a reader locks rows lightly", "SELECT FROM palisade.lease FOR KEY SHARE", NO),
    way(By::Reader, "a reader locks a table against writers", "BEGIN; LOCK TABLE palisade.lease IN SHARE MODE", NO),
    way(
        By::Reader,
        "a reader locks a table as reading does",
        "BEGIN; LOCK TABLE palisade.lease IN ACCESS SHARE MODE",
        Harmless("only a migration waits for it, and gives up after its lock timeout"),
    ),
    way(
        By::Reader,
        "a reader keeps a snapshot open",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM palisade.lease",
        Harmless("nobody waits; old rows stay meanwhile, and `palisade_oldest_transaction_seconds` shows it"),
    ),
    worker("the next number of a sequence", "SELECT nextval(pg_get_serial_sequence('palisade.event', 'id'))", NO),
    worker("set a sequence", "SELECT setval(pg_get_serial_sequence('palisade.refusal', 'id'), 1)", NO),
    worker("read a sequence", "SELECT * FROM palisade.refusal_id_seq", NO),
    worker("rewrite a table", "CLUSTER palisade.lease USING lease_pkey", NO),
    worker("rebuild an index", "REINDEX TABLE palisade.lease", NO),
    worker("vacuum a table", "VACUUM palisade.lease", Harmless("a warning: it is skipped, being another's table")),
];

const FILES: &[Way] = &[
    worker("run a program", "COPY (SELECT 1) TO PROGRAM 'id'", NO),
    worker("write a file", "COPY (SELECT 1) TO '/tmp/evil'", NO),
    worker("read a file by `COPY`", "CREATE TEMP TABLE t (x text); COPY t FROM '/etc/passwd'", NO),
    worker("read a file", "SELECT pg_read_file('postgresql.conf')", NO),
    worker("read a file as bytes", "SELECT pg_read_binary_file('global/pg_control')", NO),
    worker("list a folder", "SELECT pg_ls_dir('.')", NO),
    worker("a large object from a file", "SELECT lo_import('/etc/passwd')", NO),
    worker("a large object into a file", "SELECT lo_export(1, '/tmp/evil')", NO),
    worker("others' large objects", "SELECT * FROM pg_largeobject", NO),
    Way {
        undo: "SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
        ..worker(
            "a large object of its own",
            "SELECT lo_from_bytea(0, 'x')",
            Limited(
                "it takes space, as temporary tables do: `temp_file_limit` and a disk's alarm are what limits a login",
            ),
        )
    },
];

const SECRETS: &[Way] = &[
    worker("read the keys' hashes", "SELECT key_hash FROM palisade.session", NO),
    way(By::Reader, "a reader reads the keys' hashes", "SELECT key_hash FROM palisade.session", NO),
    way(By::Reader, "a reader reads whole sessions", "SELECT s FROM palisade.session AS s", NO),
    way(By::Reader, "a reader copies the keys' hashes", "COPY palisade.session (id, key_hash) TO STDOUT", NO),
    way(By::Reader, "a reader reads what plain clients asked", "SELECT * FROM palisade.request", NO),
    way(By::Controller, "the controller reads the keys' hashes", "SELECT key_hash FROM palisade.session", NO),
    Way {
        given: "ANALYZE palisade.session",
        ..way(
            By::Reader,
            "a reader reads the keys' hashes in the statistics",
            "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM pg_stats WHERE schemaname = 'palisade' AND attname = 'key_hash'); END $$",
            Harmless("`pg_stats` shows columns that one may read"),
        )
    },
    way(By::Reader, "a reader reads the statistics' table", "SELECT * FROM pg_statistic", NO),
    worker("read password hashes", "SELECT rolpassword FROM pg_authid", NO),
    worker("read who may connect", "SELECT * FROM pg_hba_file_rules", NO),
    worker(
        "read others' statements",
        "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename <> current_user AND query <> '<insufficient privilege>'); END $$",
        Harmless("`pg_stat_activity` shows the statements of one's own login only"),
    ),
    worker(
        "read the functions' source",
        "SELECT pg_get_functiondef('palisade.enter'::regproc)",
        Harmless("it is no secret: a key's hash is compared, and keys are long and random"),
    ),
];

const CALLS: &[Way] = &[
    worker("call the gate", "SELECT palisade.enter('deployment/ns/a', 1, 1, 'k', 'x', NULL)", NO),
    worker("call what ends a write", "SELECT palisade.leave('deployment/ns/a', {live token}, 9, 'x', NULL, NULL, NULL)", NO),
    worker("call what raises a token", "SELECT palisade.retire_lease('deployment/ns/a', 'release', NULL)", NO),
    worker(
        "call what grants",
        "SELECT palisade.grant_locked({session}, ARRAY['deployment/ns/a'], NULL, NULL, true)",
        NO,
    ),
    worker("call what writes an alias", "SELECT palisade.write_alias('m', 'live', 1, NULL, NULL, NULL)", NO),
    worker("call what closes a fence", "SELECT palisade.close_fence('deployment/ns/a', {live token}, 9)", NO),
    worker("call a trigger's function", "SELECT palisade.guard()", Refused("0A000|42501")),
    worker(
        "a trigger's function on a table of its own",
        "CREATE TEMP TABLE t (x text); CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION palisade.guard('pg_sleep(0)')",
        Harmless("it runs with the rights of whoever writes to that table"),
    ),
    worker("protect one of Palisade's tables", "SELECT palisade.protect('palisade.alias', 'guard')", Refused("PS004")),
    Way {
        given: "CREATE TABLE public.theirs (a text); SELECT palisade.protect('public.theirs', 'a'); GRANT ALL ON public.theirs TO palisade_worker",
        undo: "DROP TABLE public.theirs",
        ..worker("take a table's protection away", "SELECT palisade.unprotect('public.theirs')", NO)
    },
    Way {
        given: "CREATE TABLE public.theirs (a text); SELECT palisade.protect('public.theirs', 'a'); GRANT ALL ON public.theirs TO palisade_worker",
        undo: "DROP TABLE public.theirs",
        ..worker(
            "forge the settings that name the lease in use",
            "SELECT set_config('palisade.resource', 'deployment/ns/a', false), set_config('palisade.token', '{live token}', false),
                set_config('palisade.key', 'a key of my own making', false); INSERT INTO public.theirs VALUES ('deployment/ns/a')",
            Refused("PS003"),
        )
    },
    worker("use a lease that is not its own", "SELECT palisade.use_lease({unnumbered}, true)", Refused("PS003")),
    worker("take the controllers' lease", "CALL acquire({session}, 'controller/default')", NO),
    worker("take a lease of another scope's controllers", "CALL acquire({session}, 'controller/other')", NO),
    way(By::Registry, "a registry's client moves a guarded alias", "CALL put_alias('m', 'live', 1, gen_random_uuid())", Refused("rejected: guarded")),
    way(By::Registry, "a registry's client frees a guarded alias", "CALL put_alias('m', 'guarded', NULL, gen_random_uuid())", Refused("rejected: guarded")),
    way(By::Controller, "the controller takes an epoch that was used", "CALL establish_epoch(1, 'another one')", Refused("rejected: incarnation_changed")),
    way(By::Controller, "the controller withdraws another database's epoch", "CALL withdraw_epoch(1, 'another one')", Refused("rejected: incarnation_changed")),
    way(By::Controller, "the controller cleans what is young", "SELECT palisade.clean('ledger', '1 minute')", Refused("PS004")),
    way(By::Controller, "the controller ends backends at once", "SELECT palisade.end_blockers('0')", Refused("PS004")),
    way(By::Reader, "a reader revokes", "CALL revoke('deployment/ns/a', 'drill')", NO),
];

const TRANSACTIONS: &[Way] = &[
    worker(
        "a call under SERIALIZABLE",
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT palisade.set_alias({other}, 'm', 'evil', 1)",
        Refused("PS002"),
    ),
    worker(
        "a call under REPEATABLE READ",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT palisade.set_alias({other}, 'm', 'evil', 1)",
        Refused("PS002"),
    ),
    worker(
        "a call in a read-only transaction",
        "BEGIN READ ONLY; SELECT palisade.set_alias({other}, 'm', 'evil', 1)",
        Refused("25006"),
    ),
    worker(
        "another transaction's snapshot",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot(); SELECT palisade.set_alias({other}, 'm', 'evil', 1)",
        Refused("PS002"),
    ),
    worker(
        "a stale call in a cursor that is held",
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM palisade.set_alias({stale}, 'm', 'live', 1); COMMIT; FETCH c",
        Harmless("it is refused when it runs, at the commit"),
    ),
    worker(
        "a call that is undone by a savepoint",
        "BEGIN; SAVEPOINT s; SELECT palisade.set_alias({other}, 'm', 'evil', 1); ROLLBACK TO s; COMMIT",
        Harmless("ledger and write are undone together: asked for, it answers *pending*, as never sent"),
    ),
    worker(
        "a call that is rolled back",
        "BEGIN; SELECT palisade.set_alias({other}, 'm', 'evil', 1); ROLLBACK",
        Harmless("ledger and write are undone together: asked for, it answers *pending*, as never sent"),
    ),
    worker(
        "a call in a subtransaction that fails",
        "DO $$ BEGIN PERFORM palisade.set_alias({other}, 'm', 'evil', 1); RAISE EXCEPTION 'no'; EXCEPTION WHEN OTHERS THEN NULL; END $$",
        Harmless("ledger and write are undone together"),
    ),
    worker(
        "a prepared transaction that keeps a lease locked",
        "BEGIN; SELECT palisade.check_lease({other}); PREPARE TRANSACTION 'evil'",
        Refused("55000|42883"),
    ),
    worker(
        "delayed durability",
        "BEGIN; SET LOCAL synchronous_commit = off; SELECT palisade.set_alias({stale}, 'm', 'live', 1); COMMIT",
        Harmless("a call sets it on for its transaction; a stale one is refused"),
    ),
];

const SHADOWS: &[Way] = &[
    worker(
        "temporary functions of the same names, first in the search path",
        "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea';
         CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''-infinity''::timestamptz';
         CREATE FUNCTION pg_temp.current_epoch() RETURNS bigint LANGUAGE sql AS 'SELECT 9::bigint';
         SET search_path = pg_temp, pg_catalog, palisade",
        Harmless("functions are never looked up in `pg_temp`, and each function has a search path of its own"),
    ),
    worker(
        "temporary operators, first in the search path",
        "CREATE FUNCTION pg_temp.yes(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
         CREATE OPERATOR pg_temp.< (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = pg_temp.yes);
         SET search_path = pg_temp, pg_catalog",
        Harmless("operators are never looked up in `pg_temp`"),
    ),
    worker(
        "a temporary view of the lease",
        "CREATE TEMP VIEW lease AS SELECT 'deployment/ns/a'::text AS resource, 0::bigint AS token; SET search_path = pg_temp",
        Harmless("every name in a function is written with its schema"),
    ),
    Way {
        given: "GRANT CREATE ON SCHEMA public TO PUBLIC",
        undo: "DROP FUNCTION public.sha256(bytea), public.clock_timestamp(), public.key_fits(uuid, text), public.less(bigint, bigint) CASCADE;
               DROP TABLE public.lease; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        ..worker(
            "functions, operators and tables in `public`, which is open to all in a database that came from Postgres 14",
            "CREATE FUNCTION public.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea';
             CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''-infinity''::timestamptz';
             CREATE FUNCTION public.key_fits(uuid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
             CREATE FUNCTION public.less(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
             CREATE OPERATOR public.< (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.less);
             CREATE TABLE public.lease (resource text, token bigint); SET search_path = public, pg_catalog",
            Harmless("no function looks into `public`"),
        )
    },
    worker(
        "an argument of its own type, whose cast is its own code",
        "CREATE TYPE pg_temp.number AS (x int);
         CREATE FUNCTION pg_temp.cast_it(pg_temp.number) RETURNS bigint LANGUAGE plpgsql AS
            'BEGIN ASSERT current_user <> ''palisade_owner''; RETURN 1; END';
         CREATE CAST (pg_temp.number AS bigint) WITH FUNCTION pg_temp.cast_it(pg_temp.number) AS IMPLICIT;
         SELECT palisade.set_alias('deployment/ns/a', ROW(1)::pg_temp.number, ROW(1)::pg_temp.number, 'k', 'm', 'live', 1);
         DROP TYPE pg_temp.number CASCADE",
        Harmless("the cast runs before the call, with the caller's rights"),
    ),
    worker(
        "an argument of a domain with its own check",
        "CREATE FUNCTION pg_temp.check_it(text) RETURNS boolean LANGUAGE plpgsql AS
            'BEGIN ASSERT current_user <> ''palisade_owner''; RETURN true; END';
         CREATE DOMAIN pg_temp.word AS text CHECK (pg_temp.check_it(VALUE));
         SELECT palisade.set_alias({stale}, 'm'::pg_temp.word, 'live'::pg_temp.word, 1)",
        Harmless("the check runs before the call, with the caller's rights"),
    ),
    worker(
        "JSON that is nested too deeply",
        "SELECT palisade.record_step({stale}, gen_random_uuid(), 1, 's', (repeat('[', 1000000) || repeat(']', 1000000))::jsonb)",
        Refused("54001"),
    ),
    worker(
        "a resource whose name only looks the same",
        "CALL set_alias(replace('deployment/ns/a', 'a', U&'\\0430'), {live token}, 1, 'some other key', 'm', 'live', 1)",
        Refused("rejected: no_lease"),
    ),
];

const OTHERS: &[Way] = &[
    worker(
        "end another role's backend",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{controller}'",
        NO,
    ),
    worker(
        "cancel another role's statement",
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '{controller}'",
        NO,
    ),
    worker(
        "end a superuser's backend",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        NO,
    ),
    worker(
        "end backends of its own login",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()",
        Limited(
            "those who share the login lose their connections, and settle what was under way as after any lost answer",
        ),
    ),
    worker(
        "advisory locks",
        "SELECT pg_advisory_lock(n) FROM generate_series(-100, 100) AS n",
        Limited(
            "Palisade takes one for a plain client's request, by a hash of its random id, and one for a migration: whoever knows it delays that one, by 5 s at the most for a request. It ends with its connection",
        ),
    ),
    worker("spoof a notification", "NOTIFY palisade, 'x'", Harmless("nothing listens: the outbox is polled")),
    worker("listen", "LISTEN palisade", Harmless("nothing notifies")),
    worker("a replication slot", "SELECT pg_create_physical_replication_slot('evil')", NO),
    worker("logical decoding", "SELECT pg_create_logical_replication_slot('evil', 'pgoutput')", Refused("42501|55000")),
    worker("a publication", "CREATE PUBLICATION p FOR TABLE palisade.lease", NO),
    worker(
        "a subscription",
        "CREATE SUBSCRIPTION s CONNECTION 'dbname=postgres' PUBLICATION p WITH (connect = false)",
        NO,
    ),
    worker("a replication origin", "SELECT pg_replication_origin_create('evil')", NO),
    worker(
        "a message in the WAL",
        "SELECT pg_logical_emit_message(true, 'palisade', 'x')",
        Harmless("nothing reads it"),
    ),
    worker("a checkpoint", "CHECKPOINT", NO),
    worker("another WAL segment", "SELECT pg_switch_wal()", NO),
    worker("read the settings' files anew", "SELECT pg_reload_conf()", NO),
    worker("forget the statistics", "SELECT pg_stat_reset()", NO),
    worker("triggers for replicas only", "SET session_replication_role = replica", NO),
    worker("pretend to be a superuser", "SET is_superuser = on", Refused("55P02")),
];

/// All of them, by subject.
pub const WAYS: &[(&str, &[Way])] = &[
    ("Around the functions: roles and rights", ROLES),
    ("Around the functions: definitions", DEFINITIONS),
    ("Around the functions: tables", TABLES),
    ("Around the functions: files and programs", FILES),
    ("Around the functions: secrets", SECRETS),
    ("Around the functions: calls", CALLS),
    ("Around the functions: transactions and locks", TRANSACTIONS),
    ("Around the functions: shadows and types", SHADOWS),
    ("Around the functions: others, and the server", OTHERS),
];

#[tokio::test]
async fn each_way_around_the_functions_is_refused_or_changes_nothing() {
    let mut arena = Arena::new().await;
    let mut problems = Vec::new();
    let ways: Vec<_> = WAYS.iter().flat_map(|(_, ways)| ways.iter()).collect();
    assert!(ways.len() >= 60, "{} ways", ways.len());
    for way in ways {
        if let Err(problem) = arena.attack(way).await {
            problems.push(format!("{:?}: {}: {problem}", way.by, way.name));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
