//! `palisade epoch`: which incarnation of the database hands out tokens, and what a person decides about it.

use clap::Subcommand;
use serde_json::json;

use super::controller::namespace;
use super::output::{OutputArgs, Style, Tone, confirmed, visible};
use super::{Database, Error, Kubeconfig, Output};
use crate::epoch::{Allocator, Cause, EpochView, InUse, Step};
use crate::manifests::SYSTEM_NAMESPACE;
use crate::store::Store;

/// See the epoch, take the next one, go on with a restored database
///
/// An epoch is the number of one incarnation of the database: the high part of every token. A controller allocates the
/// next one by itself after a restart, a crash or a failover. These commands are for what it does not decide alone. They
/// need a database login in the group role palisade_controller, and a kubeconfig that may read and update the ConfigMap
/// palisade-epoch, has the verb adopt on epochs.palisade.dev in its namespace (a cluster administrator has), and may list
/// Deployments, Services and ModelDeployments. Running controllers notice by themselves.
#[derive(Clone, Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Show(Show),
    Advance(Advance),
    Adopt(Adopt),
}

/// Show the epoch as database and cluster have it, and what comes next
///
/// Changes nothing.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade epoch show
  palisade epoch show -o json | jq -r .attention.action")]
struct Show {
    #[command(flatten)]
    place: Place,
}

/// Take the next epoch, above every token and fence that is in use
///
/// All sessions are closed; workers and controllers open new ones and take up their work where it was recorded. It cures
/// a fence or a token that is ahead of everything that was granted. Never needed after a restart or a failover.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade epoch advance
  palisade epoch advance --yes -o json")]
struct Advance {
    #[command(flatten)]
    change: Change,
}

/// Go on with a database that lacks an epoch which another one took over
///
/// For a restore from a backup, a dump in another server, or a new and empty database: a controller does not go on with
/// such a one by itself, for it could be the wrong one. The next epoch is above every number that is in use, and a
/// database that had the epoch until now refuses its clients from then on. Without such a loss nothing is changed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade epoch adopt
  palisade epoch adopt --yes -o json")]
struct Adopt {
    #[command(flatten)]
    change: Change,
}

#[derive(Clone, Debug, clap::Args)]
struct Change {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// Namespace of the ConfigMap `palisade-epoch`
    #[arg(short, long, default_value = SYSTEM_NAMESPACE, env = "PALISADE_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    namespace: String,

    /// Look for fences in this namespace only, as the controllers do [default: in all]
    #[arg(long, env = "PALISADE_WATCH_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    watch_namespace: Option<String>,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    cluster: Kubeconfig,

    #[command(flatten)]
    output: OutputArgs,
}

impl Place {
    async fn open(&self, application: &str) -> Result<(Store, Allocator), Error> {
        let store = self.database.store(application)?;
        let client = self.cluster.client().await?;
        let allocator = Allocator::new(store.clone(), client, &self.namespace, self.watch_namespace.as_deref());
        Ok((store, allocator))
    }
}

impl Args {
    pub(super) fn output(&self) -> Output {
        match &self.command {
            Command::Show(Show { place })
            | Command::Advance(Advance { change: Change { place, .. } })
            | Command::Adopt(Adopt { change: Change { place, .. } }) => place.output.output,
        }
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Show(args) => show(args).await,
        Command::Advance(args) => advance(args.change).await,
        Command::Adopt(args) => adopt(args.change).await,
    }
}

async fn show(Show { place }: Show) -> Result<(), Error> {
    let (_, allocator) = place.open("palisade epoch show").await?;
    let view = allocator.inspect().await?;
    place.output.show(&view, |style| draw(&view, style))
}

fn draw(view: &EpochView, style: Style) -> String {
    let EpochView { database, object, in_use, next, attention } = view;
    let number = |number: Option<i64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let state = if database.established { "established" } else { "not established: nothing is granted or written" };
    let mut text = format!("Database:  epoch {}, {state}\n", number(database.number));
    text += &format!("           incarnation {}\n", visible(&database.incarnation));
    text += &match object {
        Some(object) => {
            let whose =
                if object.incarnation == database.incarnation { "this database" } else { "another incarnation" };
            let taken = if object.taken_over { "" } else { ", which has not taken it over yet" };
            let name = visible(&object.incarnation);
            format!("Cluster:   epoch {} for {whose}{taken}\n           incarnation {name}\n", object.number)
        }
        None => "Cluster:   the ConfigMap palisade-epoch is not there, or damaged\n".to_owned(),
    };
    text += &match in_use {
        InUse { number: 0, .. } => "Objects:   none carries a fence\n".to_owned(),
        InUse { number, by } => format!("Objects:   up to epoch {number} ({})\n", visible(by)),
    };
    text += &format!("Next:      {}\n", next.map_or_else(|| "nothing by itself".to_owned(), ahead));
    if let Some(attention) = attention {
        let cause = style.paint(Tone::Bad, attention.cause.word());
        text += &format!("{cause}: {}\n", visible(&attention.message));
        text += &format!("Do:        {}\n", visible(attention.action));
    }
    text
}

fn ahead(step: Step) -> String {
    match step {
        Step::Fine { .. } => "nothing: database and cluster agree".to_owned(),
        Step::Establish { number } => format!("a controller establishes epoch {number}"),
        Step::Raise { number } => format!("a controller writes epoch {number} into the cluster's object"),
        Step::Allocate { above } => format!("a controller allocates an epoch above {above}, and above all objects'"),
        Step::Yield { number } => {
            format!("a controller waits whether epoch {number} is taken over, then allocates the next one")
        }
        Step::Ask { .. } => "nothing by itself: a person decides".to_owned(),
    }
}

async fn advance(Change { yes, place }: Change) -> Result<(), Error> {
    let (store, allocator) = place.open("palisade epoch advance").await?;
    let view = allocator.inspect().await?;
    if let Some(attention) = view.attention.filter(|attention| attention.cause != Cause::FenceAhead) {
        return Err(Error::rejected_next(attention.message, attention.action));
    }
    let open = store.figures().await?.sessions_open;
    let what = format!("a new epoch closes all sessions ({open} open); leases are granted anew");
    confirm(yes, &what, "the next epoch was not taken")?;
    done(&place, view.database.number, allocator.advance().await?)
}

async fn adopt(Change { yes, place }: Change) -> Result<(), Error> {
    let (_, allocator) = place.open("palisade epoch adopt").await?;
    let view = allocator.inspect().await?;
    match (&view.next, view.attention) {
        (Some(Step::Ask { .. }), Some(attention)) => {
            let what =
                format!("{}; from now on this database is the right one, any other is refused", attention.message);
            confirm(yes, &what, "the database was not adopted")?;
        }
        (_, Some(attention)) if attention.cause != Cause::FenceAhead => {
            return Err(Error::rejected_next(attention.message, attention.action));
        }
        _ => {}
    }
    done(&place, view.database.number, allocator.adopt().await?)
}

fn confirm(yes: bool, what: &str, not_done: &str) -> Result<(), Error> {
    if yes || confirmed(&format!("{what}. Go on?")) {
        return Ok(());
    }
    Err(Error::usage_next(
        format!("{not_done}, for nobody confirmed it: {what}"),
        "confirm at a terminal, or add --yes",
    ))
}

fn done(place: &Place, former: Option<i64>, number: i64) -> Result<(), Error> {
    let changed = former != Some(number);
    place.output.show(&json!({"epoch": number, "former": former, "changed": changed}), |_| {
        if changed {
            format!("epoch {number} is established\n")
        } else {
            format!("epoch {number} was established already\n")
        }
    })
}
