//! `--database-url`, for every command that needs one.

use secrecy::{ExposeSecret, SecretString};

use super::Error;
use crate::store::{Store, StoreConfig};

/// Where the database is.
#[derive(Clone, Debug, clap::Args)]
pub struct Database {
    /// The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE. On the command line every local user can read it:
    /// prefer the variable
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = secret)]
    pub database_url: SecretString,
}

fn secret(text: &str) -> Result<SecretString, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(SecretString::from(text)) }
}

impl Database {
    /// The URL itself. It holds a password.
    #[must_use]
    pub fn url(&self) -> &str {
        self.database_url.expose_secret()
    }

    /// How to reach it, with the defaults; `application` is shown in `pg_stat_activity`.
    #[must_use]
    pub fn config(&self, application: &str) -> StoreConfig {
        StoreConfig::new(self.url(), application)
    }

    /// A store for a command of a person: patient enough for a slow connection, and for a server that is busy. A quarter of
    /// the time is for connecting.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn store(&self, application: &str) -> Result<Store, Error> {
        let timeout = std::time::Duration::from_secs(20);
        let config = StoreConfig { connections: 2, timeout, ..self.config(application) };
        // Nothing is sent yet: only the URL itself can be wrong.
        Store::new(&config).map_err(|e| Error::usage(e.to_string()))
    }
}
