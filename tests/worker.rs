//! Real worker processes against a real Postgres and a real API server: paused, killed, and taken over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

#[path = "worker/fences.rs"]
mod fences;
#[path = "worker/growth.rs"]
mod growth;
#[path = "worker/life.rs"]
mod life;
#[path = "worker/pauses.rs"]
mod pauses;
