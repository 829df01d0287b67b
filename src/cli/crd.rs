//! `palisade crd`: prints what is installed into a cluster before Palisade runs there.

use std::io::{self, Write};

use crate::manifests::{self, Account, Format, NAME, NameError, SYSTEM_NAMESPACE, Settings, SettingsError};

/// Print the CustomResourceDefinition, and with --with-policy all that a cluster needs besides.
///
/// The output is made for kubectl:
///
///   palisade crd --with-policy | kubectl apply --server-side -f -
///
/// Without the admission policies a worker that was replaced could change objects in the cluster (never the
/// registry), so workers write nothing there. The policies refuse fenced writes until a controller ran once: it
/// creates the ConfigMap `palisade-epoch`, their parameter.
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print also the namespace, ServiceAccounts, RBAC, and the admission policies that refuse a stale worker's writes
    #[arg(long)]
    pub with_policy: bool,

    /// What the names of roles, policies and default accounts begin with: another for each installation in a cluster
    #[arg(long, default_value = NAME, value_parser = name, value_name = "NAME", requires = "with_policy")]
    pub name: String,

    /// For an installation that looks after this namespace only: roles instead of cluster roles, and policies that hold
    /// there [default: for all]
    #[arg(long, value_parser = namespace, value_name = "NAMESPACE", requires = "with_policy")]
    pub watch_namespace: Option<String>,

    /// Namespace of Palisade's own objects
    #[arg(long, default_value = SYSTEM_NAMESPACE, value_parser = namespace, value_name = "NAMESPACE", requires = "with_policy")]
    pub namespace: String,

    /// ServiceAccount of the workers; may be given several times. One in another namespace must exist
    /// [default: NAMESPACE:NAME-worker]
    #[arg(long, value_name = "NAMESPACE:NAME", requires = "with_policy")]
    pub worker_account: Vec<Account>,

    /// ServiceAccount of the controller [default: NAMESPACE:NAME-controller]
    #[arg(long, value_name = "NAMESPACE:NAME", requires = "with_policy")]
    pub controller_account: Option<Account>,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mistake on the command line: exit code 2.
    #[error(transparent)]
    Usage(#[from] SettingsError),
    /// The output could not be written.
    #[error("cannot write the manifests: {0}")]
    Write(#[from] io::Error),
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no error.
pub fn run(args: Args) -> Result<(), Error> {
    let text = render(args)?;
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn render(args: Args) -> Result<String, SettingsError> {
    let Args { with_policy, name, watch_namespace, namespace, worker_account, controller_account, output } = args;
    let settings = Settings::named(&name, &namespace, worker_account, controller_account)?;
    let settings = settings.watching(watch_namespace.as_deref())?;
    let objects = if with_policy { manifests::everything(&settings) } else { vec![manifests::crd()] };
    Ok(manifests::print(&objects, output))
}

pub(super) fn name(text: &str) -> Result<String, NameError> {
    manifests::check_name(text).map(|()| text.to_owned())
}

fn namespace(text: &str) -> Result<String, NameError> {
    manifests::check_label(text).map(|()| text.to_owned())
}
