//! Owning something and giving it back: Palisade's lease beside etcd's mutex and Postgres' advisory locks. Each client its own
//! resource, so nobody waits for anybody.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;

use crate::fenced::{CLIENTS, owners};
use crate::harness::{Bench, Sample, Target, Variant, Wanted};
use crate::server::{Db, Pgbench, times};
use crate::support::postgres::{PATIENCE, Server, root};

pub const SUBJECT: &str = "acquire-release";

const LEASE: &str = "acquire, release";
const ETCD: &str = "etcd's mutex: lock, unlock";
const ADVISORY: &str = "advisory lock, unlock";
const TOKEN: &str = "advisory lock, durable token, unlock";

/// Two round trips, two commits. A session as `owners` makes it.
const ACQUIRE_RELEASE: &str = r"
SELECT current_token AS granted FROM palisade.acquire(
    ('00000000-0000-7000-8000-' || lpad(:client_id::text, 12, '0'))::uuid, :key, 'lock/' || :client_id) \gset
SELECT outcome FROM palisade.release('lock/' || :client_id, :granted, 1, :key);
";
const LOCK_UNLOCK: &str = "SELECT pg_advisory_lock(:client_id);\nSELECT pg_advisory_unlock(:client_id);\n";
/// What one has to add to an advisory lock to get a number that only grows. Three round trips, one commit.
const LOCK_TOKEN_UNLOCK: &str = "SELECT pg_advisory_lock(:client_id);
UPDATE bench.token SET token = token + 1 WHERE name = 'lock/' || :client_id RETURNING token;
SELECT pg_advisory_unlock(:client_id);
";
const SET_UP: &str = "
    CREATE SCHEMA bench;
    GRANT USAGE ON SCHEMA bench TO PUBLIC;
    CREATE TABLE bench.token (name text PRIMARY KEY, token bigint NOT NULL);
    INSERT INTO bench.token SELECT 'lock/' || i, 0 FROM generate_series(0, 31) AS i;
    GRANT SELECT, UPDATE ON bench.token TO PUBLIC;";

/// A single etcd that syncs its log, and ends with this process. On a Unix socket, which spares it what TCP costs Postgres.
pub struct Etcd {
    child: Child,
    pub endpoint: String,
}

impl Etcd {
    /// From the main thread: the kernel ends it when the *thread* that made it ends.
    pub fn start(bench: &Bench) -> Etcd {
        let programs = printed(Command::new(root().join("hack/binaries.sh")));
        let dir = bench.dir.join("etcd");
        std::fs::create_dir(&dir).expect("a folder");
        let log = std::fs::File::create(dir.join("etcd.log")).expect("a log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(Path::new(&programs).join("controlplane"))
            .args(["etcd", "--data-dir", "data", "--log-level", "warn"])
            .args(["--listen-client-urls", "unix://etcd.sock", "--advertise-client-urls", "http://localhost:2379"])
            .args(["--listen-peer-urls", "unix://peer.sock", "--initial-advertise-peer-urls", "http://localhost:2380"])
            .args(["--initial-cluster", "default=http://localhost:2380"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        let (socket, began) = (dir.join("etcd.sock"), Instant::now());
        while !socket.exists() {
            assert!(began.elapsed() < PATIENCE, "etcd is not ready; its log: {}", dir.join("etcd.log").display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Etcd { child, endpoint: format!("unix://{}", socket.display()) }
    }
}

impl Etcd {
    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a PID")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command prints that must succeed.
pub fn printed(mut command: Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8").trim().to_owned()
}

/// The program of benches/rivals, built if need be.
pub fn rivals(bench: &Bench) -> std::path::PathBuf {
    let program = bench.dir.join("rivals");
    if !program.exists() {
        bench.say("building benches/rivals");
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-trimpath", "-o"]).arg(&program).arg(".");
        go.current_dir(root().join("benches/rivals")).env("CGO_ENABLED", "0").env("GOWORK", "off");
        printed(go);
    }
    program
}

struct Mutex {
    program: std::path::PathBuf,
    endpoint: String,
    clients: usize,
    etcd: i32,
}

impl Variant for Mutex {
    fn name(&self) -> &str {
        ETCD
    }

    fn round(&mut self, span: Duration) -> LocalBoxFuture<'_, Sample> {
        let mut command = Command::new(&self.program);
        command.args(["etcd-mutex", "-endpoint", &self.endpoint, "-clients", &self.clients.to_string()]);
        command.args(["-span", &format!("{}ms", span.as_millis())]);
        Box::pin(async move {
            let cpu = || times(self.etcd).map(|(_, own, _)| own).expect("etcd runs");
            let before = cpu();
            let text = tokio::task::spawn_blocking(move || printed(command)).await.expect("it ran");
            let mut sample: Sample = serde_json::from_str(&text).expect("a sample");
            // Of what was measured, which is a known part of all that was done.
            let share = span.as_secs_f64() / (span.as_secs_f64() + 0.5);
            let count = sample.per_second * span.as_secs_f64() / share;
            sample.cpu_us = Some((cpu() - before).as_secs_f64() * 1e6 / count);
            sample
        })
    }
}

pub async fn run(bench: &Bench, server: &Server) {
    let etcd = Etcd::start(bench);
    let program = rivals(bench);
    for clients in CLIENTS {
        let db = Db::new(bench, server).await;
        let mut sql = db.sql().await;
        sql.run(SET_UP).await;
        sql.run(&owners(clients, &[])).await;
        db.settle().await;
        let mut lease = Pgbench::new(&db, LEASE, "worker_login", clients, ACQUIRE_RELEASE);
        let mut mutex = Mutex { program: program.clone(), endpoint: etcd.endpoint.clone(), clients, etcd: etcd.pid() };
        let mut advisory = Pgbench::new(&db, ADVISORY, "worker_login", clients, LOCK_UNLOCK);
        let mut token = Pgbench::new(&db, TOKEN, "worker_login", clients, LOCK_TOKEN_UNLOCK);
        let wanted = [
            Wanted::share(LEASE, ETCD, Some(Target::AtLeast(2.0))),
            Wanted::share(LEASE, TOKEN, Some(Target::AtLeast(1.5))),
            Wanted::share(LEASE, ADVISORY, None),
        ];
        let mut variants: [&mut dyn Variant; 4] = [&mut lease, &mut mutex, &mut advisory, &mut token];
        bench.compare(SUBJECT, "cycles/s", clients, &mut variants, &wanted).await;
        let granted = sql.number("SELECT count(*) FROM palisade.grant_history WHERE kind = 'grant'").await;
        let done = lease.done;
        bench.check(granted as u64 == done, || format!("{done} leases were acquired, the history has {granted}"));
        let twice = "SELECT count(*) FROM (SELECT FROM palisade.lease WHERE session IS NOT NULL) AS held";
        let held = sql.number(twice).await;
        bench.check(held == 0, || format!("all leases were released, {held} are held"));
        sql.close().await;
        db.drop().await;
    }
}
