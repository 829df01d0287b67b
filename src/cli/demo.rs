//! `palisade demo`: a worker is paused between its check and its write, and finds on waking up that it can change nothing.
//!
//! ```text
//! demo ── starts ─▶ worker A: acquire, check, SIGSTOP on itself ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▶ SIGCONT: the write ─▶ rejected
//!      ── starts ─▶ worker B:                        takes over, promotes version 2
//! ```
//!
//! The workers are processes of their own (`demo/worker.rs`) on a real Postgres, and use the public library.

mod timeline;
pub(super) mod worker;

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use uuid::Uuid;

use self::timeline::{Life, Moments, Timeline};
use self::worker::Event;
use super::output::{OutputArgs, Style, Tone, print};
use super::{Context, Database, Error, Output, history};
use crate::lease::{Fence, Token};
use crate::store::{self, Naive, Store};

/// See it happen: a paused worker wakes up, and can change nothing
///
/// Two real worker processes on a real Postgres. Worker A acquires a lease, checks that it has it, and is stopped
/// (SIGSTOP) before its write is sent. Worker B takes over after the TTL and promotes version 2. Then A is resumed, and
/// its very next act is the write that it had begun: put version 1 back. It is refused, with both fences named.
///
/// The library would have stopped A by its own clock before the write. The demo switches that clock off, because a pause
/// can come right behind any check; only the check inside the write cannot be overtaken. With --unfenced the same two
/// workers write to a table that does not check: version 2 is overwritten.
///
/// Use a throwaway database: the schema is created if it is not there, an epoch is established without a cluster, and a
/// sample model of a new name stays in the registry. `make demo` starts such a database itself.
///
/// Exit code 0 when the story went as promised, 1 otherwise.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  DATABASE_URL=postgres://postgres@localhost/scratch palisade demo
  palisade demo --unfenced -o json | jq .outcome    # \"overwritten\"")]
pub(super) struct Args {
    /// The same story with a registry that does not check fences
    #[arg(long)]
    unfenced: bool,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    pub(super) fn output(&self) -> Output {
        self.output.output
    }
}

/// Worker A's TTL: the shortest that leaves a busy machine time to beat.
const TTL: Duration = Duration::from_secs(3);

/// How long the demo waits for anything: a machine may be slow, but a story must end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the story went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `rejected` or `overwritten`, as promised; else what became of worker A's write.
    outcome: String,
    reason: Option<String>,
    fenced: bool,
    model: String,
    resource: String,
    /// The fence of worker A's late write.
    late_fence: String,
    /// The fence of worker B's write.
    newer_fence: String,
    newest_token: Option<i64>,
    /// Where the alias points in the end.
    champion: Option<i64>,
    /// How long worker A was stopped.
    paused_ms: u64,
    /// How long past its own deadline it was when it woke up.
    overdue_ms: u64,
    took_ms: u64,
    timeline: Vec<Moments>,
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    context.stop_on_signals()?;
    let Args { unfenced, database, output } = args;
    let style = (output.output == Output::Table).then(Style::of_stdout);
    let mut timeline = Timeline::new(context.clock.clone(), style)?;
    let stage = Stage::prepare(database, unfenced, &mut timeline).await?;
    // Whatever ends the story, the children end with it: they are killed when they are dropped.
    let told = tokio::select! {
        told = tell(&stage, &mut timeline) => told,
        () = context.stop.cancelled() => Err(Error::failed("interrupted")),
    };
    if stage.unfenced {
        stage.naive().drop_all().await?;
    }
    let report = told?;
    output.show(&report, |style| verdict(&report, style))?;
    if let Some(style) = style
        && report.fenced
    {
        let entries = stage.store.history(&stage.resource, 100).await?;
        let story = history::Story { resource: stage.resource.clone(), entries };
        print(&format!("\n{}", history::draw(&story, style)))?;
    }
    let promised = if unfenced { "overwritten" } else { "rejected" };
    if report.outcome == promised {
        Ok(())
    } else {
        Err(Error::failed(format!("the write should have been {promised}, and it was {}", report.outcome)))
    }
}

/// What is there before the curtain rises.
struct Stage {
    database: Database,
    store: Store,
    run: Uuid,
    model: String,
    resource: String,
    unfenced: bool,
}

impl Stage {
    async fn prepare(database: Database, unfenced: bool, timeline: &mut Timeline) -> Result<Self, Error> {
        let schema = store::migrate(database.url()).await?;
        let store = database.store("palisade demo")?;
        let epoch = store.establish_epoch_standalone().await?;
        timeline.add("", "", &format!("schema version {}, epoch {epoch}", schema.version))?;
        let run = Uuid::new_v4();
        let short: String = run.simple().to_string().chars().take(8).collect();
        let model = format!("demo-{short}");
        let none = json!({});
        store.register_model(&model, "a sample of palisade demo", &none, Uuid::new_v4()).await?.applied()?;
        for version in [1, 2] {
            let digest = format!("sha256:{version:064x}");
            let source = format!("s3://models/{model}/{version}");
            store.register_version(&model, &source, &digest, &none, Uuid::new_v4()).await?.applied()?;
        }
        timeline.add("", "", &format!("model {model}: versions 1 and 2"))?;
        let stage = Self { database, store, run, resource: format!("demo/{model}"), model, unfenced };
        if unfenced {
            stage.naive().create().await?;
            timeline.add("", "", "a table for aliases, without fencing")?;
        }
        Ok(stage)
    }

    fn naive(&self) -> Naive {
        Naive::new(self.store.clone(), self.run)
    }

    async fn champion(&self) -> Result<Option<i64>, Error> {
        if self.unfenced {
            return Ok(self.naive().champion().await?);
        }
        let versions = self.store.versions(&self.model).await?.unwrap_or_default();
        Ok(versions.iter().find(|v| v.aliases.iter().any(|alias| alias == "champion")).map(|v| v.version))
    }
}

/// A worker process. It is killed when this is dropped, stopped or not.
struct Actor {
    child: Child,
    pid: Pid,
    events: Lines<BufReader<ChildStdout>>,
}

impl Actor {
    fn start(stage: &Stage, name: &str, version: i64, pause: bool) -> Result<Self, Error> {
        let failed = |what: &str| Error::failed(format!("worker {name} cannot be started: {what}"));
        let program = std::env::current_exe().map_err(|e| failed(&e.to_string()))?;
        // Nobody waits for the end of the other one's lease: a machine that is busy for 2 s need not cost it.
        let ttl = if pause { TTL } else { PATIENCE };
        let mut command = Command::new(program);
        command
            .args(["--log", "error", "demo-worker", "--name", name, "--resource", &stage.resource])
            .args(["--model", &stage.model, "--version", &version.to_string()])
            .args(["--ttl-ms", &ttl.as_millis().to_string(), "--parent", &std::process::id().to_string()])
            // Not among the arguments: they can be read by every user of the machine.
            .env("DATABASE_URL", stage.database.database_url.expose_secret())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if pause {
            command.arg("--pause");
        }
        if stage.unfenced {
            command.args(["--unfenced", &stage.run.to_string()]);
        }
        let mut child = command.spawn().map_err(|e| failed(&e.to_string()))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed("it has ended already"))?;
        let stdout = child.stdout.take().ok_or_else(|| failed("it has no stdout"))?;
        Ok(Self { child, pid, events: BufReader::new(stdout).lines() })
    }

    async fn next(&mut self) -> Result<Event, Error> {
        let line = tokio::time::timeout(PATIENCE, self.events.next_line()).await;
        match line {
            Err(_) => Err(Error::failed(format!("a worker said nothing for {PATIENCE:?}"))),
            Ok(Ok(Some(line))) => match serde_json::from_str(&line) {
                Ok(Event::Failed { error }) => Err(Error::failed(format!("a worker failed: {error}"))),
                Ok(event) => Ok(event),
                Err(_) => Err(Error::failed(format!("a worker said {line:?}"))),
            },
            Ok(_) => Err(Error::failed("a worker ended before the story did")),
        }
    }

    /// Waits until the kernel says that it is stopped.
    async fn stopped(&self) -> Result<(), Error> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let seen = async {
            while !waitid(WaitId::Pid(self.pid), options).is_ok_and(|status| status.is_some_and(|s| s.stopped())) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.map_err(|_| Error::failed("worker A did not stop"))
    }

    fn resume(&self) -> Result<(), Error> {
        kill_process(self.pid, Signal::CONT).map_err(|e| Error::failed(format!("SIGCONT: {e}")))
    }

    /// Lets it release what it holds and end.
    async fn dismiss(mut self) {
        drop(self.child.stdin.take());
        // What does not end by itself is killed when it is dropped.
        let _ = tokio::time::timeout(Duration::from_secs(3), self.child.wait()).await;
    }
}

/// The last event of a worker.
struct Wrote {
    fence: String,
    outcome: String,
    reason: Option<String>,
    newest: Option<i64>,
}

fn surprise(event: &Event) -> Error {
    Error::failed(format!("the story went another way: {event:?}"))
}

async fn tell(stage: &Stage, timeline: &mut Timeline) -> Result<Report, Error> {
    let mut a = Actor::start(stage, "demo-a", 1, true)?;
    timeline.set(0, Life::Runs);
    act_one(&mut a, timeline).await?;
    let mut b = Actor::start(stage, "demo-b", 2, false)?;
    timeline.set(1, Life::Runs);
    let newer = act_two(stage, &mut b, timeline).await?;
    a.resume()?;
    timeline.set(0, Life::Runs);
    let (late, away_ms, overdue_ms) = act_three(&mut a, timeline).await?;
    let champion = stage.champion().await?;
    let outcome = last_words(stage, &late, &newer, champion, timeline)?;
    a.dismiss().await;
    b.dismiss().await;
    Ok(Report {
        outcome,
        reason: late.reason,
        fenced: !stage.unfenced,
        model: stage.model.clone(),
        resource: stage.resource.clone(),
        late_fence: late.fence,
        newer_fence: newer.fence,
        newest_token: late.newest,
        champion,
        paused_ms: away_ms,
        overdue_ms,
        took_ms: timeline.elapsed_ms(),
        timeline: std::mem::take(&mut timeline.moments),
    })
}

/// Worker A gets the lease, checks, and is stopped.
async fn act_one(a: &mut Actor, timeline: &mut Timeline) -> Result<(), Error> {
    match a.next().await? {
        Event::Granted { token } => {
            let text = format!("grants token {token}, for {TTL:?} after each heartbeat");
            timeline.add("acquires the lease", "", &text)?;
        }
        event => return Err(surprise(&event)),
    }
    match a.next().await? {
        Event::Checked { left_ms } => {
            let left = seconds(left_ms);
            timeline.add(&format!("checks: the lease is mine for {left} more. Go: champion to version 1"), "", "")?;
        }
        event => return Err(surprise(&event)),
    }
    a.stopped().await?;
    timeline.set(0, Life::Paused);
    timeline.add("is stopped right here, before its write is sent (SIGSTOP)", "", "")
}

/// Worker B takes over, and promotes version 2.
async fn act_two(stage: &Stage, b: &mut Actor, timeline: &mut Timeline) -> Result<Wrote, Error> {
    let mut event = b.next().await?;
    if let Event::Held { owner, left_ms } = &event {
        let left = seconds(u64::try_from(*left_ms).unwrap_or(0));
        timeline.add("", "wants the same lease", &format!("held by {owner}, for {left} more"))?;
        event = b.next().await?;
    }
    match event {
        Event::Granted { token } => {
            timeline.add("", "takes over", &format!("demo-a is silent for {TTL:?}: takeover, token {token}"))?;
        }
        event => return Err(surprise(&event)),
    }
    match b.next().await? {
        Event::Checked { .. } => {}
        event => return Err(surprise(&event)),
    }
    match b.next().await? {
        Event::Wrote { fence, outcome, reason, newest } => {
            let write = if stage.unfenced { "UPDATE".to_owned() } else { fence.clone() };
            timeline.add("", &format!("champion to version 2 ({write})"), &outcome)?;
            Ok(Wrote { fence, outcome, reason, newest })
        }
        event => Err(surprise(&event)),
    }
}

/// Worker A wakes up, and its write goes out.
async fn act_three(a: &mut Actor, timeline: &mut Timeline) -> Result<(Wrote, u64, u64), Error> {
    let (away_ms, overdue_ms) = match a.next().await? {
        Event::Woke { away_ms, overdue_ms } => (away_ms, overdue_ms),
        event => return Err(surprise(&event)),
    };
    let (away, overdue) = (seconds(away_ms), seconds(overdue_ms));
    timeline.add(&format!("is resumed (SIGCONT), after {away}"), "", "")?;
    let text = format!(
        "(its own clock is {overdue} past the deadline: the library would have stopped here. The demo has switched that clock off)"
    );
    timeline.add(&text, "", "")?;
    match a.next().await? {
        Event::Wrote { fence, outcome, reason, newest } => {
            Ok((Wrote { fence, outcome, reason, newest }, away_ms, overdue_ms))
        }
        event => Err(surprise(&event)),
    }
}

/// What became of the late write: told, and put in a word.
fn last_words(
    stage: &Stage,
    late: &Wrote,
    newer: &Wrote,
    champion: Option<i64>,
    timeline: &mut Timeline,
) -> Result<String, Error> {
    let points = champion.map_or_else(|| "nothing".to_owned(), |version| format!("version {version}"));
    if stage.unfenced {
        let overwritten = late.outcome == "applied" && champion == Some(1);
        let outcome = if overwritten { "overwritten" } else { late.outcome.as_str() };
        let text = format!("{outcome}: champion is {points} again");
        timeline.add("sends the write that it had begun: champion to version 1 (UPDATE)", "", &text)?;
        return Ok(outcome.to_owned());
    }
    let reason = late.reason.as_deref().unwrap_or("no reason");
    // Both have to hold: what the writer was told, and what is there.
    let refused = late.outcome == "rejected" && newer.outcome == "applied" && champion == Some(2);
    let outcome = match late.outcome.as_str() {
        "rejected" if !refused => "rejected, but the registry changed",
        other => other,
    };
    let text = format!("{outcome}: {reason}. {} is older than {}; champion stays {points}", late.fence, newer.fence);
    timeline.add(&format!("sends the write that it had begun: champion to version 1 ({})", late.fence), "", &text)?;
    Ok(outcome.to_owned())
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

fn verdict(report: &Report, style: Style) -> String {
    let Report { late_fence, newer_fence, model, resource, .. } = report;
    let epoch = late_fence.parse().map_or(0, |fence: Fence| Token::epoch(fence.token));
    match report.outcome.as_str() {
        "rejected" => format!(
            "\n{} The late write was {}: its fence {late_fence} is older than {newer_fence}.\n  \
             {model}@champion points at version 2. (TOKEN/SEQUENCE; a token is epoch {epoch} * 2^32 + the grant's number.)\n  \
             Without fencing: palisade demo --unfenced. The same from the ledger, palisade history {resource}:\n",
            style.glyph("✔", "ok"),
            style.paint(Tone::Good, "rejected"),
        ),
        "overwritten" => format!(
            "\n{} Version 2 was {}: {model}@champion points at version 1 again, and nobody was told.\n  \
             Worker A had checked its lease, and it was right at that moment. A check before a write can be overtaken;\n  \
             the one inside it cannot: palisade demo\n",
            style.glyph("✘", "!!"),
            style.paint(Tone::Bad, "overwritten"),
        ),
        other => format!("\nThe story went another way: {other}\n"),
    }
}
