//! Rules 7, 8 and 12: a fence names one intended write, and the ledger knows what became of it.

use super::scenarios::{A, furnish, numbered};
use crate::support::postgres::{Conn, Db, Lease, Running};

fn set_alias(lease: &Lease, sequence: i64, version: i64) -> String {
    format!("set_alias({}, 'm', 'live', {version})", lease.fence(sequence))
}

fn operation(function: &str, lease: &Lease, sequence: i64) -> String {
    format!("{function}({})", lease.fence(sequence))
}

/// A database, a connection, a lease of deployment a.
async fn start() -> (Db, Conn, Lease) {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    (db, conn, lease)
}

#[tokio::test]
async fn the_same_fence_again_is_replayed_with_the_first_answer_and_changes_nothing() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in numbered() {
        conn.clear().await;
        let world = scenario.world(&mut conn).await;
        let call = (scenario.call)(&world, 1);
        let first = conn.call(&call).await;
        first.is("applied");
        let (effect, events) =
            (conn.text(scenario.effect).await, conn.number("SELECT count(*) FROM palisade.event").await);
        for _ in 0..2 {
            let again = conn.call(&call).await;
            assert_eq!(again.word(), "replayed", "{}", scenario.function);
            assert_eq!(again.result, first.result, "{}", scenario.function);
        }
        assert_eq!(conn.text(scenario.effect).await, effect, "{}", scenario.function);
        assert_eq!(conn.number("SELECT count(*) FROM palisade.event").await, events, "{}", scenario.function);
    }
}

#[tokio::test]
async fn the_same_fence_with_other_arguments_is_an_error_and_changes_nothing() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for scenario in numbered() {
        conn.clear().await;
        let world = scenario.world(&mut conn).await;
        conn.call(&(scenario.call)(&world, 1)).await.is("applied");
        let effect = conn.text(scenario.effect).await;
        let other = (scenario.other.expect("numbered"))(&world, 1);
        let failure = conn.try_call(&other).await.expect_err(&other);
        assert_eq!(failure.code, "PS001", "{other}: {failure:?}");
        assert_eq!(conn.text(scenario.effect).await, effect, "{}", scenario.function);
    }
}

#[tokio::test]
async fn the_same_fence_in_another_function_is_an_error() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    let failure = conn.try_call(&format!("release({})", lease.fence(1))).await.expect_err("refused");
    assert_eq!(failure.code, "PS001");
}

/// What a fence names must not depend on how a caller's session prints things.
#[tokio::test]
async fn a_callers_settings_do_not_change_which_write_a_fence_names() {
    let db = Db::new().await;
    for (n, call) in [
        |l: &Lease| format!("release({}, '1 day 02:03:04.5')", l.fence(1)),
        |l: &Lease| {
            format!(
                "put_plan({}, '{A}', '{}', 2, '{{}}', false, false, '1 day 02:03:04.5', false)",
                l.fence(1),
                super::scenarios::UID
            )
        },
        |l: &Lease| {
            format!(
                "record_failure({}, '{}', 1, 's', '{{}}', 'R', 'm', '1 day 02:03:04.5')",
                l.fence(1),
                super::scenarios::UID
            )
        },
    ]
    .into_iter()
    .enumerate()
    {
        let mut conn = db.connect().await;
        conn.clear().await;
        furnish(&mut conn).await;
        let lease = conn.owner(if n == 1 { "controller/main" } else { A }).await;
        conn.call(&call(&lease)).await.is("applied");
        let mut other = db.connect().await;
        other.run("SET IntervalStyle = 'iso_8601'; SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'").await;
        other.call(&call(&lease)).await.is("replayed");
    }
}

#[tokio::test]
async fn a_refused_write_under_a_fence_is_refused_again_even_when_it_would_be_right_now() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 4)).await.is("rejected: no_such_version");
    conn.run(
        "INSERT INTO palisade.model_version (model, version, source, digest, created_at)
         VALUES ('m', 4, 's', 'sha256:' || repeat('4', 64), now())",
    )
    .await;
    conn.call(&set_alias(&lease, 1, 4)).await.is("rejected: no_such_version");
    conn.call(&operation("operation_status", &lease, 1)).await.is("rejected: no_such_version");
    conn.call(&set_alias(&lease, 2, 4)).await.is("applied");
}

#[tokio::test]
async fn an_earlier_write_that_is_still_on_its_way_is_superseded_by_a_later_one() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 2, 2)).await.is("applied");
    conn.call(&set_alias(&lease, 1, 1)).await.is("rejected: superseded");
    conn.call(&operation("operation_status", &lease, 1)).await.is("never");
    assert_eq!(conn.number("SELECT version FROM palisade.alias WHERE alias = 'live'").await, 2);
}

#[tokio::test]
async fn a_sequence_starts_over_under_a_new_token() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 7, 1)).await.is("applied");
    let next = conn.take_over(&lease).await;
    conn.call(&set_alias(&next, 1, 2)).await.is("applied");
}

#[tokio::test]
async fn the_same_fence_sent_at_once_on_eight_connections_is_applied_once() {
    let (db, mut conn, lease) = start().await;
    for round in 1..=10 {
        let mut calls = Vec::new();
        // All eight wait at the gate, and go through it at once.
        conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
        for _ in 0..8 {
            calls.push(Running::call(db.connect().await, set_alias(&lease, round, round % 2 + 1)).await);
        }
        let mut watcher = db.connect().await;
        for call in &calls {
            watcher.wait_blocked(call.pid).await;
        }
        conn.run("COMMIT").await;
        let mut words = Vec::new();
        for call in calls {
            words.push(call.answer().await.word());
        }
        words.sort();
        assert_eq!(words[0], "applied");
        assert!(words[1..].iter().all(|word| word == "replayed"), "{words:?}");
        assert_eq!(conn.number("SELECT count(*) FROM palisade.operation").await, round);
        assert_eq!(conn.number("SELECT count(*) FROM palisade.event WHERE kind = 'alias'").await, round);
    }
}

/// Ledger first would claim what did not happen; sequence first would close the fence of a write that failed.
#[tokio::test]
async fn a_write_that_fails_half_way_leaves_neither_ledger_nor_sequence_and_can_be_sent_again() {
    let (_db, mut conn, lease) = start().await;
    conn.run(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full'; END $$;
         CREATE TRIGGER fail BEFORE UPDATE ON palisade.alias FOR EACH ROW EXECUTE FUNCTION public.fail()",
    )
    .await;
    conn.try_call(&set_alias(&lease, 1, 1)).await.expect_err("the trigger raises");
    assert_eq!(conn.number("SELECT count(*) FROM palisade.operation").await, 0);
    conn.call(&operation("operation_status", &lease, 1)).await.is("pending");
    conn.run("DROP TRIGGER fail ON palisade.alias").await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
}

#[tokio::test]
async fn abandon_closes_a_fence_so_that_its_write_is_never_applied() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&operation("operation_status", &lease, 3)).await.is("pending");
    conn.call(&operation("abandon", &lease, 3)).await.is("never");
    conn.call(&operation("operation_status", &lease, 3)).await.is("never");
    for sequence in 1..=3 {
        conn.call(&set_alias(&lease, sequence, 1)).await.is("rejected: superseded");
    }
    conn.call(&operation("operation_status", &lease, 4)).await.is("pending");
    conn.call(&set_alias(&lease, 4, 1)).await.is("applied");
}

#[tokio::test]
async fn abandon_of_an_applied_write_says_that_it_was_applied() {
    let (_db, mut conn, lease) = start().await;
    let first = conn.call(&set_alias(&lease, 1, 1)).await;
    let answer = conn.call(&operation("abandon", &lease, 1)).await;
    answer.is("applied");
    assert_eq!(answer.result, first.result);
    conn.call(&set_alias(&lease, 2, 2)).await.is("applied");
}

#[tokio::test]
async fn abandon_waits_for_a_write_that_holds_the_gate_and_tells_what_became_of_it() {
    let (db, mut conn, lease) = start().await;
    conn.run("BEGIN").await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    let abandon = Running::call(db.connect().await, operation("abandon", &lease, 1)).await;
    db.connect().await.wait_blocked(abandon.pid).await;
    conn.run("COMMIT").await;
    abandon.answer().await.is("applied");
}

#[tokio::test]
async fn abandon_needs_the_key_that_the_token_was_granted_to() {
    let (_db, mut conn, mut lease) = start().await;
    let stranger = conn.session("1 minute").await;
    let owner = std::mem::replace(&mut lease.session, stranger);
    for function in ["abandon", "operation_status"] {
        conn.call(&operation(function, &lease, 9)).await.is("rejected: wrong_key");
    }
    lease.session = owner;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
}

#[tokio::test]
async fn a_person_abandons_without_a_key() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&format!("operation_show('{A}', {}, 1)", lease.token)).await.is("pending");
    conn.call(&format!("operation_abandon('{A}', {}, 1)", lease.token)).await.is("never");
    conn.call(&set_alias(&lease, 1, 1)).await.is("rejected: superseded");
}

#[tokio::test]
async fn a_replaced_owner_is_told_what_it_did_apply_and_that_the_rest_never_will_be() {
    let (_db, mut conn, lease) = start().await;
    let first = conn.call(&set_alias(&lease, 1, 1)).await;
    let next = conn.take_over(&lease).await;
    conn.call(&set_alias(&next, 1, 2)).await.is("applied");

    let again = conn.call(&set_alias(&lease, 1, 1)).await;
    again.is("replayed");
    assert_eq!((again.result, again.token), (first.result, Some(next.token)));
    conn.call(&set_alias(&lease, 2, 1)).await.is("rejected: stale");
    conn.call(&operation("operation_status", &lease, 1)).await.is("applied");
    conn.call(&operation("operation_status", &lease, 2)).await.is("never");
    conn.call(&operation("abandon", &lease, 2)).await.is("never");
    conn.call(&operation("operation_status", &next, 1)).await.is("applied"); // not harmed by the other's abandon
    conn.call(&operation("operation_status", &next, 2)).await.is("pending");
    // The other's key opens nothing.
    let thief = Lease { session: next.session.clone(), ..lease };
    conn.call(&set_alias(&thief, 1, 1)).await.is("rejected: stale");
}

#[tokio::test]
async fn a_fence_that_was_never_granted_is_never_pending() {
    let (_db, mut conn, lease) = start().await;
    conn.call("operation_show('nothing', 1, 1)").await.is("never");
    conn.call(&format!("operation_show('{A}', {}, 1)", lease.token + 1)).await.is("never");
    let raised = conn.call(&format!("release({})", lease.fence(1))).await.token.expect("a token");
    // Nobody holds this token, so nothing can be on its way under it.
    conn.call(&format!("operation_show('{A}', {raised}, 1)")).await.is("never");
}

/// The gate is shut for a token whose epoch or session is over, though no newer one was granted. Only a write that had
/// passed it before may still land.
#[tokio::test]
async fn when_the_gate_is_shut_for_a_token_only_a_running_write_is_pending() {
    let (db, mut conn, _) = start().await;
    let mut other = db.connect().await;
    for (n, (what, savepoint)) in
        [("session", false), ("session", true), ("epoch", false), ("epoch", true)].iter().enumerate()
    {
        conn.clear().await;
        furnish(&mut conn).await;
        let lease = conn.owner(A).await;
        conn.call(&operation("operation_status", &lease, 1)).await.is("pending");
        conn.run(if *savepoint { "BEGIN; SAVEPOINT a" } else { "BEGIN" }).await;
        conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
        if *savepoint {
            conn.run("RELEASE a").await; // its lock on itself is gone; its writes are not
        }
        if *what == "session" {
            // As a takeover of another of its leases does.
            other
                .run(&format!("UPDATE palisade.session SET closed_at = now() WHERE id = '{}'", lease.session.id))
                .await;
        } else {
            other.establish(n as i64).await;
        }
        other.call(&operation("operation_status", &lease, 1)).await.is("pending");
        conn.run("COMMIT").await;
        other.call(&operation("operation_status", &lease, 1)).await.is("applied");
        other.call(&operation("operation_status", &lease, 2)).await.is("never");
        let refused = other.call(&set_alias(&lease, 2, 1)).await.word();
        assert!(["rejected: stale", "rejected: session_closed"].contains(&refused.as_str()), "{what}: {refused}");
    }
}

#[tokio::test]
async fn a_sequence_above_what_json_carries_is_an_error_and_closes_nothing() {
    let (_db, mut conn, lease) = start().await;
    let beyond = 1 << 53;
    for call in [set_alias(&lease, beyond, 1), operation("abandon", &lease, beyond)] {
        assert_eq!(conn.try_call(&call).await.expect_err(&call).code, "PS004", "{call}");
    }
    conn.call(&operation("operation_status", &lease, beyond)).await.is("never");
    conn.call(&set_alias(&lease, beyond - 1, 1)).await.is("applied");
}

/// Both fences name the one write: neither may be played again with another partner.
#[tokio::test]
async fn a_guard_is_moved_under_exactly_the_two_fences_that_were_named() {
    let (_db, mut conn, from) = start().await;
    let to = conn.owner("deployment/ns/b").await;
    let moved = |n: i64, m: i64| {
        format!(
            "move_guard({}, '{}', {}, {m}, '{}', 'm', 'guarded')",
            from.fence(n),
            to.resource,
            to.token,
            to.session.key
        )
    };
    conn.call(&moved(1, 1)).await.is("applied");
    conn.call(&moved(1, 1)).await.is("replayed");
    for (n, m) in [(1, 2), (2, 1)] {
        let failure = conn.try_call(&moved(n, m)).await.expect_err("another write");
        assert_eq!(failure.code, "PS001", "{n} {m}: {failure:?}");
    }
    // A refusal of the other fence says so: the caller's own lease is as good as before.
    conn.take_over(&to).await;
    let refused = conn.call(&moved(2, 2)).await;
    refused.is("rejected: stale");
    assert_eq!(refused.result()["resource"], "deployment/ns/b");
    conn.call(&set_alias(&from, 2, 1)).await.is("applied");
}

#[tokio::test]
async fn every_refusal_is_a_row_that_says_which_fence_and_why() {
    let (_db, mut conn, lease) = start().await;
    let mut forged = lease.clone();
    forged.token += 1;
    conn.call(&set_alias(&forged, 1, 1)).await.is("rejected: not_issued");
    conn.call(&set_alias(&lease, 1, 9)).await.is("rejected: no_such_version");
    let next = conn.take_over(&lease).await;
    conn.call(&set_alias(&lease, 2, 1)).await.is("rejected: stale");
    let rows = conn
        .list("SELECT concat_ws(' ', resource, token, sequence, kind, reason, current_token) FROM palisade.refusal ORDER BY id")
        .await;
    assert_eq!(
        rows,
        [
            format!("{A} {} 1 set_alias not_issued {}", forged.token, lease.token),
            format!("{A} {} 1 set_alias no_such_version {}", lease.token, lease.token),
            format!("{A} {} 2 set_alias stale {}", lease.token, next.token),
        ]
    );
}

#[tokio::test]
async fn check_lease_raises_an_sqlstate_of_its_own_and_passes_for_the_owner() {
    let (_db, mut conn, lease) = start().await;
    conn.run(&format!("SELECT palisade.check_lease({})", lease.unnumbered())).await;
    conn.take_over(&lease).await;
    let failure =
        conn.try_run(&format!("SELECT palisade.check_lease({})", lease.unnumbered())).await.expect_err("raises");
    assert_eq!(failure.code, "PS003");
}

/// What check_lease is for: a user's own write in the same transaction is fenced by it.
#[tokio::test]
async fn a_takeover_waits_for_a_transaction_that_called_check_lease() {
    let (db, mut conn, lease) = start().await;
    conn.expire(&lease.session).await;
    let next = conn.session("1 minute").await;
    conn.run(&format!("BEGIN; SELECT palisade.check_lease({})", lease.unnumbered())).await;
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    db.connect().await.wait_blocked(grant.pid).await;
    conn.run("COMMIT").await;
    grant.answer().await.is("applied");
}
