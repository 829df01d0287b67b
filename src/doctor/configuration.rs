//! What controllers and workers are told, against what was measured. Pure.

use std::time::Duration;

use super::facts::Trip;
use super::finding::Finding;
use crate::lease::MARGIN_DIVISOR;

/// A call that takes this share of its time limit leaves no room for a bad moment.
const SHARE: u32 = 4;

/// Times and variables, as they would be for a controller or a worker that is started here.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `--ttl`.
    pub ttl: Duration,
    /// `worker --poll`.
    pub poll: Duration,
    /// Variables of controller and worker that cannot be read: name, and why.
    pub unreadable: Vec<(String, String)>,
    /// Variables that look like ours, and are not.
    pub unknown: Vec<String>,
}

/// What heartbeats took that were really sent: `--measure-writes`.
pub type Beats = Result<Vec<Duration>, String>;

/// All that can be said about it.
#[must_use]
pub fn check(configuration: &Configuration, trips: Option<&[Trip]>, beats: Option<&Beats>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(trips) = trips {
        let took: Vec<_> = trips.iter().map(|trip| trip.took).collect();
        found.extend(latency("trips to the database", &took, configuration.ttl));
    }
    match beats {
        Some(Ok(beats)) => found.extend(latency("heartbeats", beats, configuration.ttl)),
        Some(Err(why)) => found.push(Finding::info(
            "configuration/unmeasured",
            format!("no heartbeat could be sent: {why}"),
            "a heartbeat is a commit: it waits for the disk, and for a synchronous standby",
            "run the doctor with the DATABASE_URL of a worker or controller, and with an epoch established",
        )),
        None => {}
    }
    found.push(poll(configuration));
    for (name, why) in &configuration.unreadable {
        found.push(Finding::error(
            "configuration/variable",
            format!("{name}: {why}"),
            "controllers and workers that are started with it end at once, with exit code 2",
            format!("mend {name}, or take it away"),
        ));
    }
    if !configuration.unknown.is_empty() {
        found.push(Finding::warning(
            "configuration/variable-unknown",
            format!("nothing reads {}", configuration.unknown.join(", ")),
            "a setting that is misspelt has no effect, and nobody says so",
            "docs/cli.md and --help of each command name the variables",
        ));
    }
    found
}

fn latency(what: &str, took: &[Duration], ttl: Duration) -> Option<Finding> {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    let (median, worst) = (*sorted.get(sorted.len() / 2)?, *sorted.last()?);
    let limit = (ttl / MARGIN_DIVISOR).min(Duration::from_secs(5));
    let what = format!(
        "{} {what}: median {}, longest {}; at --ttl {} a call may take {}",
        took.len(),
        span(median),
        span(worst),
        span(ttl),
        span(limit),
    );
    if worst < limit / SHARE {
        return Some(Finding::ok("configuration/latency", what));
    }
    let why = "a heartbeat that is late costs the session: its work stops, and another one takes over";
    let least = (worst * MARGIN_DIVISOR * SHARE).as_secs() + 1;
    let mut next = "bring them closer together, or find out what makes the database slow".to_owned();
    // Above 15 s a longer TTL gives a call no more time.
    if least <= 15 {
        next += &format!("; else --ttl {least}s, for controllers and workers");
    }
    Some(if worst >= limit {
        Finding::error("configuration/latency-beyond-limit", what, why, next)
    } else {
        Finding::warning("configuration/latency-high", what, why, next)
    })
}

fn poll(configuration: &Configuration) -> Finding {
    let Configuration { ttl, poll, .. } = configuration;
    let what = format!(
        "--ttl {}, --poll {}: a crashed worker is replaced within {}",
        span(*ttl),
        span(*poll),
        span(*ttl + *poll * 6 / 5)
    );
    if poll < ttl {
        return Finding::ok("configuration/times", what);
    }
    Finding::warning(
        "configuration/poll-slow",
        what,
        "whoever takes over asks for work that seldom: the poll, and not the TTL, says how long a takeover takes",
        "set --poll well below --ttl; 1s is the default",
    )
}

fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{:.1} ms", span.as_secs_f64() * 1000.0)
    } else {
        format!("{:.1} s", span.as_secs_f64())
    }
}
