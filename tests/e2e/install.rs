//! What a platform team does on its first day.

use serde_json::json;

use super::traffic;
use super::world::{PATIENCE, SHOP, SYSTEM, TTL, World};

/// As a person installs it from a clone, with a database of one's own.
fn install(world: &World) {
    let ttl = format!("worker.ttl={}s", TTL.as_secs());
    world.helm(&[
        "install",
        "palisade",
        "charts/palisade",
        "--namespace",
        SYSTEM,
        "--set",
        "image.repository=localhost/palisade,image.tag=failpoints",
        "--set",
        "database.existingSecret=database,database.tls.caSecret.name=database-ca",
        "--set",
        &ttl,
        "--wait",
        "--timeout",
        "180s",
    ]);
}

/// The chart on an empty cluster and an empty database, each part with its own login over TLS with `verify-full`; then a
/// model server whose artifact was fetched and verified before it started, asked over its Service.
pub async fn a_release_installs_from_nothing_and_serves_a_model(world: &'static World) {
    install(world);
    eprintln!("{}", world.kubectl(&["-n", SYSTEM, "get", "pods"]));
    world.helm(&["test", "palisade", "--namespace", SYSTEM, "--timeout", "120s"]);
    let mut sql = world.sql().await;
    // Not vacuous: the parts came by TLS, and by their own logins.
    let logins = sql
        .list("SELECT DISTINCT usename::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename LIKE 'release%' ORDER BY 1")
        .await;
    sql.close().await;
    assert_eq!(logins, ["release_controller", "release_worker"], "logins that are connected by TLS");

    for version in 1..=2 {
        let (source, digest) = world.artifact(version);
        assert_eq!(world.register("iris", &source, &digest), i64::from(version));
    }
    world.apply(&[world.iris("iris", "iris", 1)]);
    let took = world.serves("iris", 1).await;
    let address = address(world, "iris");
    let ready = traffic::get(&address, "/v2/models/iris").await.expect("the model's page");
    eprintln!("a model is served {:.1} s after kubectl apply: {ready}", took.as_secs_f64());
    assert!(took < PATIENCE);
}

/// Where its Service answers.
pub fn address(world: &World, name: &str) -> String {
    let service = world.get(&["service", "-n", SHOP, name]);
    format!("{}:8080", service["spec"]["clusterIP"].as_str().expect("an address"))
}

/// What is registered is what serves, or nothing does: the artifact is another one than its digest says.
pub async fn a_version_whose_digest_is_wrong_never_serves(world: &'static World) {
    let (source, _) = world.artifact(1);
    let (_, digest_of_another) = world.artifact(2);
    let version = world.register("forged", &source, &digest_of_another);
    let mut object = world.iris("forged", "forged", version);
    object["spec"]["timeouts"] = json!({"ready": "15s"});
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
    let status = world.get(&["mdep", "-n", SHOP, "forged"])["status"].clone();
    eprintln!("status.lastError: {}", status["lastError"]);
    assert!(status["serving"].is_null(), "it serves: {status}");
    let pods = world.get(&["pods", "-n", SHOP, "-l", "palisade.dev/deployment=forged"]);
    let pods = pods["items"].as_array().expect("pods");
    assert!(!pods.is_empty(), "no pod has tried");
    for pod in pods {
        assert!(pod["status"]["containerStatuses"][0]["started"] != true, "the model server started: {pod}");
        let init = &pod["status"]["initContainerStatuses"][0];
        let code = [&init["state"], &init["lastState"]].into_iter().find_map(|s| s["terminated"]["exitCode"].as_i64());
        assert_eq!(code, Some(9), "the init container ended otherwise than by the digest: {init}");
    }
    world.kubectl(&["-n", SHOP, "delete", "mdep", "forged", "--timeout=60s"]);
}
