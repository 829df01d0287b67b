//! Palisade: ownership by fenced leases, and the controller and workers that live by it.
//!
//! The modules in the order in which data flows; those marked *pure* know neither kube nor sqlx nor tokio.
//!
//! ```text
//! crd ─▶ reconcile ─▶ plan (pure) ─▶ store ─▶ Postgres ◀─ store ◀─ lease, worker ─▶ cluster objects with a fence
//! ```

pub mod cli;
pub mod clock;
pub mod cluster;
pub mod crd;
pub mod failpoint;
pub mod http;
pub mod lease;
pub mod manifests;
pub mod metrics;
pub mod outcome;
pub mod plan;
pub mod retry;
pub mod store;
pub mod telemetry;
pub mod worker;
