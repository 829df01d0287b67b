//! What every comparison shares: short rounds that alternate, medians, rows with a target, a table and JSON.
//!
//! Absolute figures drift with the machine's load. So the variants of a comparison take turns in one run, in rotated order,
//! and a ratio is that of two neighbours of one round; what is reported is the median of the rounds.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

/// What one round of one variant brought.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Sample {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// What the server wrote to its log for one of them.
    #[serde(default)]
    pub wal_bytes: Option<f64>,
    /// CPU time of the server for one of them: what is left of a comparison when the machine is busy.
    #[serde(default)]
    pub cpu_us: Option<f64>,
}

impl Sample {
    /// From how long each one took, all of them ended within `span`.
    pub fn new(mut took: Vec<Duration>, span: Duration) -> Sample {
        assert!(!took.is_empty(), "a round in which nothing ended: the machine is too slow for rounds this short");
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        Sample {
            per_second: took.len() as f64 / span.as_secs_f64(),
            p50_ms: at(0.50),
            p99_ms: at(0.99),
            wal_bytes: None,
            cpu_us: None,
        }
    }
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        }
    }

    pub fn word(self) -> String {
        match self {
            Target::AtLeast(least) => format!("≥ {}", number(least)),
            Target::AtMost(most) => format!("≤ {}", number(most)),
        }
    }
}

/// A share of another variant's throughput.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub to: String,
    pub value: f64,
    pub target: Option<Target>,
    pub met: Option<bool>,
}

/// One line of the result: something that was measured, and what it is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub subject: String,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clients: Option<usize>,
    pub value: f64,
    pub unit: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wal_bytes: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub met: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ratios: Vec<Ratio>,
}

impl Row {
    /// A figure by itself.
    pub fn new(subject: &str, what: impl Into<String>, value: f64, unit: &str) -> Row {
        Row {
            subject: subject.to_owned(),
            what: what.into(),
            clients: None,
            value,
            unit: unit.to_owned(),
            p50_ms: None,
            p99_ms: None,
            wal_bytes: None,
            cpu_us: None,
            target: None,
            met: None,
            ratios: Vec::new(),
        }
    }

    #[must_use]
    pub fn with_target(mut self, target: Target) -> Row {
        self.met = Some(target.met(self.value));
        self.target = Some(target);
        self
    }

    /// A ratio that was measured elsewhere than in `compare`.
    #[must_use]
    pub fn with_ratio(mut self, to: &str, value: f64, target: Option<Target>) -> Row {
        let met = target.map(|target| target.met(value));
        self.ratios.push(Ratio { to: to.to_owned(), value, target, met });
        self
    }

    /// Whether a target was missed.
    pub fn missed(&self) -> bool {
        self.met == Some(false) || self.ratios.iter().any(|ratio| ratio.met == Some(false))
    }
}

/// How much is to be measured, and what was found.
#[derive(Debug)]
pub struct Bench {
    /// Short rounds: to see that everything still works.
    pub quick: bool,
    /// Where subjects may put files; user postgres can write there, and it is removed at the end.
    pub dir: PathBuf,
    rows: Mutex<Vec<Row>>,
    broken: Mutex<Vec<String>>,
    began: Instant,
}

/// Something that takes turns with others.
pub trait Variant {
    fn name(&self) -> &str;
    /// One round of about this long.
    fn round(&mut self, span: Duration) -> LocalBoxFuture<'_, Sample>;
}

/// What is wanted of a variant: its share of another's throughput, or (`to: None`) its throughput.
pub struct Wanted<'a> {
    pub of: &'a str,
    pub to: Option<&'a str>,
    pub target: Option<Target>,
}

impl<'a> Wanted<'a> {
    pub fn share(of: &'a str, to: &'a str, target: Option<Target>) -> Wanted<'a> {
        Wanted { of, to: Some(to), target }
    }

    pub fn rate(of: &'a str, target: Target) -> Wanted<'a> {
        Wanted { of, to: None, target: Some(target) }
    }
}

impl Bench {
    pub fn new(quick: bool, dir: PathBuf) -> Bench {
        Bench { quick, dir, rows: Mutex::default(), broken: Mutex::default(), began: Instant::now() }
    }

    /// One or the other, by how much is to be measured.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub fn say(&self, text: impl std::fmt::Display) {
        eprintln!("[{:4} s] {text}", self.began.elapsed().as_secs());
    }

    pub fn add(&self, row: Row) {
        self.say(format_args!("  {}", line(&row)));
        self.rows.lock().expect("rows").push(row);
    }

    /// Notes what must never happen: the run goes on, and fails at its end.
    pub fn broken(&self, text: impl Into<String>) {
        let text = text.into();
        self.say(format_args!("BROKEN: {text}"));
        self.broken.lock().expect("broken").push(text);
    }

    pub fn check(&self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.broken(text());
        }
    }

    pub fn results(self) -> (Vec<Row>, Vec<String>) {
        (self.rows.into_inner().expect("rows"), self.broken.into_inner().expect("broken"))
    }

    /// Lets the variants take turns, and adds a row for each.
    pub async fn compare(
        &self,
        subject: &str,
        unit: &str,
        clients: usize,
        variants: &mut [&mut dyn Variant],
        wanted: &[Wanted<'_>],
    ) {
        let (rounds, span) = self.pick((3, Duration::from_millis(2000)), (2, Duration::from_millis(1000)));
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); variants.len()];
        for round in 0..rounds {
            self.say(format_args!("{subject}, {clients} clients: round {} of {rounds}", round + 1));
            for turn in 0..variants.len() {
                let at = (turn + round) % variants.len();
                samples[at].push(variants[at].round(span).await);
            }
        }
        let index = |name: &str| {
            variants.iter().position(|v| v.name() == name).unwrap_or_else(|| panic!("no variant is called {name}"))
        };
        for (variant, own) in variants.iter().zip(&samples) {
            let of = |what: fn(&Sample) -> f64| median(own.iter().map(what));
            let mut row = Row::new(subject, variant.name(), of(|s| s.per_second), unit);
            row.clients = Some(clients);
            row.p50_ms = Some(of(|s| s.p50_ms));
            row.p99_ms = Some(of(|s| s.p99_ms));
            row.wal_bytes = own[0].wal_bytes.map(|_| of(|s| s.wal_bytes.unwrap_or_default()));
            row.cpu_us = own[0].cpu_us.map(|_| of(|s| s.cpu_us.unwrap_or_default()));
            for want in wanted.iter().filter(|want| want.of == variant.name()) {
                row = match (want.to, want.target) {
                    (Some(to), target) => {
                        let pairs = own.iter().zip(&samples[index(to)]);
                        row.with_ratio(to, median(pairs.map(|(a, b)| a.per_second / b.per_second)), target)
                    }
                    (None, Some(target)) => row.with_target(target),
                    (None, None) => row,
                };
            }
            self.add(row);
        }
    }
}

/// The middle one; of an even number, the mean of the two.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    assert!(!values.is_empty(), "the median of nothing");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Three digits that mean something, thousands apart.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    if digits > 0 {
        let text = format!("{value:.digits$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let whole = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `met`, `missed`, or nothing.
pub fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    }
}

fn line(row: &Row) -> String {
    let mut text = format!("{}: {} {}", row.what, number(row.value), row.unit);
    if let Some(target) = row.target {
        text += &format!(" (target {}: {})", target.word(), verdict(row.met));
    }
    for ratio in &row.ratios {
        text += &format!("; {} of {}", number(ratio.value), ratio.to);
        if let Some(target) = ratio.target {
            text += &format!(" (target {}: {})", target.word(), verdict(ratio.met));
        }
    }
    text
}
