//! Points at which a test can really stop or kill the process: before and after each call to the database and to the
//! API server. Without the feature `failpoints` they are empty functions.
//!
//! A point's name is `STEP/CALL/before` or `STEP/CALL/after`; the step is the one that the task runs in, or `-`.
//! - `PALISADE_POINTS=FILE` appends the name of each point that is reached, once.
//! - `PALISADE_ACCOUNT=FILE` appends a line for each grant that this process is told of, and for each fenced write that it
//!   sends, before and after: the caller's side of a history. See [`account`].
//! - `PALISADE_BLIND=1` makes a process that does not look at its own clock: it sends what it was about to send, however
//!   late. Then only the fences stand.
//! - `PALISADE_STOP_AT=NAME` raises SIGSTOP when the point is reached for the first time; `PALISADE_KILL_AT`, SIGKILL.

use std::fmt::Display;

use crate::lease::Fence;

tokio::task_local! {
    /// The step that the task is in.
    static STEP: std::cell::Cell<&'static str>;
}

/// Runs a task that names its steps.
pub async fn with_steps<F: Future>(work: F) -> F::Output {
    STEP.scope(std::cell::Cell::new("-"), work).await
}

/// From here on the task is in this step.
pub fn enter_step(step: &'static str) {
    // Outside of a task that names its steps there is nothing to name.
    let _ = STEP.try_with(|s| s.set(step));
}

/// Just before a call is sent.
#[inline]
pub fn before(call: &str) {
    reach(call, "before");
}

/// Just after its answer came.
#[inline]
pub fn after(call: &str) {
    reach(call, "after");
}

/// What this process sends, or was told: `NANOSECONDS-SINCE-BOOT ⇥ WHAT ⇥ RESOURCE ⇥ TOKEN/SEQUENCE ⇥ CALL`.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn account(_what: impl Display, _resource: &str, _fence: Fence, _call: impl Display) {}

/// What this process sends, or was told: `NANOSECONDS-SINCE-BOOT ⇥ WHAT ⇥ RESOURCE ⇥ TOKEN/SEQUENCE ⇥ CALL`. Each line is
/// written by one call to the kernel before this returns, so that what was sent is told even if the process is killed.
#[cfg(feature = "failpoints")]
#[expect(
    clippy::disallowed_methods,
    reason = "an account is compared with those of other processes, to the nanosecond"
)]
pub fn account(what: impl Display, resource: &str, fence: Fence, call: impl Display) {
    use std::io::Write;
    use std::sync::LazyLock;

    static FILE: LazyLock<Option<std::fs::File>> = LazyLock::new(|| {
        let path = std::env::var_os("PALISADE_ACCOUNT")?;
        std::fs::OpenOptions::new().append(true).create(true).open(path).ok()
    });
    let Some(mut file) = FILE.as_ref() else { return };
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let line = format!("{}{:09}\t{what}\t{resource}\t{fence}\t{call}\n", now.tv_sec, now.tv_nsec);
    let _ = file.write_all(line.as_bytes());
}

/// Whether this process does not look whether its leases are over.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub fn blind() -> bool {
    false
}

/// Whether this process does not look whether its leases are over.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn blind() -> bool {
    static BLIND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| std::env::var_os("PALISADE_BLIND").is_some());
    *BLIND
}

#[cfg(not(feature = "failpoints"))]
fn reach(_call: &str, _when: &str) {}

#[cfg(feature = "failpoints")]
fn reach(call: &str, when: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::collections::HashSet;
    use std::io::Write;
    use std::sync::{LazyLock, Mutex};

    static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    static PLAN: LazyLock<[Option<String>; 3]> =
        LazyLock::new(|| ["PALISADE_POINTS", "PALISADE_STOP_AT", "PALISADE_KILL_AT"].map(|v| std::env::var(v).ok()));
    let [points, stop_at, kill_at] = &*PLAN;
    if points.is_none() && stop_at.is_none() && kill_at.is_none() {
        return;
    }
    let step = STEP.try_with(std::cell::Cell::get).unwrap_or("-");
    let name = format!("{step}/{call}/{when}");
    if !SEEN.lock().is_ok_and(|mut seen| seen.insert(name.clone())) {
        return;
    }
    if let Some(path) = points
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{name}");
    }
    for (wanted, signal) in [(stop_at, Signal::STOP), (kill_at, Signal::KILL)] {
        if wanted.as_ref() == Some(&name) {
            let _ = kill_process(getpid(), signal);
            // The kernel may let this thread run on until another one, which has got the signal, has its turn on a busy
            // processor: long enough to send. What the process was stopped for counts as slept.
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}
