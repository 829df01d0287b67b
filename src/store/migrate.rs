//! The schema: numbered migrations under a lock, safe to repeat and to run from two processes at once.

use std::str::FromStr;

use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");
const TABLE: &str = "palisade.migration";

/// What a migration found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The schema's version now.
    pub version: i64,
    /// How many migrations this call ran.
    pub applied: usize,
}

/// Why the schema is not what this program needs.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database cannot be reached, or refused the connection.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// The URL, the login or the certificate is wrong: waiting does not help.
    #[error("the database cannot be used: {0}")]
    Refused(String),
    /// The database belongs to a later release.
    #[error("the database has schema version {database}, and this program knows only {program}: run a newer palisade")]
    NewerDatabase {
        /// The highest version in the database.
        database: i64,
        /// The highest version in this program.
        program: i64,
    },
    /// A migration that was applied is not the one that this program holds.
    #[error("migration {0} was changed after it had been applied: this is not the program that made this schema")]
    Changed(i64),
    /// The login roles could not be made; none was.
    #[error("the login roles were not made: {0}")]
    Logins(String),
    /// A migration failed, and was rolled back.
    #[error("the migration failed and was rolled back: {0}")]
    Failed(String),
}

/// Brings the schema up to this program's version.
///
/// # Errors
/// When the database cannot be reached, is of a later release, or refuses a migration. Nothing is half-applied.
pub async fn migrate(url: &str) -> Result<Migrated, MigrateError> {
    let mut connection = connect(url, "palisade migrate").await?;
    let program = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    let before = applied(&mut connection).await?;
    let database = before.iter().copied().max().unwrap_or(0);
    if database > program {
        return Err(MigrateError::NewerDatabase { database, program });
    }
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(TABLE);
    if before.is_empty() {
        // CREATE SCHEMA IF NOT EXISTS needs the right to create one even where it is there already.
        migrator.create_schema("palisade");
    }
    migrator.run_direct(None, &mut connection, false).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(database) => MigrateError::NewerDatabase { database, program },
        sqlx::migrate::MigrateError::VersionMismatch(version) => MigrateError::Changed(version),
        other => MigrateError::Failed(describe(&other)),
    })?;
    let after = applied(&mut connection).await?;
    // Not answered for by the count: closing is a courtesy to the server's log.
    let _ = connection.close().await;
    Ok(Migrated { version: program, applied: after.len().saturating_sub(before.len()) })
}

/// One connection, and whether another try may help where there is none.
pub(super) async fn connect(url: &str, application: &str) -> Result<PgConnection, MigrateError> {
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        MigrateError::Refused("its URL cannot be read: postgres://USER:PASSWORD@HOST:PORT/DATABASE is its form".into())
    })?;
    PgConnection::connect_with(&options.application_name(application)).await.map_err(|error| match &error {
        // 28: no such login, or not its password.
        sqlx::Error::Database(database) if database.code().is_some_and(|code| code.starts_with("28")) => {
            MigrateError::Refused(error.to_string())
        }
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => MigrateError::Refused(error.to_string()),
        _ => MigrateError::Unavailable(error.to_string()),
    })
}

pub(super) async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, MigrateError> {
    let known: Option<bool> = sqlx::query_scalar("SELECT to_regclass('palisade.migration') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .map_err(|e| MigrateError::Unavailable(e.to_string()))?;
    if known != Some(true) {
        return Ok(Vec::new());
    }
    sqlx::query_scalar("SELECT version FROM palisade.migration WHERE success")
        .fetch_all(&mut *connection)
        .await
        .map_err(|e| MigrateError::Failed(e.to_string()))
}

/// The server's own words and its hint, which sqlx's message leaves out.
fn describe(error: &sqlx::migrate::MigrateError) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(sqlx::Error::Database(database)) = current.downcast_ref::<sqlx::Error>()
            && let Some(hint) = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|e| e.hint())
        {
            return format!("{error}\n{hint}");
        }
        source = current.source();
    }
    error.to_string()
}
