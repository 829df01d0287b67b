//! What is installed into a cluster before Palisade runs there: the CRD, accounts with their rights, and the admission
//! policies that refuse a stale worker's writes.
//!
//! ```text
//! Settings ──▶ rbac.yaml, fence.yaml, create.yaml: ${…} filled in ──▶ objects, in the order in which they can be applied
//! crd::definition() ───────────────────────────────────▶
//! ```
//!
//! The files are those of the Helm chart, which fills them in the same way. The epoch object is not among them: the controller creates it at its first start, by compare-and-swap. Until then
//! the policies refuse every fenced write.

use std::{collections::BTreeSet, fmt, str::FromStr};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_yaml::{Mapping, Value};

pub mod names;
#[cfg(test)]
mod tests;

pub use names::*;

const RBAC: &str = include_str!("../../charts/palisade/files/rbac.yaml");
const FENCE: &str = include_str!("../../charts/palisade/files/fence.yaml");
const CREATE: &str = include_str!("../../charts/palisade/files/create.yaml");
/// The longest [`Settings::name`]: a Job of the chart has it as a prefix, and its name ends at 63 characters.
const NAME_MAX: usize = 48;

/// A ServiceAccount, written `NAMESPACE:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    namespace: String,
    name: String,
}

impl Account {
    /// The account `name` in `namespace`; both are checked.
    ///
    /// # Errors
    /// When one of them is a name that Kubernetes would refuse.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_label(namespace)?;
        // An account's name is a subdomain: labels, joined by dots.
        if name.len() > 253 {
            return Err(NameError { value: name.to_owned(), why: "it is longer than 253 characters" });
        }
        name.split('.').try_for_each(check_label).map_err(|e| NameError { value: name.to_owned(), ..e })?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The account that has this name at the API server.
    #[must_use]
    pub fn from_username(username: &str) -> Option<Self> {
        username.strip_prefix("system:serviceaccount:")?.parse().ok()
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name there.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name by which the API server knows the account's requests.
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.namespace, self.name)
    }
}

impl FromStr for Account {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once(':').ok_or_else(|| NameError {
            value: text.to_owned(),
            why: "an account is written NAMESPACE:NAME, for example palisade-system:palisade-worker",
        })?;
        Self::new(namespace, name)
    }
}

/// A name that Kubernetes would refuse, or that would not be the one name that was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?}: {why}")]
pub struct NameError {
    /// What was given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Checks a name of a namespace (an RFC 1123 label). So it can be put into a policy as it is.
///
/// # Errors
/// When Kubernetes would refuse it.
pub fn check_label(name: &str) -> Result<(), NameError> {
    let error = |why| Err(NameError { value: name.to_owned(), why });
    if name.is_empty() || name.len() > 63 {
        return error("a name has 1 to 63 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return error("a name has lower-case letters, digits and '-' only");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return error("a name may not start or end with '-'");
    }
    Ok(())
}

/// Checks the name of an installation.
///
/// # Errors
/// When objects of Kubernetes could not have names that begin with it.
pub fn check_name(name: &str) -> Result<(), NameError> {
    check_label(name)?;
    if name.len() > NAME_MAX {
        return Err(NameError {
            value: name.to_owned(),
            why: "it is longer than 48 characters, and is the beginning of other names",
        });
    }
    Ok(())
}

/// Where Palisade is installed, and who it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    name: String,
    namespace: String,
    watched: Option<String>,
    workers: BTreeSet<Account>,
    controller: Account,
}

/// Settings that contradict each other, or a name that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A name that Kubernetes would refuse.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The controller may not write what a worker writes.
    #[error("{0} cannot be both the controller's and a worker's account: what one may do, the other may not")]
    Shared(Account),
}

impl Settings {
    /// An installation of the default name, which looks after all namespaces. Without workers, or without a controller,
    /// the default accounts in `namespace` are meant.
    ///
    /// # Errors
    /// When a name would be refused by Kubernetes, or one account is both the controller's and a worker's.
    pub fn new(
        namespace: &str,
        workers: impl IntoIterator<Item = Account>,
        controller: Option<Account>,
    ) -> Result<Self, SettingsError> {
        Self::named(NAME, namespace, workers, controller)
    }

    /// The same under another name: roles, policies and default accounts begin with it.
    ///
    /// # Errors
    /// When a name would be refused by Kubernetes, or one account is both the controller's and a worker's.
    pub fn named(
        name: &str,
        namespace: &str,
        workers: impl IntoIterator<Item = Account>,
        controller: Option<Account>,
    ) -> Result<Self, SettingsError> {
        check_name(name)?;
        check_label(namespace)?;
        let settings = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            watched: None,
            workers: BTreeSet::new(),
            controller: Account::new(namespace, &format!("{name}-controller"))?,
        };
        settings.with_accounts(workers, controller)
    }

    /// The same installation, which looks after the ModelDeployments of one namespace only.
    ///
    /// # Errors
    /// When Kubernetes would refuse the name.
    pub fn watching(self, namespace: Option<&str>) -> Result<Self, SettingsError> {
        namespace.map_or(Ok(()), check_label)?;
        Ok(Self { watched: namespace.map(str::to_owned), ..self })
    }

    /// The same installation with other accounts; without workers the default one, without a controller the one it has.
    ///
    /// # Errors
    /// When one account is both the controller's and a worker's.
    pub fn with_accounts(
        self,
        workers: impl IntoIterator<Item = Account>,
        controller: Option<Account>,
    ) -> Result<Self, SettingsError> {
        let mut workers: BTreeSet<_> = workers.into_iter().collect();
        if workers.is_empty() {
            workers.insert(Account::new(&self.namespace, &format!("{}-worker", self.name))?);
        }
        let controller = controller.unwrap_or(self.controller);
        if workers.contains(&controller) {
            return Err(SettingsError::Shared(controller));
        }
        Ok(Self { workers, controller, ..self })
    }

    /// What the names of its roles and policies begin with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one namespace that it looks after; `None`: all of them.
    #[must_use]
    pub fn watched(&self) -> Option<&str> {
        self.watched.as_deref()
    }

    /// Namespace of Palisade's own objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The workers' accounts.
    pub fn workers(&self) -> impl Iterator<Item = &Account> {
        self.workers.iter()
    }

    /// The controller's account.
    #[must_use]
    pub fn controller(&self) -> &Account {
        &self.controller
    }

    fn fill(&self, template: &str) -> String {
        let workers: Vec<_> = self.workers.iter().collect();
        let controllers = [&self.controller];
        let accounts: Vec<_> = workers.iter().copied().chain(controllers).collect();
        let watched = |line: &dyn Fn(&str) -> String| self.watched.as_deref().map_or_else(String::new, line);
        template
            .replace("${NAME}", &self.name)
            .replace("${NAMESPACE}", &self.namespace)
            .replace("${SCOPE}", if self.watched.is_some() { "" } else { "Cluster" })
            .replace("${IN_WATCHED}", &watched(&|namespace| format!("namespace: \"{namespace}\"")))
            .replace("${WATCHED}", &watched(&|namespace| {
                format!("matchResources: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: \"{namespace}\"}}}}}}")
            }))
            .replace("${ACCOUNTS}", &usernames(&accounts))
            .replace("${WORKERS}", &usernames(&workers))
            .replace("${CONTROLLERS}", &usernames(&controllers))
            .replace("${WORKER_SUBJECTS}", &subjects(&workers))
            .replace("${CONTROLLER_SUBJECTS}", &subjects(&controllers))
    }

    fn own_namespace(&self) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: \"{}\"}}\n---\n", self.namespace)
    }

    /// The accounts themselves. One in another namespace belongs to whoever made that namespace.
    fn service_accounts(&self) -> String {
        let own = self.workers.iter().chain([&self.controller]).filter(|account| account.namespace == self.namespace);
        own.map(|Account { namespace, name }| {
            format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: \"{name}\", namespace: \"{namespace}\"}}\n---\n")
        })
        .collect()
    }
}

/// A CEL list. No name has a quote in it: [`Account::new`] saw to that.
fn usernames(accounts: &[&Account]) -> String {
    let quoted: Vec<_> = accounts.iter().map(|account| format!("'{}'", account.username())).collect();
    format!("[{}]", quoted.join(", "))
}

fn subjects(accounts: &[&Account]) -> String {
    let subjects: Vec<_> = accounts
        .iter()
        .map(|Account { namespace, name }| {
            format!("{{kind: ServiceAccount, name: \"{name}\", namespace: \"{namespace}\"}}")
        })
        .collect();
    format!("[{}]", subjects.join(", "))
}

/// The CustomResourceDefinition of ModelDeployment.
#[must_use]
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "what is written is this program's own; a golden file holds it"
)]
pub fn crd() -> Value {
    // A type of k8s-openapi: its maps have strings for keys, and YAML has a form for everything else.
    serde_yaml::to_value(crate::crd::definition()).expect("a CRD can be written as YAML")
}

/// Namespace, ServiceAccounts, roles and their bindings.
pub fn rbac(settings: &Settings) -> Vec<Value> {
    [settings.own_namespace(), settings.service_accounts(), settings.fill(RBAC)]
        .iter()
        .flat_map(|text| documents(text))
        .collect()
}

/// The admission policies and their bindings.
pub fn policies(settings: &Settings) -> Vec<Value> {
    [FENCE, CREATE].iter().flat_map(|template| documents(&settings.fill(template))).collect()
}

/// What the policies are asked about by a dry run: an object that has a ModelDeployment's label, or not, and this for a fence.
/// Otherwise it is like the Services that workers make, so that whoever takes those has no other reason to refuse it. It
/// has no pod template, of which somebody else's policies could think otherwise, and the API server makes up its name, lest
/// there be one of that name.
pub(crate) fn question(labelled: bool, fence: &str) -> Service {
    let entry = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let port = ServicePort {
        name: Some("http".to_owned()),
        port: 80,
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            generate_name: Some("palisade-asks-".to_owned()),
            labels: labelled.then(|| entry(DEPLOYMENT_LABEL, "palisade-asks")),
            annotations: Some(entry(FENCE_ANNOTATION, fence)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(entry(REVISION_LABEL, "none")),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Everything, in an order in which it can be applied.
pub fn everything(settings: &Settings) -> Vec<Value> {
    [vec![crd()], rbac(settings), policies(settings)].concat()
}

#[expect(clippy::expect_used, reason = "what is read is this program's own; the tests read all of it")]
fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        // The templates are part of the program, and names are checked before they are filled in; the tests read both.
        .map(|document| serde::Deserialize::deserialize(document).expect("the templates are YAML"))
        .filter(|document| *document != Value::Null)
        .collect()
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// YAML documents.
    #[default]
    Yaml,
    /// One JSON object: the object itself, or a List of all.
    Json,
}

/// The objects as text that `kubectl apply -f -` reads.
#[must_use]
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "what is written is this program's own; a golden file holds it"
)]
pub fn print(objects: &[Value], format: Format) -> String {
    match format {
        // What was parsed from YAML, or written to it, can be written again.
        Format::Yaml => objects
            .iter()
            .map(|object| serde_yaml::to_string(object).expect("YAML can be written"))
            .collect::<Vec<_>>()
            .join("---\n"),
        Format::Json => {
            let text = match objects {
                [object] => serde_json::to_string_pretty(object),
                _ => serde_json::to_string_pretty(&list(objects)),
            };
            // All keys are strings.
            text.expect("manifests can be written as JSON") + "\n"
        }
    }
}

fn list(objects: &[Value]) -> Mapping {
    [("apiVersion", "v1".into()), ("kind", "List".into()), ("items", objects.into())]
        .map(|(key, value): (&str, Value)| (key.into(), value))
        .into_iter()
        .collect()
}
