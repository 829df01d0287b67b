//! Failover, told as stories: real primaries and standbys, the real API server, real `palisade controller` processes, and
//! a history of every grant and write that was acknowledged on any of the databases.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

#[path = "failover/cluster.rs"]
mod cluster;
#[path = "failover/ground.rs"]
mod ground;
#[path = "failover/history.rs"]
mod history;
#[path = "failover/promotions.rs"]
mod promotions;
#[path = "failover/restarts.rs"]
mod restarts;
#[path = "failover/restores.rs"]
mod restores;
