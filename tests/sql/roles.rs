//! Rule 13: a role that tries to go around the functions. What to try comes from the catalogue.

use super::scenarios::{A, furnish};
use crate::support::postgres::{Conn, Db, LOGINS};

/// What each role may call. A function that is granted to one more is a decision that must be made here too.
const CALLS: [(&str, &[&str]); 4] = [
    (
        "worker_login",
        &[
            "abandon",
            "acquire",
            "check_lease",
            "check_row",
            "claim",
            "close_session",
            "epoch_status",
            "figures",
            "heartbeat",
            "held",
            "move_guard",
            "open_session",
            "operation_status",
            "plan_show",
            "protect",
            "record_done",
            "record_failure",
            "record_removed",
            "record_serving",
            "record_step",
            "release",
            "report_progress",
            "schema_version",
            "set_alias",
            "unprotect",
            "use_lease",
            "version_show",
        ],
    ),
    (
        "controller_login",
        &[
            "abandon",
            "acquire",
            "check_lease",
            "clean",
            "close_session",
            "drop_plan",
            "end_blockers",
            "epoch_status",
            "establish_epoch",
            "events",
            "figures",
            "heartbeat",
            "held",
            "next_revision",
            "observe",
            "open_session",
            "operation_abandon",
            "operation_show",
            "operation_status",
            "plan_show",
            "protect",
            "put_plan",
            "release",
            "report_progress",
            "revoke",
            "schema_version",
            "sizes",
            "unprotect",
            "version_show",
            "withdraw_epoch",
        ],
    ),
    ("registry_login", &["put_alias", "register_model", "register_version", "version_show"]),
    (
        "reader_login",
        &[
            "epoch_status",
            "events",
            "figures",
            "operation_show",
            "plan_show",
            "protect",
            "schema_version",
            "sizes",
            "unprotect",
            "version_show",
        ],
    ),
];

/// What each role may read directly.
fn may_read(login: &str, table: &str) -> bool {
    match login {
        "worker_login" => false,
        "registry_login" => ["registered_model", "model_version", "alias"].contains(&table),
        _ => !["session", "request"].contains(&table),
    }
}

async fn refused(conn: &mut Conn, sql: &str) -> Option<String> {
    match conn.try_run(sql).await {
        Err(failure) if failure.code == "42501" => None,
        other => Some(format!("{sql}: {other:?}")),
    }
}

#[tokio::test]
async fn each_role_can_do_what_it_was_granted_and_nothing_else() {
    let db = Db::new().await;
    let mut admin = db.connect().await;
    furnish(&mut admin).await;
    admin.owner(A).await;
    let tables = admin
        .list("SELECT relname::text FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relkind = 'r' AND relname <> 'migration'")
        .await;
    // Each function with nulls of the right types: enough to be refused, or to be told what is missing.
    let functions = admin
        .list(
            "SELECT p.proname || ' ' || p.proname || '(' || coalesce((SELECT string_agg('NULL::' || format_type(t, NULL), ', ')
                 FROM unnest(p.proargtypes) AS t), '') || ')'
             FROM pg_proc AS p WHERE p.pronamespace = 'palisade'::regnamespace AND p.provariadic = 0 AND p.prorettype <> 'trigger'::regtype",
        )
        .await;
    let mut problems = Vec::new();
    for (login, calls) in CALLS {
        let mut conn = db.connect_as(login).await;
        for table in &tables {
            let read = conn.try_run(&format!("SELECT * FROM palisade.{table}")).await;
            if read.is_ok() != may_read(login, table) {
                problems.push(format!("{login} reads {table}: {read:?}"));
            }
            for sql in [
                format!("INSERT INTO palisade.{table} DEFAULT VALUES"),
                format!("DELETE FROM palisade.{table}"),
                format!("TRUNCATE palisade.{table}"),
                format!("LOCK TABLE palisade.{table} IN ACCESS EXCLUSIVE MODE"),
                format!("SELECT FROM palisade.{table} FOR UPDATE"),
                format!("ALTER TABLE palisade.{table} DISABLE TRIGGER ALL"),
                format!("DROP TABLE palisade.{table}"),
                format!(
                    "CREATE TRIGGER t BEFORE UPDATE ON palisade.{table} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
                ),
            ] {
                // A lock of a table is asked for in a transaction; alone it fails for that reason.
                let sql = if sql.starts_with("LOCK") { format!("BEGIN; {sql}") } else { sql };
                problems.extend(refused(&mut conn, &sql).await.map(|problem| format!("{login}: {problem}")));
                let _ = conn.try_run("ROLLBACK").await;
            }
            let column = admin
                .text(&format!("SELECT attname FROM pg_attribute WHERE attrelid = 'palisade.{table}'::regclass AND attnum > 0 ORDER BY attnum DESC LIMIT 1"))
                .await;
            let sql = format!("UPDATE palisade.{table} SET {column} = {column}");
            problems.extend(refused(&mut conn, &sql).await.map(|problem| format!("{login}: {problem}")));
        }
        for function in &functions {
            let (name, call) = function.split_once(' ').expect("two words");
            let denied = refused(&mut conn, &format!("SELECT palisade.{call}")).await;
            match (calls.contains(&name), denied) {
                (true, None) => problems.push(format!("{login} may not call {name}")),
                (false, Some(problem)) => problems.push(format!("{login}: {problem}")),
                _ => {}
            }
        }
        for sql in [
            "SET ROLE palisade_owner",
            "SET SESSION AUTHORIZATION palisade_owner",
            "CREATE TABLE palisade.mine (x int)",
            "CREATE FUNCTION palisade.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE OR REPLACE FUNCTION palisade.key_fits(uuid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "ALTER FUNCTION palisade.heartbeat SECURITY INVOKER",
            "DROP SCHEMA palisade CASCADE",
            "ALTER SCHEMA palisade RENAME TO other",
            "GRANT palisade_owner TO CURRENT_USER",
            "ALTER ROLE palisade_owner LOGIN",
            "CREATE SCHEMA mine",
            "SET session_replication_role = replica",
            "SELECT key_hash FROM palisade.session",
            "SELECT nextval(pg_get_serial_sequence('palisade.event', 'id'))",
        ] {
            problems.extend(refused(&mut conn, sql).await.map(|problem| format!("{login}: {problem}")));
            let _ = conn.try_run("RESET ROLE").await;
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(LOGINS.map(|(login, _)| login), CALLS.map(|(login, _)| login));
}

#[tokio::test]
async fn a_reader_sees_sessions_without_their_keys() {
    let db = Db::new().await;
    let mut admin = db.connect().await;
    admin.owner(A).await;
    let mut reader = db.connect_as("reader_login").await;
    assert_eq!(reader.text("SELECT (SELECT worker FROM palisade.session)").await, "worker-a");
    assert_eq!(refused(&mut reader, "SELECT encode(key_hash, 'hex') FROM palisade.session").await, None);
}

#[tokio::test]
async fn a_worker_does_its_whole_work_with_its_own_role_only() {
    let db = Db::new().await;
    let mut admin = db.connect().await;
    furnish(&mut admin).await;
    admin.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('{A}', 0)")).await;
    let mut worker = db.connect_as("worker_login").await;
    let session = worker.session("1 minute").await;
    let token = worker.number(&format!("SELECT token FROM palisade.claim({}, 1)", session.args())).await;
    let lease = crate::support::postgres::Lease { resource: A.to_owned(), token, session };
    let uid = super::scenarios::UID;
    for call in [
        format!("record_step({}, '{uid}', 1, 'rollout', '{{}}')", lease.fence(1)),
        format!("report_progress({})", lease.unnumbered()),
        format!("record_serving({}, '{uid}', 1, 'drain', '{{}}', 'm', 2, 'r', 'live')", lease.fence(2)),
        format!("heartbeat({})", lease.session.args()),
        format!("record_done({}, '{uid}', 1, '{{}}')", lease.fence(3)),
        format!("release({})", lease.fence(4)),
        format!("close_session({})", lease.session.args()),
    ] {
        worker.call(&call).await.is("applied");
    }
    assert_eq!(admin.text("SELECT concat_ws(' ', step, serving_version) FROM palisade.deployment").await, "done 2");
    assert_eq!(admin.number("SELECT count(*) FROM palisade.queue").await, 0);
}

/// It could plan nothing, but would keep every controller from leading.
#[tokio::test]
async fn a_workers_login_cannot_take_the_controllers_lease() {
    let db = Db::new().await;
    for (login, word) in [("worker_login", "42501"), ("controller_login", "applied")] {
        let mut conn = db.connect_as(login).await;
        let session = conn.session("1 minute").await;
        let answer = conn.try_call(&format!("acquire({}, 'controller/default')", session.args())).await;
        assert_eq!(answer.map_or_else(|failure| failure.code, |answer| answer.word()), word, "{login}");
    }
}

/// pg_temp is searched first by default, and everybody may create in it.
#[tokio::test]
async fn temporary_tables_of_the_same_names_deceive_nobody() {
    let db = Db::new().await;
    let mut admin = db.connect().await;
    furnish(&mut admin).await;
    let stale = admin.owner(A).await;
    admin.take_over(&stale).await;
    let tables = admin
        .list("SELECT relname::text FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relkind = 'r' AND relname <> 'migration'")
        .await;
    let columns = |table: &str| {
        format!(
            "SELECT string_agg(quote_ident(attname) || ' ' || format_type(atttypid, NULL), ', ') FROM pg_attribute
                 WHERE attrelid = 'palisade.{table}'::regclass AND attnum > 0"
        )
    };
    let mut worker = db.connect_as("worker_login").await;
    for table in &tables {
        let columns = admin.text(&columns(table)).await;
        worker.run(&format!("CREATE TEMPORARY TABLE {table} ({columns})")).await;
    }
    // A lease of our own making, under the stale token, and functions of our own as well.
    worker
        .run(&format!(
            "INSERT INTO pg_temp.session VALUES ('{id}', sha256(convert_to('{key}', 'UTF8')), 'w', '1 hour', now() + '1 hour', now(), NULL);
             INSERT INTO pg_temp.lease (resource, token, sequence, session, ledger_from) VALUES ('{A}', {token}, 0, '{id}', 0);
             INSERT INTO pg_temp.established SELECT 1, pg_relation_filepath('pg_temp.established'), '00000001', pg_postmaster_start_time();
             CREATE FUNCTION pg_temp.key_fits(uuid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
             CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1';
             SET search_path = pg_temp, pg_catalog, palisade",
            id = stale.session.id,
            key = stale.session.key,
            token = stale.token
        ))
        .await;
    worker.call(&format!("set_alias({}, 'm', 'live', 1)", stale.fence(1))).await.is("rejected: stale");
    let session = worker.session("1 minute").await;
    let answer = worker.call(&format!("acquire({}, '{A}')", session.args())).await;
    answer.is("rejected: held");
    assert_eq!(admin.number("SELECT count(*) FROM palisade.refusal").await, 1, "it was written where it belongs");
}
