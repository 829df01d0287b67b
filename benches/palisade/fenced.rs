//! What a fence costs: a plain `UPDATE`, the same work as a client's transaction, and a fenced write through a public function.

use std::fmt::Write as _;

use crate::harness::{Bench, Target, Variant, Wanted};
use crate::server::{Db, KEY, Pgbench};
use crate::support::postgres::{Conn, Server};

pub const SUBJECT: &str = "fenced-write";
pub const CLIENTS: [usize; 3] = [1, 8, 32];
/// The share of a plain `UPDATE`'s throughput that is to be kept.
pub const SHARES: [f64; 3] = [0.75, 0.65, 0.50];

const PLAIN: &str = "plain UPDATE";
const TRANSACTION: &str = "transaction: lease, ledger, row";
const ALIAS: &str = "set_alias";
const ALIAS_TRANSACTION: &str = "transaction: the work of set_alias";
const CHECK: &str = "transaction: check_lease, UPDATE";
const PROTECTED: &str = "UPDATE of a protected table";

/// Each client its own row, resource, session and alias: what is measured is the fence, not a queue before one row.
pub const SET_UP: &str = "
    CREATE SCHEMA bench;
    GRANT USAGE ON SCHEMA bench TO PUBLIC;
    CREATE TABLE bench.account (name text PRIMARY KEY, value bigint NOT NULL);
    INSERT INTO bench.account SELECT 'bench/' || i, 0 FROM generate_series(0, 31) AS i;
    CREATE TABLE bench.guarded (name text PRIMARY KEY, value bigint NOT NULL);
    INSERT INTO bench.guarded SELECT 'guarded/' || i, 0 FROM generate_series(0, 31) AS i;
    SELECT palisade.protect('bench.guarded', 'name');
    GRANT SELECT, UPDATE ON bench.account, bench.guarded TO PUBLIC;
    SELECT palisade.register_model('bench', '', '{}', gen_random_uuid());
    INSERT INTO palisade.alias (model, alias, version, updated_at)
        SELECT 'bench', 'mine-' || i, 1, clock_timestamp() FROM generate_series(0, 31) AS i;
    SELECT palisade.register_version('bench', 's3://bench', 'sha256:' || repeat('a', 64), '{}', gen_random_uuid())
        FROM generate_series(1, 2);";

/// A session and leases for each client.
pub fn owners(clients: usize, resources: &[&str]) -> String {
    let mut sql = String::new();
    for client in 0..clients {
        let id = format!("'00000000-0000-7000-8000-{client:012}', '{KEY}'");
        let _ = writeln!(sql, "SELECT palisade.open_session({id}, 'client-{client}', '1 hour');");
        for resource in resources {
            let _ = writeln!(sql, "SELECT palisade.acquire({id}, '{resource}/{client}');");
        }
    }
    sql
}

const UPDATE: &str = "UPDATE bench.account SET value = value + 1 WHERE name = 'bench/' || :client_id;\n";

/// The connection says once under which lease it writes; from then on it is one statement, and the table's trigger checks it.
const UPDATE_PROTECTED: &str = r"\if :ready = 0
SELECT palisade.use_lease('guarded/' || :client_id, :token, :key, true);
\set ready 1
\endif
UPDATE bench.guarded SET value = value + 1 WHERE name = 'guarded/' || :client_id;
";

/// Next sequence, and another version than the last time: else there is nothing to write.
const NEXT: &str = "\\set sequence :sequence + 1\n\\set version 1 + :sequence % 2\n";

/// What a client does who has no functions: reads the lease's row under a lock and compares it, all by itself.
fn transaction(resource: &str, work: &str) -> String {
    format!(
        "{NEXT}BEGIN;
SELECT l.token, l.sequence, s.key_hash, s.closed_at FROM palisade.lease AS l LEFT JOIN palisade.session AS s ON s.id = l.session \
         WHERE l.resource = '{resource}/' || :client_id FOR NO KEY UPDATE OF l;
{work}INSERT INTO palisade.operation (resource, token, sequence, kind, args_hash, outcome, result, at) \
         VALUES ('{resource}/' || :client_id, :token, :sequence, 'bench', sha256(:key::text::bytea), 'applied', \
         jsonb_build_object('version', :version::bigint), clock_timestamp());
UPDATE palisade.lease SET sequence = :sequence WHERE resource = '{resource}/' || :client_id;
COMMIT;\n"
    )
}

fn alias_transaction() -> String {
    transaction(
        "alias-transaction",
        "UPDATE palisade.alias SET version = :version, guard = 'alias-transaction/' || :client_id, token = :token, \
         updated_at = clock_timestamp() WHERE model = 'bench' AND alias = 'mine-' || :client_id AND token <= :token;
INSERT INTO palisade.event (resource, kind, token, sequence, data, at) VALUES ('alias-transaction/' || :client_id, 'alias', \
         :token, :sequence, jsonb_build_object('model', 'bench', 'alias', 'mine-' || :client_id, 'version', :version::bigint), \
         clock_timestamp());\n",
    )
}

fn set_alias() -> String {
    format!(
        "{NEXT}SELECT outcome, reason FROM palisade.set_alias('alias/' || :client_id, :token, :sequence, :key, 'bench', \
         'a-' || :client_id, :version);\n"
    )
}

fn check_lease() -> String {
    format!("BEGIN;\nSELECT palisade.check_lease('check/' || :client_id, :token, :key);\n{UPDATE}COMMIT;\n")
}

pub async fn run(bench: &Bench, server: &Server) {
    for (clients, share) in CLIENTS.into_iter().zip(SHARES) {
        let db = Db::new(bench, server).await;
        let mut sql = db.sql().await;
        sql.run(SET_UP).await;
        sql.run(&owners(clients, &["transaction", "alias-transaction", "alias", "check", "guarded"])).await;
        db.settle().await;
        let mut running = [
            Pgbench::new(&db, PLAIN, "worker_login", clients, UPDATE),
            Pgbench::new(&db, TRANSACTION, "postgres", clients, &transaction("transaction", UPDATE)),
            Pgbench::new(&db, ALIAS, "worker_login", clients, &set_alias()),
            Pgbench::new(&db, ALIAS_TRANSACTION, "postgres", clients, &alias_transaction()),
            Pgbench::new(&db, CHECK, "worker_login", clients, &check_lease()),
            Pgbench::new(&db, PROTECTED, "worker_login", clients, UPDATE_PROTECTED),
        ];
        let mut variants: Vec<&mut dyn Variant> = running.iter_mut().map(|one| one as &mut dyn Variant).collect();
        let wanted = [
            Wanted::share(TRANSACTION, PLAIN, None),
            Wanted::share(ALIAS, PLAIN, Some(Target::AtLeast(share))),
            Wanted::share(ALIAS, ALIAS_TRANSACTION, Some(Target::AtLeast(2.0))),
            Wanted::share(ALIAS_TRANSACTION, PLAIN, None),
            Wanted::share(CHECK, PLAIN, None),
            Wanted::share(PROTECTED, PLAIN, None),
        ];
        bench.compare(SUBJECT, "writes/s", clients, &mut variants, &wanted).await;
        let done = |name: &str| running.iter().find(|one| one.name() == name).map_or(0, |one| one.done) as i64;
        check_ledger(bench, &mut sql, done(ALIAS)).await;
        let updated = done(PLAIN) + done(TRANSACTION) + done(CHECK);
        let value = sql.number("SELECT sum(value) FROM bench.account").await;
        bench.check(value == updated, || format!("{updated} updates were answered, the rows say {value}"));
        let value = sql.number("SELECT sum(value) FROM bench.guarded").await;
        bench.check(value == done(PROTECTED), || {
            format!("{} updates of the protected table were answered, the rows say {value}", done(PROTECTED))
        });
        sql.close().await;
        db.drop().await;
    }
}

/// Every write that was answered was applied, and once: under each fence there is one row.
pub async fn check_ledger(bench: &Bench, sql: &mut Conn, sent: i64) {
    let found =
        sql.number("SELECT count(*) FROM palisade.operation WHERE kind = 'set_alias' AND outcome = 'applied'").await;
    bench.check(found == sent, || format!("{sent} calls of set_alias were answered, the ledger has {found}"));
    let refused = sql.text("SELECT string_agg(DISTINCT reason, ', ') FROM palisade.refusal").await;
    bench.check(refused.is_empty(), || format!("writes of owners were refused: {refused}"));
}
