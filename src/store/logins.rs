//! The login roles that controllers, workers and clients connect by. Whoever may migrate makes them.

use std::str::FromStr;

use percent_encoding::percent_decode_str;
use postgres_protocol::password::scram_sha_256;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::migrate::{MigrateError, connect};

/// A login that is to be there.
#[derive(Clone, Debug)]
pub struct Login {
    /// Its group, for example `palisade_worker`.
    pub group: &'static str,
    /// The URL that a program of this group connects by: name and password are taken from it.
    pub url: SecretString,
}

/// What was done for a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginDone {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: &'static str,
    /// Whether it was made; otherwise it was there, and has this password now.
    pub made: bool,
}

/// Makes each login, or gives it the password of its URL; puts it into its group. What else a person has set stays.
///
/// # Errors
/// When the database cannot be reached or refuses, or a URL names a login that must not be one of these. Nothing is
/// half-done: it is one transaction.
pub async fn create_logins(url: &str, logins: &[Login]) -> Result<Vec<LoginDone>, MigrateError> {
    let named = names(logins)?;
    let mut connection = connect(url, "palisade migrate --create-logins").await?;
    let mut transaction = connection.begin().await.map_err(failed)?;
    let mut done = Vec::new();
    for (group, name, password) in named {
        let made = one(&mut transaction, group, &name, password).await?;
        done.push(LoginDone { name, group, made });
    }
    transaction.commit().await.map_err(failed)?;
    // A courtesy to the server's log.
    let _ = connection.close().await;
    Ok(done)
}

/// Group, name and password.
type Named = (&'static str, String, Option<String>);

/// What each URL names. One login in two groups would have the rights of both.
fn names(logins: &[Login]) -> Result<Vec<Named>, MigrateError> {
    let mut named: Vec<Named> = Vec::new();
    for Login { group, url } in logins {
        let options = PgConnectOptions::from_str(url.expose_secret()).map_err(|_| {
            MigrateError::Refused(format!(
                "the URL for {group} cannot be read: postgres://USER:PASSWORD@HOST:PORT/DATABASE is its form"
            ))
        })?;
        let name = options.get_username().to_owned();
        if let Some((other, ..)) = named.iter().find(|(_, known, _)| *known == name) {
            return Err(MigrateError::Refused(format!(
                "the URLs for {other} and {group} both name the login {name}: each part needs one of its own"
            )));
        }
        // As it would be sent: also from PGPASSWORD or a password file.
        let written = options.to_url_lossy();
        let password = written.password().map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned());
        named.push((*group, name, password));
    }
    Ok(named)
}

async fn one(
    connection: &mut PgConnection,
    group: &'static str,
    name: &str,
    password: Option<String>,
) -> Result<bool, MigrateError> {
    // Of what is there: whether it is somebody with more rights than one of these may have.
    let found: Option<(bool, bool)> = sqlx::query_as(
        "SELECT rolsuper OR rolcreaterole OR pg_catalog.pg_has_role(oid, 'palisade_owner', 'MEMBER'),
                pg_catalog.pg_has_role(oid, $2, 'MEMBER')
         FROM pg_catalog.pg_roles WHERE rolname = $1",
    )
    .bind(name)
    .bind(group)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    if let Some((true, _)) = found {
        return Err(MigrateError::Refused(format!(
            "the URL for {group} names {name}, which may migrate or make roles: nothing would hold such a program back. \
             Name a login of its own there"
        )));
    }
    // A verifier, as the server would make it: the password itself would stand in its log, where statements are logged.
    let verifier = password.map(|password| scram_sha_256(password.as_bytes()));
    let made = found.is_none();
    if made {
        // A transaction that a paused client left open must not block a takeover.
        run(connection, "CREATE ROLE %1$I LOGIN", name, "").await?;
        run(connection, "ALTER ROLE %1$I SET idle_in_transaction_session_timeout = '10s'", name, "").await?;
    }
    if let Some(verifier) = verifier {
        run(connection, "ALTER ROLE %1$I LOGIN PASSWORD %2$L", name, &verifier).await?;
    }
    if !matches!(found, Some((_, true))) {
        run(connection, "GRANT %2$I TO %1$I", name, group).await?;
    }
    Ok(made)
}

/// A statement that takes no parameters, with its names quoted by the server itself.
async fn run(connection: &mut PgConnection, statement: &'static str, a: &str, b: &str) -> Result<(), MigrateError> {
    let text: String = sqlx::query_scalar("SELECT pg_catalog.format($1, $2, $3)")
        .bind(statement)
        .bind(a)
        .bind(b)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *connection).await.map_err(failed)?;
    Ok(())
}

fn failed(error: sqlx::Error) -> MigrateError {
    MigrateError::Logins(error.to_string())
}
