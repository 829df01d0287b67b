//! What is installed in the cluster against what this program would install. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::finding::{Chart, Finding, Looked};
use crate::manifests::{self, Account, Settings};

const AGAIN: &str =
    "palisade crd --with-policy | kubectl apply --server-side -f - (with the accounts that you gave it before)";
const BACK: &str = "palisade crd --with-policy | kubectl replace -f - (with the accounts that you gave it before); an apply would leave \
    what others added";
const STALE: &str = "the policies refuse what a replaced worker still writes to objects: without them nothing does";

/// The objects of this kind and name, as they were found.
pub type Found = BTreeMap<(String, String), Looked<Option<Value>>>;

/// The policies and bindings that are installed, each by kind and name.
#[must_use]
pub fn names(settings: &Settings) -> Vec<(String, String)> {
    manifests::policies(settings).iter().filter_map(|object| key(&serde_json::to_value(object).ok()?)).collect()
}

fn key(object: &Value) -> Option<(String, String)> {
    Some((object["kind"].as_str()?.to_owned(), object["metadata"]["name"].as_str()?.to_owned()))
}

/// The accounts that the policies of an installation of this name say; nothing where they cannot be read.
#[must_use]
pub fn in_force(found: &Found, name: &str) -> Option<(Vec<Account>, Option<Account>)> {
    let workers = accounts(found, &format!("{name}-fence"), "worker");
    let controller = accounts(found, &format!("{name}-fence-accounts"), "controller").into_iter().next();
    (!workers.is_empty()).then_some((workers, controller))
}

fn accounts(found: &Found, policy: &str, variable: &str) -> Vec<Account> {
    let key = ("ValidatingAdmissionPolicy".to_owned(), policy.to_owned());
    let Some(Ok(Some(object))) = found.get(&key) else { return Vec::new() };
    let variables = object["spec"]["variables"].as_array().into_iter().flatten();
    let expression = variables.filter(|v| v["name"] == variable).find_map(|v| v["expression"].as_str());
    expression.unwrap_or_default().split('\'').skip(1).step_by(2).filter_map(Account::from_username).collect()
}

/// Whether each policy is there, and bound to the namespaces of these settings. What could not be looked at may be.
pub(super) fn cover(found: &Found, settings: &Settings) -> bool {
    manifests::policies(settings).iter().filter_map(|object| serde_json::to_value(object).ok()).all(|expected| {
        match key(&expected).and_then(|key| found.get(&key)) {
            Some(Ok(Some(object))) => {
                let namespaces = |object: &Value| object["spec"]["matchResources"]["namespaceSelector"].clone();
                let (expected, found) = (namespaces(&expected), namespaces(object));
                is_default(&expected) && is_default(&found) || difference(&expected, &found, "").is_none()
            }
            Some(Ok(None)) => false,
            _ => true,
        }
    })
}

/// Each policy and binding against what `settings` would install.
pub(super) fn check(chart: &mut Chart, found: &Found, settings: &Settings) {
    let before = chart.findings.len();
    let (mut unseen, mut policies, mut bindings) = (false, Vec::new(), Vec::new());
    for expected in manifests::policies(settings) {
        let Ok(expected) = serde_json::to_value(expected) else { continue };
        let Some(key) = key(&expected) else { continue };
        match found.get(&key).map(|looked| chart.seen("the admission policies", looked)) {
            Some(Some(Some(object))) => chart.findings.extend(one(&key.0, &key.1, &expected, object)),
            Some(Some(None)) if key.0.ends_with("Binding") => bindings.push(key.1),
            Some(Some(None)) => policies.push(key.1),
            _ => unseen = true,
        }
    }
    for (check, what, names) in [
        ("cluster/policy-missing", "admission policy", policies),
        ("cluster/binding-missing", "binding of a policy", bindings),
    ] {
        if !names.is_empty() {
            chart.add(Finding::error(check, format!("there is no {what} {}", names.join(", ")), STALE, AGAIN));
        }
    }
    if chart.findings.len() == before && !unseen {
        let workers: Vec<_> = settings.workers().map(ToString::to_string).collect();
        chart.add(Finding::ok("cluster/policies", format!("in force for {}", workers.join(", "))));
    }
}

fn one(kind: &str, name: &str, expected: &Value, found: &Value) -> Option<Finding> {
    let binding = kind.ends_with("Binding");
    if binding {
        let actions = found["spec"]["validationActions"].as_array();
        if !actions.into_iter().flatten().any(|action| action == "Deny") {
            return Some(Finding::error(
                "cluster/binding-not-denying",
                format!("the binding {name} has validationActions {}", found["spec"]["validationActions"]),
                "the policy only warns or notes: a stale write is let through",
                BACK,
            ));
        }
    } else if found["spec"]["failurePolicy"] != "Fail" {
        return Some(Finding::error(
            "cluster/policy-fails-open",
            format!("the admission policy {name} has failurePolicy {}", found["spec"]["failurePolicy"]),
            "where it cannot be evaluated, a stale write is let through",
            BACK,
        ));
    }
    let place = difference(&expected["spec"], &found["spec"], "spec")?;
    let (check, what) = if binding {
        ("cluster/binding-different", "binding")
    } else {
        ("cluster/policy-different", "admission policy")
    };
    Some(Finding::error(
        check,
        format!("the {what} {name} is not this program's: {place} differs"),
        "it was changed, or is another release's: what it refuses is not known",
        BACK,
    ))
}

/// The CRD against this program's.
pub(super) fn crd(chart: &mut Chart, found: Option<&Value>, pre: bool) {
    const INSTALL: &str = "palisade crd | kubectl apply --server-side -f -";
    let Some(found) = found else {
        return chart.add(if pre {
            Finding::ok("cluster/crd", "not installed yet")
        } else {
            Finding::error(
                "cluster/crd-missing",
                "the API server knows no ModelDeployment",
                "nothing can be asked for, and the controller has nothing to do",
                INSTALL,
            )
        });
    };
    let expected = serde_json::to_value(crate::crd::definition()).unwrap_or_default();
    let version = expected["spec"]["versions"][0]["name"].as_str().unwrap_or_default().to_owned();
    let versions = found["spec"]["versions"].as_array();
    let served = versions.into_iter().flatten().any(|v| v["name"] == version && v["served"] == true);
    let conditions = found["status"]["conditions"].as_array();
    let established = conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True");
    chart.add(if !served || !established {
        Finding::error(
            "cluster/crd-not-served",
            format!("the API server does not serve ModelDeployments of version {version}"),
            "controller and workers of this program speak no other version",
            INSTALL,
        )
    } else if let Some(place) = difference(&expected["spec"], &found["spec"], "spec") {
        Finding::warning(
            "cluster/crd-different",
            format!("the CRD of ModelDeployment is not this program's: {place} differs"),
            "a field that it does not know is dropped in silence; its rules keep a status from going back",
            "palisade crd | kubectl replace -f -; an apply would leave what others added",
        )
    } else {
        Finding::ok("cluster/crd", format!("{version}, this program's"))
    });
}

/// Where what was found says something else. What it says besides is a difference too, unless it is a default that the API
/// server fills in: one more condition can make a policy match nothing.
fn difference(expected: &Value, found: &Value, path: &str) -> Option<String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected {
                let path = format!("{path}.{key}");
                match found.get(key) {
                    Some(found) => match difference(value, found, &path) {
                        None => {}
                        differs => return differs,
                    },
                    None if is_default(value) => {}
                    None => return Some(path),
                }
            }
            let more = found.iter().find(|(key, value)| !expected.contains_key(*key) && !is_default(value));
            more.map(|(key, _)| format!("{path}.{key}"))
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.find_map(|(i, (expected, found))| difference(expected, found, &format!("{path}[{i}]")))
        }
        // A number of the YAML may come back as another type.
        (Value::Number(expected), Value::Number(found)) if expected.as_f64() == found.as_f64() => None,
        _ if expected == found => None,
        _ => Some(path.to_owned()),
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => matches!(text.as_str(), "Equivalent" | "*" | "ModelDeploymentList"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => {
            map.is_empty() || map.len() == 1 && map.get("strategy").is_some_and(|strategy| strategy == "None")
        }
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_added_is_a_difference_unless_the_api_server_fills_it_in() {
        let ours =
            json!({"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [{"resources": ["services"]}]}});
        let filled = json!({"failurePolicy": "Fail", "matchConstraints": {"matchPolicy": "Equivalent",
            "namespaceSelector": {}, "resourceRules": [{"resources": ["services"], "scope": "*"}]}});
        assert_eq!(difference(&ours, &filled, "spec"), None);
        let mut weaker = filled.clone();
        weaker["matchConditions"] = json!([{"name": "never", "expression": "false"}]);
        assert_eq!(difference(&ours, &weaker, "spec").as_deref(), Some("spec.matchConditions"));
        let mut narrower = filled;
        narrower["matchConstraints"]["resourceRules"][0]["resources"] = json!(["deployments"]);
        let place = "spec.matchConstraints.resourceRules[0].resources[0]";
        assert_eq!(difference(&ours, &narrower, "spec").as_deref(), Some(place));
    }
}
