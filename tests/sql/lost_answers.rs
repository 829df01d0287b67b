//! A request whose answer never came ends as a fact, for each fenced function and both ways.

use super::scenarios::{Scenario, World, numbered};
use crate::support::postgres::{Conn, Db};
use crate::support::proxy::{Fault, Proxy};

struct Stage {
    direct: Conn,
    proxied: Conn,
    proxy: Proxy,
    _db: Db,
}

async fn stage() -> Stage {
    let db = Db::new().await;
    let proxy = Proxy::start(db.server.port()).await;
    let proxied = Conn::open(&proxy.url(&db.url())).await;
    Stage { direct: db.connect().await, proxied, proxy, _db: db }
}

impl Stage {
    async fn world(&mut self, scenario: &Scenario) -> World {
        self.direct.clear().await;
        // The last fault may have cost the connection.
        self.proxied = Conn::open(&self.proxy.url(&self._db.url())).await;
        scenario.world(&mut self.direct).await
    }

    /// Sends the write into the fault. The client learns nothing but that the connection is gone.
    async fn send(&mut self, call: &str) {
        let failure = self.proxied.try_call(call).await.expect_err("the connection is lost");
        assert_eq!(failure.code, "", "not the server's word: {failure:?}");
    }

    async fn status(&mut self, function: &str, world: &World) -> String {
        self.direct.call(&format!("{function}({})", world.lease.fence(1))).await.word()
    }
}

#[tokio::test]
async fn when_the_answer_is_lost_the_same_fence_again_is_replayed_with_the_first_result() {
    let mut stage = stage().await;
    for scenario in numbered() {
        let world = stage.world(scenario).await;
        let call = (scenario.call)(&world, 1);
        let before = stage.direct.text(scenario.effect).await;
        let lost = stage.proxy.on_next(&format!("palisade.{}(", scenario.function), Fault::LoseAnswer);
        stage.send(&call).await;
        assert!(lost.has_fired());
        let after = stage.direct.text(scenario.effect).await;
        assert_ne!(before, after, "{}: it was applied, though nobody heard of it", scenario.function);

        assert_eq!(stage.status("operation_status", &world).await, "applied", "{}", scenario.function);
        let again = stage.direct.call(&call).await;
        again.is("replayed");
        let first = stage
            .direct
            .text(
                "SELECT coalesce(result, 'null') FROM palisade.operation WHERE sequence = 1 ORDER BY resource LIMIT 1",
            )
            .await;
        assert_eq!(
            again.result().to_string().parse::<serde_json::Value>().ok(),
            serde_json::from_str(&first).ok(),
            "{}",
            scenario.function
        );
        assert_eq!(stage.direct.text(scenario.effect).await, after, "{}", scenario.function);
        assert_eq!(stage.status("abandon", &world).await, "applied", "{}: too late to abandon", scenario.function);
    }
}

#[tokio::test]
async fn when_the_request_is_lost_the_same_fence_again_is_applied() {
    let mut stage = stage().await;
    for scenario in numbered() {
        let world = stage.world(scenario).await;
        let call = (scenario.call)(&world, 1);
        stage.proxy.on_next(&format!("palisade.{}(", scenario.function), Fault::LoseRequest);
        stage.send(&call).await;
        assert_eq!(stage.status("operation_status", &world).await, "pending", "{}", scenario.function);
        stage.direct.call(&call).await.is("applied");
        assert_eq!(stage.status("operation_status", &world).await, "applied", "{}", scenario.function);
    }
}

#[tokio::test]
async fn when_a_late_request_was_abandoned_it_is_refused_on_arrival() {
    let mut stage = stage().await;
    for scenario in numbered() {
        let world = stage.world(scenario).await;
        let before = stage.direct.text(scenario.effect).await;
        let late = stage.proxy.on_next(&format!("palisade.{}(", scenario.function), Fault::LateRequest);
        stage.send(&(scenario.call)(&world, 1)).await;
        assert_eq!(stage.status("operation_status", &world).await, "pending", "{}", scenario.function);
        assert_eq!(stage.status("abandon", &world).await, "never", "{}", scenario.function);

        late.deliver();
        late.answered().await;
        assert_eq!(stage.direct.text(scenario.effect).await, before, "{}", scenario.function);
        let refused = stage.direct.text("SELECT kind || ' ' || reason FROM palisade.refusal").await;
        assert_eq!(refused, format!("{} superseded", scenario.function));
        assert_eq!(stage.status("operation_status", &world).await, "never", "{}", scenario.function);
    }
}

#[tokio::test]
async fn a_late_request_that_arrives_after_a_takeover_is_refused_as_stale() {
    let mut stage = stage().await;
    for scenario in numbered() {
        let world = stage.world(scenario).await;
        let late = stage.proxy.on_next(&format!("palisade.{}(", scenario.function), Fault::LateRequest);
        stage.send(&(scenario.call)(&world, 1)).await;
        stage.direct.take_over(&world.lease).await;
        let before = stage.direct.text(scenario.effect).await;
        late.deliver();
        late.answered().await;
        assert_eq!(stage.direct.text(scenario.effect).await, before, "{}", scenario.function);
        let refused = stage.direct.text("SELECT kind || ' ' || reason FROM palisade.refusal").await;
        assert_eq!(refused, format!("{} stale", scenario.function));
        assert_eq!(stage.status("operation_status", &world).await, "never", "{}", scenario.function);
    }
}

/// The answer that a server cut off in the middle is no answer.
#[tokio::test]
async fn half_an_answer_is_settled_like_none() {
    let mut stage = stage().await;
    let scenario = numbered().find(|s| s.function == "set_alias").expect("a scenario");
    let world = stage.world(scenario).await;
    stage.proxy.on_next("palisade.set_alias(", Fault::TruncateAnswer);
    stage.send(&(scenario.call)(&world, 1)).await;
    stage.direct.call(&(scenario.call)(&world, 1)).await.is("replayed");
}

#[tokio::test]
async fn a_lost_answer_to_a_plain_clients_request_is_settled_by_its_request_id() {
    let mut stage = stage().await;
    let call = "register_model('n', '', '{}', '00000000-0000-4000-8000-00000000000a')";
    stage.proxy.on_next("palisade.register_model(", Fault::LoseAnswer);
    stage.send(call).await;
    stage.direct.call(call).await.is("replayed");
}
