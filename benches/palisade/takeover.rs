//! A worker dies or stops: how long until another one is granted its lease. Real processes, really killed, beside client-go's
//! leader election at its defaults.
//!
//! Each trial has an owner and a moment of its own, so that 50 of them take as long as one.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use palisade::manifests::{SYSTEM_NAMESPACE, Settings, WORKER_ACCOUNT};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use uuid::Uuid;

use crate::harness::{Bench, Row, Target, median};
use crate::locks::rivals;
use crate::server::{Db, KEY};
use crate::support::cluster::Cluster;
use crate::support::postgres::Server;
use crate::support::world::{Planner, spec};

pub const SUBJECT: &str = "takeover";

const TTL: Duration = Duration::from_secs(10);
/// Signals come within this time, at random: it spans several heartbeats.
const WINDOW: Duration = Duration::from_secs(10);
/// Those who wait for work, with the settings that they have by default.
const WAITING: usize = 3;
/// No trial takes longer, not even client-go's.
const PATIENCE: Duration = Duration::from_secs(120);
const DEAD: usize = 1_000;
const NAMESPACE: &str = "default";

/// Seconds since 1970: the database's clock is this machine's.
pub fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// A process that is killed with the value.
pub struct Process(pub Child);

impl Process {
    /// Its log goes to a file of its own.
    pub fn start(command: &mut Command, log: &Path) -> Process {
        let log = File::create(log).expect("a log");
        Process(command.stdin(Stdio::null()).stderr(log).spawn().expect("it starts"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where workers work: a cluster in which no pod becomes ready, so that who owns a deployment goes on owning it.
struct Place<'a> {
    bench: &'a Bench,
    db: Db<'a>,
    kubeconfig: PathBuf,
    planner: Planner,
}

impl<'a> Place<'a> {
    async fn new(bench: &'a Bench, server: &'a Server, cluster: &Cluster) -> Place<'a> {
        let db = Db::new(bench, server).await;
        let kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, WORKER_ACCOUNT).await;
        let planner = Planner::new(db.url.clone()).await;
        Place { bench, db, kubeconfig, planner }
    }

    fn worker(&self, name: &str, capacity: usize) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(["worker", "--name", name, "--capacity", &capacity.to_string()]);
        command.env("DATABASE_URL", self.db.url_as("worker_login")).env("KUBECONFIG", &self.kubeconfig);
        Process::start(command.stdout(Stdio::null()), &self.bench.dir.join(format!("{name}.log")))
    }

    async fn plan(&self, prefix: &str, count: usize) {
        for i in 0..count {
            let spec =
                palisade::plan::Spec { ready_timeout_ms: 3_600_000, ..spec(NAMESPACE, &format!("{prefix}-{i}"), 1) };
            self.planner.put_within(Uuid::new_v4(), spec, false, false, Duration::from_secs(600)).await;
        }
    }
}

/// Who owns what, by name: each of these owners has one deployment.
async fn owned(place: &Place<'_>, owners: usize) -> HashMap<String, String> {
    let mut sql = place.db.sql().await;
    let owned =
        "SELECT s.worker || ' ' || l.resource FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session
                 JOIN palisade.deployment AS d ON d.resource = l.resource
                 WHERE s.worker LIKE 'owner-%' AND d.step = 'ready'";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let rows = sql.list(owned).await;
        if rows.len() == owners {
            return rows
                .iter()
                .filter_map(|row| row.split_once(' '))
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .collect();
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {owners} owners own something", rows.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn at_random() -> Duration {
    WINDOW.mul_f64(f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX))
}

/// Sends each owner the signal at a moment of its own. Answers how long until another one had what it owned, in seconds.
async fn trials(
    place: &Place<'_>,
    owners: Vec<(String, Process)>,
    owned: &HashMap<String, String>,
    signal: Signal,
) -> Vec<f64> {
    let sent = owners.iter().map(|(name, process)| async move {
        tokio::time::sleep(at_random()).await;
        let now = wall();
        process.signal(signal);
        (owned[name].clone(), now)
    });
    let sent = futures::future::join_all(sent).await;
    let mut sql = place.db.sql().await;
    let mut took = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for (resource, sent) in sent {
        let taken = format!(
            "SELECT extract(epoch FROM at)::text FROM palisade.grant_history WHERE resource = '{resource}' AND kind = 'takeover'"
        );
        loop {
            let taken = sql.list(&taken).await;
            if let [at] = &*taken {
                took.push(at.parse::<f64>().expect("a number") - sent);
                break;
            }
            assert!(taken.is_empty(), "{resource} was taken over several times: {taken:?}");
            assert!(tokio::time::Instant::now() < deadline, "nobody takes over {resource}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    took
}

/// A candidate of an election, and what it prints.
struct Candidate {
    process: Process,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Candidate {
    fn start(program: &Path, kubeconfig: &Path, name: &str, identity: &str, log: &Path) -> Candidate {
        let mut command = Command::new(program);
        command.args(["election", NAMESPACE, name, identity]).env("KUBECONFIG", kubeconfig).stdout(Stdio::piped());
        let mut process = Process::start(&mut command, log);
        let stdout = process.0.stdout.take().expect("it was piped");
        let stdout = tokio::process::ChildStdout::from_std(stdout).expect("a pipe");
        Candidate { process, lines: BufReader::new(stdout).lines() }
    }

    async fn says(&mut self, word: &str) {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{word:?} was expected")).expect("a line");
        assert_eq!(line.as_deref(), Some(word), "what the candidate says");
    }
}

/// One election of two candidates: how long after a SIGKILL to the leader the other one leads.
async fn election(program: PathBuf, kubeconfig: PathBuf, log: PathBuf, i: usize) -> f64 {
    let name = format!("bench-{i}");
    let mut leader = Candidate::start(&program, &kubeconfig, &name, "a", &log.join(format!("{name}-a.log")));
    leader.says("standing").await;
    leader.says("leading").await;
    let mut other = Candidate::start(&program, &kubeconfig, &name, "b", &log.join(format!("{name}-b.log")));
    other.says("standing").await;
    tokio::time::sleep(TTL / 2 + at_random()).await;
    let sent = wall();
    leader.process.signal(Signal::KILL);
    other.says("leading").await;
    wall() - sent
}

/// The rows of a distribution, in seconds. Answers the median.
fn distribution(bench: &Bench, what: &str, mut took: Vec<f64>, rival: Option<f64>, targets: Option<[f64; 2]>) -> f64 {
    took.sort_unstable_by(f64::total_cmp);
    let middle = median(took.iter().copied());
    let at = |share: f64| took[((took.len() - 1) as f64 * share).ceil() as usize];
    let row = |which: &str, value: f64, target: Option<f64>| {
        let row = Row::new(SUBJECT, format!("{what}: {which} of {}", took.len()), value, "s");
        target.map_or(row.clone(), |most| row.with_target(Target::AtMost(most)))
    };
    let mut first = row("median", middle, targets.map(|[median, _]| median));
    if let Some(rival) = rival {
        first = first.with_ratio(ELECTION, middle / rival, Some(Target::AtMost(0.6)));
    }
    bench.add(first);
    bench.add(row("shortest", at(0.0), None));
    bench.add(row("95th in 100", at(0.95), None));
    bench.add(row("longest", at(1.0), targets.map(|[_, worst]| worst)));
    middle
}

const ELECTION: &str = "client-go's election";

pub async fn run(bench: &Bench) {
    // Many workers at once, each with connections of its own.
    let start = || Server::start_with(&[("PALISADE_PG_CONNECTIONS", "600")]);
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let cluster = Cluster::start().await;
    kill_process(Pid::from_raw(cluster.pid("kwok")).expect("a PID"), Signal::STOP).expect("no pod becomes ready");
    cluster.install_policies(&Settings::new(SYSTEM_NAMESPACE, [], None).expect("settings")).await;
    cluster.allocate_epoch(SYSTEM_NAMESPACE, 1, "of the benchmark").await;
    let rival = elections(bench, &cluster).await;
    workers(bench, &server, &cluster, rival).await;
    all_of_one(bench, &server, &cluster).await;
    cluster.stop();
}

async fn elections(bench: &Bench, cluster: &Cluster) -> f64 {
    let program = rivals(bench);
    let count = bench.pick(50, 6);
    bench.say(format_args!("{count} elections by client-go, 15/10/2 s; each leader is killed"));
    let one = |i| election(program.clone(), cluster.kubeconfig.clone(), bench.dir.clone(), i);
    let took = futures::future::join_all((0..count).map(one)).await;
    distribution(bench, "client-go's election, SIGKILL", took, None, None)
}

async fn workers(bench: &Bench, server: &Server, cluster: &Cluster, rival: f64) {
    let each = bench.pick(50, 6);
    let place = Place::new(bench, server, cluster).await;
    place.plan("trial", 2 * each).await;
    bench.say(format_args!("{} workers, each owns one deployment", 2 * each));
    let name = |i: usize| format!("owner-{i}");
    let mut owners: Vec<_> = (0..2 * each).map(|i| (name(i), place.worker(&name(i), 1))).collect();
    let owned = owned(&place, 2 * each).await;
    assert_eq!(owned.len(), 2 * each, "each owner owns one deployment");
    let _waiting: Vec<_> = (0..WAITING).map(|i| place.worker(&format!("waiting-{i}"), 2 * each)).collect();
    tokio::time::sleep(TTL / 2).await;
    let stopped = owners.split_off(each);
    bench.say("half of them are killed, half are stopped, within 10 s");
    let (killed, stopped) =
        tokio::join!(trials(&place, owners, &owned, Signal::KILL), trials(&place, stopped, &owned, Signal::STOP),);
    let targets = Some([9.0, 10.5]);
    distribution(bench, "palisade worker, TTL 10 s, SIGKILL", killed, Some(rival), targets);
    distribution(bench, "palisade worker, TTL 10 s, SIGSTOP", stopped, Some(rival), targets);
}

/// A session that owns much and never beats again.
async fn all_of_one(bench: &Bench, server: &Server, cluster: &Cluster) {
    let count = bench.pick(DEAD, 100);
    let place = Place::new(bench, server, cluster).await;
    place.plan("mass", count).await;
    let mut sql = place.db.sql().await;
    let id = Uuid::new_v4();
    sql.run(&format!("SELECT palisade.open_session('{id}', '{KEY}', 'dead', '10 s')")).await;
    sql.run(&format!("SELECT count(*) FROM palisade.claim('{id}', '{KEY}', {count}, '10 minutes')")).await;
    let _waiting: Vec<_> = (0..WAITING).map(|i| place.worker(&format!("heir-{i}"), count)).collect();
    bench.say(format_args!("{count} leases of one session that does not beat again"));
    let taken = "SELECT count(*) FROM palisade.grant_history WHERE kind = 'takeover'";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while (sql.number(taken).await as usize) < count {
        assert!(tokio::time::Instant::now() < deadline, "they are not taken over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let figures = format!(
        "SELECT extract(epoch FROM min(h.at) - min(s.expires_at)) || ' ' || extract(epoch FROM max(h.at) - min(s.expires_at))
         FROM palisade.grant_history AS h CROSS JOIN palisade.session AS s WHERE h.kind = 'takeover' AND s.id = '{id}'"
    );
    let figures = sql.text(&figures).await;
    let (first, last) = figures.split_once(' ').expect("two numbers");
    let what =
        |which: &str| format!("{count} leases of one dead worker, {WAITING} waiting: from expiry to the {which}");
    bench.add(Row::new(SUBJECT, what("first takeover"), first.parse::<f64>().expect("a number") * 1e3, "ms"));
    bench.add(Row::new(SUBJECT, what("last takeover"), last.parse::<f64>().expect("a number") * 1e3, "ms"));
}
