//! What the doctor says. Pure.

use serde::Serialize;

/// How much a finding matters. In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; or something that could not be looked at.
    Info,
    /// It works, but not as well or as safely as it should.
    Warning,
    /// Palisade does not work, or does not protect, until this is mended.
    Error,
}

/// One thing that was looked at: what it is, why it matters, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its stable name: `AREA/CHECK` where all is well, `AREA/PROBLEM` otherwise. docs/doctor.md has a row for each.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found, with the value.
    pub what: String,
    /// Why it matters. Empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// What to do. Empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next: String,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, what: what.into(), why: "", next: String::new() }
    }

    pub(super) fn info(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        next: impl Into<String>,
    ) -> Self {
        Self { check, severity: Severity::Info, what: what.into(), why, next: next.into() }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        next: impl Into<String>,
    ) -> Self {
        Self { check, severity: Severity::Warning, what: what.into(), why, next: next.into() }
    }

    pub(super) fn error(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        next: impl Into<String>,
    ) -> Self {
        Self { check, severity: Severity::Error, what: what.into(), why, next: next.into() }
    }

    /// The part before the slash: `database`, `cluster` or `configuration`.
    #[must_use]
    pub fn area(&self) -> &'static str {
        self.check.split('/').next().unwrap_or(self.check)
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of them; ok where there are none.
    pub worst: Severity,
    /// How many of them are errors.
    pub errors: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

impl From<Vec<Finding>> for Report {
    fn from(findings: Vec<Finding>) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
        Self { worst, errors: count(Severity::Error), warnings: count(Severity::Warning), findings }
    }
}

/// Why something has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// Whoever asked may not look at it.
    NotAllowed(String),
    /// Nobody answered in time, or with something that cannot be read.
    NoAnswer(String),
}

/// What was found, or why it was not.
pub type Looked<T> = Result<T, Unseen>;

/// Collects findings, and what could not be looked at.
#[derive(Debug, Default)]
pub(super) struct Chart {
    pub findings: Vec<Finding>,
    hidden: Vec<(&'static str, String)>,
    silent: Vec<(&'static str, String)>,
}

impl Chart {
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// What was found; or a note that it could not be looked at.
    pub fn seen<'a, T>(&mut self, what: &'static str, looked: &'a Looked<T>) -> Option<&'a T> {
        match looked {
            Ok(found) => return Some(found),
            Err(Unseen::NotAllowed(message)) => self.hidden.push((what, message.clone())),
            Err(Unseen::NoAnswer(message)) => self.silent.push((what, message.clone())),
        }
        None
    }

    /// The notes, as two findings at the most.
    pub fn finish(mut self, hidden: &'static str, silent: &'static str, next: &str) -> Vec<Finding> {
        if let Some((names, message)) = joined(&self.hidden) {
            self.add(Finding::info(
                hidden,
                format!("could not look at {names}: {message}"),
                "nothing is said about it here, neither good nor bad",
                next,
            ));
        }
        if let Some((names, message)) = joined(&self.silent) {
            self.add(Finding::error(
                silent,
                format!("asked about {names}, and was not answered: {message}"),
                "the program's own calls end like this too; what was not looked at is not known to be right",
                "look at the server's log and load, or give it more time with --timeout, and run the doctor again",
            ));
        }
        self.findings
    }
}

/// Each name once, and the first message of them.
fn joined(unseen: &[(&'static str, String)]) -> Option<(String, String)> {
    let (_, message) = unseen.first()?;
    let mut names: Vec<&str> = unseen.iter().map(|(name, _)| *name).collect();
    names.dedup();
    Some((names.join(", "), message.trim().to_owned()))
}
