//! What Palisade costs, beside what people use instead. `make bench`; how to read it: docs/performance.md.
//!
//! ```text
//! one subject a file ── variants take turns (harness.rs) ── rows with targets ── report.rs: table, JSON, docs
//! ```
//!
//! A missed target is shown. What fails the run is only what must never happen: a lost update, a claim given twice.

// Beside the tests' helpers; a benchmark that cannot go on says so by panicking.
#[path = "../../tests/support/mod.rs"]
mod support;

mod claims;
mod fenced;
mod harness;
mod heartbeats;
mod load;
mod locks;
mod machine;
mod report;
mod scale;
mod sdk;
mod server;
mod takeover;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use harness::Bench;
use machine::Machine;
use report::Report;
use support::postgres::{Conn, Server};

/// A subject's name, and what measures it on a server that is there for all of them.
type Subject = (&'static str, for<'a> fn(&'a Bench, &'a Server) -> LocalBoxFuture<'a, ()>);

const SUBJECTS: &[Subject] = &[
    (fenced::SUBJECT, |b, s| Box::pin(fenced::run(b, s))),
    (sdk::SUBJECT, |b, s| Box::pin(sdk::run(b, s))),
    (locks::SUBJECT, |b, s| Box::pin(locks::run(b, s))),
    (heartbeats::SUBJECT, |b, s| Box::pin(heartbeats::run(b, s))),
    (claims::SUBJECT, |b, s| Box::pin(claims::run(b, s))),
    (takeover::SUBJECT, |b, _| Box::pin(takeover::run(b))),
    (scale::SUBJECT, |b, s| Box::pin(scale::run(b, s))),
];

/// What Palisade costs, side by side with what people use instead
#[derive(Debug, Parser)]
struct Args {
    /// Short rounds: shows that all of it works, in less than three minutes
    #[arg(long)]
    quick: bool,
    /// Only these subjects
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,
    /// Where the figures go, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replaces the tables in docs/performance.md by what was measured
    #[arg(long)]
    update_docs: bool,
    /// Names the subjects
    #[arg(long)]
    list: bool,
    /// cargo says this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn chosen(only: &[String]) -> Result<Vec<Subject>, String> {
    for name in only {
        if !SUBJECTS.iter().any(|(subject, _)| subject == name) {
            let names: Vec<_> = SUBJECTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("--only {name}: there is no such subject; choose from {}", names.join(", ")));
        }
    }
    Ok(SUBJECTS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name)).copied().collect())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        SUBJECTS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(measure(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &Args) -> Result<(), String> {
    let subjects = chosen(&args.only)?;
    if args.update_docs && args.quick {
        return Err("--update-docs needs full rounds: leave --quick out".into());
    }
    let dir = tempfile::tempdir().map_err(|e| format!("no folder for temporary files: {e}"))?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let bench = Bench::new(args.quick, dir.path().to_owned());
    let server = tokio::task::spawn_blocking(Server::start).await.map_err(|e| e.to_string())?;
    let mut sql = Conn::open(&server.url).await;
    let machine = Machine::look(&mut sql, &server.dir).await;
    sql.close().await;
    bench.say(machine.line());
    for (name, run) in subjects {
        bench.say(format_args!("== {name}"));
        if std::panic::AssertUnwindSafe(run(&bench, &server)).catch_unwind().await.is_err() {
            bench.broken(format!("{name} did not come to its end"));
        }
    }
    let quick = bench.quick;
    let (rows, broken) = bench.results();
    let report = Report { machine, quick, rows };
    report.print();
    let path = args.json.clone().unwrap_or_else(|| {
        let cache = std::env::var_os("CACHE").map_or_else(std::env::temp_dir, PathBuf::from);
        cache.join("bench").join(if quick { "quick.json" } else { "bench.json" })
    });
    save(&report, &path)?;
    eprintln!("The figures: {}", path.display());
    if !broken.is_empty() {
        return Err(format!("what must never happen did:\n  {}", broken.join("\n  ")));
    }
    if args.update_docs {
        report.update(&support::postgres::root().join("docs/performance.md"))?;
    }
    Ok(())
}

fn save(report: &Report, path: &std::path::Path) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).map_err(|e| e.to_string())?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}
