//! Which version the schema has, without changing anything.

use sqlx::Connection;

use super::Store;
use super::call::{CallError, get};
use super::migrate::{MIGRATIONS, MigrateError, applied, connect};

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
    let mut connection = connect(url, "palisade migrate --check").await?;
    let database = applied(&mut connection).await?.into_iter().max().unwrap_or(0);
    // A courtesy to the server's log.
    let _ = connection.close().await;
    Ok(SchemaState { database, program: wanted() })
}

impl Store {
    /// The schema's version, for a program that is not the one that migrates. 0: there is none that it may use.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn schema(&self) -> Result<SchemaState, CallError> {
        let statement = sqlx::query("SELECT palisade.schema_version() AS version");
        let database = match self.row("schema_version", self.timeout, statement).await {
            Ok(row) => get::<Option<i64>>(&row, "version")?.unwrap_or(0),
            // No schema, no such function yet, or no right to it yet: rights are what a migration gives last.
            Err(CallError::Refused { code, .. }) if matches!(code.as_str(), "3F000" | "42883" | "42P01" | "42501") => 0,
            Err(error) => return Err(error),
        };
        Ok(SchemaState { database, program: wanted() })
    }
}

/// The version that this program needs.
fn wanted() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}
