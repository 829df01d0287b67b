//! One worker of the demo: a process of its own, that uses nothing but the public library. It tells its parent what it
//! does, a JSON line an event, and ends when its stdin is closed.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cli::{Database, Error};
use crate::clock::{Clock, Moment};
use crate::lease::{AcquireError, Fence, Lease, LeaseError, Observer, Session, SessionConfig, Term};
use crate::outcome::{Outcome, Reason};
use crate::store::{Naive, Store, Write as Change};

/// One worker of `palisade demo`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    database: Database,
    #[arg(long)]
    name: String,
    #[arg(long)]
    resource: String,
    #[arg(long)]
    model: String,
    #[arg(long)]
    version: i64,
    #[arg(long)]
    ttl_ms: u64,
    /// Stop between the check and the write.
    #[arg(long)]
    pause: bool,
    /// Write to the table of this run that knows no fences.
    #[arg(long)]
    unfenced: Option<Uuid>,
    /// Who started it: without it there is no demo.
    #[arg(long)]
    parent: i32,
}

/// What a worker tells its parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// Another worker holds the lease.
    Held { owner: String, left_ms: i64 },
    /// The lease is ours.
    Granted { token: i64 },
    /// All was checked; the write comes next. The paused worker stops here.
    Checked { left_ms: u64 },
    /// The paused worker runs again: so long was it away, and so long past its own deadline.
    Woke { away_ms: u64, overdue_ms: u64 },
    /// The write ended.
    Wrote { fence: String, outcome: String, reason: Option<String>, newest: Option<i64> },
    /// Something else went wrong.
    Failed { error: String },
}

fn tell(event: &Event) -> Result<(), Error> {
    let line = serde_json::to_string(event).map_err(|e| Error::failed(e.to_string()))? + "\n";
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|e| Error::failed(format!("the demo is gone: {e}")))
}

/// Remembers when the last heartbeat was answered, by the machine's clock.
#[derive(Debug)]
struct LastBeat(AtomicU64);

impl LastBeat {
    fn note(&self) {
        self.0.store(Clock::system().now().as_millis(), Ordering::SeqCst);
    }

    /// The deadline that the library would keep to.
    fn term(&self, ttl: Duration) -> Term {
        Term::renewed(Moment::from_millis(self.0.load(Ordering::SeqCst)), ttl)
    }
}

impl Observer for LastBeat {
    fn heartbeat(&self, ok: bool, _took: Duration, _left: Duration) {
        if ok {
            self.note();
        }
    }
}

pub(in crate::cli) async fn run(args: Args) -> Result<(), Error> {
    // A stopped process notices nothing, also not that its parent is gone: the kernel has to end it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| Error::failed(e.to_string()))?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(args.parent) {
        return Err(Error::failed("the demo is gone"));
    }
    let result = work(&args).await;
    if let Err(error) = &result {
        tell(&Event::Failed { error: error.to_string() })?;
    }
    result
}

async fn work(args: &Args) -> Result<(), Error> {
    let store = args.database.store(&args.name)?;
    let ttl = Duration::from_millis(args.ttl_ms);
    let beat = Arc::new(LastBeat(AtomicU64::default()));
    let mut config = SessionConfig::new(&args.name, ttl);
    config.observer = Arc::clone(&beat) as Arc<dyn Observer>;
    if args.pause {
        // The library looks at its clock before it sends a write, and would stop there. But the pause can come right
        // behind that look. For the demo the library's clock stands still: the write goes out as if it had.
        config.clock = Clock::manual();
    }
    let session = Session::open(store.clone(), config).await?;
    beat.note();
    let lease = acquire(&session, &args.resource).await?;
    tell(&Event::Granted { token: lease.token().0 })?;

    let versions = store.versions(&args.model).await?.unwrap_or_default();
    if !versions.iter().any(|version| version.version == args.version) {
        return Err(Error::not_found(format!("{} has no version {}", args.model, args.version)));
    }
    // On a machine that is busy right now: the story begins with a lease that is well alive.
    let clock = Clock::system();
    while beat.term(ttl).left(clock.now()) < Some(ttl / 4) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // From here to the write nothing is awaited: the check, the pause, the write.
    lease.check()?;
    let now = clock.now();
    let left = beat.term(ttl).left(now).unwrap_or_default();
    tell(&Event::Checked { left_ms: u64::try_from(left.as_millis()).unwrap_or(0) })?;
    let mut woke = None;
    if args.pause {
        kill_process(getpid(), Signal::STOP).map_err(|e| Error::failed(format!("SIGSTOP: {e}")))?;
        let later = clock.now();
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let overdue = beat.term(ttl).overdue(later);
        woke = Some(Event::Woke { away_ms: millis(later.since(now)), overdue_ms: millis(overdue) });
    }
    let wrote = write(args, &store, &lease).await?;
    if let Some(woke) = woke {
        tell(&woke)?;
    }
    tell(&wrote)?;

    // The winner keeps its lease until the story is told.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0; 1])).await;
    drop(lease);
    // A session that was taken over has nothing left to close.
    let _ = session.close().await;
    Ok(())
}

async fn acquire(session: &Session, resource: &str) -> Result<Lease, Error> {
    let mut told = false;
    loop {
        match session.acquire(resource, None).await {
            Ok(lease) => return Ok(lease),
            Err(AcquireError::Rejected(rejection)) if rejection.reason == Reason::Held => {
                let detail = rejection.detail.unwrap_or_default();
                let left_ms = detail["left_ms"].as_i64().unwrap_or(0);
                if !told {
                    told = true;
                    let owner = detail["owner"].as_str().unwrap_or("nobody").to_owned();
                    tell(&Event::Held { owner, left_ms })?;
                }
                // The database decides; this only says when it is worth asking again.
                let wait = u64::try_from(left_ms).unwrap_or(0).clamp(10, 500);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn write(args: &Args, store: &Store, lease: &Lease) -> Result<Event, Error> {
    // The first write under this token.
    let fence = Fence { token: lease.token(), sequence: 1 }.to_string();
    let event = |outcome: &str, reason, newest| Event::Wrote { fence, outcome: outcome.to_owned(), reason, newest };
    if let Some(run) = args.unfenced {
        Naive::new(store.clone(), run).promote(args.version).await?;
        return Ok(event("applied", None, None));
    }
    let change = Change::SetAlias { model: args.model.clone(), alias: "champion".into(), version: Some(args.version) };
    let outcome = lease.write(change).await.map_err(|error| match error {
        LeaseError::Lost { .. } => Error::failed(format!("{error}: the library stopped before it sent the write")),
        other => other.into(),
    })?;
    Ok(match &outcome {
        Outcome::Rejected(refused) => {
            event(outcome.word(), Some(refused.reason.to_string()), refused.current.map(|token| token.0))
        }
        Outcome::Unknown(why) => event(outcome.word(), Some(why.clone()), None),
        Outcome::Applied(_) | Outcome::Replayed(_) => event(outcome.word(), None, None),
    })
}
