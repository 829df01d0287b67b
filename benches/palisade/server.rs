//! Postgres, as the subjects need it: a database of their own, pgbench as the leanest of clients, what it cost the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::harness::{Bench, Sample, Variant};
use crate::support::postgres::{Conn, Server, run_program};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A migrated database with epoch 1, on a server that ends with the process.
pub struct Db<'a> {
    pub bench: &'a Bench,
    pub server: &'a Server,
    pub url: String,
    name: String,
}

/// The key of every session here: sessions differ by their id.
pub const KEY: &str = "bench-key-0123456789abcdef";
/// The first token of a resource that nobody held before, in epoch 1.
pub const FIRST_TOKEN: i64 = (1 << 32) + 1;

impl<'a> Db<'a> {
    pub async fn new(bench: &'a Bench, server: &'a Server) -> Db<'a> {
        let name = format!("bench_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = server.migrated(&name).await;
        let db = Db { bench, server, url, name };
        db.sql().await.establish(1).await;
        db
    }

    pub async fn sql(&self) -> Conn {
        Conn::open(&self.url).await
    }

    pub fn url_as(&self, user: &str) -> String {
        self.server.url_of(user, &self.name)
    }

    /// What Postgres remembers of earlier rounds must not be the next one's burden.
    pub async fn settle(&self) {
        let mut sql = self.sql().await;
        sql.run("VACUUM ANALYZE").await;
        sql.run("CHECKPOINT").await;
        sql.close().await;
    }

    pub async fn drop(self) {
        let mut sql = Conn::open(&self.server.url).await;
        sql.run(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
        sql.close().await;
    }

    pub async fn wal(sql: &mut Conn) -> i64 {
        sql.number("pg_current_wal_insert_lsn() - '0/0'::pg_lsn").await
    }

    /// CPU time of the server with all of its processes, also those that ended.
    pub fn cpu(&self) -> Duration {
        let postmaster = self.server.postmaster();
        let children = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let (parent, own, _) = times(pid)?;
            (parent == postmaster).then_some(own)
        });
        let (_, own, ended) = times(postmaster).expect("the server runs");
        own + ended + children.sum::<Duration>()
    }
}

/// A process' parent, its CPU time, and that of its children which have ended.
pub fn times(pid: i32) -> Option<(i32, Duration, Duration)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state, parent, …
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let span = |ticks: u64| Duration::from_millis(ticks * 10); // USER_HZ is 100 on every Linux
    Some((fields.get(1)?.parse().ok()?, span(ticks(11)? + ticks(12)?), span(ticks(13)? + ticks(14)?)))
}

/// A script of pgbench, for a number of clients of which each has a connection and prepared statements.
///
/// pgbench, because client and server share the cores: it takes less of them than anything we could write, so that what is
/// compared is the server. It writes down when each transaction ended and how long it took. The first part of a round is left
/// out: there connections are made and functions compiled.
pub struct Pgbench<'a> {
    name: String,
    db: &'a Db<'a>,
    user: &'static str,
    script: PathBuf,
    clients: usize,
    /// So that each round's sequences are above those of the one before.
    round: i64,
    /// All transactions of all rounds.
    pub done: u64,
}

/// Sequences of one round: more than can be used in it.
const SEQUENCES: i64 = 10_000_000;

impl<'a> Pgbench<'a> {
    pub fn new(db: &'a Db<'a>, name: &str, user: &'static str, clients: usize, script: &str) -> Pgbench<'a> {
        let path = db.bench.dir.join(format!("script-{}.sql", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::write(&path, script).expect("a script");
        Pgbench { name: name.to_owned(), db, user, script: path, clients, round: 0, done: 0 }
    }

    /// A number of transactions for each client.
    pub async fn times(&mut self, each: u64) -> Sample {
        self.run(&["--transactions", &each.to_string()], Duration::ZERO).await
    }

    async fn run(&mut self, limit: &[&str], warm_up: Duration) -> Sample {
        let logs = self.db.bench.dir.join(format!("log-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&logs).expect("a folder");
        fs::set_permissions(&logs, fs::Permissions::from_mode(0o777)).expect("chmod");
        let url = self.db.url_as(self.user);
        let (clients, threads) = (self.clients.to_string(), self.clients.min(2).to_string());
        let (script, prefix) = (self.script.to_string_lossy().into_owned(), logs.join("log"));
        let first = format!("sequence={}", self.round * SEQUENCES);
        self.round += 1;
        let (key, token, prefix) = (format!("key={KEY}"), format!("token={FIRST_TOKEN}"), prefix.to_string_lossy());
        let mut args =
            vec!["pgbench", "--no-vacuum", "--protocol", "prepared", "--client", &clients, "--jobs", &threads];
        args.extend(["--define", &first, "--define", &key, "--define", &token, "--define", "ready=0"]);
        args.extend(["--log", "--log-prefix", &prefix, "--file", &script]);
        args.extend(limit);
        args.push(&url);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let mut sql = self.db.sql().await;
        let (before, cpu) = (Db::wal(&mut sql).await, self.db.cpu());
        let printed =
            tokio::task::spawn_blocking(move || run_program(&args.iter().map(String::as_str).collect::<Vec<_>>()));
        let printed = printed.await.expect("pgbench ran");
        let (wal, cpu) = (Db::wal(&mut sql).await - before, self.db.cpu() - cpu);
        sql.close().await;
        let failed = printed.lines().find_map(|line| line.strip_prefix("number of failed transactions: "));
        assert!(failed.is_none_or(|text| text.starts_with("0 ")), "{script}: transactions failed: {printed}");
        let (count, mut sample) = read_logs(&logs, warm_up);
        self.done += count;
        sample.wal_bytes = Some(wal as f64 / count as f64);
        sample.cpu_us = Some(cpu.as_secs_f64() * 1e6 / count as f64);
        fs::remove_dir_all(logs).expect("removed");
        sample
    }
}

impl Variant for Pgbench<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn round(&mut self, span: Duration) -> LocalBoxFuture<'_, Sample> {
        let warm_up = Duration::from_millis(500);
        let seconds = (span + warm_up).as_secs_f64().ceil().to_string(); // pgbench takes whole ones
        Box::pin(async move { self.run(&["--time", &seconds], warm_up).await })
    }
}

/// How many there are, and the figures of those that began after the warm-up.
fn read_logs(folder: &std::path::Path, warm_up: Duration) -> (u64, Sample) {
    let mut all: Vec<(u64, u64)> = Vec::new(); // ended at, took; both in microseconds
    for entry in fs::read_dir(folder).expect("logs").flatten() {
        for line in fs::read_to_string(entry.path()).expect("a log").lines() {
            // client, transaction, took, script, seconds, microseconds
            let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
            assert!(fields.len() >= 6, "a line of pgbench's log: {line:?}");
            all.push((fields[4] * 1_000_000 + fields[5], fields[2]));
        }
    }
    let begin = all.iter().map(|(at, took)| at - took).min().expect("a transaction") + warm_up.as_micros() as u64;
    let end = all.iter().map(|(at, _)| *at).max().unwrap_or_default();
    let took: Vec<Duration> =
        all.iter().filter(|(at, took)| at - took >= begin).map(|(_, took)| Duration::from_micros(*took)).collect();
    (all.len() as u64, Sample::new(took, Duration::from_micros(end.saturating_sub(begin).max(1))))
}
