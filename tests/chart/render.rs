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
        ("worker.replicas=-1", "at '/worker/replicas': minimum: got -1, want 0"),
        ("worker.replicas=two", "at '/worker/replicas': got string, want integer"),
        ("worker.replica=2", "at '/worker': additional properties 'replica' not allowed"),
        ("workers.replicas=2", "additional properties 'workers' not allowed"),
        ("postgres.enabled=true", "at '/database/existingSecret': value must be ''"),
        ("postgres.enabled=yes", "at '/postgres/enabled': got string, want boolean"),
        ("watchNamespace=Team_A", "at '/watchNamespace': 'Team_A' does not match pattern"),
        ("worker.ttl=10", "at '/worker/ttl': got number, want string"),
        ("worker.ttl=soon", "at '/worker/ttl': 'soon' does not match pattern"),
        ("worker.ttl=0s", "at '/worker/ttl': '0s' does not match pattern '[1-9]'"),
        ("controller.keep.events=0d", "at '/controller/keep/events': '0d' does not match pattern"),
        ("watchNamespace=kube-system", "watchNamespace is \"kube-system\""),
        ("worker.drain=45s", "worker.drain is 45s, and worker.terminationGracePeriodSeconds 45"),
        ("worker.ttl=1m", "worker.ttl is 1m, and worker.livenessProbe ends a paused pod after 60 seconds"),
        ("controller.ttl=1m1ms", "controller.ttl is 1m1ms"),
        ("commonLabels.app\\.kubernetes\\.io/name=x", "invalid propertyName 'app.kubernetes.io/name'"),
        ("worker.podLabels.app\\.kubernetes\\.io/component=x", "invalid propertyName 'app.kubernetes.io/component'"),
        ("migration.podLabels.helm\\.sh/chart=x", "invalid propertyName 'helm.sh/chart'"),
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
fn what_can_just_be_meant_is_rendered() {
    for set in [
        "worker.replicas=0",
        "controller.replicas=0",
        "worker.drain=44s999ms",
        "worker.ttl=59s",
        "worker.ttl=1m,worker.livenessProbe.failureThreshold=7",
        "enabled=true",
        "watchNamespace=kubernetes",
        "commonLabels.kubernetes\\.io/x=y",
    ] {
        objects("palisade", "palisade-system", &["--set", DATABASE, "--set", set]);
    }
}

#[test]
fn a_name_that_the_throwaway_postgres_cannot_have_is_refused() {
    let release = |length: usize| {
        let name = format!("palisade-{}", "x".repeat(length - "palisade-".len()));
        template(&name, "palisade-system", &["--set", "postgres.enabled=true"])
    };
    let ran = release(44);
    assert!(!ran.ok && ran.err.contains("at most 43 characters"), "{}", ran.err);
    assert!(release(43).ok);
}

/// Where manifests are applied without Helm, each is revision 1, and a Job cannot be changed.
#[test]
fn another_pod_of_the_migration_is_another_job() {
    let job = |set: &str| {
        let objects = objects("palisade", "palisade-system", &["--set", DATABASE, "--set", set]);
        objects.into_iter().find(|object| object["kind"] == "Job").map(|job| name_of(&job)).expect("the Job")
    };
    assert_ne!(job("image.tag=a"), job("image.tag=b"));
    assert_ne!(job("image.tag=a"), job("image.tag=a,migration.podLabels.x=y"));
    assert_eq!(job("image.tag=a,worker.replicas=3"), job("image.tag=a"));
}

#[test]
fn a_given_label_selector_spreads_by_that_one_alone() {
    let objects = objects("palisade", "palisade-system", &["--values", full().to_str().expect("UTF-8")]);
    let spread = |object: &&Value| object.pointer("/spec/template/spec/topologySpreadConstraints").is_some();
    let found: Vec<_> = objects.iter().filter(spread).collect();
    assert_eq!(found.len(), 2);
    for object in found {
        let constraint = &object["spec"]["template"]["spec"]["topologySpreadConstraints"][0];
        assert_eq!(constraint["labelSelector"], serde_json::json!({"matchLabels": {"tier": "control"}}));
    }
}

/// Where the nodes are tainted, a pod that cannot tolerate that never runs.
#[test]
fn every_pod_takes_what_is_said_of_where_it_runs() {
    let mut seen = 0;
    for object in objects("palisade", "palisade-system", &["--values", full().to_str().expect("UTF-8")]) {
        let pod = if object["kind"] == "Pod" { &object } else { &object["spec"]["template"] };
        if !pod["spec"]["containers"].is_array() {
            continue;
        }
        let name = name_of(&object);
        for field in ["nodeSelector", "tolerations", "affinity"] {
            assert!(!pod["spec"][field].is_null(), "{name} has no {field}");
        }
        assert!(pod["metadata"]["labels"]["tier"].is_string(), "{name}");
        let notes = pod["metadata"]["annotations"].as_object().expect("annotations");
        assert!(notes.keys().any(|key| key.starts_with("example.com/")), "{name}: {notes:?}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

fn full() -> PathBuf {
    chart().join("ci/full-values.yaml")
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
    let job = names.iter().find(|name| name.contains("-migrate-1-")).expect("the Job");
    // A pod's label has its name.
    assert!(job.len() + "000".len() <= 63, "{job}");
}
