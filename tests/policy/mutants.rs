//! The tests of the policies are tested: each validation is taken out in turn, and the table must notice.

use palisade::manifests;
use serde_json::json;
use serde_yaml::Value;

use super::refused::{cases, failures};
use super::world::{Actor, prepare, settings};
use crate::support::cluster::{Cluster, api, deployment, fence, wait_until};

/// The policies that the table is about; `epoch.rs` has its own.
const POLICIES: [&str; 3] = ["palisade-fence", "palisade-fence-epoch", "palisade-fence-accounts"];

fn policy(name: &str) -> Value {
    let is = |object: &Value| object["kind"] == "ValidatingAdmissionPolicy" && object["metadata"]["name"] == name;
    manifests::policies(&settings()).into_iter().find(is).expect("it is among them")
}

/// Installs a policy with one more validation, which refuses an object that is named after the mutant: so its refusal
/// shows that the API server has this very policy in force.
async fn install(cluster: &Cluster, mut policy: Value, mutant: &str) {
    let marker = format!("request.?name.orValue('') != '{mutant}'");
    let marker = json!({"expression": marker, "message": format!("this is {mutant}")});
    let validations = policy["spec"]["validations"].as_sequence_mut().expect("a list");
    validations.insert(0, serde_yaml::to_value(marker).expect("YAML"));
    cluster.apply(&[policy.clone()]).await;
    let client = Actor::Worker.client(cluster).await;
    let deployments = api::<k8s_openapi::api::apps::v1::Deployment>(&client, "default");
    let probe = deployment(mutant, &fence(3, 1, 1), json!({}));
    let probe = serde_json::from_value(serde_json::to_value(probe).expect("JSON")).expect("a Deployment");
    let dry = kube::api::PostParams { dry_run: true, ..Default::default() };
    wait_until(&format!("{mutant} is in force"), || async {
        match deployments.create(&dry, &probe).await {
            Err(error) if error.to_string().contains(&format!("this is {mutant}")) => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn the_table_notices_when_any_validation_is_taken_out() {
    let cluster = Cluster::start().await;
    prepare(&cluster).await;
    // Like cases lie side by side in the table. One of each kind first: most mutants are noticed within a few.
    let mut cases: Vec<_> = cases().into_iter().enumerate().collect();
    cases.sort_by_key(|(place, _)| place % 11);
    let cases: Vec<_> = cases.into_iter().map(|(_, case)| case).collect();
    let mut survivors = Vec::new();
    let mut mutants = 0;
    for name in POLICIES {
        let whole = policy(name);
        for index in 0..whole["spec"]["validations"].as_sequence().expect("a list").len() {
            let mut mutant = whole.clone();
            let removed = mutant["spec"]["validations"].as_sequence_mut().expect("a list").remove(index);
            install(&cluster, mutant, &format!("{name}-{index}")).await;
            mutants += 1;
            match failures(&cluster, &cases, 1).await.pop() {
                Some(noticed) => println!("{name}, validation {index}: {noticed}"),
                None => survivors.push(format!("{name}: {removed:?}")),
            }
        }
        install(&cluster, whole, &format!("{name}-whole")).await;
    }
    assert!(survivors.is_empty(), "no case needs these validations:\n{}", survivors.join("\n"));
    assert_eq!(mutants, 6 + 1 + 6);
    cluster.stop();
}
