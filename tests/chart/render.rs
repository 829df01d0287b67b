//! What the chart renders for the values in ci/, and which values it refuses.

use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::Value;

use crate::support::helm::{chart, helm, name_of, objects, template};

/// The values in ci/, by name and path.
pub fn cases() -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> =
        fs::read_dir(chart().join("ci")).expect("ci/").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let name = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().replace("-values", ""));
    files.into_iter().map(|path| (name(&path).expect("a name"), path)).collect()
}

pub fn rendered(values: &Path) -> Vec<Value> {
    objects("palisade", "palisade-system", &["--values", values.to_str().expect("UTF-8")])
}

/// Passwords are other ones at each rendering.
fn without_passwords(mut object: Value) -> Value {
    if let Some(data) = object["stringData"].as_object_mut() {
        for (key, value) in data.iter_mut() {
            let text = value.as_str().expect("a text");
            let secret = text.split("://").nth(1).and_then(|rest| rest.split([':', '@']).nth(1)).unwrap_or(text);
            assert_eq!(secret.len(), 32, "{key} has a password of its own: {text}");
            *value = text.replace(secret, "REDACTED").into();
        }
    }
    object
}

#[test]
fn what_is_rendered_is_as_it_was_reviewed() {
    let mut differ = Vec::new();
    for (name, values) in cases() {
        // source.rs and monitoring.rs hold these, to the letter.
        let elsewhere = |object: &Value| {
            let kind = object["kind"].as_str().unwrap_or_default();
            let dashboard = object["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-dashboard"));
            ["CustomResourceDefinition", "PrometheusRule"].contains(&kind)
                || kind.starts_with("ValidatingAdmissionPolicy")
                || dashboard
        };
        let kept = rendered(&values).into_iter().filter(|object| !elsewhere(object)).map(without_passwords);
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(name_of);
        let text: Vec<_> = kept.iter().map(|object| serde_yaml::to_string(object).expect("YAML")).collect();
        let path = chart().join(format!("../../tests/golden/chart/{name}.yaml"));
        let text = text.join("---\n");
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, &text).expect("written");
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            differ.push(path.display().to_string());
        }
    }
    assert!(differ.is_empty(), "{differ:?} differ; look at the difference after UPDATE_GOLDEN=1");
}

#[test]
fn helm_lint_finds_nothing() {
    for (name, values) in cases() {
        let (chart, values) = (chart(), values.to_string_lossy().into_owned());
        let ran = helm(&["lint", "--strict", chart.to_str().expect("UTF-8"), "--values", &values]);
        assert!(ran.ok && !ran.out.contains("[WARNING]") && !ran.out.contains("[ERROR]"), "{name}: {ran:?}");
    }
}

const DATABASE: &str = "database.existingSecret=palisade-database";

#[test]
fn values_that_cannot_be_meant_are_refused_with_their_place() {
    for (set, says) in [
        ("worker.replicas=0", "at '/worker/replicas': minimum: got 0, want 1"),
        ("worker.replicas=two", "at '/worker/replicas': got string, want integer"),
        ("worker.replica=2", "at '/worker': additional properties 'replica' not allowed"),
        ("workers.replicas=2", "additional properties 'workers' not allowed"),
        ("postgres.enabled=true", "at '/database/existingSecret': value must be ''"),
        ("postgres.enabled=yes", "at '/postgres/enabled': got string, want boolean"),
        ("watchNamespace=Team_A", "at '/watchNamespace': 'Team_A' does not match pattern"),
        ("worker.ttl=10", "at '/worker/ttl': got number, want string"),
        ("worker.ttl=soon", "at '/worker/ttl': 'soon' does not match pattern"),
        ("controller.keep.ledger=1 week", "at '/controller/keep/ledger'"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of"),
        ("image.digest=sha256:12", "at '/image/digest'"),
        ("log.format=xml", "at '/log/format'"),
        ("networkPolicy.database.port=70000", "at '/networkPolicy/database/port'"),
        ("crds.keep=maybe", "at '/crds/keep'"),
        (
            "fullnameOverride=a-name-of-more-than-forty-eight-characters-is-too-long",
            "at '/fullnameOverride': maxLength",
        ),
        ("controller.podDisruptionBudget.maxUnavailable=0", "at '/controller/podDisruptionBudget/maxUnavailable'"),
    ] {
        let ran = template("palisade", "palisade-system", &["--set", DATABASE, "--set", set]);
        assert!(!ran.ok && ran.err.contains(says), "{set}: {}", ran.err);
    }
}

#[test]
fn without_a_database_it_says_how_to_name_one() {
    let ran = template("palisade", "palisade-system", &[]);
    assert!(!ran.ok && ran.err.contains("database.existingSecret=NAME") && ran.err.contains("postgres.enabled=true"));
}

#[test]
fn names_begin_with_the_release_and_fit() {
    let names = |release: &str| -> Vec<String> {
        let objects = objects(release, "palisade-system", &["--set", DATABASE]);
        let names = objects.iter().filter(|object| object["kind"] != "CustomResourceDefinition");
        names.map(|object| object["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    for (release, beginning) in [("palisade", "palisade-"), ("my-palisade", "my-palisade-"), ("ml", "ml-palisade-")] {
        let names = names(release);
        assert!(names.iter().all(|name| name.starts_with(beginning)), "{release}: {names:?}");
    }
    let longest = "a-release-with-the-longest-name-that-helm-will-take-x";
    assert_eq!(longest.len(), 53);
    let names = names(longest);
    assert!(names.iter().all(|name| name.len() <= 63 + "-fence-epoch-object".len()), "{names:?}");
    let job = names.iter().find(|name| name.ends_with("-migrate-1")).expect("the Job");
    // A pod's label has its name.
    assert!(job.len() + "000".len() <= 63, "{job}");
}
