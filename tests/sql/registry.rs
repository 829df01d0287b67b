//! Rule 17, plans and deployments, and the writes of plain clients.

use super::scenarios::{A, B, CONTROLLER, UID, furnish, put_plan};
use crate::support::postgres::{Conn, Db, Running};

const OTHER_UID: &str = "00000000-0000-4000-8000-000000000002";

async fn start() -> (Db, Conn) {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    (db, conn)
}

async fn alias(conn: &mut Conn, alias: &str) -> String {
    conn.text(&format!(
        "SELECT concat_ws(' ', coalesce(version::text, 'none'), guard) FROM palisade.alias WHERE alias = '{alias}'"
    ))
    .await
}

#[tokio::test]
async fn a_guarded_alias_changes_only_under_its_guards_lease() {
    let (_db, mut conn) = start().await;
    let (owner, other) = (conn.owner(A).await, conn.owner(B).await);
    conn.call("put_alias('m', 'guarded', 2, gen_random_uuid())").await.is("rejected: guarded");
    conn.call("put_alias('m', 'guarded', NULL, gen_random_uuid())").await.is("rejected: guarded");
    conn.call(&format!("set_alias({}, 'm', 'guarded', 2)", other.fence(1))).await.is("rejected: guarded");
    let serving = format!("record_serving({}, '{UID}', 1, 's', '{{}}', 'm', 2, 'r', 'guarded')", other.fence(2));
    assert_eq!(conn.call(&serving).await.outcome, "rejected");
    assert_eq!(alias(&mut conn, "guarded").await, format!("1 {A}"));
    conn.call(&format!("set_alias({}, 'm', 'guarded', 2)", owner.fence(1))).await.is("applied");
    assert_eq!(alias(&mut conn, "guarded").await, format!("2 {A}"));
}

#[tokio::test]
async fn an_alias_becomes_its_first_owners_and_a_plain_one_stays_everybodys() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    conn.call("put_alias('m', 'plain', 1, gen_random_uuid())").await.is("applied");
    conn.call("put_alias('m', 'plain', 2, gen_random_uuid())").await.is("applied");
    assert_eq!(alias(&mut conn, "plain").await, "2");
    conn.call(&format!("set_alias({}, 'm', 'plain', 3)", owner.fence(1))).await.is("applied");
    conn.call("put_alias('m', 'plain', 1, gen_random_uuid())").await.is("rejected: guarded");
    assert_eq!(alias(&mut conn, "plain").await, format!("3 {A}"));
}

#[tokio::test]
async fn moving_a_guard_needs_both_owners_fences() {
    let (_db, mut conn) = start().await;
    let (from, to) = (conn.owner(A).await, conn.owner(B).await);
    let stranger = conn.session("1 minute").await;
    let call = |n: i64, from_key: &str, to_token: i64, to_key: &str| {
        format!(
            "move_guard('{A}', {}, {n}, '{from_key}', '{B}', {to_token}, {n}, '{to_key}', 'm', 'guarded')",
            from.token
        )
    };
    let (mine, theirs) = (from.session.key.as_str(), to.session.key.as_str());
    conn.call(&call(1, &stranger.key, to.token, theirs)).await.is("rejected: wrong_key");
    conn.call(&call(1, mine, to.token, &stranger.key)).await.is("rejected: wrong_key");
    conn.call(&call(1, mine, to.token + 1, theirs)).await.is("rejected: not_issued");
    assert_eq!(alias(&mut conn, "guarded").await, format!("1 {A}"));
    assert_eq!(conn.number("SELECT count(*) FROM palisade.operation").await, 0);
    conn.call(&call(1, mine, to.token, theirs)).await.is("applied");
    assert_eq!(alias(&mut conn, "guarded").await, format!("1 {B}"));
    // Both sequences are used, and the alias has a new master.
    assert_eq!(conn.number("SELECT count(*) FROM palisade.operation WHERE sequence = 1").await, 2);
    conn.call(&format!("set_alias({}, 'm', 'guarded', 2)", from.fence(2))).await.is("rejected: guarded");
    conn.call(&format!("set_alias({}, 'm', 'guarded', 2)", to.fence(2))).await.is("applied");
    // It is not A's to give away any more.
    conn.call(&call(3, mine, to.token, theirs)).await.is("rejected: guarded");
}

/// An alias whose guard comes from another resource carries that one's token, which may be lower than the former.
#[tokio::test]
async fn a_moved_alias_obeys_its_new_guard_even_if_its_tokens_are_lower() {
    let (_db, mut conn) = start().await;
    let session = conn.session("1 minute").await;
    for _ in 0..5 {
        conn.acquire(&session, A).await;
    }
    let from = conn.acquire(&session, A).await;
    let to = conn.owner(B).await;
    assert!(to.token < from.token);
    conn.call(&format!("set_alias({}, 'm', 'guarded', 2)", from.fence(1))).await.is("applied");
    let call = format!("move_guard({}, '{B}', {}, 1, '{}', 'm', 'guarded')", from.fence(2), to.token, to.session.key);
    conn.call(&call).await.is("applied");
    conn.call(&format!("set_alias({}, 'm', 'guarded', 3)", to.fence(2))).await.is("applied");
}

#[tokio::test]
async fn taking_an_alias_away_keeps_its_row_and_its_guard() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    conn.call(&format!("set_alias({}, 'm', 'guarded', NULL)", owner.fence(1))).await.is("applied");
    assert_eq!(alias(&mut conn, "guarded").await, format!("none {A}"));
    let token = conn.number("SELECT token FROM palisade.alias WHERE alias = 'guarded'").await;
    assert_eq!(token, owner.token, "the second line remembers");
    conn.call("put_alias('m', 'guarded', 1, gen_random_uuid())").await.is("rejected: guarded");
}

#[tokio::test]
async fn a_removed_deployment_sets_its_aliases_free_with_their_versions() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    conn.call(&format!("record_removed({}, '{UID}', 1)", owner.fence(1))).await.is("rejected: no_such_plan");
    conn.run("UPDATE palisade.plan SET removed = true").await;
    conn.call(&format!("record_removed({}, '{UID}', 1)", owner.fence(2))).await.is("applied");
    assert_eq!(alias(&mut conn, "guarded").await, "1");
    conn.call("put_alias('m', 'guarded', 2, gen_random_uuid())").await.is("applied");
    assert_eq!(conn.number("SELECT count(*) FROM palisade.queue").await, 0);
}

#[tokio::test]
async fn serving_and_alias_are_recorded_both_or_neither() {
    let (_db, mut conn) = start().await;
    let (owner, other) = (conn.owner(A).await, conn.owner(B).await);
    conn.call(&format!("set_alias({}, 'm', 'theirs', 1)", other.fence(1))).await.is("applied");
    let call = |n: i64, alias: &str| {
        format!("record_serving({}, '{UID}', 1, 'drain', '{{}}', 'm', 2, 'r', '{alias}')", owner.fence(n))
    };
    conn.call(&call(1, "theirs")).await.is("rejected: guarded");
    assert_eq!(
        conn.text("SELECT (step, serving_version IS NULL) FROM palisade.deployment").await,
        "(seal,t)",
        "neither"
    );
    conn.call(&call(2, "live")).await.is("applied");
    assert_eq!(conn.text("SELECT (step, serving_version) FROM palisade.deployment").await, "(drain,2)");
    assert_eq!(alias(&mut conn, "live").await, format!("2 {A}"));
}

#[tokio::test]
async fn a_version_number_is_never_used_again() {
    let (_db, mut conn) = start().await;
    let register = |n: u32| format!("register_version('m', 's3://x', 'sha256:{n:064}', '{{}}', gen_random_uuid())");
    assert_eq!(conn.call(&register(1)).await.result()["version"], 4);
    conn.run("DELETE FROM palisade.model_version WHERE version >= 3").await; // as an operator with a broom might
    assert_eq!(conn.call(&register(2)).await.result()["version"], 5);
    conn.call("register_version('none', 's', 'sha256:0000000000000000000000000000000000000000000000000000000000000000', '{}', gen_random_uuid())")
        .await
        .is("rejected: no_such_model");
}

#[tokio::test]
async fn versions_registered_at_once_get_numbers_of_their_own() {
    let (db, mut conn) = start().await;
    let mut calls = Vec::new();
    for n in 0..8 {
        let call = format!("register_version('m', 's', 'sha256:{n:064}', '{{}}', gen_random_uuid())");
        calls.push(Running::call(db.connect().await, call).await);
    }
    let mut numbers = Vec::new();
    for call in calls {
        numbers.push(call.answer().await.result()["version"].as_i64().expect("a number"));
    }
    numbers.sort();
    assert_eq!(numbers, (4..12).collect::<Vec<_>>());
    assert_eq!(conn.number("SELECT count(*) FROM palisade.model_version").await, 11);
}

/// Nobody may write the table directly (`roles`), and the API contains no statement that would change a row.
#[tokio::test]
async fn no_function_changes_a_registered_version() {
    let (_db, mut conn) = start().await;
    let writers = conn
        .list(
            r"SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace
               AND prosrc ~* '(update|delete\s+from)\s+palisade\.model_version'",
        )
        .await;
    assert!(writers.is_empty(), "{writers:?}");
}

#[tokio::test]
async fn a_plain_clients_request_is_applied_at_most_once() {
    let (db, mut conn) = start().await;
    let id = "'00000000-0000-4000-8000-0000000000aa'";
    for (call, other) in [
        (format!("register_model('n', 'd', '{{}}', {id})"), format!("register_model('o', 'd', '{{}}', {id})")),
        (
            format!("register_version('m', 's', 'sha256:{}', '{{}}', {id})", "0".repeat(64)),
            format!("register_version('m', 't', 'sha256:{}', '{{}}', {id})", "0".repeat(64)),
        ),
        (format!("put_alias('m', 'plain', 1, {id})"), format!("put_alias('m', 'plain', 2, {id})")),
    ] {
        conn.run("DELETE FROM palisade.request").await;
        let mut calls = Vec::new();
        for _ in 0..4 {
            calls.push(Running::call(db.connect().await, call.clone()).await);
        }
        let mut words = Vec::new();
        for call in calls {
            words.push(call.answer().await.word());
        }
        words.sort();
        assert_eq!(words, ["applied", "replayed", "replayed", "replayed"], "{call}");
        let failure = conn.try_call(&other).await.expect_err("another request under the same id");
        assert_eq!(failure.code, "PS001");
    }
    let events = conn.list("SELECT kind FROM palisade.event WHERE kind <> 'epoch' ORDER BY id").await;
    assert_eq!(events, ["model_registered", "version_registered", "alias"]);
}

#[tokio::test]
async fn a_model_is_registered_once() {
    let (_db, mut conn) = start().await;
    conn.call("register_model('m', '', '{}', gen_random_uuid())").await.is("rejected: model_exists");
}

#[tokio::test]
async fn a_plan_is_ordered_by_generation_within_the_objects_uid() {
    let (_db, mut conn) = start().await;
    let controller = conn.owner(CONTROLLER).await;
    conn.call(&put_plan(&controller, 1, 5, r#"{"v": 5}"#)).await.is("applied");
    let answer = conn.call(&put_plan(&controller, 2, 4, r#"{"v": 4}"#)).await;
    assert_eq!(answer.is("rejected: older_generation").result()["generation"], 5);
    assert_eq!(conn.text("SELECT (generation, spec) FROM palisade.plan").await, r#"(5,"{""v"": 5}")"#);
    // The object was deleted and made anew: its generations begin again.
    let anew = put_plan(&controller, 3, 1, r#"{"v": 1}"#).replace(UID, OTHER_UID);
    conn.call(&anew).await.is("applied");
    assert_eq!(conn.text("SELECT (uid, generation) FROM palisade.plan").await, format!("({OTHER_UID},1)"));
}

#[tokio::test]
async fn the_same_plan_again_makes_no_work_and_wake_does() {
    let (_db, mut conn) = start().await;
    let controller = conn.owner(CONTROLLER).await;
    conn.call(&put_plan(&controller, 1, 2, r#"{"v": 2}"#)).await.is("applied");
    conn.run("DELETE FROM palisade.queue").await;
    let rollout = conn.number("SELECT rollout FROM palisade.plan").await;
    conn.call(&put_plan(&controller, 2, 2, r#"{"v": 2}"#)).await.is("applied");
    assert_eq!(
        conn.text("SELECT (SELECT count(*) FROM palisade.queue) || ' ' || (SELECT rollout FROM palisade.plan)").await,
        format!("0 {rollout}")
    );
    let wake = put_plan(&controller, 3, 2, r#"{"v": 2}"#).replace("'10 minutes', false)", "'10 minutes', true)");
    conn.call(&wake).await.is("applied");
    assert_eq!(
        conn.text("SELECT (SELECT count(*) FROM palisade.queue) || ' ' || (SELECT rollout FROM palisade.plan)").await,
        format!("1 {rollout}")
    );
}

#[tokio::test]
async fn only_a_controllers_lease_makes_plans() {
    let (_db, mut conn) = start().await;
    let worker = conn.owner(A).await;
    conn.call(&put_plan(&worker, 1, 2, "{}")).await.is("rejected: not_a_controller");
    conn.call(&format!("drop_plan({}, '{A}', '{UID}')", worker.fence(2))).await.is("rejected: not_a_controller");
    conn.call(&format!("next_revision({}, '{A}', 0)", worker.unnumbered())).await.is("rejected: not_a_controller");
    assert_eq!(conn.number("SELECT generation FROM palisade.plan").await, 1);
}

#[tokio::test]
async fn a_paused_plan_leaves_the_queue() {
    let (_db, mut conn) = start().await;
    let controller = conn.owner(CONTROLLER).await;
    let paused = put_plan(&controller, 1, 2, "{}").replace("false, false, '10", "true, false, '10");
    conn.call(&paused).await.is("applied");
    assert_eq!(conn.number("SELECT count(*) FROM palisade.queue").await, 0);
    conn.call(&put_plan(&controller, 2, 3, "{}")).await.is("applied");
    assert_eq!(conn.number("SELECT count(*) FROM palisade.queue").await, 1);
}

/// The race between a new plan and the end of the former's work, in both orders.
#[tokio::test]
async fn work_that_was_planned_while_the_former_work_ended_stays_queued() {
    let db = Db::patient().await;
    for (n, end) in ["record_done", "record_failure"].into_iter().cycle().take(4).enumerate() {
        let mut conn = db.connect().await;
        conn.clear().await;
        furnish(&mut conn).await;
        let (controller, worker) = (conn.owner(CONTROLLER).await, conn.owner(A).await);
        let plan = put_plan(&controller, 1, 2, r#"{"v": 2}"#);
        let more = if end == "record_done" { "" } else { ", 'R', 'm', NULL" };
        let step = if end == "record_done" { "" } else { "'s', " };
        let done = format!("{end}({}, '{UID}', 1, {step}'{{}}'{more})", worker.fence(1));
        let (first, second) = if n < 2 { (plan, done) } else { (done, plan) };
        conn.run("BEGIN").await;
        conn.call(&first).await.is("applied");
        let second = Running::call(db.connect().await, second).await;
        db.connect().await.wait_blocked(second.pid).await;
        conn.run("COMMIT").await;
        second.answer().await.is("applied");
        assert_eq!(conn.number("SELECT count(*) FROM palisade.queue").await, 1, "{end}, order {n}");
        assert_eq!(conn.number("SELECT rollout FROM palisade.plan").await, 2);
    }
}

#[tokio::test]
async fn a_step_of_a_rollout_that_was_never_planned_is_refused() {
    let (_db, mut conn) = start().await;
    let (owner, other) = (conn.owner(A).await, conn.owner(B).await);
    conn.call(&format!("record_step({}, '{UID}', 2, 's', '{{}}')", owner.fence(1))).await.is("rejected: no_such_plan");
    conn.call(&format!("record_step({}, '{UID}', 1, 's', '{{}}')", other.fence(1))).await.is("rejected: no_such_plan");
}

#[tokio::test]
async fn a_repeated_step_keeps_its_start_across_a_takeover() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    conn.call(&format!("record_step({}, '{UID}', 1, 'wait', '{{}}')", owner.fence(1))).await.is("applied");
    let start = conn.text("SELECT step_started_at FROM palisade.deployment").await;
    let next = conn.take_over(&owner).await;
    conn.call(&format!("record_step({}, '{UID}', 1, 'wait', '{{\"by\": 2}}')", next.fence(1))).await.is("applied");
    assert_eq!(conn.text("SELECT step_started_at FROM palisade.deployment").await, start);
    conn.call(&format!("record_step({}, '{UID}', 1, 'next', '{{}}')", next.fence(2))).await.is("applied");
    assert_ne!(conn.text("SELECT step_started_at FROM palisade.deployment").await, start);
}

#[tokio::test]
async fn a_failure_comes_back_when_it_asked_to_and_otherwise_waits_for_a_new_plan() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    let fail = |n: i64, retry: &str| {
        format!("record_failure({}, '{UID}', 1, 's', '{{}}', 'Broken', 'it broke', {retry})", owner.fence(n))
    };
    conn.call(&fail(1, "'1 minute'")).await.is("applied");
    assert_eq!(
        conn.text("SELECT (attempts, due_at > clock_timestamp() + interval '50 seconds') FROM palisade.queue").await,
        "(1,t)"
    );
    conn.call(&fail(2, "NULL")).await.is("applied");
    assert_eq!(conn.number("SELECT count(*) FROM palisade.queue").await, 0);
    assert_eq!(
        conn.text("SELECT (failure_reason, failure_message) FROM palisade.deployment").await,
        "(Broken,\"it broke\")"
    );
    conn.call(&format!("record_done({}, '{UID}', 1, '{{}}')", owner.fence(3))).await.is("applied");
    assert_eq!(conn.text("SELECT failure_reason IS NULL FROM palisade.deployment").await, "true");
}

#[tokio::test]
async fn a_plan_is_dropped_only_after_its_removal_was_recorded_and_the_lease_remembers_its_tokens() {
    let (_db, mut conn) = start().await;
    let (controller, owner) = (conn.owner(CONTROLLER).await, conn.owner(A).await);
    let drop = |n: i64| format!("drop_plan({}, '{A}', '{UID}')", controller.fence(n));
    conn.call(&drop(1)).await.is("rejected: not_removed");
    conn.run("UPDATE palisade.plan SET removed = true").await;
    conn.call(&drop(2)).await.is("rejected: not_removed");
    conn.call(&format!("record_removed({}, '{UID}', 1)", owner.fence(1))).await.is("applied");
    conn.call(&drop(3)).await.is("applied");
    assert_eq!(
        conn.number("SELECT (SELECT count(*) FROM palisade.plan) + (SELECT count(*) FROM palisade.deployment)").await,
        0
    );
    assert_eq!(conn.owner_after(&owner).await, owner.token + 1);
}

impl Conn {
    /// The token that the next owner of the same resource gets.
    async fn owner_after(&mut self, lease: &crate::support::postgres::Lease) -> i64 {
        self.take_over(lease).await.token
    }
}

#[tokio::test]
async fn revisions_only_rise_above_what_the_status_carries_and_into_the_epoch() {
    let (_db, mut conn) = start().await;
    let controller = conn.owner(CONTROLLER).await;
    let next = |above: i64| format!("next_revision({}, '{A}', {above})", controller.unnumbered());
    let mut last = 0;
    for above in [0, 0, (1 << 32) + 50, 0, 3] {
        let revision = conn.call(&next(above)).await.result()["revision"].as_i64().expect("a number");
        assert!(revision > last && revision > above && revision >> 32 == 1, "{revision}");
        last = revision;
    }
}

#[tokio::test]
async fn the_outbox_is_read_in_an_order_that_misses_no_event_of_a_slow_transaction() {
    let (db, mut conn) = start().await;
    let mut slow = db.connect().await;
    slow.run("BEGIN").await;
    slow.call("put_alias('m', 'slow', 1, gen_random_uuid())").await.is("applied");
    conn.call("put_alias('m', 'fast', 1, gen_random_uuid())").await.is("applied");
    let read = "SELECT data ->> 'alias' FROM palisade.events('0', 0, 10) WHERE kind = 'alias'";
    assert!(conn.list(read).await.is_empty(), "not before the slow one has ended");
    slow.run("COMMIT").await;
    // Transactions of the server's other databases hold it back as well: late, but complete.
    conn.wait_until("SELECT count(*) = 2 FROM palisade.events('0', 0, 10) WHERE kind = 'alias'").await;
    assert_eq!(conn.list(read).await, ["slow", "fast"]);
    let rest = "SELECT data ->> 'alias' FROM palisade.events((SELECT xid FROM palisade.event WHERE data ->> 'alias' = 'slow'), (SELECT id FROM palisade.event WHERE data ->> 'alias' = 'slow'), 10)";
    assert_eq!(conn.list(rest).await, ["fast"]);
}

/// S11: what is registered equals the fold of its events.
#[tokio::test]
async fn every_change_of_an_alias_is_an_event_in_the_same_transaction() {
    let (_db, mut conn) = start().await;
    let owner = conn.owner(A).await;
    for (n, version) in [(1, "1"), (2, "2"), (3, "NULL"), (4, "3")] {
        conn.call(&format!("set_alias({}, 'm', 'live', {version})", owner.fence(n))).await.is("applied");
    }
    let told = conn.list("SELECT coalesce(data ->> 'former', 'none') || '→' || coalesce(data ->> 'version', 'none') FROM palisade.event WHERE kind = 'alias' ORDER BY id").await;
    assert_eq!(told, ["3→1", "1→2", "2→none", "none→3"]);
}
