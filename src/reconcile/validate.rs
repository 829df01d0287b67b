//! What the schema cannot say. Pure: a CR in, problems out, each with the field, its value and what to do.

use serde_json::Value;

use crate::crd::{ModelDeployment, clip};
use crate::manifests::names::DEPLOYMENT_LABEL;

/// Something that a person must change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One CamelCase word, for programs: the reason of the condition Stalled.
    pub reason: &'static str,
    /// The field, its value, and what to do.
    pub message: String,
}

/// The reason of what [`validate`] finds.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// The API server refuses the pod template.
pub const INVALID_TEMPLATE: &str = "InvalidTemplate";

/// Labels and annotations under this name are Palisade's.
const RESERVED: &str = "palisade.dev/";
/// What the containers are told; a variable of the same name would be lost.
const ENVIRONMENT: [&str; 4] =
    ["PALISADE_MODEL_NAME", "PALISADE_MODEL_VERSION", "PALISADE_MODEL_URI", "PALISADE_MODEL_DIGEST"];
/// The longest template, as JSON: a plan has room for 1 MiB.
const TEMPLATE_MAX: usize = 512 * 1024;
/// How deep a template may be nested. A pod's deepest field is at 14.
const DEPTH_MAX: usize = 48;

/// Everything that is wrong, in the order of the fields. What the schema refuses at apply is looked at again where a wrong
/// value would do harm: the CRD in the cluster may be older than this program.
#[must_use]
pub fn validate(object: &ModelDeployment) -> Vec<Problem> {
    let mut problems = Vec::new();
    let spec = &object.spec;
    let mut say = |field: &str, value: String, what: &str| {
        let message = format!("spec.{field} is {}: {what}", clip(&value, 200));
        problems.push(Problem { reason: INVALID_SPEC, message });
    };
    match (spec.model.version, &spec.model.alias) {
        (Some(version), None) if version < 1 => say("model.version", version.to_string(), "versions count from 1"),
        (Some(_), None) | (None, Some(_)) => {}
        (Some(version), Some(alias)) => {
            say("model", format!("version {version} and alias {alias:?}"), "give exactly one of the two");
        }
        (None, None) => say("model", "without version and alias".into(), "give exactly one of the two"),
    }
    if let (Some(promote), Some(followed)) = (&spec.promote_alias, &spec.model.alias)
        && promote == followed
    {
        let what =
            "it is the alias that model.alias follows; each rollout would start the next one: promote another one";
        say("promoteAlias", format!("{promote:?}"), what);
    }
    if spec.replicas < 0 {
        say("replicas", spec.replicas.to_string(), "give a number from 0");
    }
    if !(1..=65535).contains(&spec.service.port) {
        say("service.port", spec.service.port.to_string(), "give a port from 1 to 65535");
    }
    if spec.strategy.drain_seconds < 0 {
        say("strategy.drainSeconds", spec.strategy.drain_seconds.to_string(), "give a number from 0");
    }
    if spec.revision_history_limit < 0 {
        say("revisionHistoryLimit", spec.revision_history_limit.to_string(), "give a number from 0");
    }
    for (field, span, least, most) in [
        ("lease.ttl", spec.lease.ttl, 5, 3600),
        ("timeouts.verify", spec.timeouts.verify, 1, 86_400),
        ("timeouts.ready", spec.timeouts.ready, 1, 604_800),
    ] {
        if !(least..=most).contains(&span.duration().as_secs()) {
            say(field, span.to_string(), &format!("give a duration from {least}s to {most}s"));
        }
    }
    template(&spec.template, &mut say);
    problems
}

fn template(template: &Value, say: &mut impl FnMut(&str, String, &str)) {
    if template.to_string().len() > TEMPLATE_MAX {
        return say("template", "too large".into(), "make it smaller than 512 KiB, for example by ConfigMaps");
    }
    if depth(template) > DEPTH_MAX {
        return say("template", "nested too deeply".into(), "is it a pod template? kubectl explain mdep.spec.template");
    }
    if has_nul(template) {
        say("template", "not printable".into(), "a text in it has a NUL character (\\u0000): remove it");
    }
    for kind in ["labels", "annotations"] {
        let named = template.pointer(&format!("/metadata/{kind}")).and_then(Value::as_object);
        for (key, value) in named.into_iter().flatten().filter(|(key, _)| key.starts_with(RESERVED)) {
            let what = format!("names under {RESERVED} are Palisade's own (such as {DEPLOYMENT_LABEL}): remove it");
            say(&format!("template.metadata.{kind}[{key:?}]"), value.to_string(), &what);
        }
    }
    containers(template, say);
}

fn containers(template: &Value, say: &mut impl FnMut(&str, String, &str)) {
    let field = "template.spec.containers";
    match template.pointer("/spec/containers") {
        Some(Value::Array(containers)) if !containers.is_empty() => {
            containers.iter().enumerate().for_each(|(i, one)| container(&format!("{field}[{i}]"), one, say));
        }
        Some(other) => say(field, other.to_string(), "give a list of at least one container"),
        None => say(field, "missing".into(), "give a list of at least one container"),
    }
    // Those that fetch the model are told of it, too. Whether this is a list is for the API server to say.
    let first = template.pointer("/spec/initContainers").and_then(Value::as_array);
    for (i, one) in first.into_iter().flatten().enumerate() {
        container(&format!("template.spec.initContainers[{i}]"), one, say);
    }
}

fn container(field: &str, container: &Value, say: &mut impl FnMut(&str, String, &str)) {
    if !container.is_object() {
        return say(field, container.to_string(), "give a container: an object with a name and an image");
    }
    for key in ["name", "image"] {
        match container.get(key) {
            Some(Value::String(text)) if !text.is_empty() => {}
            Some(other) => say(&format!("{field}.{key}"), other.to_string(), "give a text that is not empty"),
            None => say(&format!("{field}.{key}"), "missing".into(), "every container has a name and an image"),
        }
    }
    let environment = container.get("env").and_then(Value::as_array);
    let names = environment.into_iter().flatten().filter_map(|v| v.get("name").and_then(Value::as_str));
    for name in names.filter(|name| ENVIRONMENT.contains(name)) {
        say(&format!("{field}.env"), name.to_owned(), "Palisade sets this variable itself: rename yours");
    }
}

/// How deep a value is nested. By a list of what is still to be seen: deep nesting must not use up our own stack.
fn depth(value: &Value) -> usize {
    let (mut deepest, mut todo) = (0, vec![(value, 1)]);
    while let Some((value, depth)) = todo.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(items) => todo.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => todo.extend(fields.values().map(|field| (field, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// Whether any text has a NUL character, which Postgres cannot store.
fn has_nul(value: &Value) -> bool {
    let mut todo = vec![value];
    while let Some(value) = todo.pop() {
        match value {
            Value::String(text) if text.contains('\0') => return true,
            Value::Array(items) => todo.extend(items),
            Value::Object(fields) => {
                if fields.keys().any(|key| key.contains('\0')) {
                    return true;
                }
                todo.extend(fields.values());
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::decide::tests::object;
    use serde_json::json;

    #[test]
    fn a_good_spec_has_no_problems() {
        assert_eq!(validate(&object(json!({}))), []);
    }

    #[test]
    fn each_problem_names_the_field_and_what_to_do() {
        let container = |more: Value| json!({"template": {"spec": {"containers": [more]}}});
        let mut deep = json!(1);
        for _ in 0..60 {
            deep = json!([deep]);
        }
        for (patch, field, advice) in [
            (json!({"model": {"version": 1, "alias": "a"}}), "spec.model is", "exactly one"),
            (json!({"model": {"version": null}}), "spec.model is", "exactly one"),
            (
                json!({"model": {"version": null, "alias": "a"}, "promoteAlias": "a"}),
                "spec.promoteAlias",
                "another one",
            ),
            (json!({"replicas": -1}), "spec.replicas is -1", "from 0"),
            (json!({"service": {"port": 70000}}), "spec.service.port is 70000", "from 1 to 65535"),
            (json!({"lease": {"ttl": "1s"}}), "spec.lease.ttl is 1s", "from 5s"),
            (json!({"timeouts": {"ready": "9999h"}}), "spec.timeouts.ready", "to 604800s"),
            (json!({"template": {"spec": {"containers": []}}}), "spec.template.spec.containers is []", "at least one"),
            (
                json!({"template": {"spec": {"containers": "x"}}}),
                "spec.template.spec.containers is \"x\"",
                "at least one",
            ),
            (container(json!("x")), "spec.template.spec.containers[0] is \"x\"", "an object"),
            (container(json!({"image": "x"})), "containers[0].name is missing", "a name and an image"),
            (container(json!({"name": "x", "image": 7})), "containers[0].image is 7", "a text"),
            (
                container(json!({"name": "x", "image": "x", "env": [{"name": "PALISADE_MODEL_URI", "value": "x"}]})),
                "containers[0].env is PALISADE_MODEL_URI",
                "rename yours",
            ),
            (
                json!({"template": {"spec": {
                    "containers": [{"name": "x", "image": "x"}],
                    "initContainers": [{"name": "y", "image": "x", "env": [{"name": "PALISADE_MODEL_DIGEST"}]}],
                }}}),
                "initContainers[0].env is PALISADE_MODEL_DIGEST",
                "rename yours",
            ),
            (
                json!({"template": {"metadata": {"labels": {"palisade.dev/revision": "x"}}}}),
                "spec.template.metadata.labels[\"palisade.dev/revision\"]",
                "remove it",
            ),
            (json!({"template": {"metadata": {"annotations": {"a": "\0"}}}}), "spec.template is", "NUL"),
            (json!({"template": {"spec": {"x": deep}}}), "spec.template is nested", "pod template"),
            (json!({"template": {"spec": {"x": "y".repeat(600_000)}}}), "spec.template is too large", "512 KiB"),
        ] {
            let problems = validate(&object(patch));
            let message = problems.first().map_or("", |problem| &problem.message);
            assert!(message.contains(field) && message.contains(advice), "{field}: {problems:?}");
            assert!(message.len() < 1000, "a hostile value does not fill the message");
        }
    }
}
