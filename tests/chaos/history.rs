//! What happened, as plain data: three accounts of the same story that know nothing of each other.
//!
//! ```text
//! registry: rows in commit order ──┐
//! cluster: every object revision ──┼─▶ History ─▶ rules::check ─▶ violations
//! workers: what each sent and was told ─┘          (rules.rs)
//! ```
//!
//! Times of the registry are microseconds of the database's clock. Times of the workers are nanoseconds since boot: the
//! same clock in every process of the machine, so that they can be compared with each other.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

pub type Token = i64;

/// Microseconds of the database's clock since 1970.
pub type Micros = i64;

/// A row that was written once. `commit` orders it: the commit's time, which is taken while the row locks are held.
#[derive(Clone, Debug)]
pub struct Grant {
    pub resource: String,
    pub token: Token,
    /// Nobody: the token was raised by a release or a revocation.
    pub session: Option<String>,
    pub worker: Option<String>,
    /// `grant`, `takeover`, `release`, `revoke`.
    pub kind: String,
    pub reason: Option<String>,
    pub former_end: Option<Micros>,
    pub at: Micros,
    pub commit: Micros,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub resource: String,
    pub token: Token,
    pub sequence: i64,
    pub kind: String,
    /// `applied` or `rejected`.
    pub outcome: String,
    pub commit: Micros,
}

#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: String,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub id: i64,
    pub resource: String,
    pub kind: String,
    pub data: Value,
    pub commit: Micros,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub worker: String,
    pub opened_at: Micros,
    pub expires_at: Micros,
    pub closed_at: Option<Micros>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub model: String,
    pub alias: String,
    pub version: Option<i64>,
    pub guard: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Deployment {
    pub resource: String,
    pub uid: String,
    pub rollout: i64,
    pub step: String,
    pub serving_model: Option<String>,
    pub serving_version: Option<i64>,
    pub serving_revision: Option<String>,
    pub failure: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub resource: String,
    pub uid: String,
    pub rollout: i64,
    pub version: i64,
}

/// The registry's side, read at the end.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    pub grants: Vec<Grant>,
    pub operations: Vec<Operation>,
    pub refusals: Vec<Refusal>,
    pub events: Vec<Event>,
    pub sessions: Vec<Session>,
    pub aliases: Vec<Alias>,
    pub deployments: Vec<Deployment>,
    pub plans: Vec<Plan>,
    /// Resources whose work is due.
    pub queue: Vec<String>,
    /// Connections that sit in an open transaction.
    pub idle_in_transaction: i64,
}

/// One state of one object, from a watch that began before the object did.
#[derive(Clone, Debug)]
pub struct Revision {
    /// `Deployment`, `Service`, `ModelDeployment`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// The label that says which ModelDeployment it belongs to.
    pub deployment: String,
    pub uid: String,
    /// The resourceVersion: etcd's revision, one order for all objects of the cluster.
    pub version: u64,
    /// Token and sequence.
    pub fence: Option<(Token, i64)>,
    /// Who wrote last, by the managed fields.
    pub manager: String,
    /// Which revision a Service points at, or a Deployment runs.
    pub selects: Option<String>,
    /// Pods that the object asks for, and that it has.
    pub replicas: (i64, i64),
    /// A ModelDeployment's status: its revision, its fencing token, and all of it.
    pub status: Option<(i64, Token, Value)>,
    /// A ModelDeployment that says Ready of its newest generation.
    pub ready: bool,
    pub deleted: bool,
}

impl Revision {
    pub fn object(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    pub fn resource(&self) -> String {
        format!("deployment/{}/{}", self.namespace, self.deployment)
    }
}

/// One line of a worker's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub process: String,
    /// Nanoseconds since boot.
    pub at: u64,
    /// `granted`, `takeover`, `invoke`, `answer:CODE`, `silent`, and how it ended.
    pub what: String,
    pub resource: String,
    pub token: Token,
    pub sequence: i64,
    /// A SQL function, or `apply Deployment NAMESPACE/NAME` and the like.
    pub call: String,
}

/// How a call ended, as far as its caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was applied, now or before.
    Applied,
    /// It was not applied, and never will be.
    Never,
    /// Nobody can say: the answer was lost, or the caller was killed.
    Unknown,
}

/// A fenced write, from its first try to its end.
#[derive(Clone, Debug)]
pub struct Call {
    pub process: String,
    pub resource: String,
    pub token: Token,
    pub sequence: i64,
    pub call: String,
    pub invoked: u64,
    pub end: End,
    /// What an unknown one turned out to be when its caller settled it.
    pub settled: Option<bool>,
}

impl Call {
    /// The object that it was meant for; `None`: it was meant for the registry.
    pub fn object(&self) -> Option<&str> {
        self.call.split_once(' ').map(|(_, object)| object)
    }
}

/// A grant, as the process that got it tells it.
#[derive(Clone, Debug)]
pub struct Granted {
    pub process: String,
    pub resource: String,
    pub token: Token,
    pub at: u64,
}

/// Something that was done to the system on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// SIGKILL to a worker.
    Killed,
    /// SIGSTOP to a worker for longer than its TTL, at any moment.
    Paused,
    /// The same, between the look at the clock and the call.
    StoppedAtPoint,
    /// All of a worker's connections to the database were ended.
    Disconnected,
    /// SIGKILL to the postmaster.
    PostgresCrashed,
    /// SIGSTOP to all of Postgres.
    PostgresFrozen,
    /// SIGSTOP to the API server.
    ApiServerFrozen,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    /// Whose; empty: the database or the API server, which everybody misses.
    pub process: String,
    /// By the database's clock.
    pub from: Micros,
    /// By the database's clock; the fault itself, not its effects.
    pub until: Micros,
}

/// What the checker has to know besides.
#[derive(Clone, Debug)]
pub struct Terms {
    pub ttl: Micros,
    /// The longest time between two looks at the queue.
    pub poll: Micros,
    /// What a takeover may take beyond TTL and poll: a busy machine.
    pub margin: Micros,
    /// Deployments that a worker works on at once.
    pub capacity: usize,
    /// From when to when nothing may be written any more.
    pub quiet: (Micros, Micros),
    /// The cluster's revision when that began.
    pub quiet_version: u64,
    /// What must have happened at least once.
    pub faults: Vec<FaultKind>,
    /// Whether stale writes must have been refused.
    pub stale_writes: bool,
}

#[derive(Clone, Debug)]
pub struct History {
    pub registry: Registry,
    pub revisions: Vec<Revision>,
    pub calls: Vec<Call>,
    pub granted: Vec<Granted>,
    pub faults: Vec<Fault>,
    /// Writes that the API server refused because of their fence, by its own count: also those whose sender was gone
    /// when the answer came.
    pub denied: u64,
    pub terms: Terms,
}

/// Reads one process's account. A line that the process was killed in is left out.
pub fn parse(process: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { break };
        let fields: Vec<&str> = line.split('\t').collect();
        let [at, what, resource, fence, call] = fields[..] else { panic!("not a line of an account: {line:?}") };
        let (token, sequence) = fence.split_once('/').unwrap_or_else(|| panic!("not a fence: {line:?}"));
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
        lines.push(Line {
            process: process.to_owned(),
            at: at.parse().unwrap_or_else(|_| panic!("not a time: {line:?}")),
            what: what.to_owned(),
            resource: resource.to_owned(),
            token: number(token),
            sequence: number(sequence),
            call: call.to_owned(),
        });
    }
    lines
}

/// Makes calls and grants of the lines of one process, in the order in which they were written.
pub fn assemble(lines: &[Line]) -> (Vec<Call>, Vec<Granted>) {
    struct Open {
        call: Call,
        silent: bool,
    }
    let mut granted = Vec::new();
    let mut open: BTreeMap<(String, Token, i64), Open> = BTreeMap::new();
    for line in lines {
        let Line { process, at, what, resource, token, sequence, call } = line;
        let key = (resource.clone(), *token, *sequence);
        match what.as_str() {
            "granted" | "takeover" => {
                granted.push(Granted { process: process.clone(), resource: resource.clone(), token: *token, at: *at })
            }
            "invoke" => {
                let call = Call {
                    process: process.clone(),
                    resource: resource.clone(),
                    token: *token,
                    sequence: *sequence,
                    call: call.clone(),
                    invoked: *at,
                    end: End::Unknown,
                    settled: None,
                };
                let before = open.insert(key, Open { call, silent: false });
                assert!(before.is_none(), "{process} used a fence twice: {line:?}");
            }
            what => {
                let Some(this) = open.get_mut(&key) else { panic!("{process} never sent it: {line:?}") };
                match what {
                    "silent" | "answer:408" => this.silent = true,
                    // Whatever the API server says with a 5xx, it may have done it.
                    answer if answer.starts_with("answer:5") => this.silent = true,
                    answer if answer.starts_with("answer:") => {}
                    "settled:applied" => this.call.settled = Some(true),
                    "settled:never" => this.call.settled = Some(false),
                    "applied" | "replayed" => this.call.end = End::Applied,
                    "unknown" => {}
                    // Not applied, if every try was answered.
                    ended if ended == "failed" || ended.starts_with("rejected:") => {
                        let registry = this.call.object().is_none();
                        if registry || !this.silent {
                            this.call.end = End::Never;
                        }
                    }
                    _ => panic!("what is this? {line:?}"),
                }
            }
        }
    }
    (open.into_values().map(|open| open.call).collect(), granted)
}

/// A rule of the history that was broken, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// The rules. The comment is what holds in every history of a system that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// In commit order, a resource's tokens only rise.
    S1TokensRise,
    /// Nothing is applied under a token, and nothing that is acknowledged is sent, once a newer token was granted.
    S2NoWriteAfterANewerGrant,
    /// What was acknowledged is there, exactly once, and as what was sent.
    S3AcknowledgedIsThereOnce,
    /// What was not acknowledged is there at most once; what failed never is.
    S4FailedIsNotThere,
    /// What an unknown outcome was settled as is what the ledger says.
    S5SettledIsTrue,
    /// No token has two holders, and every grant that a holder was told of is recorded.
    S6OneHolder,
    /// A lease is taken only when its former owner's time had ended, and that time does not begin again.
    S7NoGrantBeforeTheEnd,
    /// The registry is what its events add up to.
    S11RegistryIsTheSumOfItsEvents,
    /// Over an object's revisions its fence never falls, and each change of a status raises its revision.
    S12FenceNeverFalls,
    /// In the end the cluster shows what the registry says.
    S13ClusterIsWhatIsRecorded,
    /// A dead or paused owner is replaced within TTL, poll and margin of the time in which another one has a place free.
    L1TakenOverInTime,
    /// After the last fault everything becomes what was wanted, and writes stop.
    L2Settles,
    /// No connection stays in a transaction.
    L3NoOpenTransaction,
    /// A worker that was paused works again.
    L4WorksAgain,
    /// The history is worth looking at: faults struck, stale writes were refused, leases were taken over.
    NotVacuous,
}
