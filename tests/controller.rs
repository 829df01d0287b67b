//! The controller on a real API server and a real Postgres: with its own role and account, alone and in two replicas.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

#[path = "controller/cut.rs"]
mod cut;
#[path = "controller/deletion.rs"]
mod deletion;
#[path = "controller/epoch.rs"]
mod epoch;
#[path = "controller/hostile.rs"]
mod hostile;
#[path = "controller/plans.rs"]
mod plans;
#[path = "controller/stage.rs"]
mod stage;
#[path = "controller/stale.rs"]
mod stale;
#[path = "controller/upkeep.rs"]
mod upkeep;
