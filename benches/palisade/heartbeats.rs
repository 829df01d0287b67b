//! 100,000 leases that are held by 100 workers: what their heartbeats take of a core, of the log and of the disk.

use std::time::Duration;

use crate::harness::{Bench, Row, Target};
use crate::server::{Db, KEY, Pgbench};
use crate::support::postgres::{Conn, Server};

pub const SUBJECT: &str = "heartbeats";

const WORKERS: u64 = 100;
const LEASES: u64 = 100_000;
const CLIENTS: usize = 8;
/// A worker with a TTL of 10 s sends one every third of it.
const PER_SECOND: f64 = WORKERS as f64 * 3.0 / 10.0;

/// In bulk: how leases are granted is measured elsewhere.
const SET_UP: &str = "
    INSERT INTO palisade.lease (resource, token, session, granted_at)
        SELECT 'deployment/bench/d-' || i, 4294967297,
            ('00000000-0000-7000-8000-' || lpad((i % 100)::text, 12, '0'))::uuid, clock_timestamp()
        FROM generate_series(1, 100000) AS i;
    INSERT INTO palisade.progress (resource, token, deadline) SELECT resource, token, 'infinity' FROM palisade.lease;";

const HEARTBEAT: &str = r"\set worker random(0, 99)
SELECT outcome FROM palisade.heartbeat(('00000000-0000-7000-8000-' || lpad(:worker::text, 12, '0'))::uuid, :key);
";

/// What the server has used so far.
struct Used {
    cpu: Duration,
    updates: i64,
    hot: i64,
    heap: i64,
    wal: i64,
}

impl Used {
    async fn now(db: &Db<'_>, sql: &mut Conn) -> Used {
        // Counters of a backend arrive at its end, or a second later.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let of = "FROM pg_stat_user_tables WHERE relid = 'palisade.session'::regclass";
        Used {
            cpu: db.cpu(),
            updates: sql.number(&format!("SELECT n_tup_upd {of}")).await,
            hot: sql.number(&format!("SELECT n_tup_hot_upd {of}")).await,
            heap: sql.number("pg_relation_size('palisade.session')").await,
            wal: Db::wal(sql).await,
        }
    }
}

pub async fn run(bench: &Bench, server: &Server) {
    let db = Db::new(bench, server).await;
    let mut sql = db.sql().await;
    bench.say("100,000 leases, in bulk");
    for worker in 0..WORKERS {
        let id = format!("'00000000-0000-7000-8000-{worker:012}', '{KEY}'");
        sql.call(&format!("open_session({id}, 'worker-{worker}', '1 hour')")).await.is("applied");
    }
    sql.run(SET_UP).await;
    db.settle().await;

    // The heap that a living server settles at, and not that of its first second, is what growth is counted from.
    let mut beats = Pgbench::new(&db, "heartbeats", "worker_login", CLIENTS, HEARTBEAT);
    beats.times(bench.pick(5_000, 500)).await;
    let count = bench.pick(1_000_000, 24_000);
    bench.say(format_args!("{count} heartbeats"));
    round(bench, &db, &mut sql, &mut beats, count, "").await;

    // Whatever keeps a snapshot open keeps every version of every row since then.
    let mut old = db.sql().await;
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    old.text("SELECT count(*) FROM palisade.session").await;
    let count = bench.pick(100_000, 8_000);
    bench.say(format_args!("{count} heartbeats beside an old snapshot"));
    round(bench, &db, &mut sql, &mut beats, count, " beside an old snapshot").await;
    old.run("COMMIT").await;

    let (sent, updates) = (beats.done as i64, Used::now(&db, &mut sql).await.updates);
    bench.check(updates == sent, || format!("{sent} heartbeats were answered, {updates} sessions were renewed"));
    old.close().await;
    sql.close().await;
    db.drop().await;
}

async fn round(bench: &Bench, db: &Db<'_>, sql: &mut Conn, beats: &mut Pgbench<'_>, count: u64, circumstances: &str) {
    let before = Used::now(db, sql).await;
    let each = count / CLIENTS as u64;
    let sample = beats.times(each).await;
    let after = Used::now(db, sql).await;
    let count = (each * CLIENTS as u64) as f64;
    let cpu = (after.cpu - before.cpu).as_secs_f64() / count;
    let wal = (after.wal - before.wal) as f64 / count;
    // An old snapshot is somebody else's fault: what it costs is shown, and held against nothing.
    let row = |what: &str, value: f64, unit: &str, target: Target| {
        let row = Row::new(SUBJECT, format!("{what}{circumstances}"), value, unit);
        if circumstances.is_empty() { row.with_target(target) } else { row }
    };
    let mut rate = Row::new(SUBJECT, format!("heartbeats{circumstances}"), sample.per_second, "/s");
    (rate.clients, rate.p50_ms, rate.p99_ms) = (Some(CLIENTS), Some(sample.p50_ms), Some(sample.p99_ms));
    rate.wal_bytes = Some(wal);
    bench.add(rate);
    bench.add(Row::new(SUBJECT, format!("CPU of the server, one heartbeat{circumstances}"), cpu * 1e6, "µs"));
    bench.add(row("core for 100 workers at TTL 10 s", cpu * PER_SECOND, "core", Target::AtMost(0.02)));
    let hot = (after.hot - before.hot) as f64 / (after.updates - before.updates) as f64;
    bench.add(row("heap-only updates", 100.0 * hot, "%", Target::AtLeast(99.0)));
    let grown = 100.0 * (after.heap as f64 / before.heap as f64 - 1.0);
    bench.add(row(
        &format!("heap of the sessions after {count} heartbeats, grown by"),
        grown,
        "%",
        Target::AtMost(10.0),
    ));
    let per_lease = wal / (LEASES / WORKERS) as f64;
    bench.add(row("WAL, a lease and renewal", per_lease, "B", Target::AtMost(1.0)));
}
