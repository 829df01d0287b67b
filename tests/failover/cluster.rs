//! What the cluster remembers: the epoch object lost, two controllers at once, a fence that nobody was granted.

use kube::Api;
use palisade::manifests::{self, EPOCH_OBJECT, Settings};
use serde_json::json;

use crate::ground::{Ground, login, server, stalled, superuser, tells};
use crate::history::Owner;
use crate::support::cluster::{api, fence, from_json};
use crate::support::postgres::Conn;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_object_that_was_deleted_comes_back_and_nobody_loses_a_lease() {
    let ground = Ground::new("deleted").await;
    let server = server(&ground).await;
    let (url, resource) = (superuser(&server), ground.resource());
    let _controller = ground.controller("controller-a", &login(&server));
    ground.epoch_is(&url, 1).await;
    ground.create().await;
    let mut former = Owner::new(&url, &resource, &ground.history).await;
    former.writes().await;
    let mut owner = Owner::new(&url, &resource, &ground.history).await;
    ground.epoch_objects().delete(EPOCH_OBJECT, &Default::default()).await.expect("deleted");
    ground.epoch_is(&url, 1).await;
    owner.writes().await;
    // Deleted while the server restarts, it comes back above all.
    ground.epoch_objects().delete(EPOCH_OBJECT, &Default::default()).await.expect("deleted");
    server.stop();
    server.start_again();
    ground.epoch_is(&url, 2).await;
    owner.is_refused(&url, &["stale", "session_closed"]).await;
    let mut next = Owner::new(&url, &resource, &ground.history).await;
    next.writes().await;
    ground.told_by_the_leader_of(2).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_that_allocate_at_once_use_one_number_a_restart() {
    let ground = Ground::new("at-once").await;
    let server = server(&ground).await;
    let (url, resource) = (superuser(&server), ground.resource());
    let controllers = ["a", "b", "c"].map(|name| ground.controller(name, &login(&server)));
    ground.epoch_is(&url, 1).await;
    ground.create().await;
    let mut owner = Owner::new(&url, &resource, &ground.history).await;
    owner.writes().await;
    ground.told_by_the_leader_of(1).await;
    for number in 2..=4 {
        server.crash();
        server.start_again();
        ground.epoch_is(&url, number).await;
        ground.told_by_the_leader_of(number).await;
        owner.is_refused(&url, &["stale", "session_closed"]).await;
        owner = Owner::new(&url, &resource, &ground.history).await;
        assert_eq!(owner.lease.token >> 32, number);
        owner.writes().await;
    }
    let by: Vec<_> = controllers.iter().map(|c| c.text().matches("epoch established").count()).collect();
    assert!(by.iter().sum::<usize>() >= 4, "{by:?}");
    let mut conn = Conn::open(&url).await;
    assert_eq!(conn.number("SELECT count(*) FROM palisade.event WHERE kind = 'epoch'").await, 4, "each once");
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_fence_on_an_object_is_told_and_cured_by_an_advance() {
    let ground = Ground::of_the_policies().await;
    let server = server(&ground).await;
    let (url, resource) = (superuser(&server), ground.resource());
    // The policies would have refused it.
    let services: Api<k8s_openapi::api::core::v1::Service> = api(&ground.admin, &ground.namespace);
    let corrupt = from_json(json!({
        "metadata": {
            "name": "churn", "labels": {manifests::DEPLOYMENT_LABEL: "churn"},
            "annotations": {manifests::FENCE_ANNOTATION: fence(40, 7, 1)},
        },
        "spec": {"ports": [{"port": 8080}], "selector": {"app": "nothing"}},
    }));
    let settings = Settings::new(manifests::SYSTEM_NAMESPACE, [], None).expect("settings");
    let controller = ground.controller("controller-a", &login(&server));
    ground.epoch_is(&url, 1).await;
    services.create(&Default::default(), &corrupt).await.expect("created");
    ground.cluster.install_policies(&settings).await;
    let kubeconfig = ground.cluster.kubeconfig_for(manifests::SYSTEM_NAMESPACE, manifests::WORKER_ACCOUNT).await;
    ground.create().await;
    let _worker = ground.worker(&server.url_of("worker_login", "app"), &kubeconfig);

    let status = ground.status("to say that a fence is ahead", |s| stalled(s) == Some("FenceAhead")).await;
    let message = status.last_error.map(|error| error.message).unwrap_or_default();
    assert!(message.contains("Service churn") && message.contains("palisade epoch advance"), "{message}");
    let view = ground.json(&login(&server), &["epoch", "show"], 0);
    assert_eq!((view["attention"]["cause"].as_str(), view["inUse"]["number"].as_i64()), (Some("FenceAhead"), Some(40)));
    ground.doctor_finds(&login(&server), "cluster/fence-ahead");
    // Found by a controller when it starts, and every few minutes.
    drop(controller);
    let controller = ground.controller("controller-b", &login(&server));
    controller.says("newest in the ConfigMap", 1).await;
    tells(&controller, "palisade_epoch_needs_attention{cause=\"FenceAhead\"} 1").await;
    ground.json(&login(&server), &["epoch", "advance"], 2);

    let advanced = ground.json(&login(&server), &["epoch", "advance", "--yes"], 0);
    assert_eq!((advanced["epoch"].as_i64(), advanced["former"].as_i64()), (Some(41), Some(1)));
    ground.epoch_is(&url, 41).await;
    // The worker goes on by itself, and writes over the corrupt fence.
    ground.status("to serve", |s| stalled(s).is_none() && s.serving.is_some()).await;
    let service = services.get("churn").await.expect("it is there");
    let carried = &service.metadata.annotations.expect("annotations")[manifests::FENCE_ANNOTATION];
    let token: i64 = carried.split('/').next().and_then(|t| t.parse().ok()).expect("a fence");
    assert_eq!(token >> 32, 41, "{carried}");
    let mut conn = Conn::open(&url).await;
    let granted = format!(
        "SELECT count(*) FROM palisade.grant_history WHERE resource = '{resource}' AND token = {token} AND worker = 'worker-a'"
    );
    assert_eq!(conn.number(&granted).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_used_up_are_left_behind_by_an_advance() {
    let ground = Ground::new("used-up").await;
    let server = server(&ground).await;
    let (url, resource) = (superuser(&server), ground.resource());
    let allocator = ground.allocator(&login(&server));
    allocator.ensure().await.expect("an epoch");
    let mut owner = Owner::new(&url, &resource, &ground.history).await;
    owner.writes().await;
    owner.conn.run(&format!("UPDATE palisade.lease SET token = (1::bigint << 32) + 4294967294, session = NULL WHERE resource = '{resource}'")).await;
    let session = owner.conn.session("1 minute").await;
    let failure = owner.conn.try_call(&format!("acquire({}, '{resource}')", session.args())).await;
    assert_eq!(failure.expect_err("nothing is left").code, "PS006");
    let advanced = ground.json(&login(&server), &["epoch", "advance", "--yes"], 0);
    assert!(advanced["epoch"].as_i64() > Some(1), "{advanced}");
    owner.is_refused(&url, &["stale", "session_closed"]).await;
    Owner::new(&url, &resource, &ground.history).await.writes().await;
    // A controller sees it by itself.
    owner
        .conn
        .run(&format!(
            "UPDATE palisade.lease SET token = (90::bigint << 32) + 3, session = NULL WHERE resource = '{resource}'"
        ))
        .await;
    let _controller = ground.controller("controller-a", &login(&server));
    ground.create().await;
    ground.epoch_is(&url, 91).await;
    Owner::new(&url, &resource, &ground.history).await.writes().await;
    ground.told_by_the_leader_of(91).await;
    ground.nothing_went_back();
}
