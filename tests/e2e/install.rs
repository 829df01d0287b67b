//! What a platform team does on its first day.

use serde_json::json;

use super::traffic::{self, Way};
use super::world::{Place, TTL, World, has_node};

/// As a person installs it from a clone.
pub fn install(world: &World) {
    let ttl = format!("worker.ttl={}s", TTL.as_secs());
    let (image, database) = (world.image(), world.database());
    let values = ["--set-string", &image, "--set", &database, "--set", &ttl];
    let command =
        ["install", "palisade", "charts/palisade", "--namespace", world.system, "--wait", "--timeout", "600s"];
    world.helm(&[&command[..], &values].concat());
}

/// The chart on an empty cluster and an empty database, each part with its own login, over TLS with `verify-full` where the
/// database is one's own; then a model server whose artifact was fetched and verified before it started, asked over its
/// Service.
pub async fn a_release_installs_from_nothing_and_serves_a_model(world: &'static World) {
    install(world);
    eprintln!("{}", world.kubectl(&["-n", world.system, "get", "pods"]));
    world.helm(&["test", "palisade", "--namespace", world.system, "--timeout", "120s"]);
    // Not vacuous: the parts came by their own logins, and by TLS.
    let (ssl, expected) = match world.place {
        Place::Node(_) => (true, ["release_controller", "release_worker"]),
        Place::Cluster(_) => (false, ["controller", "worker"]),
    };
    let mut sql = world.sql().await;
    let logins = sql
        .list(&format!(
            "SELECT DISTINCT usename::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE ssl = {ssl} AND usename ~ '(controller|worker)$' ORDER BY 1"
        ))
        .await;
    sql.close().await;
    assert_eq!(logins, expected, "logins that are connected, with TLS: {ssl}");

    for version in 1..=2 {
        let (source, digest) = world.artifact(version);
        assert_eq!(world.register("iris", &source, &digest), i64::from(version));
    }
    world.apply(&[world.iris("iris", "iris", 1)]);
    let took = world.serves("iris", 1).await;
    let ready = traffic::get(&address(world, "iris"), "/v2/models/iris").await.expect("the model's page");
    eprintln!("a model is served {:.1} s after kubectl apply: {ready}", took.as_secs_f64());
}

/// Where its Service answers.
pub fn address(world: &World, name: &str) -> Way {
    let shop = world.shop;
    if !has_node() {
        return Way::Proxy(world.client.clone(), format!("/api/v1/namespaces/{shop}/services/{name}:8080/proxy"));
    }
    let service = world.get(&["service", "-n", shop, name]);
    Way::Address(format!("{}:8080", service["spec"]["clusterIP"].as_str().expect("an address")))
}

/// What is registered is what serves, or nothing does: the artifact is another one than its digest says.
pub async fn a_version_whose_digest_is_wrong_never_serves(world: &'static World) {
    let (source, _) = world.artifact(1);
    let (_, digest_of_another) = world.artifact(2);
    let version = world.register("forged", &source, &digest_of_another);
    let mut object = world.iris("forged", "forged", version);
    // Longer than it takes to pull an image, where that is needed.
    object["spec"]["timeouts"] = json!({"ready": if has_node() { "15s" } else { "90s" }});
    world.apply(&[object]);
    world
        .until("its status says why", || async {
            let object = world.deployments().get("forged").await.map_err(|error| error.to_string())?;
            let status = object.data["status"].to_string();
            let told = ["Stalled", "init container fetch: ", "exit code 9", "with the digest sha256:"];
            let told = told.iter().all(|part| status.contains(part));
            if told { Ok(()) } else { Err(status) }
        })
        .await;
    let status = world.get(&["mdep", "-n", world.shop, "forged"])["status"].clone();
    eprintln!("status.lastError: {}", status["lastError"]);
    assert!(status["serving"].is_null(), "it serves: {status}");
    let pods = world.get(&["pods", "-n", world.shop, "-l", "palisade.dev/deployment=forged"]);
    let pods = pods["items"].as_array().expect("pods");
    assert!(!pods.is_empty(), "no pod has tried");
    for pod in pods {
        assert!(pod["status"]["containerStatuses"][0]["started"] != true, "the model server started: {pod}");
        let init = &pod["status"]["initContainerStatuses"][0];
        let code = [&init["state"], &init["lastState"]].into_iter().find_map(|s| s["terminated"]["exitCode"].as_i64());
        assert_eq!(code, Some(9), "the init container ended otherwise than by the digest: {init}");
    }
    world.kubectl(&["-n", world.shop, "delete", "mdep", "forged", "--timeout=60s"]);
}
