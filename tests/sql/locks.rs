//! Rules 9 and 14: one lock order, and no client that blocks the others for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::scenarios::{A, B, furnish};
use crate::support::postgres::{Conn, Db, Running, quote};

/// Rounds of everything that locks more than one row, against one another.
#[tokio::test]
async fn a_storm_of_grants_writes_and_closings_has_no_deadlock() {
    const CLIENTS: u64 = 8;
    const ROUNDS: u64 = 100;
    let db = Arc::new(Db::new().await);
    let mut admin = db.connect().await;
    // A deadlock is found at once, not after a second.
    admin.run(&format!("ALTER DATABASE {} SET deadlock_timeout = '20ms'", db.name)).await;
    furnish(&mut admin).await;
    admin.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('{A}', 0), ('{B}', 0)")).await;
    let calls = Arc::new(AtomicI64::new(0));
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let mut conn = db.connect().await;
        let calls = calls.clone();
        tasks.push(tokio::spawn(async move {
            // Fixed seeds: what each client does is the same each time, only the interleaving differs.
            let mut random = fastrand(client + 1);
            for _ in 0..ROUNDS {
                let done = round(&mut conn, &mut random).await;
                calls.fetch_add(done, Ordering::Relaxed);
            }
        }));
    }
    for task in tasks {
        task.await.expect("no deadlock, no other error");
    }
    let applied = admin.number("SELECT count(*) FROM palisade.operation WHERE outcome = 'applied'").await;
    let takeovers = admin.number("SELECT count(*) FROM palisade.grant_history WHERE kind = 'takeover'").await;
    let refused = admin.number("SELECT count(*) FROM palisade.refusal").await;
    assert!(
        applied > 50 && takeovers > 5 && refused > 5,
        "it was a storm: {applied} applied, {takeovers} takeovers, {refused} refused"
    );
    let stats = admin.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await;
    assert_eq!(stats, 0);
}

/// A small generator (xorshift): the storm needs no more.
fn fastrand(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

async fn round(conn: &mut Conn, random: &mut impl FnMut(u64) -> u64) -> i64 {
    let session = conn.session("1 minute").await;
    let (first, second) = if random(2) == 0 { (A, B) } else { (B, A) };
    let mut held = Vec::new();
    for resource in [first, second] {
        let answer = conn.call(&format!("acquire({}, {})", session.args(), quote(resource))).await;
        if answer.outcome == "applied" {
            held.push((resource, answer.token.expect("a token")));
        }
    }
    conn.list(&format!("SELECT resource FROM palisade.claim({}, 5)", session.args())).await;
    let key = &session.key;
    let mut sequence = 0;
    for _ in 0..4 {
        sequence += 1;
        let (resource, token) = held.get(random(2) as usize).copied().unwrap_or((first, 1 << 32));
        let fence = format!("'{resource}', {token}, {sequence}, '{key}'");
        let call = match random(8) {
            0 => format!("set_alias({fence}, 'm', 'live', {})", random(3) + 1),
            1 => format!(
                "record_serving({fence}, '{}', 1, 'drain', '{{}}', 'm', {}, 'r', 'live')",
                super::scenarios::UID,
                random(3) + 1
            ),
            2 => {
                let other = if resource == A { B } else { A };
                let to = held.iter().find(|(name, _)| *name == other).map_or(1 << 32, |(_, token)| *token);
                format!("move_guard({fence}, '{other}', {to}, {}, '{key}', 'm', 'guarded')", sequence + 100)
            }
            3 => format!("record_done({fence}, '{}', 1, '{{}}')", super::scenarios::UID),
            4 => format!("revoke('{resource}', 'storm')"),
            5 => format!("heartbeat({})", session.args()),
            6 => format!("release({fence}, '1 millisecond')"),
            _ => format!(
                "record_failure({fence}, '{}', 1, 's', '{{}}', 'R', 'm', '1 millisecond')",
                super::scenarios::UID
            ),
        };
        conn.call(&call).await;
    }
    match random(3) {
        0 => drop(conn.call(&format!("close_session({})", session.args())).await),
        1 => conn.expire(&session).await, // taken over by whoever comes
        _ => {
            conn.expire(&session).await;
            conn.call(&format!("close_session({})", session.args())).await;
        }
    }
    sequence
}

#[tokio::test]
async fn a_takeover_and_the_former_owners_close_session_do_not_deadlock() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    conn.expire(&lease.session).await;
    let next = conn.session("1 minute").await;
    conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
    // The grant is first in the lease's queue; then the owner closes. Whoever took the session first would be caught.
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    let mut watcher = db.connect().await;
    watcher.wait_blocked(grant.pid).await;
    let close = Running::call(db.connect().await, format!("close_session({})", lease.session.args())).await;
    watcher.wait_blocked(close.pid).await;
    conn.run("COMMIT").await;
    grant.answer().await.is("applied");
    close.answer().await.is("replayed");
}

#[tokio::test]
async fn guards_moved_both_ways_at_once_do_not_deadlock() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let (a, b) = (conn.owner(A).await, conn.owner(B).await);
    for sequence in 1..=20 {
        conn.run("BEGIN; SELECT FROM palisade.lease ORDER BY resource FOR UPDATE").await;
        let mut calls = Vec::new();
        for (from, to, at) in [(&a, &b, 2 * sequence), (&b, &a, 2 * sequence + 1)] {
            let call = format!(
                "move_guard({}, '{}', {}, {at}, '{}', 'm', 'guarded')",
                from.fence(at),
                to.resource,
                to.token,
                to.session.key
            );
            calls.push(Running::call(db.connect().await, call).await);
        }
        let mut watcher = db.connect().await;
        for call in &calls {
            watcher.wait_blocked(call.pid).await;
        }
        conn.run("COMMIT").await;
        for call in calls {
            let word = call.answer().await.word();
            assert!(["applied", "rejected: guarded", "rejected: superseded"].contains(&word.as_str()), "{word}");
        }
    }
}

#[tokio::test]
async fn a_call_gives_up_after_its_lock_timeout_whatever_the_caller_set() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
    let mut other = db.connect().await;
    other.run("SET lock_timeout = 0; SET statement_timeout = '15s'").await;
    let failure =
        other.try_call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.expect_err("waits too long");
    assert_eq!(failure.code, "55P03");
    conn.run("COMMIT").await;
    other.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.is("applied");
}

#[tokio::test]
async fn a_client_that_idles_in_a_transaction_with_a_lease_locked_is_ended_so_that_the_takeover_goes_on() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    let bystander = conn.owner(B).await;
    conn.expire(&lease.session).await;
    let next = conn.session("1 minute").await;

    let mut paused = db.connect_as("worker_login").await;
    paused.run("BEGIN").await;
    paused.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.is("applied");
    let paused_pid = paused.pid().await;
    // An idle transaction that holds no lease's row is none of our business.
    let mut harmless = db.connect_as("worker_login").await;
    harmless.run(&format!("BEGIN; SELECT * FROM palisade.held({})", bystander.session.args())).await;

    let mut controller = db.connect_as("controller_login").await;
    assert_eq!(controller.number("SELECT palisade.end_blockers('1 minute')").await, 0, "not yet too long");
    conn.wait_until(&format!(
        "SELECT clock_timestamp() - state_change > interval '1 second' FROM pg_stat_activity WHERE pid = {paused_pid}"
    ))
    .await;
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    conn.wait_blocked(grant.pid).await;
    assert_eq!(controller.number("SELECT palisade.end_blockers('1 second')").await, 1);
    grant.answer().await.is("applied");
    assert_eq!(
        conn.number("SELECT version FROM palisade.alias WHERE alias = 'live'").await,
        3,
        "its write went with it"
    );
    paused.try_run("COMMIT").await.expect_err("the connection is gone");
    harmless.run("COMMIT").await;
}
