//! The example with CloudNativePG: the operator's own schema takes the Cluster, the chart takes the values.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::cluster::asked;
use crate::support::cluster::{Cluster, wait_until};
use crate::support::helm::{chart, documents, objects};

const MODULE: &str = "github.com/cloudnative-pg/cloudnative-pg@v1.27.0";

/// The operator's definition of its Clusters, from its Go module.
fn definition() -> serde_yaml::Value {
    let output = Command::new("go").args(["mod", "download", "-json", MODULE]).current_dir("/").output().expect("go");
    let module: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let dir = module["Dir"].as_str().unwrap_or_else(|| panic!("no module: {module}"));
    let path = format!("{dir}/config/crd/bases/postgresql.cnpg.io_clusters.yaml");
    serde_yaml::from_slice(&fs::read(path).expect("the definition")).expect("YAML")
}

#[tokio::test]
async fn cloudnative_pg_takes_the_examples_cluster_with_synchronous_replication() {
    let cluster = Cluster::shared();
    cluster.apply(&[definition()]).await;
    let text = fs::read_to_string(chart().join("examples/cloudnative-pg/cluster.yaml")).expect("the example");
    let mut object = documents(&text).remove(0);
    object["metadata"]["namespace"] = cluster.namespace("cnpg").await.into();
    wait_until("the operator's kind is served", || async { asked(cluster, &object).await }).await;
    assert_eq!(object["spec"]["postgresql"]["synchronous"]["dataDurability"], "required");
    // It is the schema that takes it.
    for (pointer, value) in
        [("/spec/postgresql/synchronous/method", json!("some")), ("/spec/postgresql", json!({"synchronos": {}}))]
    {
        let mut wrong = object.clone();
        *wrong.pointer_mut(pointer).expect(pointer) = value;
        assert!(asked(cluster, &wrong).await.is_err(), "{pointer}: anything is taken");
    }
}

#[test]
fn with_its_values_every_connection_is_verified_against_its_ca() {
    let values = chart().join("examples/cloudnative-pg/values.yaml");
    let objects = objects("palisade", "palisade-system", &["--values", values.to_str().expect("UTF-8")]);
    let mut seen = 0;
    for object in objects {
        let pod = if object["kind"] == "Pod" { &object } else { &object["spec"]["template"] };
        let Some(containers) = pod["spec"]["containers"].as_array() else { continue };
        let value = |name: &str| {
            let variables = containers[0]["env"].as_array().expect("env");
            variables
                .iter()
                .find(|v| v["name"] == name)
                .and_then(|v| v["value"].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(
            (value("PGSSLMODE").as_str(), value("PGSSLROOTCERT").as_str()),
            ("verify-full", "/etc/palisade/database-ca/ca.crt")
        );
        assert_eq!(containers[0]["volumeMounts"][0]["mountPath"], "/etc/palisade/database-ca");
        let secret = &pod["spec"]["volumes"][0]["secret"];
        assert_eq!(
            (&secret["secretName"], &secret["items"][0]["path"]),
            (&json!("palisade-postgres-ca"), &json!("ca.crt"))
        );
        seen += 1;
    }
    // Controller, worker, migration, doctor.
    assert_eq!(seen, 4);
}
