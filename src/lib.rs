//! Palisade: ownership by fenced leases, and the controller and workers that live by it.
//!
//! The modules in the order in which data flows; those marked *pure* know neither kube nor sqlx nor tokio.
//!
//! ```text
//! crd ─▶ reconcile ─▶ plan (pure) ─▶ store ─▶ Postgres ◀─ store ◀─ lease, worker ─▶ cluster objects with a fence
//! ```

// What clippy.toml forbids, it forbids here. And nothing in the library panics, prints, cuts a number off (tokens are 53 bits
// wide), or leaves an error undocumented.
#![warn(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason
)]

pub mod cli;
pub mod clock;
pub mod cluster;
pub mod crd;
pub mod doctor;
pub mod epoch;
pub mod failpoint;
pub mod fetch;
pub mod http;
pub mod lease;
pub mod manifests;
pub mod metrics;
pub mod outcome;
pub mod plan;
pub mod reconcile;
pub mod retry;
pub mod store;
pub mod telemetry;
pub mod worker;
