//! `palisade operation`: what became of one fenced write.

use clap::Subcommand;
use serde::Serialize;

use super::output::{OutputArgs, Style, Tone, pairs, visible};
use super::resource::Resource;
use super::{Database, Error, Output};
use crate::lease::Fence;
use crate::store::OperationRow;

/// Find out what became of a fenced write, and close it
#[derive(Clone, Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Show(Show),
    Abandon(Abandon),
}

/// Show what the ledger says of one fence
///
/// applied: it was done. rejected: it was refused, and stays so. never: it was not done, and never will be. pending: it
/// was not done yet; it may not have arrived, or wait, or run, until the owner sends a later write, or it is abandoned.
/// forgotten: the ledger of so old a token was removed. `palisade history RESOURCE` lists the whole ledger.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade operation show shop/churn 4294967297/3
  palisade operation show shop/churn 4294967297/3 -o json | jq -r .status")]
struct Show {
    #[command(flatten)]
    what: What,
}

/// Close a fence: if its write was not done, it never will be
///
/// For a write whose outcome nobody knows and whose owner cannot ask any more. Afterwards the answer is final. If the
/// owner still works under this token, its next write goes on with a later sequence. Safe to repeat.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade operation abandon shop/churn 4294967297/3
  palisade operation abandon shop/churn 4294967297/3 -o yaml")]
struct Abandon {
    #[command(flatten)]
    what: What,
}

#[derive(Clone, Debug, clap::Args)]
struct What {
    /// What is owned; NAMESPACE/NAME stands for deployment/NAMESPACE/NAME
    resource: Resource,

    /// The write's fence, as logs and history have it
    #[arg(value_name = "TOKEN/SEQUENCE")]
    fence: Fence,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    pub(super) fn output(&self) -> Output {
        match &self.command {
            Command::Show(Show { what }) | Command::Abandon(Abandon { what }) => what.output.output,
        }
    }
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    resource: &'a str,
    fence: String,
    #[serde(flatten)]
    operation: OperationRow,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let (what, abandon) = match args.command {
        Command::Show(Show { what }) => (what, false),
        Command::Abandon(Abandon { what }) => (what, true),
    };
    let What { resource, fence, database, output } = what;
    let store = database.store("palisade operation")?;
    let resource = resource.lease(&store).await?.resource;
    let operation = if abandon {
        let answer = store.operation_abandon(&resource, fence.token.0, fence.sequence).await;
        answer.map_err(|error| Error::of_write(error, "run it again: it is safe to repeat"))?
    } else {
        store.operation_show(&resource, fence.token.0, fence.sequence).await?
    };
    let shown = Shown { resource: &resource, fence: fence.to_string(), operation };
    output.show(&shown, |style| draw(&shown, style))
}

fn draw(shown: &Shown<'_>, style: Style) -> String {
    let OperationRow { status, reason, current_token, result } = &shown.operation;
    let (meaning, next) = explain(status, shown);
    let tone = if status == "applied" { Tone::Good } else { Tone::Bad };
    let mut text = format!("{} of {}: ", shown.fence, visible(shown.resource));
    text += &format!("{} ({meaning})\n", style.paint(tone, &visible(status)));
    if let Some(reason) = reason {
        text += &format!("  reason:       {}\n", visible(reason));
    }
    if let Some(result) = result {
        text += &format!("  result:       {}\n", pairs(result));
    }
    if let Some(token) = current_token {
        text += &format!("  newest token: {token}\n");
    }
    text + &format!("  next:         {next}\n")
}

/// What a word means, and what to do about it.
fn explain(status: &str, shown: &Shown<'_>) -> (&'static str, String) {
    let (resource, fence) = (visible(shown.resource), &shown.fence);
    match status {
        "applied" => ("it was done", "nothing: sent again, it only gets its first answer".into()),
        "rejected" => (
            "it was refused; nothing was changed, and under this fence nothing will be",
            "see to the reason; then the owner sends it under its next sequence".into(),
        ),
        "never" => (
            "it was not done, and never will be",
            "nothing; to have it after all, the owner of today sends it under a new fence".into(),
        ),
        "pending" => (
            "it was not done yet: it has not arrived, or waits, or runs",
            format!("ask again, or close it: palisade operation abandon {resource} {fence}"),
        ),
        "forgotten" => (
            "so old that what became of it was removed",
            format!("look at what is there now: palisade history {resource}"),
        ),
        _ => ("a newer palisade may know this word", "use the palisade that made this schema".into()),
    }
}
