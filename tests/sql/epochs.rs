//! Rules 10 and 11: what a crash, a restart and a promotion lose must not be given out a second time.
//!
//! These tests have servers of their own, and kill them.

use super::scenarios::{A, B, SCENARIOS, furnish};
use rustix::process::Signal;

use crate::support::postgres::{Conn, Db, Lease, Server, Session, follows, kill, signal};

/// A server with one migrated database, epoch 1.
async fn server() -> (Server, String) {
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let url = server.migrated("app").await;
    let mut conn = Conn::open(&url).await;
    conn.establish(1).await;
    conn.close().await;
    (server, url)
}

async fn open_and_furnish(url: &str) -> (Conn, Lease) {
    let mut conn = Conn::open(url).await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    (conn, lease)
}

/// Nothing works under the old epoch, and what comes after the next one has new tokens.
async fn is_a_new_incarnation(url: &str, lease: &Lease, number: i64) {
    let mut conn = Conn::open(url).await;
    assert_eq!(conn.text("SELECT established FROM palisade.epoch_status()").await, "false");
    assert_eq!(conn.text("SELECT incarnation <> established_for FROM palisade.epoch_status()").await, "true");
    let fresh = Session::fresh();
    for call in [
        format!("open_session({}, 'w', '1 minute')", fresh.args()),
        format!("acquire({}, '{B}')", lease.session.args()),
        format!("heartbeat({})", lease.session.args()),
        format!("set_alias({}, 'm', 'live', 1)", lease.fence(1)),
        format!("report_progress({})", lease.unnumbered()),
        format!("release({})", lease.fence(1)),
    ] {
        conn.call(&call).await.is("rejected: epoch_not_established");
    }
    let claimed = conn.list(&format!("SELECT refused FROM palisade.claim({}, 5)", lease.session.args())).await;
    assert!(claimed.is_empty() || claimed == ["epoch_not_established"], "{claimed:?}");

    conn.establish(number).await;
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.is("rejected: stale");
    conn.call(&format!("heartbeat({})", lease.session.args())).await.is("rejected: session_closed");
    let next = conn.owner(A).await;
    assert_eq!(next.token >> 32, number, "the epoch is the token's high part");
    assert!(next.token > lease.token);
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", next.fence(1))).await.is("applied");
}

#[tokio::test]
async fn after_a_restart_nothing_is_granted_or_written_until_the_next_epoch_is_established() {
    let (server, url) = server().await;
    let (conn, lease) = open_and_furnish(&url).await;
    conn.close().await;
    server.shut_down(); // in good order: a recovery would tell of itself
    server.start_again();
    is_a_new_incarnation(&url, &lease, 2).await;
}

#[tokio::test]
async fn after_a_backends_crash_nothing_is_granted_or_written_until_the_next_epoch_is_established() {
    let (_server, url) = server().await;
    let (mut conn, lease) = open_and_furnish(&url).await;
    let started = conn.text("SELECT pg_postmaster_start_time()").await;
    let incarnation = conn.text("SELECT incarnation FROM palisade.epoch_status()").await;
    kill(conn.pid().await);
    // The postmaster restarts all others, and lets us in again when recovery is done.
    let mut conn = loop {
        use sqlx::Connection;
        match sqlx::postgres::PgConnection::connect(&url).await {
            Ok(conn) => break Conn(conn),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    // It may still have been the old incarnation that let us in, and that ends while we ask.
    while conn.try_text("SELECT incarnation FROM palisade.epoch_status()").await.map_or(true, |now| now == incarnation)
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        use sqlx::Connection;
        if let Ok(again) = sqlx::postgres::PgConnection::connect(&url).await {
            conn = Conn(again);
        }
    }
    let mut conn = Conn::open(&url).await;
    assert_eq!(conn.text("SELECT pg_postmaster_start_time()").await, started, "only the checkpointer tells of it");
    is_a_new_incarnation(&url, &lease, 2).await;
}

/// The WAL writer is stopped here: what was not flushed by the call itself is lost for certain, however slow the machine is.
#[tokio::test]
async fn a_crash_right_after_the_answer_loses_no_grant_and_no_write_even_if_the_caller_asked_for_asynchronous_commit() {
    let (server, url) = server().await;
    let mut admin = Conn::open(&url).await;
    admin.run("ALTER SYSTEM SET autovacuum = off").await;
    admin.run("SELECT pg_reload_conf()").await;
    let mut number = 1;
    furnish(&mut admin).await;
    admin.run("CREATE TABLE public.lost (mode text)").await;
    admin.close().await;
    for mode in ["off", "local", "on"] {
        let mut conn = Conn::open(&url).await;
        let writer = conn.number("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").await as i32;
        signal(writer, Signal::STOP);
        conn.run("CHECKPOINT").await;
        conn.run(&format!("SET synchronous_commit = '{mode}'")).await;
        let lease = conn.owner(A).await;
        conn.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.is("applied");
        let heartbeat = conn.call(&format!("heartbeat({})", lease.session.args())).await;
        heartbeat.is("applied");
        let expires =
            conn.text(&format!("SELECT expires_at FROM palisade.session WHERE id = '{}'", lease.session.id)).await;
        // What nobody was promised shows that the crash does lose things: its commit is asynchronous.
        conn.run("SET synchronous_commit = 'off'").await;
        conn.run(&format!("INSERT INTO public.lost VALUES ('{mode}')")).await;
        kill(server.postmaster());
        kill(writer); // stopped, it would not notice
        server.stop();
        server.start_again();

        let mut conn = Conn::open(&url).await;
        let found = conn.number(&format!("SELECT token FROM palisade.lease WHERE resource = '{A}'")).await;
        assert_eq!(found, lease.token, "the grant was durable with synchronous_commit = {mode}");
        let ledger = format!("SELECT count(*) FROM palisade.operation WHERE token = {}", lease.token);
        assert_eq!(conn.number(&ledger).await, 1, "and so was the write");
        let kept =
            conn.text(&format!("SELECT expires_at FROM palisade.session WHERE id = '{}'", lease.session.id)).await;
        assert_eq!(kept, expires, "and the heartbeat: a lease does not end before its holder was told");
        let lost = format!("SELECT count(*) FROM public.lost WHERE mode = '{mode}'");
        assert_eq!(conn.number(&lost).await, 0, "the fault did strike: {mode}");
        number += 1;
        conn.establish(number).await;
        let next = conn.owner(A).await;
        assert!(next.token > lease.token, "no token twice");
        conn.call(&format!("release({})", next.fence(1))).await.is("applied");
    }
}

#[tokio::test]
async fn the_promotion_of_a_lagging_standby_gives_out_no_token_twice() {
    let (primary, url) = server().await;
    let (mut conn, first) = open_and_furnish(&url).await;
    let standby = {
        let primary = &primary;
        // pg_basebackup and the start take a second or two; nothing else runs on this thread.
        primary.standby()
    };
    let mut admin = Conn::open(&standby.url).await;
    let at = conn.text("SELECT pg_current_wal_lsn()").await;
    follows(&mut admin, &at).await;

    // Cut off, and then the primary grants what the standby will never know of.
    admin.run("ALTER SYSTEM SET primary_conninfo = ''").await;
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL)").await;
    let lost = conn.take_over(&first).await;
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", lost.fence(1))).await.is("applied");
    primary.crash();

    let on_standby = standby.url_of("postgres", "app");
    let mut old = Conn::open(&on_standby).await;
    old.try_call(&format!("acquire({}, '{A}')", first.session.args())).await.expect_err("a standby decides nothing");
    admin.run("SELECT pg_promote(true, 60)").await;
    admin.wait_until("SELECT NOT pg_is_in_recovery()").await;
    assert_eq!(
        old.number(&format!("SELECT token FROM palisade.lease WHERE resource = '{A}'")).await,
        first.token,
        "it lags"
    );
    // The connection outlived the promotion, and must not take the former epoch for granted either.
    old.call(&format!("set_alias({}, 'm', 'live', 2)", first.fence(1))).await.is("rejected: epoch_not_established");
    assert_eq!(old.text("SELECT timeline > established_timeline FROM palisade.epoch_status()").await, "true");

    is_a_new_incarnation(&on_standby, &first, 2).await;
    let mut conn = Conn::open(&on_standby).await;
    let next = conn.number(&format!("SELECT token FROM palisade.lease WHERE resource = '{A}'")).await;
    assert!(next > lost.token, "{next} was not given out on the lost branch, {} was", lost.token);
    // Its owner, whom the standby never heard of, can do nothing here.
    let answer = conn.call(&format!("set_alias({}, 'm', 'live', 3)", lost.fence(2))).await;
    assert!(["rejected: stale", "rejected: not_issued"].contains(&answer.word().as_str()), "{answer:?}");
}

#[tokio::test]
async fn without_an_epoch_nothing_is_granted() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect().await;
    let session = Session::fresh();
    conn.call(&format!("open_session({}, 'w', '1 minute')", session.args()))
        .await
        .is("rejected: epoch_not_established");
    assert_eq!(conn.text("SELECT (established, number IS NULL) FROM palisade.epoch_status()").await, "(f,t)");
    conn.establish(1).await;
    conn.call(&format!("open_session({}, 'w', '1 minute')", session.args())).await.is("applied");
}

#[tokio::test]
async fn establish_epoch_accepts_only_larger_numbers_for_the_incarnation_that_runs_and_closes_all_sessions() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let name = conn.text("SELECT incarnation FROM palisade.epoch_status()").await;
    let establish = |number: i64, name: &str| format!("establish_epoch({number}, '{name}')");
    conn.call(&establish(1, &name)).await.is("replayed");
    conn.call(&format!("heartbeat({})", lease.session.args())).await.is("applied"); // the replay closed nobody
    let answer = conn.call(&establish(7, "another database")).await;
    assert_eq!(answer.is("rejected: incarnation_changed").result()["incarnation"], *name);
    conn.call(&establish(7, &name)).await.is("applied");
    for lower in [1, 6] {
        conn.call(&establish(lower, &name)).await.is("rejected: epoch_not_newer");
    }
    conn.call(&format!("heartbeat({})", lease.session.args())).await.is("rejected: session_closed");
    conn.call(&format!("report_progress({})", lease.unnumbered())).await.is("rejected: stale");
    assert_eq!(conn.owner(A).await.token, (7 << 32) + 1);

    // A number below what some lease has seen is not larger, whatever the epoch's row says.
    conn.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('x', {})", 20_i64 << 32)).await;
    conn.call(&establish(19, &name)).await.is("rejected: epoch_not_newer");
    conn.call(&establish(20, &name)).await.is("rejected: epoch_not_newer");
    conn.call(&establish(21, &name)).await.is("applied");
}

#[tokio::test]
async fn an_epoch_that_was_withdrawn_lets_nobody_grant_or_write_until_a_larger_one_is_established() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let lease = conn.owner(A).await;
    let name = conn.text("SELECT incarnation FROM palisade.epoch_status()").await;
    let withdraw = |number: i64, name: &str| format!("withdraw_epoch({number}, '{name}')");
    conn.call(&withdraw(1, "another database")).await.is("rejected: incarnation_changed");
    conn.call(&withdraw(7, &name)).await.is("replayed");
    conn.call(&format!("heartbeat({})", lease.session.args())).await.is("applied"); // neither did anything
    conn.call(&withdraw(1, &name)).await.is("applied");
    conn.call(&withdraw(1, &name)).await.is("replayed");
    let fresh = Session::fresh();
    for call in [
        format!("open_session({}, 'w', '1 minute')", fresh.args()),
        format!("acquire({}, '{B}')", lease.session.args()),
        format!("heartbeat({})", lease.session.args()),
        format!("set_alias({}, 'm', 'live', 1)", lease.fence(1)),
        format!("release({})", lease.fence(1)),
    ] {
        conn.call(&call).await.is("rejected: epoch_not_established");
    }
    assert_eq!(conn.text("SELECT (number, established) FROM palisade.epoch_status()").await, "(1,f)");
    conn.call(&format!("establish_epoch(1, '{name}')")).await.is("rejected: epoch_not_newer");
    conn.establish(2).await;
    let next = conn.owner(A).await;
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", next.fence(1))).await.is("applied");
}

#[tokio::test]
async fn of_two_controllers_that_establish_an_epoch_at_once_one_is_told_that_it_was_done() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect().await;
    let name = conn.text("SELECT incarnation FROM palisade.epoch_status()").await;
    let mut calls = Vec::new();
    for number in [5, 5, 4, 5] {
        let call = format!("establish_epoch({number}, '{name}')");
        calls.push(crate::support::postgres::Running::call(db.connect().await, call).await);
    }
    let mut words = Vec::new();
    for call in calls {
        words.push(call.answer().await.word());
    }
    assert_eq!(conn.number("SELECT number FROM palisade.epoch").await, 5, "{words:?}");
    assert_eq!(words.iter().filter(|word| *word == "replayed").count(), 2, "{words:?}");
}

#[tokio::test]
async fn the_callers_asynchronous_commit_is_overridden_in_every_changing_function() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    conn.run("SET synchronous_commit = off").await;
    for scenario in SCENARIOS {
        conn.clear().await;
        let world = scenario.world(&mut conn).await;
        conn.run("BEGIN").await;
        assert_eq!(conn.text("SELECT current_setting('synchronous_commit')").await, "off");
        scenario.write(&mut conn, &world, 1).await.expect("an answer");
        // At the end of the statement's transaction, where it counts.
        assert_eq!(conn.text("SELECT current_setting('synchronous_commit')").await, "on", "{}", scenario.function);
        conn.run("COMMIT").await;
        assert_eq!(conn.text("SELECT current_setting('synchronous_commit')").await, "off", "the caller's own again");
    }
    conn.clear().await;
    let session = conn.session("1 minute").await;
    conn.acquire(&session, B).await;
    let name = conn.text("SELECT incarnation FROM palisade.epoch_status()").await;
    for call in [
        format!("open_session({}, 'w', '1 minute')", Session::fresh().args()),
        format!("heartbeat({})", session.args()),
        format!("acquire({}, '{A}')", session.args()),
        format!("claim({}, 1)", session.args()),
        format!("abandon('{B}', (SELECT max(token) FROM palisade.grant_history), 9, '{}')", session.key),
        format!("operation_abandon('{A}', 1, 1)"),
        format!("revoke('{A}', 'drill')"),
        "register_model('n', '', '{}', gen_random_uuid())".to_owned(),
        format!("register_version('n', 's', 'sha256:{}', '{{}}', gen_random_uuid())", "0".repeat(64)),
        "put_alias('n', 'a', 1, gen_random_uuid())".to_owned(),
        format!("close_session({})", session.args()),
        format!("establish_epoch(5, '{name}')"),
    ] {
        conn.run("BEGIN").await;
        conn.run(&format!("SELECT * FROM palisade.{call}")).await;
        assert_eq!(conn.text("SELECT current_setting('synchronous_commit')").await, "on", "{call}");
        conn.run("COMMIT").await;
    }
}

#[tokio::test]
async fn a_copy_of_a_database_has_no_epoch_though_it_carries_the_row_along() {
    let db = Db::new().await;
    let copy = format!("{}_copy", db.name);
    let mut admin = Conn::open(&db.server.url).await;
    admin.run(&format!("CREATE DATABASE {copy} TEMPLATE {}", db.name)).await;
    let mut conn = Conn::open(&db.server.url_of("postgres", &copy)).await;
    let status =
        conn.text("SELECT (number, established, incarnation <> established_for) FROM palisade.epoch_status()").await;
    assert_eq!(status, "(1,f,t)");
    let session = Session::fresh();
    conn.call(&format!("open_session({}, 'w', '10 s')", session.args())).await.is("rejected: epoch_not_established");
    conn.close().await;
    admin.run(&format!("DROP DATABASE {copy} WITH (FORCE)")).await;
    admin.close().await;
}

#[tokio::test]
async fn a_database_without_an_epoch_says_so_however_often_it_is_asked() {
    let db = Db::without_epoch().await;
    let mut conn = db.connect().await;
    // More often than a plan is made anew: a later one may be another.
    for _ in 0..20 {
        assert_eq!(conn.text("SELECT established FROM palisade.epoch_status()").await, "false");
    }
    conn.close().await;
}
