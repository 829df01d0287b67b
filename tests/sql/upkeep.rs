//! Retention: what is old goes in small batches, and never what a fence still needs.

use super::scenarios::{A, furnish};
use crate::support::postgres::{Conn, Db, Lease, Running};

const KINDS: [&str; 6] = ["ledger", "refusals", "history", "events", "requests", "sessions"];

fn set_alias(lease: &Lease, sequence: i64, version: i64) -> String {
    format!("set_alias({}, 'm', 'live', {version})", lease.fence(sequence))
}

fn operation(function: &str, lease: &Lease, sequence: i64) -> String {
    format!("{function}({})", lease.fence(sequence))
}

async fn start() -> (Db, Conn, Lease) {
    start_in(Db::new().await).await
}

async fn start_in(db: Db) -> (Db, Conn, Lease) {
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    (db, conn, lease)
}

/// As if everything so far had happened two days ago. Sessions that live go on living.
async fn age(conn: &mut Conn) {
    conn.run(
        "UPDATE palisade.operation SET at = at - interval '2 days'; UPDATE palisade.refusal SET at = at - interval '2 days';
         UPDATE palisade.grant_history SET at = at - interval '2 days'; UPDATE palisade.event SET at = at - interval '2 days';
         UPDATE palisade.request SET at = at - interval '2 days'; UPDATE palisade.loss SET at = at - interval '2 days';
         UPDATE palisade.session SET expires_at = expires_at - interval '2 days', closed_at = closed_at - interval '2 days'
             WHERE closed_at IS NOT NULL",
    )
    .await;
}

/// One call: how many rows, and the place.
async fn batch(conn: &mut Conn, what: &str, older_than: &str, size: i64, after: Option<&str>) -> (i64, Option<String>) {
    let after = after.map_or("NULL".to_owned(), |place| format!("'{place}'"));
    let answer = conn
        .text(&format!(
            "SELECT removed || '|' || coalesce(place, 'END') FROM palisade.clean('{what}', '{older_than}', {size}, {after})"
        ))
        .await;
    let (removed, place) = answer.split_once('|').expect("two fields");
    (removed.parse().expect("a number"), (place != "END").then(|| place.to_owned()))
}

/// All there is to remove, as the controller does it.
async fn clean(conn: &mut Conn, what: &str) -> i64 {
    let (mut sum, mut after) = (0, None);
    loop {
        let (removed, place) = batch(conn, what, "1 day", 1000, after.as_deref()).await;
        sum += removed;
        if place.is_none() {
            return sum;
        }
        after = place;
    }
}

async fn count(conn: &mut Conn, table: &str) -> i64 {
    conn.number(&format!("SELECT count(*) FROM palisade.{table}")).await
}

#[tokio::test]
async fn an_old_tokens_ledger_is_forgotten_after_clean_and_says_so() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    let next = conn.take_over(&lease).await;
    age(&mut conn).await;
    assert_eq!(clean(&mut conn, "ledger").await, 1);

    conn.call(&operation("operation_status", &lease, 1)).await.is("forgotten");
    conn.call(&operation("operation_status", &lease, 2)).await.is("forgotten");
    conn.call(&operation("abandon", &lease, 1)).await.is("forgotten");
    conn.call(&set_alias(&lease, 1, 1)).await.is("rejected: forgotten"); // never applied a second time
    conn.call(&set_alias(&next, 1, 2)).await.is("applied");
}

#[tokio::test]
async fn the_current_tokens_ledger_is_kept_whole_however_old() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    conn.call(&set_alias(&lease, 2, 2)).await.is("applied");
    age(&mut conn).await;
    for kind in KINDS {
        clean(&mut conn, kind).await;
    }
    conn.call(&set_alias(&lease, 1, 1)).await.is("replayed");
    assert_eq!(conn.number("SELECT version FROM palisade.alias WHERE alias = 'live'").await, 2);
}

#[tokio::test]
async fn clean_waits_for_nobody_and_leaves_what_is_locked_for_another_time() {
    let (db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    conn.take_over(&lease).await;
    age(&mut conn).await;
    conn.run(&format!("BEGIN; SELECT FROM palisade.lease WHERE resource = '{A}' FOR UPDATE")).await;
    let mut cleaner = db.connect().await;
    for kind in ["ledger", "history"] {
        assert_eq!(clean(&mut cleaner, kind).await, 0);
    }
    assert_eq!(count(&mut conn, "operation").await, 1);
    conn.run("COMMIT").await;
    assert_eq!(clean(&mut cleaner, "ledger").await, 1);
    assert_eq!(count(&mut conn, "operation").await, 0);
}

#[tokio::test]
async fn a_grant_is_kept_while_it_is_the_newest_or_its_ledger_is_kept() {
    let (_db, mut conn, first) = start().await;
    let second = conn.take_over(&first).await;
    conn.call(&set_alias(&second, 1, 1)).await.is("applied");
    let third = conn.take_over(&second).await;
    age(&mut conn).await;
    // The first one wrote nothing. The second one's ledger is kept; the third one is the newest.
    assert_eq!(clean(&mut conn, "history").await, 1);
    conn.call(&operation("operation_status", &second, 1)).await.is("applied");
    conn.call(&set_alias(&second, 1, 1)).await.is("replayed");
    conn.call(&operation("operation_status", &third, 1)).await.is("pending");
    assert_eq!(clean(&mut conn, "ledger").await, 1);
    assert_eq!(clean(&mut conn, "history").await, 1);
    conn.call(&operation("operation_status", &third, 1)).await.is("pending");
    assert_eq!(conn.number("SELECT min(token) FROM palisade.grant_history").await, third.token);
}

#[tokio::test]
async fn a_fence_whose_grant_was_removed_is_forgotten_and_not_a_strangers() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    let next = conn.take_over(&lease).await;
    age(&mut conn).await;
    clean(&mut conn, "ledger").await;
    clean(&mut conn, "history").await;
    for function in ["operation_status", "abandon"] {
        conn.call(&operation(function, &lease, 1)).await.is("forgotten");
    }
    conn.call(&set_alias(&lease, 1, 1)).await.is("rejected: forgotten");
    // What is kept is still closed to others.
    let thief = Lease { session: conn.session("1 minute").await, ..next };
    conn.call(&operation("operation_status", &thief, 1)).await.is("rejected: wrong_key");
}

#[tokio::test]
async fn a_session_that_stands_in_a_lease_is_kept_and_one_that_ended_is_closed_before_it_is_removed() {
    let (_db, mut conn, lease) = start().await;
    let idle = conn.session("1 minute").await;
    conn.run("UPDATE palisade.session SET expires_at = expires_at - interval '2 days'").await;
    // Neither was closed by anybody. The idle one is now: what was written under it until now is as old as that at most.
    assert_eq!(clean(&mut conn, "sessions").await, 0);
    let closed = format!(
        "SELECT closed_at > clock_timestamp() - interval '1 minute' FROM palisade.session WHERE id = '{}'",
        idle.id
    );
    assert_eq!(conn.text(&closed).await, "true");
    conn.run(&format!(
        "UPDATE palisade.session SET closed_at = closed_at - interval '2 days' WHERE id = '{}'",
        idle.id
    ))
    .await;
    assert_eq!(clean(&mut conn, "sessions").await, 1);
    // The owner's heartbeat is late by two days, and nobody took over: it may write, and ask.
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    conn.run("UPDATE palisade.session SET closed_at = now() - interval '2 days'").await;
    assert_eq!(clean(&mut conn, "sessions").await, 0, "a lease still names it");
    conn.call(&set_alias(&lease, 1, 1)).await.is("replayed");
}

#[tokio::test]
async fn what_a_session_lost_goes_with_it_and_the_rest_when_it_is_old() {
    let (_db, mut conn, lease) = start().await;
    let dead = conn.owner("retraining/a").await;
    for resource in [A, "retraining/a"] {
        conn.call(&format!("revoke('{resource}', 'drill')")).await.is("applied");
    }
    conn.call(&format!("close_session({})", dead.session.args())).await.is("applied");
    age(&mut conn).await;
    assert_eq!(clean(&mut conn, "sessions").await, 3, "two losses, one session");
    assert_eq!(count(&mut conn, "loss").await, 0);
    conn.call(&format!("heartbeat({})", lease.session.args())).await.is("applied");
}

/// Its ledger row is still there: the lease was locked whenever a cleaner came by. Nobody can prove whose it was.
#[tokio::test]
async fn a_write_of_a_session_that_is_gone_is_forgotten_and_not_called_stale() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    conn.take_over(&lease).await;
    age(&mut conn).await;
    assert_eq!(clean(&mut conn, "sessions").await, 1);
    conn.call(&operation("operation_status", &lease, 1)).await.is("forgotten");
    conn.call(&set_alias(&lease, 1, 1)).await.is("rejected: forgotten");
    conn.call(&set_alias(&lease, 2, 1)).await.is("rejected: stale"); // this one was not applied, for sure
}

/// Rows of each kind, `n` times `per` of those that hang on a lease, all two days old.
async fn fill(conn: &mut Conn, n: i64, per: i64) {
    conn.run(&format!(
        "INSERT INTO palisade.lease (resource, token) SELECT 'r/' || lpad(i::text, 9, '0'), 4294967297 + 9 FROM generate_series(1, {n}) AS i;
         INSERT INTO palisade.operation (resource, token, sequence, kind, args_hash, outcome, at)
             SELECT 'r/' || lpad(i::text, 9, '0'), 4294967297, j, 'set_alias', '', 'applied', now() - interval '2 days'
             FROM generate_series(1, {n}) AS i, generate_series(1, {per}) AS j;
         INSERT INTO palisade.grant_history (resource, token, kind, at)
             SELECT 'r/' || lpad(i::text, 9, '0'), 4294967297 + j, 'grant', now() - interval '2 days'
             FROM generate_series(1, {n}) AS i, generate_series(1, least({per}, 9)) AS j;
         INSERT INTO palisade.refusal (resource, token, kind, reason, at)
             SELECT 'r', 4294967297, 'set_alias', 'stale', now() - interval '2 days' FROM generate_series(1, {n} * {per});
         INSERT INTO palisade.request (id, kind, args_hash, answer, at)
             SELECT gen_random_uuid(), 'put_alias', '', ('applied', NULL, NULL, NULL)::palisade.answer, now() - interval '2 days'
             FROM generate_series(1, {n} * {per});
         INSERT INTO palisade.session (id, key_hash, worker, ttl, expires_at, opened_at, closed_at)
             SELECT gen_random_uuid(), '', 'w', '10 s', now() - interval '3 days', now() - interval '4 days', now() - interval '2 days'
             FROM generate_series(1, {n} * {per})"
    ))
    .await;
    // A transaction of its own: its events can be seen by every reader.
    conn.run(&format!(
        "INSERT INTO palisade.event (resource, kind, data, at)
             SELECT 'r', 'step', '{{}}', now() - interval '2 days' FROM generate_series(1, {n} * {per})"
    ))
    .await;
    conn.wait_until("SELECT bool_and(xid < pg_snapshot_xmin(pg_current_snapshot())) FROM palisade.event").await;
}

fn table(kind: &str) -> &'static str {
    match kind {
        "ledger" => "operation",
        "refusals" => "refusal",
        "history" => "grant_history",
        "events" => "event",
        "requests" => "request",
        _ => "session",
    }
}

#[tokio::test]
async fn one_call_removes_no_more_than_its_batch_and_the_next_goes_on_behind_it() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect().await;
    fill(&mut conn, 20, 5).await;
    for kind in KINDS {
        let (mut calls, mut sum, mut after) = (0, 0, None);
        loop {
            let (removed, place) = batch(&mut conn, kind, "1 day", 8, after.as_deref()).await;
            assert!(removed <= 8, "{kind}: {removed}");
            (calls, sum) = (calls + 1, sum + removed);
            if place.is_none() {
                break;
            }
            assert!(calls < 100, "{kind} comes to no end at {place:?}");
            after = place;
        }
        assert!(calls >= 13, "{kind}: {calls}");
        assert_eq!((sum, count(&mut conn, table(kind)).await), (100, 0), "{kind}");
    }
}

#[tokio::test]
async fn two_cleaners_at_once_remove_each_row_once_and_wait_for_each_other_briefly_at_most() {
    let db = Db::without_epoch().await;
    fill(&mut db.connect().await, 200, 5).await;
    for kind in KINDS {
        let mut cleaners = Vec::new();
        for _ in 0..2 {
            let mut conn = db.connect().await;
            cleaners.push(tokio::spawn(async move {
                let (mut sum, mut after) = (0, None);
                loop {
                    let (removed, place) = batch(&mut conn, kind, "1 day", 50, after.as_deref()).await;
                    sum += removed;
                    if place.is_none() {
                        return sum;
                    }
                    after = place;
                }
            }));
        }
        let mut sum = 0;
        for cleaner in cleaners {
            sum += cleaner.await.expect("a cleaner");
        }
        let mut conn = db.connect().await;
        sum += clean(&mut conn, kind).await; // what both had skipped
        assert_eq!((sum, count(&mut conn, table(kind)).await), (1000, 0), "{kind}");
    }
}

#[tokio::test]
async fn nothing_younger_than_an_hour_is_ever_removed() {
    let (_db, mut conn, lease) = start().await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    conn.take_over(&lease).await;
    conn.call(&set_alias(&lease, 2, 1)).await.is("rejected: stale");
    conn.call("put_alias('m', 'free', 1, gen_random_uuid())").await.is("applied");
    for kind in KINDS {
        for span in ["59 minutes", "0", "-1 year", "11 years"] {
            let failure = conn
                .try_text(&format!("SELECT removed FROM palisade.clean('{kind}', '{span}')"))
                .await
                .expect_err(span);
            assert_eq!(failure.code, "PS004", "{kind} {span}");
        }
        let before = count(&mut conn, table(kind)).await;
        assert!(before > 0, "{kind} has something to lose");
        assert_eq!(batch(&mut conn, kind, "1 hour", 1000, None).await.0, 0, "{kind}");
        assert_eq!(count(&mut conn, table(kind)).await, before, "{kind}");
    }
    let failure = conn.try_text("SELECT removed FROM palisade.clean('all', '1 day')").await.expect_err("no such kind");
    assert_eq!(failure.code, "PS004");
}

/// A reader sees an event only when no older transaction is open any more: until then it must stay.
#[tokio::test]
async fn an_event_is_kept_until_every_reader_could_see_it() {
    let (db, mut conn, _) = start().await;
    let mut slow = db.connect().await;
    slow.run("BEGIN; SELECT pg_current_xact_id()").await;
    conn.call("put_alias('m', 'free', 1, gen_random_uuid())").await.is("applied");
    age(&mut conn).await;
    let unread = "SELECT count(*) FROM palisade.events('0', 0, 100) WHERE kind = 'alias'";
    assert_eq!(conn.number(unread).await, 0, "hidden behind the slow one");
    clean(&mut conn, "events").await;
    slow.run("COMMIT").await;
    // Another test's transaction on the same server hides it as well.
    conn.wait_until(&format!("SELECT ({unread}) = 1")).await;
    clean(&mut conn, "events").await;
    assert_eq!(conn.number(unread).await, 0);
}

#[tokio::test]
async fn a_batch_of_a_years_rows_reads_no_more_than_a_batch() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect().await;
    // Whether the planner knows of the rows is not left to the moment at which autovacuum comes by.
    let tables = KINDS.map(table).into_iter().chain(["lease"]);
    let off: String = tables.map(|t| format!("ALTER TABLE palisade.{t} SET (autovacuum_enabled = off);")).collect();
    conn.run(&off).await;
    fill(&mut conn, 20_000, 10).await;
    reads_no_more_than_a_batch(&db).await;
    conn.run("ANALYZE").await;
    reads_no_more_than_a_batch(&db).await;
}

async fn reads_no_more_than_a_batch(db: &Db) {
    for kind in KINDS {
        let table = table(kind);
        let mut conn = db.connect().await; // a connection counts what it has read since it last told
        conn.run("BEGIN").await;
        let (removed, _) = batch(&mut conn, kind, "1 day", 100, None).await;
        let read = conn
            .number(
                "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE schemaname = 'palisade'",
            )
            .await;
        conn.run("ROLLBACK").await;
        assert_eq!(removed, 100, "{kind}");
        // Candidates, what is looked up for them, and each row once more to remove it.
        assert!(read <= 1000, "{kind}: {read} rows of {table} and others were read to remove 100");
    }
}

#[tokio::test]
async fn sizes_names_each_table_that_grows() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect_as("reader_login").await;
    let names = conn.list("SELECT name FROM palisade.sizes()").await;
    assert_eq!(names, ["event", "grant_history", "lease", "operation", "refusal", "request", "session"]);
    assert_eq!(conn.number("SELECT count(*) FROM palisade.sizes() WHERE bytes <= 0").await, 0);
}

/// A cleaner holds a lease's row only for as long as one batch takes.
#[tokio::test]
async fn a_write_goes_on_beside_a_cleaner() {
    let (db, mut conn, lease) = start_in(Db::patient().await).await;
    conn.call(&set_alias(&lease, 1, 1)).await.is("applied");
    let next = conn.take_over(&lease).await;
    age(&mut conn).await;
    conn.run("BEGIN").await;
    assert_eq!(batch(&mut conn, "ledger", "1 day", 10, None).await.0, 1);
    let write = Running::call(db.connect().await, set_alias(&next, 1, 2)).await;
    db.connect().await.wait_blocked(write.pid).await;
    conn.run("COMMIT").await;
    write.answer().await.is("applied");
}
