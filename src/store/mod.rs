//! Postgres: the only module that names sqlx. One method a SQL function, one statement a call, one round trip.
//!
//! ```text
//! call.rs      one statement on one connection, with a timeout; what failed before sending, and what only went silent
//! sessions.rs  open, heartbeat, held, acquire, claim, progress        writes.rs    the fenced writes
//! plans.rs     what the controller asks for                           registry.rs  models and versions, for plain clients
//! epochs.rs    which incarnation of the database this is              history.rs   what people look at
//! migrate.rs   the schema         logins.rs   login roles         schema.rs    its version
//! upkeep.rs    what is old is removed                             doctor/      what the doctor asks
//! naive.rs     a registry without fences, for the demo only
//! ```

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "the one module that speaks SQL")]

mod call;
mod doctor;
mod epochs;
mod history;
mod logins;
mod migrate;
mod naive;
mod plans;
mod registry;
mod schema;
mod sessions;
mod upkeep;
mod writes;

use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use call::CallError;
pub use doctor::Migration;
pub(crate) use doctor::database_facts;
pub use epochs::EpochStatus;
pub use history::{Entry, LeaseRow, OperationRow};
pub use logins::{Login, LoginDone, create_logins};
pub use migrate::{MigrateError, Migrated, migrate};
pub(crate) use naive::Naive;
pub use plans::{Event, EventCursor, Figures, Observed, PlanRow, Question, Takeover, VersionState};
pub use registry::{Model, Version};
pub use schema::{SchemaState, schema_state};
pub use sessions::{Claimed, Claims, Heartbeat, Held, Loss, OperationState};
pub use upkeep::{Cleaned, Kind, RefusalCursor, Size};
pub use writes::{Address, Counterpart, Write};

/// How to reach the database, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// A `postgres://` URL. It holds a password: it is never printed.
    pub url: SecretString,
    /// What this process is called in `pg_stat_activity`.
    pub application: String,
    /// Connections at the most. Calls wait for a free one.
    pub connections: u32,
    /// How long one call may take, connecting included. Keep it below a third of the session's TTL.
    pub timeout: Duration,
}

impl StoreConfig {
    /// Eight connections, three seconds a call.
    #[must_use]
    pub fn new(url: impl Into<String>, application: &str) -> Self {
        Self {
            url: SecretString::from(url.into()),
            application: application.to_owned(),
            connections: 8,
            timeout: Duration::from_secs(3),
        }
    }
}

/// A pool of connections to one database with Palisade's schema. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: sqlx::PgPool,
    timeout: Duration,
}

impl Store {
    /// Prepares the pool; the first call connects.
    ///
    /// # Errors
    /// When the URL cannot be read. Its text is not repeated: it holds a password.
    pub fn new(config: &StoreConfig) -> Result<Self, CallError> {
        let options = options(config)?;
        let pool = pool(config.connections, config.timeout).connect_lazy_with(options);
        Ok(Self { pool, timeout: config.timeout })
    }

    /// A connection of its own, beside the pool: heartbeats must not wait behind the work.
    #[must_use]
    pub(crate) fn beside(&self) -> Self {
        let pool = pool(1, self.timeout).connect_lazy_with((*self.pool.connect_options()).clone());
        Self { pool, timeout: self.timeout }
    }

    /// The same pool, for a caller that can wait for `timeout` at the most.
    #[must_use]
    pub(crate) fn within(mut self, timeout: Duration) -> Self {
        self.timeout = self.timeout.min(timeout);
        self
    }

    /// How long one call may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// How each connection is made.
fn options(config: &StoreConfig) -> Result<PgConnectOptions, CallError> {
    let options = PgConnectOptions::from_str(config.url.expose_secret()).map_err(|_| {
        CallError::NotSent(
            "the database URL cannot be read: postgres://USER:PASSWORD@HOST:PORT/DATABASE is its form".into(),
        )
    })?;
    Ok(options
        .application_name(&config.application)
        // Each call is logged where it is decided upon, with fence and outcome.
        .disable_statement_logging()
        // The server gives up when the client does: a statement that nobody waits for must not linger.
        .options([("statement_timeout", config.timeout.as_millis().to_string())]))
}

/// A call is one round trip, so a connection that was just in use is taken as it is; one that has been idle may have died
/// with a restarted server, and is asked first.
fn pool(connections: u32, timeout: Duration) -> PgPoolOptions {
    const IDLE: Duration = Duration::from_secs(2);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < IDLE {
                    return Ok(true);
                }
                Ok(sqlx::Connection::ping(connection).await.is_ok())
            })
        })
}
