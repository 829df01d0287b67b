//! Work that is due goes to workers: 10,000 plans to 8 of them, and 1,000 leases of one that died.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row as _};
use uuid::Uuid;

use crate::fenced::owners;
use crate::harness::{Bench, Row, Sample, Target, Variant, Wanted, median};
use crate::server::{Db, KEY};
use crate::support::postgres::Server;

pub const SUBJECT: &str = "claims";

const WORKERS: usize = 8;
const DUE: usize = 10_000;
const DEAD: usize = 1_000;

/// In bulk: how plans are written is not measured here.
const SET_UP: &str = r#"
    INSERT INTO palisade.lease (resource, token) SELECT 'deployment/bench/d-' || i, 0 FROM generate_series(1, 10000) AS i;
    INSERT INTO palisade.plan (resource, uid, generation, rollout, spec, paused, removed, progress_ttl, token, updated_at)
        SELECT l.resource, gen_random_uuid(), 1, 1, jsonb_build_object('model', 'churn', 'version', 7, 'template', repeat('x', 500)),
            false, false, '10 minutes', 4294967297, clock_timestamp()
        FROM palisade.lease AS l;
    INSERT INTO palisade.queue (resource, due_at)
        SELECT l.resource, clock_timestamp() - random() * interval '1 hour' FROM palisade.lease AS l;"#;

/// All is due again and nobody's, as at first.
const AGAIN: &str = "UPDATE palisade.lease SET session = NULL WHERE session IS NOT NULL; ";

pub fn session(client: usize) -> Uuid {
    Uuid::parse_str(&format!("00000000-0000-7000-8000-{client:012}")).expect("a UUID")
}

/// The names that a claim brought.
async fn claim(conn: &mut PgConnection, id: Uuid, limit: i32) -> Vec<String> {
    let statement = sqlx::query("SELECT * FROM palisade.claim($1, $2, $3)").bind(id).bind(KEY).bind(limit);
    let rows = statement.fetch_all(conn).await.expect("an answer");
    let name = |row: &sqlx::postgres::PgRow| {
        let refused: Option<String> = row.get("refused");
        assert_eq!(refused, None, "a living session's claim");
        row.get("resource")
    };
    rows.iter().map(name).collect()
}

struct Claims<'a> {
    db: &'a Db<'a>,
    name: &'static str,
    limit: i32,
}

impl Claims<'_> {
    async fn until_nothing_is_due(&self) -> Sample {
        let mut sql = self.db.sql().await;
        sql.run(AGAIN).await;
        self.db.settle().await;
        let mut connections = Vec::new();
        for client in 0..WORKERS {
            let mut conn = PgConnection::connect(&self.db.url_as("worker_login")).await.expect("a connection");
            // Functions are compiled on a connection's first call.
            let got = claim(&mut conn, session(client), 1).await;
            assert_eq!(got.len(), 1, "all are due");
            connections.push(conn);
        }
        sql.run(AGAIN).await;
        let (wal, cpu) = (Db::wal(&mut sql).await, self.db.cpu());
        let (taken, began, limit) = (Arc::new(AtomicUsize::new(0)), Instant::now(), self.limit);
        let workers: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(client, mut conn)| {
                let taken = taken.clone();
                tokio::spawn(async move {
                    let (mut mine, mut took, mut last) = (Vec::new(), Vec::new(), began);
                    while taken.load(Ordering::Relaxed) < DUE {
                        assert!(began.elapsed() < Duration::from_secs(120), "not all that is due can be claimed");
                        let one = Instant::now();
                        let got = claim(&mut conn, session(client), limit).await;
                        if !got.is_empty() {
                            (last, _) = (Instant::now(), took.push(one.elapsed()));
                        }
                        taken.fetch_add(got.len(), Ordering::Relaxed);
                        mine.extend(got);
                    }
                    conn.close().await.expect("closed");
                    (mine, took, last)
                })
            })
            .collect();
        let (mut all, mut took, mut end) = (Vec::new(), Vec::new(), began);
        for worker in workers {
            let (mine, times, last) = worker.await.expect("a worker");
            all.extend(mine);
            took.extend(times);
            end = end.max(last);
        }
        let (wal, cpu) = (Db::wal(&mut sql).await - wal, self.db.cpu() - cpu);
        sql.close().await;
        let different = all.iter().collect::<HashSet<_>>().len();
        self.db.bench.check(different == DUE && all.len() == DUE, || {
            format!("{DUE} were due, {} claims were answered for {different} of them", all.len())
        });
        let mut sample = Sample::new(took, end - began);
        sample.per_second = all.len() as f64 / (end - began).as_secs_f64();
        sample.wal_bytes = Some(wal as f64 / all.len() as f64);
        sample.cpu_us = Some(cpu.as_secs_f64() * 1e6 / all.len() as f64);
        sample
    }
}

impl Variant for Claims<'_> {
    fn name(&self) -> &str {
        self.name
    }

    /// A round is all that is due, however long it takes.
    fn round(&mut self, _span: Duration) -> LocalBoxFuture<'_, Sample> {
        Box::pin(self.until_nothing_is_due())
    }
}

/// How long the claim takes that takes over all leases of a worker that died.
async fn takeover(db: &Db<'_>) -> f64 {
    let mut sql = db.sql().await;
    let (dead, heir) = (Uuid::now_v7(), session(0));
    sql.call(&format!("open_session('{dead}', '{KEY}', 'dead', '1 hour')")).await.is("applied");
    sql.run(AGAIN).await;
    sql.run("DELETE FROM palisade.queue").await;
    // As its claims would have left them: granted, with a progress deadline, still due.
    sql.run(&format!(
        "WITH his AS (UPDATE palisade.lease SET token = token + 1, session = '{dead}', granted_at = clock_timestamp()
             WHERE resource IN (SELECT 'deployment/bench/d-' || i FROM generate_series(1, {DEAD}) AS i) RETURNING resource, token),
         moved AS (INSERT INTO palisade.progress (resource, token, deadline) SELECT resource, token, clock_timestamp() + '10 minutes'
             FROM his ON CONFLICT (resource) DO UPDATE SET token = excluded.token, deadline = excluded.deadline)
         INSERT INTO palisade.queue (resource, due_at) SELECT resource, clock_timestamp() FROM his"
    ))
    .await;
    db.settle().await;
    let mut conn = PgConnection::connect(&db.url_as("worker_login")).await.expect("a connection");
    assert!(claim(&mut conn, heir, 1000).await.is_empty(), "its session is alive");
    sql.run(&format!("UPDATE palisade.session SET expires_at = clock_timestamp() WHERE id = '{dead}'")).await;
    let began = Instant::now();
    let got = claim(&mut conn, heir, 1000).await;
    let took = began.elapsed();
    conn.close().await.expect("closed");
    let held = sql.number(&format!("SELECT count(*) FROM palisade.lease WHERE session = '{heir}'")).await as usize;
    sql.close().await;
    db.bench.check(got.len() == DEAD && held == DEAD, || format!("{DEAD} leases were to be taken over, {held} were"));
    took.as_secs_f64() * 1e3
}

pub async fn run(bench: &Bench, server: &Server) {
    let db = Db::new(bench, server).await;
    let mut sql = db.sql().await;
    sql.run(SET_UP).await;
    sql.run(&owners(WORKERS, &[])).await;
    sql.close().await;
    let mut one = Claims { db: &db, name: "claim, one by one", limit: 1 };
    let mut ten = Claims { db: &db, name: "claim, by tens", limit: 10 };
    let mut variants: [&mut dyn Variant; 2] = [&mut one, &mut ten];
    let wanted = [Wanted::rate("claim, by tens", Target::AtLeast(25_000.0))];
    bench.compare(SUBJECT, "claims/s", WORKERS, &mut variants, &wanted).await;
    let mut times = Vec::new();
    for _ in 0..bench.pick(9, 3) {
        times.push(takeover(&db).await);
    }
    let row = Row::new(SUBJECT, "takeover of 1,000 leases of a dead worker", median(times.into_iter()), "ms");
    bench.add(row.with_target(Target::AtMost(250.0)));
    db.drop().await;
}
