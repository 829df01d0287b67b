//! Asks the API server. It reads, asks who may do what, and sends a few dry runs; it changes nothing.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, GetParams, PostParams};
use kube::core::Request;
use serde_json::Value;

use super::admission::{self, Admission};
use super::cluster::{Answers, ClusterFacts, NoCluster};
use super::finding::{Looked, Unseen};
use super::policies::{self, Found};
use super::rights::{Right, rights};
use crate::epoch::EpochObject;
use crate::manifests::{Account, EPOCH_OBJECT, Settings};

/// Questions to the API server at once.
const AT_ONCE: usize = 8;
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Where to look, and for whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Namespace and accounts; what is not named is read from the cluster.
    pub settings: Settings,
    /// The workers' accounts were named.
    pub workers_named: bool,
    /// The controller's account was named.
    pub controller_named: bool,
    /// Nothing is installed yet.
    pub pre: bool,
}

struct Look {
    client: Client,
    timeout: Duration,
}

/// Asks a cluster all that the doctor wants to know. It never fails: what has no answer is a fact as well.
pub async fn cluster_facts(client: Result<Client, String>, wanted: &Wanted, timeout: Duration) -> ClusterFacts {
    let answers = match client {
        Err(message) => Err((NoCluster::Unconfigured, message)),
        Ok(client) => Look { client, timeout }.answers(wanted).await,
    };
    ClusterFacts { answers }
}

impl Look {
    async fn answers(&self, wanted: &Wanted) -> Result<Answers, (NoCluster, String)> {
        let version = match tokio::time::timeout(self.timeout, self.client.apiserver_version()).await {
            Err(_) => {
                return Err((
                    NoCluster::Unreachable,
                    format!("no answer from the API server within {:?}", self.timeout),
                ));
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                return Err((NoCluster::Login, status.message.clone()));
            }
            Ok(Err(error)) => return Err((NoCluster::Unreachable, told(&error))),
            Ok(Ok(info)) => (info.major, info.minor, info.git_version),
        };
        let identity = match self.identity().await {
            // Some API servers tell everybody their version.
            Err(Unseen::NotAllowed(message)) if message.contains("Unauthorized") => {
                return Err((NoCluster::Login, message));
            }
            other => other,
        };
        let mut found = Found::new();
        for (kind, name) in policies::names(&wanted.settings) {
            let url = format!(
                "{ADMISSION}/{}",
                if kind.ends_with("Binding") {
                    "validatingadmissionpolicybindings"
                } else {
                    "validatingadmissionpolicies"
                }
            );
            let object = self.object(&url, &name).await;
            found.insert((kind, name), object);
        }
        let bound = self.bound(&wanted.settings).await;
        let settings = settings(wanted, &found, &bound);
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        Ok(Answers {
            version,
            policies_served: self.policies_served().await,
            named: wanted.workers_named || wanted.controller_named,
            namespace: self.object("/api/v1/namespaces", settings.namespace()).await.map(|object| object.is_some()),
            crd: self.object(crds, "modeldeployments.palisade.dev").await,
            missing_accounts: self.missing_accounts(&settings).await,
            rights: if wanted.pre { Ok(Vec::new()) } else { self.rights(&settings, identity.as_deref().ok()).await },
            not_installable: if wanted.pre { self.not_installable(&settings).await } else { Ok(Vec::new()) },
            admission: if wanted.pre {
                Ok(None)
            } else {
                self.admission(&settings, &found, identity.as_deref().ok()).await
            },
            // After the questions: their answers count only if it is still the epoch that they were about.
            epoch: self.epoch(settings.namespace()).await,
            identity,
            settings,
            found,
            bound,
        })
    }

    /// One request, with an end.
    async fn call<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Looked<T> {
        match tokio::time::timeout(self.timeout, request).await {
            Err(_) => Err(Unseen::NoAnswer(format!("within {:?}", self.timeout))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                Err(Unseen::NotAllowed(status.message.clone()))
            }
            Ok(Err(error)) => Err(Unseen::NoAnswer(told(&error))),
        }
    }

    async fn object(&self, url: &str, name: &str) -> Looked<Option<Value>> {
        let request = Request::new(url).get(name, &GetParams::default());
        let request = request.map_err(|e| Unseen::NoAnswer(format!("{url}/{name}: {e}")))?;
        self.call(async {
            match self.client.request::<Value>(request).await {
                Ok(object) => Ok(Some(object)),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn policies_served(&self) -> Looked<bool> {
        self.call(async {
            match self.client.list_api_group_resources("admissionregistration.k8s.io/v1").await {
                Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == "validatingadmissionpolicies")),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn identity(&self) -> Looked<String> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let answer = self.call(api.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let user = answer.status.and_then(|status| status.user_info).and_then(|info| info.username);
        Ok(user.unwrap_or_default())
    }

    /// Who has the workers' role, and who the controller's.
    async fn bound(&self, settings: &Settings) -> Looked<(Vec<String>, Vec<String>)> {
        let bindings = settings.watched().map_or_else(
            || format!("{RBAC}/clusterrolebindings"),
            |namespace| format!("{RBAC}/namespaces/{namespace}/rolebindings"),
        );
        let mut both = Vec::with_capacity(2);
        for part in ["worker", "controller"] {
            let name = format!("{}-{part}", settings.name());
            let binding = self.object(&bindings, &name).await?.unwrap_or_default();
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            both.push(
                subjects
                    .map(|subject| {
                        let name = subject["name"].as_str().unwrap_or_default();
                        match (subject["kind"].as_str(), subject["namespace"].as_str()) {
                            (Some("ServiceAccount"), Some(namespace)) => {
                                format!("system:serviceaccount:{namespace}:{name}")
                            }
                            _ => name.to_owned(),
                        }
                    })
                    .collect(),
            );
        }
        let controllers = both.pop().unwrap_or_default();
        Ok((both.pop().unwrap_or_default(), controllers))
    }

    /// What the policies refuse, asked if they are all there, and for the namespaces that are looked at. Palisade's own accounts
    /// are held to more than others.
    async fn admission(&self, settings: &Settings, found: &Found, identity: Option<&str>) -> Looked<Option<Admission>> {
        if !policies::cover(found, settings) {
            return Ok(None);
        }
        let mut accounts = settings.workers().chain([settings.controller()]);
        if accounts.any(|account| identity == Some(account.username().as_str())) {
            return Err(Unseen::NotAllowed("one of Palisade's own accounts cannot ask for others".to_owned()));
        }
        let epoch = self.epoch(settings.namespace()).await.ok().flatten().and_then(Result::ok);
        Ok(Some(admission::ask(&self.client, settings, epoch.as_ref(), self.timeout).await))
    }

    async fn missing_accounts(&self, settings: &Settings) -> Looked<Vec<Account>> {
        let mut missing = Vec::new();
        for account in settings.workers().chain([settings.controller()]) {
            let url = format!("/api/v1/namespaces/{}/serviceaccounts", account.namespace());
            if self.object(&url, account.name()).await?.is_none() {
                missing.push(account.clone());
            }
        }
        Ok(missing)
    }

    /// What the accounts may do. One of them may ask about itself; about others, whoever may create reviews.
    async fn rights(&self, settings: &Settings, identity: Option<&str>) -> Looked<Vec<(Right, bool)>> {
        let mut all = rights(settings);
        let me = |right: &Right| identity == Some(right.account.username().as_str());
        if all.iter().any(me) {
            all.retain(me);
        }
        let asked = all.into_iter().map(|right| async move {
            let allowed = if me(&right) { self.may_i(attributes(&right)).await? } else { self.may(&right).await? };
            Ok((right, allowed))
        });
        futures::stream::iter(asked).buffered(AT_ONCE).try_collect().await
    }

    async fn may(&self, right: &Right) -> Looked<bool> {
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let groups = ["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()];
        let own = format!("system:serviceaccounts:{}", right.account.namespace());
        let spec = SubjectAccessReviewSpec {
            user: Some(right.account.username()),
            groups: Some(groups.into_iter().chain([own]).collect()),
            resource_attributes: Some(attributes(right)),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = self.call(api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn may_i(&self, attributes: ResourceAttributes) -> Looked<bool> {
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = self.call(api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// What an installation makes, and whoever asks may not.
    async fn not_installable(&self, settings: &Settings) -> Looked<Vec<String>> {
        let mut lacking = Vec::new();
        for (group, resource, namespaced) in [
            ("apiextensions.k8s.io", "customresourcedefinitions", false),
            ("", "namespaces", false),
            ("", "serviceaccounts", true),
            ("rbac.authorization.k8s.io", "clusterroles", false),
            ("rbac.authorization.k8s.io", "clusterrolebindings", false),
            ("rbac.authorization.k8s.io", "roles", true),
            ("rbac.authorization.k8s.io", "rolebindings", true),
            ("admissionregistration.k8s.io", "validatingadmissionpolicies", false),
            ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", false),
        ] {
            for verb in ["create", "patch"] {
                let attributes = ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some(verb.to_owned()),
                    namespace: namespaced.then(|| settings.namespace().to_owned()),
                    ..ResourceAttributes::default()
                };
                if !self.may_i(attributes).await? {
                    lacking.push(format!("{verb} {resource}"));
                }
            }
        }
        Ok(lacking)
    }

    async fn epoch(&self, namespace: &str) -> Looked<Option<Result<EpochObject, String>>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = self.call(api.get_opt(EPOCH_OBJECT)).await?;
        Ok(found.map(|object| EpochObject::try_from(&object).map_err(|error| error.to_string())))
    }
}

/// Whose accounts are looked at: as the command line says, else as policies and role bindings say, else as by default.
fn settings(wanted: &Wanted, found: &Found, bound: &Looked<(Vec<String>, Vec<String>)>) -> Settings {
    let (fenced, controller) = policies::in_force(found, wanted.settings.name()).unwrap_or_default();
    let workers: Vec<Account> = if wanted.workers_named {
        wanted.settings.workers().cloned().collect()
    } else {
        let bound = bound.iter().flat_map(|(workers, _)| workers).filter_map(|name| Account::from_username(name));
        fenced.into_iter().chain(bound).collect()
    };
    let controller =
        controller.filter(|_| !wanted.controller_named).unwrap_or_else(|| wanted.settings.controller().clone());
    let named = wanted.settings.clone().with_accounts(workers, Some(controller));
    named.unwrap_or_else(|_| wanted.settings.clone())
}

fn attributes(right: &Right) -> ResourceAttributes {
    let (resource, subresource) =
        right.resource.split_once('/').map_or((right.resource.as_str(), None), |(r, s)| (r, Some(s)));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ResourceAttributes {
        group: Some(right.group.clone()),
        resource: Some(resource.to_owned()),
        subresource: subresource.map(str::to_owned),
        verb: Some(right.verb.clone()),
        name: some(&right.name),
        namespace: some(&right.namespace),
        ..ResourceAttributes::default()
    }
}

/// The API server's own words, and the innermost cause: "connection refused" says more than "client error (Connect)".
fn told(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    format!("{error}: {source}")
}
