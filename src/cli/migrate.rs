//! `palisade migrate`: the schema, and the login roles.

use std::time::Duration;

use secrecy::SecretString;

use super::output::print;
use super::process::between;
use super::{Context, Database, Error};
use crate::crd::Span;
use crate::retry::around;
use crate::store::{self, Login, MigrateError, Migrated, SchemaState};

/// Bring the database's schema up to this program's version
///
/// Run it once before the first start, and at each upgrade before the new controller and workers start. It is safe to
/// repeat, and to run from two processes at once: a lock makes one wait. It refuses a database that a later release has
/// made, and a failed migration is rolled back.
///
/// It needs a role that may create roles and a schema: a superuser once, or one with CREATEROLE that may grant
/// pg_read_all_stats and pg_signal_backend. The controller and the workers need no such rights.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  DATABASE_URL=postgres://postgres@localhost/registry palisade migrate
  palisade migrate --check    # changes nothing; exit code 1 where something is to be done
  palisade migrate --wait 10m --allow-newer --create-logins    # as the Helm chart does")]
pub(super) struct Args {
    #[command(flatten)]
    database: Database,

    /// Change nothing; say whether the schema is this program's (exit code 0), or not (1)
    #[arg(long, conflicts_with_all = ["wait", "allow_newer", "create_logins"])]
    check: bool,

    /// Wait this long for a database that does not answer yet (1s to 24h)
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    wait: Option<Span>,

    /// Leave the schema of a later release as it is, with exit code 0: after a rollback this program is the older one
    #[arg(long)]
    allow_newer: bool,

    /// Make the login roles that the URLs below name, each in its group, or give them the passwords that stand there
    #[arg(long)]
    create_logins: bool,

    #[command(flatten)]
    logins: Logins,
}

/// By which URLs the others will connect: name and password are taken from them. Variables only.
#[derive(Clone, Debug, clap::Args)]
struct Logins {
    /// For --create-logins: the URL of controllers
    #[arg(long, env = "PALISADE_CONTROLLER_URL", hide_env_values = true, value_name = "URL")]
    controller_url: Option<SecretString>,

    /// For --create-logins: the URL of workers
    #[arg(long, env = "PALISADE_WORKER_URL", hide_env_values = true, value_name = "URL")]
    worker_url: Option<SecretString>,

    /// For --create-logins: the URL of the registry's clients
    #[arg(long, env = "PALISADE_REGISTRY_URL", hide_env_values = true, value_name = "URL")]
    registry_url: Option<SecretString>,

    /// For --create-logins: the URL of people who look
    #[arg(long, env = "PALISADE_READER_URL", hide_env_values = true, value_name = "URL")]
    reader_url: Option<SecretString>,
}

impl Logins {
    fn named(self) -> Vec<Login> {
        let Self { controller_url, worker_url, registry_url, reader_url } = self;
        [
            ("palisade_controller", controller_url),
            ("palisade_worker", worker_url),
            ("palisade_registry", registry_url),
            ("palisade_reader", reader_url),
        ]
        .into_iter()
        .filter_map(|(group, url)| url.map(|url| Login { group, url }))
        .collect()
    }
}

fn wait(text: &str) -> Result<Span, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(24 * 3600))
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    let Args { database, check, wait, allow_newer, create_logins, logins } = args;
    if check {
        return report(&store::schema_state(database.url()).await?);
    }
    let logins = logins.named();
    if create_logins && logins.is_empty() {
        return Err(Error::usage_next(
            "--create-logins, and no URL says which",
            "set PALISADE_CONTROLLER_URL, PALISADE_WORKER_URL, PALISADE_REGISTRY_URL or PALISADE_READER_URL",
        ));
    }
    let limit = wait.map_or(Duration::ZERO, Span::duration);
    print(&migrate(&database, limit, allow_newer, &context).await?)?;
    if create_logins {
        for done in store::create_logins(database.url(), &logins).await? {
            let what = if done.made { "made" } else { "was there already, and has this password" };
            print(&format!("login {} in {}: {what}\n", done.name, done.group))?;
        }
    }
    Ok(())
}

/// Migrates as soon as the database answers, and says what it did.
async fn migrate(database: &Database, limit: Duration, allow_newer: bool, context: &Context) -> Result<String, Error> {
    const SAY_AGAIN: Duration = Duration::from_secs(10);
    let began = context.clock.now();
    let mut said = None;
    loop {
        let now = context.clock.now();
        match store::migrate(database.url()).await {
            Ok(done) => return Ok(describe(done)),
            Err(MigrateError::NewerDatabase { database, program }) if allow_newer => {
                return Ok(format!(
                    "schema version {database}: of a later release than this program, which knows {program}; it stays as it is\n"
                ));
            }
            Err(MigrateError::Unavailable(why)) if now.since(began) < limit => {
                if said.is_none_or(|said| now.since(said) >= SAY_AGAIN) {
                    said = Some(now);
                    let left = Span::from_secs(limit.saturating_sub(now.since(began)).as_secs());
                    tracing::warn!("waiting for the database, for {left} more: {why}");
                }
                tokio::time::sleep(around(Duration::from_secs(1))).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn describe(done: Migrated) -> String {
    let what = match done.applied {
        0 => "it was there already".to_owned(),
        1 => "1 migration applied".to_owned(),
        n => format!("{n} migrations applied"),
    };
    format!("schema version {}: {what}\n", done.version)
}

fn report(state: &SchemaState) -> Result<(), Error> {
    let SchemaState { database, program } = state;
    match database.cmp(program) {
        std::cmp::Ordering::Equal => print(&format!("schema version {program}: up to date\n")),
        std::cmp::Ordering::Less => Err(Error::failed_next(
            format!("the database has schema version {database}, and this program needs {program}"),
            "palisade migrate",
        )),
        std::cmp::Ordering::Greater => Err(Error::failed_next(
            format!("the database has schema version {database}, and this program knows only {program}"),
            "run a newer palisade",
        )),
    }
}
