//! `palisade model`: the registry, as its plain clients see it. They hold no lease; a request id makes each call harmless
//! to repeat.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::output::{self, OutputArgs, Style, note, table, when};
use super::{Database, Error, Output};
use crate::outcome::{Outcome, Reason};
use crate::retry::Backoff;
use crate::store::{CallError, Model, Store, Version};

/// Register models and versions, and look at them
#[derive(Clone, Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Register(Register),
    Alias(Alias),
    Ls(Ls),
    Show(Show),
}

/// Register a model if it is new, and with --source and --digest its next version; prints the version's number
///
/// A version is immutable, and its number is never used again. A call that is not answered is repeated under the same
/// request id, so a version is registered once, however often the network fails. If even that does not help, the exit
/// code is 4, and the message has the --request under which to run it again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade model register churn --description 'Who is about to leave'
  palisade model register churn --source s3://models/churn/7 --digest sha256:… --tag git=1f3c9aa")]
struct Register {
    /// The model: 1 to 253 letters, digits, dots, dashes or underscores
    #[arg(value_parser = name)]
    name: String,

    /// Where the version's artifact is: any URI
    #[arg(long, value_name = "URI", requires = "digest", value_parser = source)]
    source: Option<String>,

    /// The artifact's digest: sha256: and 64 hexadecimal digits
    #[arg(long, value_name = "DIGEST", requires = "source", value_parser = digest)]
    digest: Option<String>,

    /// A free text by name; may be given several times. They are the version's, or the model's where no version is given
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,

    /// What the model is, for people; of a new model only
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,

    /// Names this registration: the same UUID again does not register twice [default: a fresh one]
    #[arg(long, value_name = "UUID")]
    request: Option<Uuid>,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// Point an alias at a version, or take it away
///
/// An alias that a deployment guards (its promoteAlias) is moved by that deployment's worker under its fence, and by
/// nobody else: for it the answer is a rejection (exit code 3).
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade model alias churn candidate 7
  palisade model alias churn candidate --delete")]
struct Alias {
    /// The model
    #[arg(value_parser = name)]
    name: String,

    /// The alias: named like a model
    #[arg(value_parser = name)]
    alias: String,

    /// The version that it points at from now on
    #[arg(required_unless_present = "delete", conflicts_with = "delete", value_parser = clap::value_parser!(i64).range(1..))]
    version: Option<i64>,

    /// Take the alias away
    #[arg(long)]
    delete: bool,

    /// Names this change: the same UUID again does not make it twice [default: a fresh one]
    #[arg(long, value_name = "UUID")]
    request: Option<Uuid>,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// List the registered models
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade model ls
  palisade model ls -o json | jq -r '.[].name'")]
struct Ls {
    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// Show a model's versions, the newest first, with the aliases that point at each
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade model show churn
  palisade model show churn -o json | jq '.versions[0].digest'")]
struct Show {
    /// The model
    #[arg(value_parser = name)]
    name: String,

    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    output: OutputArgs,
}

/// As the database checks it, but before anything is sent.
fn name(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.len() <= 253 && text.chars().all(inner) && edge(text.chars().next()) && edge(text.chars().last()) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 253 letters, digits, dots, dashes or underscores, with a letter or digit at both ends"
            .into())
    }
}

fn digest(text: &str) -> Result<String, String> {
    let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    match text.strip_prefix("sha256:") {
        Some(digits) if digits.len() == 64 && digits.bytes().all(hexadecimal) => Ok(text.to_owned()),
        _ => Err("a digest is sha256: and 64 lower-case hexadecimal digits, as sha256sum prints them".into()),
    }
}

fn source(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > 4096 {
        Err("a source is a URI of 1 to 4096 characters".into())
    } else if text.chars().any(char::is_control) {
        Err("a source has no control characters".into())
    } else {
        Ok(text.to_owned())
    }
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is KEY=VALUE".into()),
    }
}

impl Args {
    pub(super) fn output(&self) -> Output {
        match &self.command {
            Command::Register(Register { output, .. })
            | Command::Alias(Alias { output, .. })
            | Command::Ls(Ls { output, .. })
            | Command::Show(Show { output, .. }) => output.output,
        }
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Register(args) => register(args).await,
        Command::Alias(args) => alias(args).await,
        Command::Ls(args) => ls(args).await,
        Command::Show(args) => show(args).await,
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    model: String,
    /// Whether this call registered the model itself.
    new_model: bool,
    /// The version that was registered, if one was given.
    version: Option<i64>,
    request: Uuid,
}

async fn register(args: Register) -> Result<(), Error> {
    let Register { name, source, digest, tags, description, request, database, output } = args;
    let store = database.store("palisade model register")?;
    let request = request.unwrap_or_else(Uuid::new_v4);
    let tags: Map<String, Value> = tags.into_iter().map(|(key, value)| (key, value.into())).collect();
    let tags = Value::Object(tags);
    let none = Value::Object(Map::new());
    let version = source.zip(digest);
    let model_tags = if version.is_some() { &none } else { &tags };
    let model_request = derived(request);

    let outcome = answered(request, || store.register_model(&name, &description, model_tags, model_request)).await?;
    let new_model = match outcome {
        Outcome::Rejected(rejection) if rejection.reason == Reason::ModelExists => false,
        other => other.applied().map(|_| true)?,
    };
    if !new_model && !description.is_empty() {
        note("the model is there already: its description stays as it is");
    }
    let version = match version {
        None => None,
        Some((source, digest)) => {
            let call = || store.register_version(&name, &source, &digest, &tags, request);
            let result = answered(request, call).await?.applied()?;
            Some(number(&result, "version")?)
        }
    };
    let registered = Registered { model: name, new_model, version, request };
    output.show(&registered, |_| match (registered.version, registered.new_model) {
        // Only the number: it is what a script wants.
        (Some(version), _) => format!("{version}\n"),
        (None, true) => format!("registered model {}\n", registered.model),
        (None, false) => format!("model {} is there already\n", registered.model),
    })
}

fn number(result: &Value, field: &str) -> Result<i64, Error> {
    result.get(field).and_then(Value::as_i64).ok_or_else(|| {
        Error::failed_next(format!("the database's answer has no {field}: {result}"), "palisade migrate --check")
    })
}

/// The request id of the model's own registration: the version's has to be another, and both have to be the same when
/// the command is run again.
fn derived(request: Uuid) -> Uuid {
    let hash = Sha256::new_with_prefix(b"palisade model").chain_update(request.as_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Uuid::from_bytes(bytes)
}

/// Repeats a call that is not answered, under the same request id: it is done at most once.
async fn answered<F>(request: Uuid, mut call: impl FnMut() -> F) -> Result<Outcome, Error>
where
    F: Future<Output = Result<Outcome, CallError>>,
{
    let mut tries = Backoff::new(Duration::from_millis(200), Duration::from_secs(2), 4);
    let mut silent = false;
    loop {
        let why = match call().await {
            Ok(Outcome::Unknown(why)) => {
                silent = true;
                why
            }
            Ok(outcome) => return Ok(outcome),
            Err(error) if error.is_transient() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let Some(wait) = tries.next_wait() else {
            return Err(if silent {
                Error::unknown_next(
                    format!("the outcome is unknown: {why}"),
                    format!("run the same command again with --request {request}: it is done at most once"),
                )
            } else {
                Error::unavailable(why)
            });
        };
        tracing::info!(%request, "trying again: {why}");
        tokio::time::sleep(wait).await;
    }
}

async fn alias(args: Alias) -> Result<(), Error> {
    let Alias { name, alias, version, delete: _, request, database, output } = args;
    let store = database.store("palisade model alias")?;
    let request = request.unwrap_or_else(Uuid::new_v4);
    let result = answered(request, || store.put_alias(&name, &alias, version, request)).await?.applied()?;
    output.show(&result, |_| match version {
        Some(version) => format!("{name}@{alias} points at version {version}\n"),
        None => format!("{name}@{alias} points at nothing\n"),
    })
}

async fn ls(args: Ls) -> Result<(), Error> {
    let models = args.database.store("palisade model ls")?.models().await?;
    args.output.show(&models, |_| {
        let rows = models.iter().map(|model| {
            let latest = model.latest_version.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let description = output::short(&model.description, 60);
            [model.name.clone(), latest, aliases(&model.aliases), when(model.created_at), description]
        });
        table(["NAME", "LATEST", "ALIASES", "REGISTERED", "DESCRIPTION"], rows)
    })
}

fn aliases(aliases: &Value) -> String {
    let pairs = aliases.as_object().into_iter().flatten().map(|(alias, version)| format!("{alias}={version}"));
    output::or_dash(pairs.collect::<Vec<_>>().join(","))
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    model: Model,
    versions: Vec<Version>,
}

async fn show(args: Show) -> Result<(), Error> {
    let store = args.database.store("palisade model show")?;
    let shown = find(&store, &args.name).await?.ok_or_else(|| {
        let next = "palisade model ls shows what there is; palisade model register makes one";
        Error::not_found_next(format!("there is no model {:?}", args.name), next)
    })?;
    args.output.show(&shown, |style| draw(&shown, style))
}

async fn find(store: &Store, name: &str) -> Result<Option<Shown>, Error> {
    let Some(versions) = store.versions(name).await? else { return Ok(None) };
    let model = store.models().await?.into_iter().find(|model| model.name == name);
    Ok(model.map(|model| Shown { model, versions }))
}

fn draw(shown: &Shown, style: Style) -> String {
    let Shown { model, versions } = shown;
    let mut text = style.paint(output::Tone::Strong, &model.name);
    if !model.description.is_empty() {
        text += &format!(": {}", output::visible(&model.description));
    }
    text += "\n\n";
    if versions.is_empty() {
        return text + "no versions yet\n";
    }
    text + &table(
        ["VERSION", "ALIASES", "REGISTERED", "SOURCE", "DIGEST", "TAGS"],
        versions.iter().map(|version| {
            [
                version.version.to_string(),
                output::or_dash(version.aliases.join(",")),
                when(version.created_at),
                version.source.clone(),
                version.digest.clone(),
                output::pairs(&version.tags),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_the_database_would_refuse_are_refused_before_it_is_asked() {
        assert!(name("churn-v2.x_y").is_ok());
        for text in ["", "-a", "a-", "a b", "ä", "a/b", &"x".repeat(254)] {
            assert!(name(text).is_err(), "{text:?}");
        }
        assert!(digest(&format!("sha256:{}", "0a".repeat(32))).is_ok());
        for text in ["", "sha256:", "sha256:abc", &format!("sha256:{}", "0A".repeat(32)), &"0a".repeat(32)] {
            assert!(digest(text).is_err(), "{text:?}");
        }
        assert!(source("s3://a/b").is_ok() && source("").is_err() && source("a\u{1b}b").is_err());
        assert_eq!(tag("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(tag("=b").is_err() && tag("a").is_err());
    }

    #[test]
    fn model_and_version_are_registered_under_two_ids_that_stay_the_same() {
        let request = Uuid::new_v4();
        assert_ne!(derived(request), request);
        assert_eq!(derived(request), derived(request));
    }
}
