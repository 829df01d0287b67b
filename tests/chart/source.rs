//! One source: what the chart installs is what `palisade crd --with-policy` prints.

use std::collections::BTreeMap;

use palisade::manifests::{self, Settings};
use serde_json::Value;

use crate::support::helm::{chart, helm, name_of, objects};

/// What Helm adds, and what only one of the two has.
fn plain(mut object: Value) -> (String, Value) {
    let name = name_of(&object);
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    metadata.remove("labels");
    metadata.remove("annotations");
    if object["kind"] == "ServiceAccount" {
        object.as_object_mut().expect("an object").remove("automountServiceAccountToken");
    }
    (name, object)
}

/// Every object of the program is the chart's as well, to the letter.
fn same(settings: &Settings, rendered: Vec<Value>) {
    let rendered: BTreeMap<_, _> = rendered.into_iter().map(plain).collect();
    let mut seen = 0;
    for object in manifests::everything(settings) {
        let (name, object) = plain(serde_json::to_value(object).expect("JSON"));
        // helm install --create-namespace
        if object["kind"] == "Namespace" {
            continue;
        }
        let found = rendered.get(&name).unwrap_or_else(|| panic!("the chart has no {name}, but {:?}", rendered.keys()));
        assert_eq!(found, &object, "{name}");
        seen += 1;
    }
    assert!(seen >= 1 + 2 + 6 + 10, "{seen}");
    // And no other rights or rules than those.
    let program: Vec<_> =
        manifests::everything(settings).iter().map(|o| name_of(&serde_json::to_value(o).expect("JSON"))).collect();
    for name in rendered
        .keys()
        .filter(|name| name.contains("Role") || name.contains("Policy ") || name.contains("PolicyBinding"))
    {
        // For people, and for the time of a test.
        let others = ["-view", "-edit", "-doctor", "-doctor-watched"].iter().any(|end| name.ends_with(end));
        assert!(others || program.contains(name), "only the chart has {name}");
    }
}

const DATABASE: &str = "database.existingSecret=palisade-database";

#[test]
fn the_chart_installs_what_the_program_prints() {
    let settings = Settings::new("palisade-system", [], None).expect("the defaults are good");
    same(&settings, objects("palisade", "palisade-system", &["--set", DATABASE]));
}

#[test]
fn the_same_holds_for_another_release_and_for_one_namespace() {
    let settings = Settings::named("blue-palisade", "elsewhere", [], None).expect("good names");
    same(&settings, objects("blue", "elsewhere", &["--set", DATABASE]));
    let settings = Settings::named("palisade-two", "two", [], None).expect("good names");
    let settings = settings.watching(Some("ml")).expect("a good name");
    same(&settings, objects("palisade-two", "two", &["--set", DATABASE, "--set", "watchNamespace=ml"]));
}

/// Its pods could read the database's secrets, and the policies refuse a worker's writes there.
#[test]
fn the_releases_own_namespace_is_not_watched() {
    let chart = chart();
    let args = ["template", "palisade", chart.to_str().expect("a path"), "--namespace", "one"];
    let ran = helm(&[&args[..], &["--set", DATABASE, "--set", "watchNamespace=one"]].concat());
    assert!(!ran.ok && ran.err.contains("watchNamespace is \"one\", the release's own"), "{}", ran.err);
}
