//! The cluster: version, what is installed, who may do what, the epoch object. Pure.

use std::collections::BTreeSet;

use super::admission::{self, Admission};
use super::finding::{Chart, Finding, Looked};
use super::policies::{self, Found};
use super::rights::Right;
use crate::epoch::{Attention, Cause, EpochObject, EpochView, Step};
use crate::manifests::{Account, Settings};

/// The oldest Kubernetes that is supported.
const OLDEST: (u32, u32) = (1, 33);

/// Why the cluster was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCluster {
    /// No kubeconfig, and not in a pod.
    Unconfigured,
    /// Nobody answers there, or not in time.
    Unreachable,
    /// The API server does not know who asks.
    Login,
}

/// All that was asked.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// What the cluster says, or why it says nothing.
    pub answers: Result<Answers, (NoCluster, String)>,
}

/// What a cluster says of itself. Each part has its own rights.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Major, minor, and the whole version.
    pub version: (String, String, String),
    /// Whether it has validating admission policies.
    pub policies_served: Looked<bool>,
    /// Who asks, as the API server sees it.
    pub identity: Looked<String>,
    /// Where Palisade is, and whose accounts are looked at.
    pub settings: Settings,
    /// The accounts were named on the command line, and not read from the policies.
    pub named: bool,
    /// Whether its namespace is there.
    pub namespace: Looked<bool>,
    /// The CRD.
    pub crd: Looked<Option<serde_json::Value>>,
    /// Policies and bindings.
    pub found: Found,
    /// What the API server refuses; nothing where it was not asked, since policies are missing or bound elsewhere.
    pub admission: Looked<Option<Admission>>,
    /// Who has the roles of workers and of the controller, by user name.
    pub bound: Looked<(Vec<String>, Vec<String>)>,
    /// The ServiceAccounts that are not there.
    pub missing_accounts: Looked<Vec<Account>>,
    /// What they may do.
    pub rights: Looked<Vec<(Right, bool)>>,
    /// What whoever asks may not do, of what an installation does.
    pub not_installable: Looked<Vec<String>>,
    /// The epoch object; an error text where it is damaged.
    pub epoch: Looked<Option<Result<EpochObject, String>>>,
}

/// All that can be said about the cluster. `view`: the epoch as database and cluster have it, where both were asked.
#[must_use]
pub fn check(facts: &ClusterFacts, view: Option<&Looked<EpochView>>, pre: bool) -> Vec<Finding> {
    let answers = match &facts.answers {
        Ok(answers) => answers,
        Err((why, message)) => return vec![no_cluster(*why, message)],
    };
    let mut chart = Chart::default();
    chart.add(version(&answers.version));
    if let Some(false) = chart.seen("the API groups", &answers.policies_served) {
        chart.add(Finding::error(
            "cluster/policies-not-served",
            "the API server has no ValidatingAdmissionPolicy",
            "stale writes to objects cannot be refused there",
            "use Kubernetes 1.33 or newer, and do not turn admissionregistration.k8s.io/v1 off",
        ));
    }
    if let Some(identity) = chart.seen("who asks", &answers.identity) {
        chart.add(Finding::ok("cluster/identity", format!("asked as {identity}")));
    }
    if let Some(found) = chart.seen("the CRD", &answers.crd) {
        policies::crd(&mut chart, found.as_ref(), pre);
    }
    if pre {
        if let Some(lacking) = chart.seen("what may be installed", &answers.not_installable) {
            chart.add(may_install(lacking));
        }
    } else {
        installed(&mut chart, answers);
        epoch(&mut chart, answers, view);
    }
    chart.finish(
        "cluster/unseen",
        "cluster/no-answer",
        "run the doctor with a kubeconfig that may look at it, such as the one of whoever installed Palisade",
    )
}

fn no_cluster(why: NoCluster, message: &str) -> Finding {
    const NEEDED: &str = "the controller needs the API server for its ModelDeployments and for every new epoch, workers for \
        what they roll out";
    match why {
        NoCluster::Unconfigured => Finding::error(
            "cluster/unconfigured",
            format!("no cluster is configured: {message}"),
            NEEDED,
            "set KUBECONFIG, run in a pod with a ServiceAccount, or look at the database only: --only database",
        ),
        NoCluster::Unreachable => Finding::error(
            "cluster/unreachable",
            message,
            NEEDED,
            "does kubectl version answer? If not: the address in the kubeconfig, firewalls, the API server's certificate",
        ),
        NoCluster::Login => Finding::error(
            "cluster/login-refused",
            message,
            NEEDED,
            "the credentials in the kubeconfig are wrong or have expired: get new ones",
        ),
    }
}

fn version((major, minor, whole): &(String, String, String)) -> Finding {
    // Some providers write 33+.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => {
            Finding::ok("cluster/version", format!("Kubernetes {whole}"))
        }
        (Some(_), Some(_)) => Finding::error(
            "cluster/version-too-old",
            format!("Kubernetes {whole}"),
            "Palisade is made for Kubernetes 1.33 and newer: older ones lack parts of the admission policies",
            "upgrade the cluster to Kubernetes 1.33 or newer",
        ),
        _ => Finding::warning(
            "cluster/version-unreadable",
            format!("the API server says that it is version {major:?}.{minor:?}"),
            "it cannot be told whether Palisade works there; it needs Kubernetes 1.33 or newer",
            "compare kubectl version by hand; is there a proxy before the API server?",
        ),
    }
}

fn may_install(lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("cluster/may-install", "you may install the CRD, accounts, roles and policies");
    }
    Finding::error(
        "cluster/may-not-install",
        format!("you may not {}", lacking.join(", ")),
        "palisade crd --with-policy makes these objects, for the whole cluster",
        "have a cluster administrator apply it, or run the doctor with his kubeconfig",
    )
}

fn installed(chart: &mut Chart, answers: &Answers) {
    let settings = &answers.settings;
    if let Some(false) = chart.seen("the namespace", &answers.namespace) {
        chart.add(Finding::error(
            "cluster/namespace-missing",
            format!("there is no namespace {}", settings.namespace()),
            "the epoch object lives there: without it every fenced write is refused",
            "palisade crd --with-policy | kubectl apply --server-side -f -, or name the right one with --namespace",
        ));
    }
    let in_force = policies::in_force(&answers.found, settings.name());
    // The policies against themselves for other accounts: which ones they name is another question, below.
    let policies_for =
        in_force.clone().and_then(|(workers, controller)| settings.clone().with_accounts(workers, controller).ok());
    policies::check(chart, &answers.found, policies_for.as_ref().unwrap_or(settings));
    if let Some(Some(heard)) = chart.seen("what the policies refuse", &answers.admission) {
        let now = answers.epoch.as_ref().ok().and_then(|found| Some(found.as_ref()?.as_ref().ok()?.number));
        admission::check(chart, heard, now);
    }
    accounts(chart, answers, in_force.as_ref());
    if let Some(missing) = chart.seen("the ServiceAccounts", &answers.missing_accounts) {
        for account in missing {
            chart.add(Finding::warning(
                "cluster/account-missing",
                format!("there is no ServiceAccount {account}"),
                "pods that name it are not started",
                format!("kubectl create serviceaccount {} --namespace {}", account.name(), account.namespace()),
            ));
        }
    }
    if let Some(rights) = chart.seen("what the accounts may do", &answers.rights) {
        permissions(chart, rights);
    }
}

/// Whoever has a worker's role, or is said to be a worker, must be one for the policies: they fence nobody else.
fn accounts(chart: &mut Chart, answers: &Answers, in_force: Option<&(Vec<Account>, Option<Account>)>) {
    let bound = chart.seen("the role bindings", &answers.bound).cloned().unwrap_or_default();
    let Some((workers, controller)) = in_force else { return };
    let (mut say, mut lead): (BTreeSet<_>, BTreeSet<_>) =
        (bound.0.into_iter().collect(), bound.1.into_iter().collect());
    if answers.named {
        say.extend(answers.settings.workers().map(Account::username));
        lead.insert(answers.settings.controller().username());
    }
    for name in say.iter().filter(|name| !workers.iter().any(|account| account.username() == **name)) {
        chart.add(Finding::error(
            "cluster/worker-unfenced",
            format!("{name} works as a worker, and the policy {}-fence does not name it", answers.settings.name()),
            "it is taken for a person, who needs no fence: what it writes after it was replaced is not refused",
            "palisade crd --with-policy --worker-account NAMESPACE:NAME (all of them) | kubectl apply --server-side -f -; or \
             take the role palisade-worker from it",
        ));
    }
    for name in lead.iter().filter(|name| controller.as_ref().map(Account::username).as_ref() != Some(*name)) {
        chart.add(Finding::warning(
            "cluster/controller-unlisted",
            format!(
                "{name} works as the controller, and the policy {}-fence-accounts does not name it",
                answers.settings.name()
            ),
            "it could make Deployments, which only workers do, under a fence",
            "palisade crd --with-policy --controller-account NAMESPACE:NAME | kubectl apply --server-side -f -",
        ));
    }
}

fn permissions(chart: &mut Chart, rights: &[(Right, bool)]) {
    let mut problems = false;
    let accounts: BTreeSet<&Account> = rights.iter().map(|(right, _)| &right.account).collect();
    for account in accounts {
        let of = |wanted: bool| {
            let wrong =
                rights.iter().filter(|(r, allowed)| r.account == *account && r.wanted == wanted && *allowed != wanted);
            words(wrong.map(|(right, _)| right))
        };
        let (lacking, excess) = (of(true), of(false));
        if !lacking.is_empty() {
            problems = true;
            chart.add(Finding::error(
                "cluster/rights-missing",
                format!("{account} may not {}", lacking.join("; ")),
                "its calls are refused: rollouts stop, or statuses are not written",
                "palisade crd --with-policy | kubectl apply --server-side -f -. Bound in one namespace only? Add --watch-namespace",
            ));
        }
        if !excess.is_empty() {
            problems = true;
            chart.add(Finding::warning(
                "cluster/rights-excess",
                format!("{account} may {}", excess.join("; ")),
                "no fence follows such a write, or it changes what checks the fence",
                format!(
                    "kubectl get clusterrolebindings,rolebindings -A -o wide | grep {}, and take away what is too much",
                    account.name()
                ),
            ));
        }
    }
    if !problems {
        chart.add(Finding::ok("cluster/rights", "controller and workers may do what they need, and no more"));
    }
}

/// By object, in the order in which they were asked about: `get, list deployments.apps; …`.
fn words<'a>(rights: impl Iterator<Item = &'a Right>) -> Vec<String> {
    let mut objects: Vec<(String, Vec<&str>)> = Vec::new();
    for right in rights {
        let object = right.object();
        match objects.last_mut().filter(|(last, _)| *last == object) {
            Some((_, verbs)) => verbs.push(&right.verb),
            None => objects.push((object, vec![&right.verb])),
        }
    }
    objects.into_iter().map(|(object, verbs)| format!("{} {object}", verbs.join(", "))).collect()
}

fn epoch(chart: &mut Chart, answers: &Answers, view: Option<&Looked<EpochView>>) {
    const POLICIES: &str = "the policies compare each fence with this object: while it is missing or damaged, every fenced write \
        is refused; what serves goes on serving";
    let place = format!("ConfigMap {}/{}", answers.settings.namespace(), crate::manifests::EPOCH_OBJECT);
    let Some(found) = chart.seen("the epoch object", &answers.epoch) else { return };
    let object = match found {
        None => {
            return chart.add(Finding::error(
                "cluster/epoch-object-missing",
                format!("there is no {place}"),
                POLICIES,
                "start a controller: it makes the object, above every number that is in use. Nothing else should",
            ));
        }
        Some(Err(message)) => {
            let action = Cause::ObjectDamaged.action();
            return chart.add(Finding::error("cluster/epoch-object-damaged", message.clone(), POLICIES, action));
        }
        Some(Ok(object)) => object,
    };
    let of_object = Finding::ok("cluster/epoch", format!("the object has epoch {}", object.number));
    let Some(view) = view.and_then(|looked| chart.seen("the fences in use", looked)) else {
        return chart.add(of_object);
    };
    if let Some(attention) = &view.attention {
        return chart.add(needs_a_person(attention));
    }
    chart.add(match view.next {
        Some(Step::Fine { number }) => {
            Finding::ok("cluster/epoch", format!("object and database have epoch {number}, and no fence is ahead of it"))
        }
        // The database's own finding says that it has none; the object waits for the controller.
        _ if !view.database.established => of_object,
        _ => Finding::error(
            "cluster/epoch-differs",
            format!(
                "the object has epoch {} of {}, the database {} of {}",
                object.number,
                object.incarnation,
                view.database.number.unwrap_or(0),
                view.database.incarnation
            ),
            "two databases for one cluster, or a number that was put there by hand: fences of the lower one are refused",
            "name the same database to doctor and controllers. If they do, a running controller mends it within seconds",
        ),
    });
}

/// What no controller decides by itself.
fn needs_a_person(attention: &Attention) -> Finding {
    let (check, why) = match attention.cause {
        Cause::LostBranch => (
            "cluster/epoch-lost",
            "no controller goes on with it by itself: with the wrong one, what the right one has would be lost",
        ),
        Cause::ObjectDamaged => ("cluster/epoch-object-damaged", "every fenced write is refused"),
        Cause::FenceAhead => (
            "cluster/fence-ahead",
            "its present owner's fences are lower: whatever he writes to this object is refused",
        ),
        Cause::UsedUp => {
            ("cluster/epochs-used-up", "after the next restart of Postgres nothing could be granted any more")
        }
    };
    Finding::error(check, attention.message.clone(), why, attention.action)
}
