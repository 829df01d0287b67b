//! Which version the schema has, without changing anything.

use sqlx::Connection;

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

/// The version that this program needs.
fn wanted() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}
