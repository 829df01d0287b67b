//! Which version the schema has, without changing anything.

use std::str::FromStr;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::migrate::{MIGRATIONS, MigrateError, applied};

/// The schema's version beside the one that this program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SchemaState {
    /// The database's; 0: there is no schema.
    pub database: i64,
    /// This program's.
    pub program: i64,
}

/// Reads the schema's version. Needs a role that may read `palisade.migration`: the one that migrates.
///
/// # Errors
/// When the database cannot be reached, or does not say.
pub async fn schema_state(url: &str) -> Result<SchemaState, MigrateError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| {
            MigrateError::Unavailable(
                "its URL cannot be read: postgres://USER:PASSWORD@HOST:PORT/DATABASE is its form".into(),
            )
        })?
        .application_name("palisade migrate --check");
    let mut connection =
        PgConnection::connect_with(&options).await.map_err(|e| MigrateError::Unavailable(e.to_string()))?;
    let database = applied(&mut connection).await?.into_iter().max().unwrap_or(0);
    // A courtesy to the server's log.
    let _ = connection.close().await;
    Ok(SchemaState { database, program: MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0) })
}
