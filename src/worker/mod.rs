//! A worker: claims deployments whose work is due, and rolls them out under their leases.
//!
//! ```text
//! run.rs      open a session → claim → one task a lease → on loss: cancel all, await all, start over
//! rollout.rs  seal → verify → apply → ready → switch → record → drain → retire → done; from where the last owner stood
//! steps/      one file a step; each takes the lease, and can be repeated
//! cluster.rs  fenced writes to objects, each turned into a fact     objects.rs  what is written (pure)
//! ```

pub mod cluster;
pub mod objects;
mod rollout;
mod run;
mod steps;

pub use cluster::Cluster;
pub use run::{WorkerConfig, run};
