//! Rules 1 to 4: the lease's row is the gate.

use super::scenarios::{A, SCENARIOS, furnish, paused_worker};
use crate::support::postgres::{Db, Running};

#[tokio::test]
async fn a_stale_write_is_refused_by_each_fenced_function_before_the_successors_first_write() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let verdict = paused_worker(&mut conn, scenario).await;
        assert!(verdict.is_safe(), "{} ({}): {verdict:?}", scenario.function, scenario.occurrence);
    }
}

/// Nothing above is refused for the wrong reason: without the takeover the same write is applied and seen.
#[tokio::test]
async fn the_newest_owners_write_is_applied_by_each_fenced_function() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let world = scenario.world(&mut conn).await;
        let before = conn.text(scenario.effect).await;
        assert_eq!(scenario.write(&mut conn, &world, 1).await.expect("an answer"), "applied", "{}", scenario.function);
        let after = conn.text(scenario.effect).await;
        assert_eq!(before != after, scenario.function != "check_lease", "{}: {before} → {after}", scenario.function);
    }
}

#[tokio::test]
async fn a_takeover_that_commits_while_a_write_waits_at_the_gate_makes_it_stale() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let world = scenario.world(&mut conn).await;
        conn.expire(&world.lease.session).await;
        let next = conn.session("1 minute").await;

        // The grant is made, and not committed: the write's statement starts with a snapshot from before it.
        conn.run("BEGIN").await;
        conn.acquire(&next, scenario.resource).await;
        let call = (scenario.call)(&world, 1);
        let late =
            if scenario.function == "check_lease" { format!("answer_of($$ SELECT palisade.{call} $$)") } else { call };
        let mut other = db.connect().await;
        other.run(ANSWER_OF).await;
        let late = Running::call(other, late).await;
        let mut watcher = db.connect().await;
        watcher.wait_blocked(late.pid).await;
        let before = conn.text(scenario.effect).await;
        conn.run("COMMIT").await;
        match late.outcome().await {
            Ok(answer) => answer.is("rejected: stale"),
            Err(failure) => panic!("{}: {failure:?}", scenario.function),
        };
        assert_eq!(conn.text(scenario.effect).await, before, "{}", scenario.function);
    }
}

/// Gives `check_lease`, which raises, the shape of the others.
const ANSWER_OF: &str =
    "CREATE OR REPLACE FUNCTION palisade.answer_of(statement text) RETURNS palisade.answer LANGUAGE plpgsql AS $$
    BEGIN EXECUTE statement; RETURN ('applied', NULL, NULL, NULL)::palisade.answer;
    EXCEPTION WHEN SQLSTATE 'PS003' THEN
        RETURN ('rejected', substring(SQLERRM FROM 'refused: (\\w+)'), NULL, NULL)::palisade.answer; END $$";

#[tokio::test]
async fn a_takeover_waits_for_a_write_that_has_passed_the_gate() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    conn.expire(&lease.session).await;
    let next = conn.session("1 minute").await;
    let mut watcher = db.connect().await;

    // Somebody holds the alias, so the write stops between its check and its effect.
    conn.run("BEGIN; SELECT FROM palisade.alias WHERE alias = 'live' FOR UPDATE").await;
    let write = Running::call(db.connect().await, format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await;
    watcher.wait_blocked(write.pid).await;
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    watcher.wait_blocked(grant.pid).await;
    conn.run("COMMIT").await;

    write.answer().await.is("applied");
    grant.answer().await.is("applied");
    let order = conn
        .text("SELECT (SELECT max(at) FROM palisade.operation) < (SELECT max(at) FROM palisade.grant_history)")
        .await;
    assert_eq!(order, "true", "the write came before the grant");
}

#[tokio::test]
async fn every_change_is_refused_unless_the_isolation_is_read_committed() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for level in ["REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED"] {
        for scenario in SCENARIOS {
            conn.clear().await;
            let world = scenario.world(&mut conn).await;
            conn.run(&format!("BEGIN ISOLATION LEVEL {level}")).await;
            let failure = scenario.write(&mut conn, &world, 1).await.expect_err(scenario.function);
            assert_eq!(failure.code, "PS002", "{} under {level}: {failure:?}", scenario.function);
            conn.run("ROLLBACK").await;
        }
        let session = conn.session("1 minute").await;
        let request = "'00000000-0000-4000-8000-000000000009'";
        for call in [
            format!("open_session({}, 'w', '1 minute')", session.args()),
            format!("heartbeat({})", session.args()),
            format!("acquire({}, 'a')", session.args()),
            format!("close_session({})", session.args()),
            "revoke('a', 'why')".to_owned(),
            "operation_abandon('a', 1, 1)".to_owned(),
            "establish_epoch(9, 'x')".to_owned(),
            "withdraw_epoch(9, 'x')".to_owned(),
            format!("register_model('m', '', '{{}}', {request})"),
            format!("register_version('m', 's', 'sha256:{}', '{{}}', {request})", "0".repeat(64)),
            format!("put_alias('m', 'a', 1, {request})"),
        ] {
            conn.run(&format!("BEGIN ISOLATION LEVEL {level}")).await;
            let failure = conn.try_call(&call).await.expect_err(&call);
            assert_eq!(failure.code, "PS002", "{call} under {level}: {failure:?}");
            conn.run("ROLLBACK").await;
        }
    }
}

#[tokio::test]
async fn a_forged_higher_token_is_refused_as_not_issued_and_locks_nobody_out() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let mut world = scenario.world(&mut conn).await;
        let token = world.lease.token;
        for forged in [token + 1, token + (1 << 32), (1 << 53) - 1, i64::MAX] {
            world.lease.token = forged;
            let word = scenario.write(&mut conn, &world, 1_000_000).await.expect("an answer");
            assert_eq!(word, "rejected: not_issued", "{}", scenario.function);
        }
        world.lease.token = token;
        let word = scenario.write(&mut conn, &world, 1).await.expect("an answer");
        assert_eq!(word, "applied", "{}: the owner goes on", scenario.function);
    }
}

#[tokio::test]
async fn another_sessions_key_is_refused_and_occupies_no_sequence() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let mut world = scenario.world(&mut conn).await;
        let stranger = conn.session("1 minute").await;
        let owner = world.lease.session.clone();
        for key in [stranger.key.as_str(), "a key that nobody has", ""] {
            world.lease.session.key = key.to_owned();
            let word = scenario.write(&mut conn, &world, 1_000_000).await.expect("an answer");
            assert_eq!(word, "rejected: wrong_key", "{}", scenario.function);
        }
        assert_eq!(conn.number("SELECT max(sequence) FROM palisade.lease").await, 0);
        assert_eq!(conn.number("SELECT count(*) FROM palisade.operation").await, 0);
        world.lease.session = owner;
        let word = scenario.write(&mut conn, &world, 1).await.expect("an answer");
        assert_eq!(word, "applied", "{}", scenario.function);
    }
}

#[tokio::test]
async fn a_token_that_a_release_left_behind_belongs_to_nobody() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let mut lease = conn.owner(A).await;
    let raised = conn.call(&format!("release({})", lease.fence(1))).await.token.expect("a token");
    assert_eq!(raised, lease.token + 1);
    lease.token = raised;
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(2))).await.is("rejected: not_issued");
}

/// The second line: a row that carries a newer token refuses, whatever the gate thought.
#[tokio::test]
async fn a_protected_row_refuses_a_token_older_than_its_own() {
    let newer = i64::MAX / 2;
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for (table, functions) in [
        ("alias", &["set_alias", "record_serving"][..]),
        ("deployment", &["record_step", "record_serving", "record_done", "record_failure", "record_removed"]),
        ("plan", &["put_plan"]),
    ] {
        for function in functions {
            let scenario = SCENARIOS.iter().find(|s| s.function == *function).expect("a scenario");
            conn.clear().await;
            let world = scenario.world(&mut conn).await;
            conn.run(&format!("UPDATE palisade.{table} SET token = {newer}")).await;
            let before = conn.text(&format!("SELECT array_agg(x ORDER BY x::text) FROM palisade.{table} AS x")).await;
            let word = scenario.write(&mut conn, &world, 1).await.expect("an answer");
            assert_eq!(word, "rejected: newer_row", "{function}");
            let after = conn.text(&format!("SELECT array_agg(x ORDER BY x::text) FROM palisade.{table} AS x")).await;
            assert_eq!(before, after, "{function} left {table} alone");
        }
    }
}

#[tokio::test]
async fn an_acquirer_that_waited_decides_by_the_clock_after_the_wait() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let owner = conn.session("1 minute").await;
    conn.acquire(&owner, A).await;
    let next = conn.session("1 minute").await;
    conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
    // It starts while the owner lives; by its transaction's clock the owner always will.
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    let mut watcher = db.connect().await;
    watcher.wait_blocked(grant.pid).await;
    watcher.run(&format!("UPDATE palisade.session SET expires_at = clock_timestamp() WHERE id = '{}'", owner.id)).await;
    conn.run("COMMIT").await;
    grant.answer().await.is("applied");
}

#[tokio::test]
async fn a_short_lease_that_was_granted_behind_a_held_lock_does_not_come_back_expired() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let owner = conn.session("1 minute").await;
    let lease = conn.acquire(&owner, A).await;
    conn.call(&format!("release({})", lease.fence(1))).await.is("applied");
    conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}', '2 seconds')", owner.args())).await;
    let mut watcher = db.connect().await;
    watcher.wait_blocked(grant.pid).await;
    watcher
        .wait_until(&format!(
            "SELECT clock_timestamp() - xact_start > interval '2 seconds' FROM pg_stat_activity WHERE pid = {}",
            grant.pid
        ))
        .await;
    let waited_until = conn.text("SELECT clock_timestamp()").await;
    conn.run("COMMIT").await;
    grant.answer().await.is("applied");
    // The whole span, counted from after the wait; how much of it is left by now is the machine's business.
    let granted = conn.text(&format!("SELECT deadline - '{waited_until}' FROM palisade.progress")).await;
    let whole = conn.text(&format!("SELECT interval '{granted}' >= interval '2 seconds'")).await;
    assert_eq!(whole, "true", "{granted} of 2 s were granted");
}

#[tokio::test]
async fn a_callers_collation_does_not_open_the_gate_under_another_name() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let careless =
        "CREATE COLLATION public.careless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    if conn.try_run(careless).await.is_err() {
        return; // a build without ICU
    }
    let lease = conn.owner(A).await;
    let other = format!("'{}' COLLATE public.careless", A.to_uppercase());
    let check = format!("SELECT palisade.check_lease({other}, {}, '{}')", lease.token, lease.session.key);
    conn.try_run(&check).await.expect_err("another name");
    for call in ["set_alias({}, 'm', 'live', 2)", "release({})"] {
        let call = call.replace("{}", &format!("{other}, {}, 1, '{}'", lease.token, lease.session.key));
        if let Ok(answer) = conn.try_call(&call).await {
            answer.is("rejected: no_lease");
        }
    }
    conn.call(&format!("set_alias({}, 'm', 'live', 2)", lease.fence(1))).await.is("applied");
}
