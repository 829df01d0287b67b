//! Everything at once: many deployments, a few workers that are killed and paused at random, and the history checked.
//!
//! ```text
//! arena.rs    Postgres, control plane, workers, of their own ──▶ run.rs, frozen.rs: what is done to them
//! observe.rs  what happened, from three sides ──▶ history.rs ──▶ rules.rs ──▶ violations
//! planted.rs  each rule is broken in a history written by hand, and reported
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

mod chaos {
    mod arena;
    mod frozen;
    mod history;
    mod observe;
    mod planted;
    mod rules;
    mod run;
}
