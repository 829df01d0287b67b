//! How much a rollout writes, for the estimate in docs/operations.md. A measurement, not a test:
//!
//! ```sh
//! cargo test --test worker growth -- --ignored --nocapture
//! ```

use palisade::plan::Spec;
use uuid::Uuid;

use crate::support::postgres::Conn;
use crate::support::world::World;

const ROLLOUTS: i64 = 6;
/// As often are the real rows copied under other names, so that pages are full and indexes deep.
const COPIES: i64 = 2000;
const TABLES: [&str; 4] = ["operation", "event", "grant_history", "refusal"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_a_rollout_writes() {
    let world = World::new("growth").await;
    let uid = Uuid::new_v4();
    let _worker = world.worker("w", &[]);
    let mut sql = world.sql().await;
    let plan = async |version: i64| {
        let spec = Spec { promote_alias: Some("champion".into()), ..world.spec("churn", version) };
        world.planner.plan(uid, spec).await;
        world.done("churn", version).await;
    };
    plan(1).await;
    settled(&mut sql).await;
    sql.run("CHECKPOINT").await;
    plan(2).await; // the first writes to a page behind a checkpoint are larger
    settled(&mut sql).await;
    let before = counts(&mut sql).await;
    let wal = sql.number("SELECT pg_current_wal_insert_lsn() - '0/0'").await;
    for rollout in 0..ROLLOUTS {
        plan(1 + rollout % 2).await;
    }
    settled(&mut sql).await;
    let wal = (sql.number("SELECT pg_current_wal_insert_lsn() - '0/0'").await - wal) / ROLLOUTS;
    let after = counts(&mut sql).await;
    // One write that came too late.
    sql.run("INSERT INTO palisade.refusal (resource, token, sequence, kind, reason, current_token, at)
             SELECT resource, token, 9, 'record_step', 'stale', token + 1, now() FROM palisade.lease WHERE resource LIKE 'deployment/%'").await;

    println!("a rollout: {wal} bytes of WAL, heartbeats and polls of its worker included");
    for (n, table) in TABLES.into_iter().enumerate() {
        let rows = (after[n] - before[n]) as f64 / ROLLOUTS as f64;
        println!("{table}: {rows:.1} rows a rollout, {} bytes a row with its indexes", weight(&mut sql, table).await);
    }
    println!("{}", sql.text("SELECT string_agg(kind || ' ' || n, ', ' ORDER BY kind) FROM (SELECT kind, count(*) AS n FROM palisade.operation GROUP BY kind) AS k").await);
}

/// The lease was given back: nothing of the last rollout is still to come.
async fn settled(sql: &mut Conn) {
    sql.wait_until("SELECT bool_and(session IS NULL) FROM palisade.lease WHERE resource LIKE 'deployment/%'").await;
}

async fn counts(sql: &mut Conn) -> Vec<i64> {
    let mut counts = Vec::new();
    for table in TABLES {
        counts.push(sql.number(&format!("SELECT count(*) FROM palisade.{table}")).await);
    }
    counts
}

/// Bytes that one more row takes, table and indexes, in a table of many.
async fn weight(sql: &mut Conn, table: &str) -> i64 {
    let columns = format!(
        "SELECT string_agg(attname::text, ', ') FROM pg_attribute WHERE attrelid = 'palisade.{table}'::regclass
         AND attnum > 0 AND attname NOT IN ('id', 'resource')"
    );
    let columns = sql.text(&columns).await;
    let size = format!("SELECT pg_total_relation_size('palisade.{table}')");
    let rows = sql.number(&format!("SELECT count(*) FROM palisade.{table}")).await;
    let before = sql.number(&size).await;
    sql.run(&format!(
        "INSERT INTO palisade.{table} (resource, {columns})
         SELECT resource || i, {columns} FROM palisade.{table}, generate_series(1, {COPIES}) AS i"
    ))
    .await;
    (sql.number(&size).await - before) / (rows * COPIES)
}
