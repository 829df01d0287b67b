//! `palisade lease`: who owns what.

use clap::Subcommand;
use serde_json::json;

use super::output::{OutputArgs, Style, Tone, confirmed, or_dash, span, table, visible, when};
use super::resource::Resource;
use super::{Database, Error, Output};
use crate::store::LeaseRow;

/// See who owns what, and take a lease away
#[derive(Clone, Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Ls(Ls),
    Show(Show),
    Revoke(Revoke),
}

/// List the leases
///
/// States: held; expired (its owner is silent, and the next one who asks takes over); free.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade lease ls
  palisade lease ls deployment/shop/ -o json")]
struct Ls {
    /// Only resources whose name begins like this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// Show one lease
///
/// A deployment's may be abbreviated: NAMESPACE/NAME stands for deployment/NAMESPACE/NAME.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade lease show shop/churn
  palisade lease show controller/default -o yaml")]
struct Show {
    /// What is owned
    resource: Resource,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// Take a lease from its owner
///
/// From then on whatever the owner still sends is refused, also what is already on its way. Its next heartbeat tells it
/// the reason. Another worker, or the same one, may acquire the lease anew: to keep a deployment as it is, set
/// spec.paused instead.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade lease revoke shop/churn --reason 'its node hangs'
  palisade lease revoke controller/default --reason 'drill' --yes")]
struct Revoke {
    /// What is owned
    resource: Resource,

    /// What the owner and the history are told: 1 to 512 characters
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

fn reason(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=512 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("a reason has 1 to 512 characters, and no control characters".into()),
    }
}

impl Args {
    pub(super) fn output(&self) -> Output {
        match &self.command {
            Command::Ls(Ls { output, .. })
            | Command::Show(Show { output, .. })
            | Command::Revoke(Revoke { output, .. }) => output.output,
        }
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Ls(args) => ls(args).await,
        Command::Show(args) => show(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn ls(args: Ls) -> Result<(), Error> {
    let leases = args.database.store("palisade lease ls")?.leases(&args.prefix).await?;
    args.output.show(&leases, |_| {
        table(
            ["RESOURCE", "TOKEN", "STATE", "OWNER", "LEFT", "GRANTED"],
            leases.iter().map(|lease| {
                [
                    lease.resource.clone(),
                    lease.token.to_string(),
                    lease.state.clone(),
                    or_dash(lease.owner.clone().unwrap_or_default()),
                    left(lease),
                    lease.granted_at.map_or_else(|| "-".to_owned(), when),
                ]
            }),
        )
    })
}

fn left(lease: &LeaseRow) -> String {
    match lease.left_ms {
        Some(left) if lease.state == "held" => span(left),
        _ => "-".to_owned(),
    }
}

async fn show(args: Show) -> Result<(), Error> {
    let store = args.database.store("palisade lease show")?;
    let lease = args.resource.lease(&store).await?;
    args.output.show(&lease, |style| draw(&lease, style))
}

fn draw(lease: &LeaseRow, style: Style) -> String {
    let owner = lease.owner.clone().unwrap_or_default();
    let state = match lease.state.as_str() {
        "held" => format!("held, {} left unless its owner's heartbeat renews it", left(lease)),
        "expired" => "expired: the next one who asks takes over".to_owned(),
        "free" => "free".to_owned(),
        other => other.to_owned(),
    };
    let lines = [
        ("Token", lease.token.to_string()),
        ("Sequence", format!("{} (the last write's number under this token)", lease.sequence)),
        ("State", state),
        ("Owner", or_dash(owner)),
        ("Granted", lease.granted_at.map_or_else(|| "-".to_owned(), when)),
    ];
    let mut text = style.paint(Tone::Strong, &visible(&lease.resource)) + "\n";
    for (name, value) in lines {
        text += &format!("  {:<10}{}\n", format!("{name}:"), visible(&value));
    }
    text
}

async fn revoke(args: Revoke) -> Result<(), Error> {
    let Revoke { resource, reason, yes, database, output } = args;
    let store = database.store("palisade lease revoke")?;
    let lease = resource.lease(&store).await?;
    let owner = lease.owner.as_deref().unwrap_or("nobody");
    if !yes && !confirmed(&format!("Take {} (token {}) from {owner}?", lease.resource, lease.token)) {
        return Err(Error::usage_next(
            format!("{} was not taken from {owner}: nobody confirmed it", lease.resource),
            "confirm at a terminal, or add --yes",
        ));
    }
    // Not repeated when the answer is lost: the second call could hit the next owner.
    let next = format!("palisade history {} shows whether it was done", lease.resource);
    let outcome = store.revoke(&lease.resource, &reason).await.map_err(|error| Error::of_write(error, &next))?;
    let former = outcome.applied()?.get("revoked").cloned().unwrap_or_default();
    let revoked = json!({"resource": lease.resource, "revoked": former, "owner": lease.owner, "reason": reason});
    output.show(&revoked, |_| format!("revoked {}: token {former} of {} is refused\n", lease.resource, visible(owner)))
}
