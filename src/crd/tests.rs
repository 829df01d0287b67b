//! What of the CRD can be shown without an API server; `tests/policy.rs` shows the rest on a real one.

use serde_json::{Value, json};

use super::*;

fn example() -> Value {
    json!({
        "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "churn"},
        "spec": {
            "model": {"name": "churn", "version": 1},
            "template": {"spec": {"containers": [{"name": "model", "image": "churn:1"}]}},
            "service": {"port": 8080},
        },
    })
}

/// The example with the value at `pointer` set; whatever leads to it must exist.
fn with(pointer: &str, value: Value) -> ModelDeployment {
    let mut object = example();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("the parent exists")[key] = value;
    serde_json::from_value(object).expect("it can be read")
}

/// All properties named `key` anywhere in the schema, with their paths.
fn find<'a>(schema: &'a Value, key: &str, path: &str, found: &mut Vec<(String, &'a Value)>) {
    if let Value::Object(map) = schema {
        if let Some(value) = map.get(key) {
            found.push((path.to_owned(), value));
        }
        map.iter().for_each(|(name, value)| find(value, key, &format!("{path}/{name}"), found));
    }
}

fn schema() -> Value {
    let crd = serde_json::to_value(definition()).expect("a CRD");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn a_short_spec_gets_the_documented_defaults() {
    let spec = with("/spec/paused", json!(false)).spec;
    assert_eq!((spec.replicas, spec.revision_history_limit, spec.paused), (1, 2, false));
    assert_eq!((spec.strategy.kind, spec.strategy.drain_seconds), (StrategyType::BlueGreen, 10));
    assert_eq!((spec.lease.ttl, spec.timeouts.verify), (Span::from_secs(30), Span::from_secs(60)));
    assert_eq!((spec.timeouts.ready, spec.deletion_policy), (Span::from_secs(3600), DeletionPolicy::Undeploy));
}

#[test]
fn each_rule_refuses_offline_what_it_is_for() {
    with("/spec/paused", json!(true)).validate_cel().expect("the example is valid");
    for (pointer, value, message) in [
        ("/spec/model/alias", json!("champion"), "exactly one of model.version and model.alias"),
        ("/spec/model/version", Value::Null, "exactly one of model.version and model.alias"),
        ("/spec/lease", json!({"ttl": "4s"}), "lease.ttl must be from 5s to 1h"),
        ("/spec/lease", json!({"ttl": "61m"}), "lease.ttl must be from 5s to 1h"),
        ("/spec/timeouts", json!({"verify": "25h"}), "timeouts.verify must be"),
        ("/spec/timeouts", json!({"ready": "0s"}), "timeouts.ready must be"),
        ("/metadata/name", json!("a".repeat(51)), "metadata.name must be"),
        ("/metadata/name", json!("1-churn"), "metadata.name must be"),
        ("/metadata/name", json!("churn.v1"), "metadata.name must be"),
    ] {
        let refusal = with(pointer, value.clone()).validate_cel().expect_err(pointer).to_string();
        assert!(refusal.contains(message), "{pointer} = {value}: {refusal}");
    }
    let mut object = with("/spec/promoteAlias", json!("champion"));
    object.validate_cel().expect("a version may be promoted");
    object.spec.model = ModelRef { name: "churn".into(), version: None, alias: Some("champion".into()) };
    assert!(object.validate_cel().expect_err("a loop").to_string().contains("promoteAlias may not be"));
}

#[test]
fn a_status_only_goes_forward() {
    let status = |revision, fencing_token| {
        let mut object = with("/spec/paused", json!(false));
        object.status = Some(ModelDeploymentStatus { revision, fencing_token, ..Default::default() });
        object
    };
    let none = with("/spec/paused", json!(false));
    let old = status(5, 7);
    for (new, accepted) in [
        (status(6, 7), true),
        (status(6, 8), true),
        (status(5, 7), true), // nothing changed
        (status(5, 8), false),
        (status(4, 8), false),
        (status(6, 6), false),
        (none.clone(), false),
    ] {
        assert_eq!(new.validate_cel_update(&old).is_ok(), accepted, "{:?} after {:?}", new.status, old.status);
        new.validate_cel_update(&none).expect("anything may follow nothing");
    }
}

#[test]
fn everything_in_the_schema_is_bounded_described_and_not_nullable() {
    let schema = schema();
    let mut types = Vec::new();
    find(&schema, "type", "", &mut types);
    for (path, kind) in types {
        let at = schema.pointer(&path).expect("it was found there");
        match kind.as_str() {
            Some("string") => assert!(
                ["maxLength", "enum", "format"].iter().any(|bound| at.get(bound).is_some()),
                "{path} has no bound"
            ),
            Some("array") => assert!(at.get("maxItems").is_some(), "{path} has no bound"),
            _ => {}
        }
        let no_field = ["/items", "/properties", "/default"].iter().any(|end| path.ends_with(end));
        if !path.is_empty() && !no_field {
            assert!(at.get("description").is_some(), "{path} has no description");
        }
    }
    let mut nullable = Vec::new();
    find(&schema, "nullable", "", &mut nullable);
    assert!(nullable.is_empty(), "null would count as given in a CEL rule: {nullable:?}");
    let mut formats = Vec::new();
    find(&schema, "format", "", &mut formats);
    for (path, format) in formats {
        // The API server warns about each format that it does not know, such as uint32.
        assert!(["int32", "int64", "date-time"].contains(&format.as_str().unwrap_or_default()), "{path}: {format}");
    }
}

#[test]
fn the_columns_are_those_that_the_design_names() {
    let crd = serde_json::to_value(definition()).expect("a CRD");
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
    let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["Model", "Desired", "Serving", "Ready", "Token", "Owner", "Age"]);
    assert_eq!(crd["spec"]["names"]["shortNames"], json!(["mdep"]));
}

#[test]
fn a_span_reads_what_it_prints() {
    for (text, milliseconds, printed) in [
        ("90s", 90_000, "1m30s"),
        ("1h30m", 5_400_000, "1h30m"),
        ("500ms", 500, "500ms"),
        ("0s", 0, "0s"),
        ("1m1ms", 60_001, "1m1ms"),
        ("60m", 3_600_000, "1h"),
    ] {
        let span: Span = text.parse().expect(text);
        assert_eq!(span.duration(), Duration::from_millis(milliseconds), "{text}");
        assert_eq!(span.to_string(), printed);
        assert_eq!(printed.parse(), Ok(span));
    }
}

#[test]
fn a_text_that_is_no_span_is_refused_with_the_text_and_what_to_write() {
    for (text, why) in [
        ("", "it is empty"),
        ("30", "a unit is missing"),
        ("s", "a whole number is missing"),
        ("-1s", "a whole number is missing"),
        ("1.5h", "there is an unknown unit"),
        ("1d", "there is an unknown unit"),
        ("5µs", "there is an unknown unit"),
        ("1h 30m", "there is an unknown unit"),
        ("18446744073709551615h", "it is too long"),
        ("99999999999999999999s", "it is too long"),
    ] {
        let error = text.parse::<Span>().expect_err(text);
        assert_eq!(error.why, why, "{text}");
        assert!(error.to_string().starts_with(&format!("{text:?} is not a duration")), "{error}");
        assert!(error.to_string().contains("1h30m"), "{error}");
    }
}

#[test]
fn a_long_message_is_cut_by_characters() {
    assert_eq!(clip("käse", 4), "käse");
    assert_eq!(clip("käsebrot", 4), "käs…");
    assert_eq!(clip(&"é".repeat(5000), MESSAGE_MAX).chars().count(), MESSAGE_MAX);
}
