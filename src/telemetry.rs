//! Logs: to stderr, for people or as JSON lines. `resource` and `fence` are fields, so that one write can be followed
//! through all processes.

use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::clock::Clock;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line an event, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What is logged where nothing else is asked for: this program's progress, others' trouble.
pub const DEFAULT_FILTER: &str = "warn,palisade=info";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error("the log filter {filter:?} cannot be read: {why}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another subscriber is there already.
    #[error("logging was set up already")]
    Twice,
}

/// The wall clock as this crate reads it, in UTC.
struct Wall;

impl FormatTime for Wall {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:.3}", Clock::wall())
    }
}

/// Sends what is logged to stderr. Called once, by the program; a library's user brings a subscriber of his own.
///
/// # Errors
/// When the filter cannot be read, or logging was set up before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| Error::Filter { filter: filter.chars().take(80).collect(), why: e.to_string() })?;
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(Wall)
        .with_writer(std::io::stderr)
        // A log that nobody can read any more is no reason to fail.
        .log_internal_errors(false);
    match format {
        LogFormat::Human => base.with_target(false).with_ansi(colours(&std::io::stderr())).try_init(),
        LogFormat::Json => base.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    }
    .map_err(|_| Error::Twice)
}

/// Whether to write colours to this stream: a terminal, and nobody said no (<https://no-color.org>).
#[must_use]
pub fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
