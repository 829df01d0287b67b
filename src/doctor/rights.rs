//! What Palisade's accounts may do in the cluster: what they need, from the roles that are installed, and what they must
//! not have, because no fence could follow it. Pure.

use serde_yaml::Value;

use crate::manifests::{self, Account, EPOCH_OBJECT, Settings};

/// A right of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Whose.
    pub account: Account,
    /// For example `patch`.
    pub verb: String,
    /// The API group; empty: the core's.
    pub group: String,
    /// For example `deployments`, or `deployments/scale`.
    pub resource: String,
    /// Of one object only; empty: of all.
    pub name: String,
    /// In this namespace; empty: in all.
    pub namespace: String,
    /// Whether the account needs it, or must not have it.
    pub wanted: bool,
}

impl Right {
    /// What it is a right to, as `kubectl auth can-i` names it.
    pub(super) fn object(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        let name = if self.name.is_empty() { String::new() } else { format!(" {}", self.name) };
        format!("{}{dot}{}{name}", self.resource, self.group)
    }
}

const WRITES: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];
const ADMISSION: &str = "admissionregistration.k8s.io";

/// What a worker must not be able to do: writes without a fence, and changes of what checks the fence.
const NOT_A_WORKERS: &[(&str, &str, &[&str])] = &[
    ("apps", "deployments", &["deletecollection"]),
    ("apps", "deployments/scale", &["update", "patch"]),
    ("apps", "deployments/status", &["update", "patch"]),
    ("", "services", &["delete", "deletecollection"]),
    ("", "services/status", &["update", "patch"]),
    ("palisade.dev", "modeldeployments/status", &["update", "patch"]),
    ("", "serviceaccounts/token", &["create"]),
    ("", "serviceaccounts", &["impersonate"]),
    ("rbac.authorization.k8s.io", "clusterrolebindings", &["create", "update", "patch"]),
    (ADMISSION, "validatingadmissionpolicies", WRITES),
    (ADMISSION, "validatingadmissionpolicybindings", WRITES),
];

/// The same for the controller, which plans and never carries out.
const NOT_THE_CONTROLLERS: &[(&str, &str, &[&str])] = &[
    ("apps", "deployments", &["update", "patch", "delete", "deletecollection"]),
    ("apps", "deployments/scale", &["update", "patch"]),
    ("", "services", WRITES),
    ("", "serviceaccounts/token", &["create"]),
    ("", "serviceaccounts", &["impersonate"]),
    ("rbac.authorization.k8s.io", "clusterrolebindings", &["create", "update", "patch"]),
    (ADMISSION, "validatingadmissionpolicies", WRITES),
    (ADMISSION, "validatingadmissionpolicybindings", WRITES),
];

/// All rights to ask about.
#[must_use]
pub fn rights(settings: &Settings) -> Vec<Right> {
    let watched = settings.watched().unwrap_or_default();
    let workers_role = format!("{}-worker", settings.name());
    let mut rights = Vec::new();
    for role in manifests::rbac(settings) {
        let kind = role["kind"].as_str().unwrap_or_default();
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or(watched);
        let worker = role["metadata"]["name"] == workers_role.as_str();
        if kind == "ClusterRole" || kind == "Role" {
            for account in settings.workers().filter(|_| worker).chain((!worker).then(|| settings.controller())) {
                rights.extend(wanted(account, namespace, &role["rules"]));
            }
        }
    }
    for account in settings.workers() {
        rights.extend(unwanted(account, watched, NOT_A_WORKERS));
        // Whoever writes it decides which tokens count.
        rights.extend(["update", "patch", "delete"].map(|verb| Right {
            account: account.clone(),
            verb: verb.to_owned(),
            group: String::new(),
            resource: "configmaps".to_owned(),
            name: EPOCH_OBJECT.to_owned(),
            namespace: settings.namespace().to_owned(),
            wanted: false,
        }));
    }
    rights.extend(unwanted(settings.controller(), watched, NOT_THE_CONTROLLERS));
    rights
}

fn wanted(account: &Account, namespace: &str, rules: &Value) -> Vec<Right> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_sequence().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut rights = Vec::new();
    for rule in rules.as_sequence().into_iter().flatten() {
        let name = texts(&rule["resourceNames"]).first().cloned().unwrap_or_default();
        for (group, resource, verb) in texts(&rule["apiGroups"]).iter().flat_map(|group| {
            let verbs = texts(&rule["verbs"]);
            let resources = texts(&rule["resources"]).into_iter();
            resources
                .flat_map(move |resource| verbs.clone().into_iter().map(move |verb| (group, resource.clone(), verb)))
        }) {
            rights.push(Right {
                account: account.clone(),
                verb,
                group: group.clone(),
                resource,
                name: name.clone(),
                namespace: namespace.to_owned(),
                wanted: true,
            });
        }
    }
    rights
}

fn unwanted(account: &Account, namespace: &str, list: &[(&str, &str, &[&str])]) -> Vec<Right> {
    let all = list.iter().flat_map(|(group, resource, verbs)| verbs.iter().map(move |verb| (*group, *resource, *verb)));
    all.map(|(group, resource, verb)| Right {
        account: account.clone(),
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        name: String::new(),
        namespace: if matches!(group, ADMISSION | "rbac.authorization.k8s.io") { "" } else { namespace }.to_owned(),
        wanted: false,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_from_the_roles_that_are_installed() {
        let settings = Settings::new("palisade-system", [], None).expect("the defaults are good");
        let rights = rights(&settings);
        let words = |wanted: bool, name: &str| -> Vec<String> {
            let of = rights.iter().filter(|r| r.wanted == wanted && r.account.name() == name);
            of.map(|right| format!("{} {}", right.verb, right.object())).collect()
        };
        assert!(words(true, "palisade-worker").contains(&"patch deployments.apps".to_owned()));
        assert!(words(true, "palisade-controller").contains(&"update configmaps palisade-epoch".to_owned()));
        assert!(words(false, "palisade-worker").contains(&"patch deployments/scale.apps".to_owned()));
        // Nothing is both needed and forbidden.
        for name in ["palisade-worker", "palisade-controller"] {
            let both: Vec<_> = words(true, name).into_iter().filter(|w| words(false, name).contains(w)).collect();
            assert!(both.is_empty(), "{both:?}");
        }
    }
}
