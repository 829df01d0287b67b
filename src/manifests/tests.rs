use std::{env, fs, path::Path};

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};

use super::*;

fn default() -> Settings {
    Settings::new(SYSTEM_NAMESPACE, [], None).expect("the defaults are good")
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it anew, and the diff is what others will see change.
fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file can be written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs; look at the difference after UPDATE_GOLDEN=1", path.display());
}

fn kind_and_name(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap_or("?"), object["metadata"]["name"].as_str().unwrap_or("?"))
}

// The chart installs this file.
#[test]
fn the_crd_is_as_others_know_it() {
    assert_golden("charts/palisade/files/crd.yaml", &print(&[crd()], Format::Yaml));
}

#[test]
fn rbac_and_policies_are_as_others_know_them() {
    let settings = default();
    assert_golden("tests/golden/policy.yaml", &print(&[rbac(&settings), policies(&settings)].concat(), Format::Yaml));
}

#[test]
fn the_crd_is_small_enough_for_a_client_side_apply() {
    // Such an apply keeps the whole object in an annotation, of which 256 KiB are allowed.
    assert!(print(&[crd()], Format::Json).len() < 64 * 1024);
}

#[test]
fn everything_comes_in_an_order_in_which_it_can_be_applied() {
    let order: Vec<_> = everything(&default()).iter().map(kind_and_name).collect();
    let at = |name: &str| order.iter().position(|o| o == name).unwrap_or_else(|| panic!("{name} is not in {order:?}"));
    assert_eq!(at("CustomResourceDefinition modeldeployments.palisade.dev"), 0);
    assert_eq!(at("Namespace palisade-system"), 1);
    assert!(at("ServiceAccount palisade-controller") < at("ClusterRoleBinding palisade-controller"));
    for policy in [
        "palisade-fence",
        "palisade-fence-epoch",
        "palisade-fence-accounts",
        "palisade-fence-epoch-object",
        "palisade-fence-create",
    ] {
        assert!(
            at(&format!("ValidatingAdmissionPolicy {policy}"))
                < at(&format!("ValidatingAdmissionPolicyBinding {policy}"))
        );
    }
    assert_eq!(order.len(), 1 + 3 + 6 + 10);
}

#[test]
fn every_policy_fails_closed_and_denies() {
    let mut policies_seen = 0;
    for object in policies(&default()) {
        if object["kind"] == "ValidatingAdmissionPolicy" {
            let policy: ValidatingAdmissionPolicy = serde_yaml::from_value(object).expect("a policy");
            assert_eq!(policy.spec.and_then(|spec| spec.failure_policy).as_deref(), Some("Fail"));
            policies_seen += 1;
        } else {
            let binding: ValidatingAdmissionPolicyBinding = serde_yaml::from_value(object).expect("a binding");
            let spec = binding.spec.expect("a spec");
            assert_eq!(spec.validation_actions, Some(vec!["Deny".to_owned()]));
            if let Some(parameter) = spec.param_ref {
                // Without a Service there is nothing to hold a new Deployment against: see create.yaml.
                let allowed = spec.policy_name.as_deref() == Some("palisade-fence-create");
                let action = if allowed { "Allow" } else { "Deny" };
                assert_eq!(parameter.parameter_not_found_action.as_deref(), Some(action));
            }
        }
    }
    assert_eq!(policies_seen, 5);
}

#[test]
fn a_worker_has_no_verb_that_a_fence_cannot_follow() {
    for object in rbac(&default()) {
        if kind_and_name(&object) != "ClusterRole palisade-worker" {
            continue;
        }
        let text = serde_yaml::to_string(&object).expect("YAML");
        for forbidden in ["*", "deletecollection", "update", "/scale", "/status", "escalate", "secrets"] {
            assert!(!text.contains(forbidden), "{forbidden}");
        }
        return;
    }
    panic!("there is no role for workers");
}

#[test]
fn flags_reach_every_place_where_an_account_is_named() {
    let workers = ["ml:blue", "ml:green.v2"].map(|account| account.parse().expect("an account"));
    let settings = Settings::new("other", workers, None).expect("good settings");
    let text = print(&everything(&settings), Format::Yaml);
    assert!(!text.contains("${") && !text.contains(SYSTEM_NAMESPACE) && !text.contains(":palisade-worker"), "{text}");
    assert!(text.contains("in ['system:serviceaccount:ml:blue', 'system:serviceaccount:ml:green.v2']"));
    // Of the accounts only the controller's is in the namespace that is made here.
    assert_eq!(text.matches("kind: ServiceAccount\nmetadata").count(), 1);
    assert!(text.contains("namespace: other"));
}

#[test]
fn an_installation_of_one_namespace_has_roles_there_and_fences_there() {
    let settings = Settings::named("blue", "blue-system", [], None).and_then(|s| s.watching(Some("ml"))).expect("good");
    for object in everything(&settings) {
        let (kind, name) =
            (object["kind"].as_str().expect("a kind"), object["metadata"]["name"].as_str().expect("a name"));
        assert!(!kind.starts_with("ClusterRole"), "{kind}");
        let palisades = ["CustomResourceDefinition", "Namespace"].contains(&kind);
        assert!(palisades || name.starts_with("blue-"), "{kind} {name}");
        let namespace = object["metadata"]["namespace"].as_str();
        if kind.starts_with("Role") {
            assert_eq!(namespace, Some(if name == "blue-epoch" { "blue-system" } else { "ml" }), "{kind} {name}");
        }
        if kind == "ValidatingAdmissionPolicyBinding" {
            assert_eq!(object["spec"]["policyName"], object["metadata"]["name"]);
            let selected = &object["spec"]["matchResources"]["namespaceSelector"]["matchLabels"];
            // Its own accounts are held by the rules wherever they are, and its epoch object lies in its own namespace.
            let fences = ["blue-fence", "blue-fence-create", "blue-fence-epoch"].contains(&name);
            assert_eq!(selected["kubernetes.io/metadata.name"] == "ml", fences, "{name}");
        }
    }
    let workers: Vec<_> = settings.workers().map(ToString::to_string).collect();
    assert_eq!(
        (workers, settings.controller().to_string()),
        (vec!["blue-system:blue-worker".to_owned()], "blue-system:blue-controller".to_owned())
    );
    assert!(Settings::named(&"a".repeat(49), "ml", [], None).is_err());
}

#[test]
fn a_name_that_kubernetes_would_refuse_is_refused_with_the_reason() {
    for (account, why) in [
        ("palisade-worker", "NAMESPACE:NAME"),
        (":worker", "1 to 63 characters"),
        ("ml:", "1 to 63 characters"),
        ("ml:a'] || true || ['", "lower-case"),
        ("ML:worker", "lower-case"),
        ("ml:-worker", "start or end"),
        ("ml:a..b", "1 to 63 characters"),
        ("a:b:c", "lower-case"),
    ] {
        let error = account.parse::<Account>().expect_err(account).to_string();
        assert!(error.contains(why), "{account}: {error}");
    }
    assert!(Settings::new("Palisade", [], None).is_err());
}

#[test]
fn one_account_cannot_be_controller_and_worker() {
    let account: Account = "ml:both".parse().expect("an account");
    let error = Settings::new("ml", [account.clone()], Some(account.clone())).expect_err("it is both");
    assert_eq!(error, SettingsError::Shared(account));
}

#[test]
fn json_is_one_object_for_kubectl() {
    let one: serde_json::Value = serde_json::from_str(&print(&[crd()], Format::Json)).expect("JSON");
    assert_eq!(one["kind"], "CustomResourceDefinition");
    let all: serde_json::Value = serde_json::from_str(&print(&everything(&default()), Format::Json)).expect("JSON");
    assert_eq!((all["kind"].as_str(), all["items"].as_array().map(Vec::len)), (Some("List"), Some(20)));
}
