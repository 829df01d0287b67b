//! `palisade migrate`: the schema.

use super::output::print;
use super::{Database, Error};
use crate::store::{self, SchemaState};

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
  palisade migrate --check    # changes nothing; exit code 1 where something is to be done")]
pub(super) struct Args {
    #[command(flatten)]
    database: Database,

    /// Change nothing; say whether the schema is this program's (exit code 0), or not (1)
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let Args { database, check } = args;
    if check {
        return report(&store::schema_state(database.url()).await?);
    }
    let done = store::migrate(database.url()).await?;
    let what = match done.applied {
        0 => "it was there already".to_owned(),
        1 => "1 migration applied".to_owned(),
        n => format!("{n} migrations applied"),
    };
    print(&format!("schema version {}: {what}\n", done.version))
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
