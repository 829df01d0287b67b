//! `palisade doctor`: whether all that Palisade stands on is as it must be.

use std::time::Duration;

use clap::{Args as _, CommandFactory};
use secrecy::SecretString;

use super::controller::namespace;
use super::output::{OutputArgs, Style, Tone, visible};
use super::process::{between, ttl};
use super::{Cli, Context, Error, Kubeconfig, Output};
use crate::crd::Span;
use crate::doctor::{self, Area, Configuration, Finding, Report, Severity, Visit, Wanted};
use crate::manifests::{Account, NAME, SYSTEM_NAMESPACE, Settings};
use crate::store::StoreConfig;

/// Check database, cluster and configuration: what is wrong, why it matters, what to do
///
/// Run it first when something does not work, after an upgrade, and with --pre before installing. It looks at what this
/// DATABASE_URL and this kubeconfig may look at, says what it could not see, and changes nothing (but see
/// --measure-writes). As a superuser and a cluster administrator it sees most; with the DATABASE_URL of a worker or
/// controller it sees what they see.
///
/// Exit codes: 0 nothing as bad as --fail-on · 7 the worst is a warning · 8 the worst is an error. docs/doctor.md explains
/// each finding.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  palisade doctor
  palisade doctor --pre                                  # is this Postgres, is this cluster suitable?
  palisade doctor --only database --fail-on warning      # for a script
  palisade doctor -o json | jq '.findings[] | select(.severity == \"error\")'")]
pub(super) struct Args {
    /// The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE. On the command line every local user can read it:
    /// prefer the variable
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,

    /// Before installing: may it be installed here? Nothing that is not there yet is missed
    #[arg(long)]
    pre: bool,

    /// Look at one area only
    #[arg(long, value_enum, value_name = "AREA")]
    only: Option<Area>,

    /// From which severity on the exit code is not 0
    #[arg(long, value_enum, default_value_t, value_name = "SEVERITY")]
    fail_on: FailOn,

    /// Open one session, send ten heartbeats, and close it: what a commit takes. Needs the login of a worker or controller
    #[arg(long)]
    measure_writes: bool,

    /// How long one question may take
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = timeout)]
    timeout: Span,

    /// The --ttl of controllers and workers
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = ttl)]
    ttl: Span,

    /// The --poll of workers
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = super::worker::poll)]
    poll: Span,

    /// The --keep-events of controllers
    #[arg(long, default_value = "7d", env = "PALISADE_KEEP_EVENTS", value_name = "DURATION", value_parser = super::controller::keep)]
    keep_events: Duration,

    /// What the names of roles, policies and default accounts begin with
    #[arg(long, default_value = NAME, env = "PALISADE_NAME", value_parser = super::crd::name, value_name = "NAME")]
    name: String,

    /// Namespace of Palisade's own objects
    #[arg(short, long, default_value = SYSTEM_NAMESPACE, env = "PALISADE_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    namespace: String,

    /// Palisade looks after this namespace only: rights are asked for there [default: in all]
    #[arg(long, env = "PALISADE_WATCH_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    watch_namespace: Option<String>,

    /// ServiceAccount of the workers; may be given several times [default: those that policies and roles name]
    #[arg(long, value_name = "NAMESPACE:NAME")]
    worker_account: Vec<Account>,

    /// ServiceAccount of the controller [default: the one that the policies name]
    #[arg(long, value_name = "NAMESPACE:NAME")]
    controller_account: Option<Account>,

    #[command(flatten)]
    cluster: Kubeconfig,

    #[command(flatten)]
    output: OutputArgs,
}

/// From when on it is a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum FailOn {
    /// Also warnings.
    Warning,
    /// Errors only.
    #[default]
    Error,
    /// The report is all that is wanted.
    Never,
}

fn timeout(text: &str) -> Result<Span, String> {
    between(text, Duration::from_millis(100), Duration::from_secs(60))
}

impl Args {
    pub(super) fn output(&self) -> Output {
        self.output.output
    }
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    let (fail_on, output) = (args.fail_on, args.output);
    let report = doctor::visit(visit(args).await?, &context.clock).await;
    output.show(&report, |style| draw(&report, style))?;
    let failed = match fail_on {
        FailOn::Never => false,
        FailOn::Error => report.worst >= Severity::Error,
        FailOn::Warning => report.worst >= Severity::Warning,
    };
    if failed { Err(Error::Found { errors: report.errors, warnings: report.warnings }) } else { Ok(()) }
}

async fn visit(args: Args) -> Result<Visit, Error> {
    let (workers_named, controller_named) = (!args.worker_account.is_empty(), args.controller_account.is_some());
    let settings = Settings::named(&args.name, &args.namespace, args.worker_account, args.controller_account)
        .and_then(|settings| settings.watching(args.watch_namespace.as_deref()));
    let timeout = args.timeout.duration();
    let asks_cluster = args.only.is_none_or(|only| only == Area::Cluster);
    let client = if asks_cluster { args.cluster.look().await } else { Err("not asked".into()) };
    let (unreadable, unknown) = variables();
    Ok(Visit {
        database: args.database_url.map(|url| StoreConfig {
            url,
            connections: 1,
            timeout,
            ..StoreConfig::new("", "palisade doctor")
        }),
        client,
        wanted: Wanted {
            settings: settings.map_err(|e| Error::usage(e.to_string()))?,
            workers_named,
            controller_named,
            pre: args.pre,
        },
        configuration: Configuration { ttl: args.ttl.duration(), poll: args.poll.duration(), unreadable, unknown },
        keep_events: args.keep_events,
        only: args.only,
        measure_writes: args.measure_writes,
        timeout,
    })
}

/// Variables of this environment that controller and worker cannot read, and those that nothing reads.
fn variables() -> (Vec<(String, String)>, Vec<String>) {
    let commands = [
        super::controller::Args::augment_args(clap::Command::new("controller")),
        super::worker::Args::augment_args(clap::Command::new("worker")),
    ];
    let mut unreadable: Vec<(String, String)> = Vec::new();
    for argument in commands.iter().flat_map(clap::Command::get_arguments) {
        let Some(name) = argument.get_env().map(|name| name.to_string_lossy().into_owned()) else { continue };
        // By itself: the first mistake hides no other one.
        let parsed = clap::Command::new("doctor").arg(argument.clone()).try_get_matches_from(["doctor"]);
        if let Err(error) = parsed
            && std::env::var_os(&name).is_some()
            && !unreadable.iter().any(|(known, _)| *known == name)
        {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            unreadable.push((name, line));
        }
    }
    let all = Cli::command();
    let known: Vec<String> = std::iter::once(&all)
        .chain(all.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_env().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    let ours =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|n| n.starts_with("PALISADE_"));
    // Those of hack/ and of the tests are not for this program.
    let others = ["PALISADE_PG_", "PALISADE_TEST_", "PALISADE_K8S_", "PALISADE_MODEL_"];
    let mut unknown: Vec<_> =
        ours.filter(|name| !known.contains(name) && !others.iter().any(|prefix| name.starts_with(prefix))).collect();
    unknown.sort();
    (unreadable, unknown)
}

/// What is fine on one line each; what is not, with why and what to do.
fn draw(report: &Report, style: Style) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in &report.findings {
        if finding.area() != area {
            area = finding.area();
            text += &format!(
                "{}{}\n",
                if text.is_empty() { "" } else { "\n" },
                style.paint(Tone::Strong, &area.to_uppercase())
            );
        }
        text += &line(finding, style);
    }
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let summary = match report.worst {
        Severity::Ok | Severity::Info => style.paint(Tone::Good, "nothing is wrong"),
        Severity::Warning | Severity::Error => {
            let both = format!("{}, {}", count(report.errors, "error"), count(report.warnings, "warning"));
            style.paint(if report.errors > 0 { Tone::Bad } else { Tone::Strong }, &both)
        }
    };
    text + "\n" + &summary + "\n"
}

fn line(finding: &Finding, style: Style) -> String {
    let (mark, tone) = match finding.severity {
        Severity::Ok => (style.glyph("✓", "ok     "), Tone::Good),
        Severity::Info => (style.glyph("i", "info   "), Tone::Faint),
        Severity::Warning => (style.glyph("!", "warning"), Tone::Strong),
        Severity::Error => (style.glyph("✗", "ERROR  "), Tone::Bad),
    };
    let name = finding.check.split('/').nth(1).unwrap_or(finding.check);
    let mut text = format!("  {} {name}: {}\n", style.paint(tone, mark), visible(&finding.what));
    for (label, words) in [("why", finding.why), ("do ", &finding.next)] {
        if !words.is_empty() {
            text += &format!("      {} {}\n", style.paint(Tone::Faint, label), visible(words));
        }
    }
    text
}
