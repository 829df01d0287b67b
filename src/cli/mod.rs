//! The command line: one file a subcommand.
//!
//! ```text
//! main: parse ─▶ telemetry ─▶ run: one match arm a command ─▶ Result<(), Error> ─▶ printed once, to stderr ─▶ exit code
//! ```

mod called;
mod controller;
mod crd;
mod database;
mod demo;
mod doctor;
mod epoch;
mod error;
mod fetch;
mod history;
mod kubeconfig;
mod lease;
mod migrate;
mod model;
mod operation;
mod output;
mod process;
mod resource;
mod worker;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::telemetry::{self, LogFormat};

pub use database::Database;
pub use error::Error;
pub use kubeconfig::Kubeconfig;
pub use output::{Output, OutputArgs};

/// Ownership by fenced leases in Postgres, and a controller that deploys registered models to Kubernetes by it.
///
/// A worker that was paused and replaced can change nothing when it wakes up: whatever it may change refuses a token
/// that is older than the newest one granted. See it happen: palisade demo
///
/// Exit codes: 0 done · 1 anything unexpected · 2 usage · 3 rejected (as stale, or because of what is there) ·
/// 4 the outcome is unknown · 5 not found · 6 the database or the cluster is unavailable · 7 and 8 doctor: the worst is a
/// warning, or an error · 9 fetch: the digest is wrong. Errors go to stderr with what to do next; with -o json as one JSON object.
#[derive(Clone, Debug, Parser)]
#[command(name = "palisade", bin_name = "palisade", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// How log lines on stderr look
    #[arg(long, global = true, value_enum, default_value_t, env = "PALISADE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: LogFormat,

    /// What is logged, as a tracing filter: `debug`, or `warn,palisade=debug`
    #[arg(long, global = true, default_value = telemetry::DEFAULT_FILTER, env = "PALISADE_LOG", value_name = "FILTER")]
    log: String,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Migrate(migrate::Args),
    Crd(crd::Args),
    Controller(controller::Args),
    Worker(worker::Args),
    Model(model::Args),
    Lease(lease::Args),
    History(history::Args),
    Operation(operation::Args),
    Epoch(epoch::Args),
    Doctor(doctor::Args),
    Fetch(fetch::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoWorker(demo::worker::Args),
}

impl Command {
    /// How the command was asked to print: errors follow it.
    fn output(&self) -> Output {
        match self {
            Self::Migrate(_) | Self::Crd(_) | Self::Controller(_) | Self::Worker(_) | Self::DemoWorker(_) => {
                Output::Table
            }
            Self::Model(args) => args.output(),
            Self::Lease(args) => args.output(),
            Self::History(args) => args.output(),
            Self::Operation(args) => args.output(),
            Self::Epoch(args) => args.output(),
            Self::Doctor(args) => args.output(),
            Self::Fetch(args) => args.output(),
            Self::Demo(args) => args.output(),
        }
    }

    fn runtime(&self) -> tokio::runtime::Builder {
        match self {
            // It stops itself, and its next act must be the write: no other thread may go on, or wake up before.
            Self::DemoWorker(_) => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        }
    }

    async fn run(self, context: Context) -> Result<(), Error> {
        match self {
            Self::Crd(args) => Ok(crd::run(args)?),
            Self::Controller(args) => controller::run(args, context).await,
            Self::Worker(args) => worker::run(args, context).await,
            Self::Migrate(args) => migrate::run(args, context).await,
            Self::Model(args) => model::run(args).await,
            Self::Lease(args) => lease::run(args).await,
            Self::History(args) => history::run(args).await,
            Self::Operation(args) => operation::run(args).await,
            Self::Epoch(args) => epoch::run(args).await,
            Self::Doctor(args) => doctor::run(args, context).await,
            Self::Fetch(args) => fetch::run(args, context).await,
            Self::Demo(args) => demo::run(args, context).await,
            Self::DemoWorker(args) => demo::worker::run(args).await,
        }
    }
}

/// What a command is given besides its arguments.
#[derive(Clone, Debug)]
pub struct Context {
    /// Cancelled by [`Context::stop_on_signals`]: finish or hand over, then return.
    pub stop: CancellationToken,
    /// Where the time comes from.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Context {
    fn new() -> Self {
        Self { stop: CancellationToken::new(), clock: Clock::system(), metrics: Arc::new(Metrics::new()) }
    }

    /// From here on the first SIGTERM or SIGINT cancels [`Context::stop`], and the second one ends the process at once.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn stop_on_signals(&self) -> Result<(), Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let install = |kind| signal(kind).map_err(|e| Error::failed(format!("cannot listen for signals: {e}")));
        let (mut term, mut int) = (install(SignalKind::terminate())?, install(SignalKind::interrupt())?);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            loop {
                let (name, code) = tokio::select! {
                    _ = term.recv() => ("SIGTERM", 143),
                    _ = int.recv() => ("SIGINT", 130),
                };
                if stop.is_cancelled() {
                    tracing::warn!("{name} again: ending at once; leases end with their TTL");
                    std::process::exit(code);
                }
                tracing::info!("{name}: finishing or handing over; once more ends at once");
                stop.cancel();
            }
        });
        Ok(())
    }
}

/// The program: parses, runs, prints an error, and says how it ended.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    called::remember(args.first().map(OsString::as_os_str));
    let Cli { global, command } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, for stdout; a reader that has gone is none.
            let _ = print_parse_error(&error);
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let output = command.output();
    let result = telemetry::init(global.log_format, &global.log)
        .map_err(|e| Error::usage(e.to_string()))
        .and_then(|()| {
            command.runtime().enable_all().build().map_err(|e| Error::failed(format!("cannot start the runtime: {e}")))
        })
        .and_then(|runtime| runtime.block_on(command.run(Context::new())));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report(output);
            ExitCode::from(error.code())
        }
    }
}

/// In colours, where they are seen; a plugin's words are changed, and then they have none.
fn print_parse_error(error: &clap::Error) -> std::io::Result<()> {
    if !called::as_plugin() {
        return error.print();
    }
    let text = error.to_string();
    let text = called::commands(&text);
    if error.use_stderr() {
        std::io::stderr().lock().write_all(text.as_bytes())
    } else {
        std::io::stdout().lock().write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
