//! Ownership: a session that beats, leases that end on time, writes that carry a fence.
//!
//! ```text
//! Session::open ─▶ heartbeats in a task of their own (keeper.rs) ─▶ Term: how long we may act, by our own clock
//!      │                                                             │
//!      └─ acquire, claim ─▶ Lease (held.rs) ── write ── fence ──▶ store ─▶ Outcome
//! ```
//!
//! - **Trust is counted from before the attempt.** A term runs from the instant before the heartbeat was sent, less a third
//!   of the TTL: the holder has stopped before the database lets another one in.
//! - **A deadline is not a guarantee.** A process can be paused between looking at the clock and writing; that is what the
//!   fence is for. The deadline keeps honest workers from wasting work, the fence keeps the data right.
//! - **A lost session is lost whole.** All its leases are cancelled; their work must be awaited before a new one is opened.
//!
//! # Example
//! A worker of your own, in thirty lines:
//! ```no_run
//! use std::time::Duration;
//! use palisade::lease::{Session, SessionConfig};
//! use palisade::outcome::Outcome;
//! use palisade::store::{Store, StoreConfig, Write};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::new(&StoreConfig::new("postgres://worker@localhost/registry", "retrainer"))?;
//! let session = Session::open(store, SessionConfig::new("retrainer-0", Duration::from_secs(10))).await?;
//!
//! // Nobody else can change what this lease guards from here on, whatever happens to this process.
//! let lease = session.acquire("retraining/churn", None).await?;
//! let work = async {
//!     // … minutes of work …
//!     let promote = Write::SetAlias { model: "churn".into(), alias: "champion".into(), version: Some(7) };
//!     lease.write(promote).await
//! };
//! let outcome = tokio::select! {
//!     outcome = work => outcome?,
//!     () = lease.lost() => return Err("another worker took over: stop".into()),
//! };
//! match outcome {
//!     Outcome::Applied(_) | Outcome::Replayed(_) => println!("promoted under {}", lease.token()),
//!     Outcome::Rejected(rejection) => println!("refused, nothing was changed: {rejection}"),
//!     // The library has sent the same fence again for as long as the lease allowed. Close it: it ends as a fact.
//!     Outcome::Unknown(why) => println!("{why}; it became {:?}", lease.settle().await?),
//! }
//! lease.release(None).await?;
//! session.close().await?;
//! # Ok(())
//! # }
//! ```

mod fence;
mod held;
mod keeper;
mod term;

pub use fence::{Fence, ParseFenceError, Token};
pub use held::{Lease, LeaseError, Settled};
pub use keeper::{AcquireError, Ended, Observer, Session, SessionConfig, SessionError};
pub use term::{MARGIN_DIVISOR, Term, heartbeat_interval};
