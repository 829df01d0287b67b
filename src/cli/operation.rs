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
/// was not done yet; a statement on its way still may be, until the owner sends a later write, or it is abandoned.
/// forgotten: the ledger of so old a token was cleaned away.
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
    let meaning = match status.as_str() {
        "applied" => "it was done",
        "rejected" => "it was refused; nothing was changed",
        "never" => "it was not done, and never will be",
        "pending" => "it was not done yet; a statement on its way still may be",
        "forgotten" => "the ledger of so old a token was cleaned away",
        _ => "a newer palisade may know this word",
    };
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
    text
}
