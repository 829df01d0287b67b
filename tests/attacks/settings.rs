//! Every setting that a role may change, at its extremes; and rows that are kept locked.

use std::time::Duration;

use crate::scenarios::A;
use crate::support::postgres::{Conn, PATIENCE};

use super::database::{Arena, By, difference};

/// Each setting that anybody may change, with its extremes: `name|value|value…`.
const SETTINGS: &str = "SELECT concat_ws('|', name, CASE vartype
        WHEN 'bool' THEN 'on|off'
        WHEN 'enum' THEN array_to_string(enumvals, '|')
        WHEN 'string' THEN ''
        ELSE concat_ws('|', min_val, '0', '1', max_val) END)
    FROM pg_settings WHERE context = 'user' AND name NOT IN ('role', 'session_authorization') ORDER BY name";

#[tokio::test]
async fn no_setting_that_a_worker_may_change_lets_a_stale_write_pass() {
    let mut arena = Arena::new().await;
    let settings = arena.admin.list(SETTINGS).await;
    assert!(settings.len() > 100, "{} settings", settings.len());
    let (mut problems, mut refused) = (Vec::new(), 0);
    for line in &settings {
        let before = arena.state().await;
        let (name, values) = line.split_once('|').expect("a name");
        for value in values.split('|') {
            // Each on a connection of its own: some settings end it.
            let mut conn = arena.attacker(By::Worker).await;
            // A value between the bounds may still be no good one.
            if conn.try_run(&format!("SET {name} = '{value}'")).await.is_err() {
                continue;
            }
            match conn.try_call(&format!("set_alias({}, 'm', 'live', 1)", arena.stale.fence(1))).await {
                Ok(answer) if answer.word() == "rejected: stale" => refused += 1,
                Ok(answer) => problems.push(format!("{name} = {value}: {}", answer.word())),
                Err(failure) => println!("{name} = {value}: {} {}", failure.code, failure.message),
            }
            let forged =
                format!("set_alias('{A}', {}, 1, 'a key of its own making', 'm', 'live', 1)", arena.live.token);
            if let Ok(answer) = conn.try_call(&forged).await
                && answer.word() != "rejected: wrong_key"
            {
                problems.push(format!("{name} = {value}, forged: {}", answer.word()));
            }
        }
        let after = arena.state().await;
        if before != after {
            problems.push(format!("{name}: {}", difference(&before, &after)));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(refused > 200, "only {refused} were tried");
}

/// Waits until the attacker's statement sleeps, with the lease's row locked.
async fn asleep(admin: &mut Conn, pid: i32) {
    admin.wait_until(&format!("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}")).await;
}

/// A call that is refused locks the lease's row all the same, as long as its transaction is open.
#[tokio::test]
async fn a_lease_that_a_working_transaction_keeps_locked_is_free_again_after_an_hour_at_the_latest() {
    let mut arena = Arena::new().await;
    let mut conn = arena.attacker(By::Worker).await;
    let pid = conn.pid().await;
    let sql = format!(
        "WITH c AS MATERIALIZED (SELECT * FROM palisade.set_alias({}, 'm', 'live', 1)) SELECT pg_sleep(3600) FROM c",
        arena.stale.fence(1)
    );
    let attacker = tokio::spawn(async move { conn.try_run(&sql).await });
    asleep(&mut arena.admin, pid).await;
    // Nothing can be written under the lease meanwhile, by nobody: the owner is told, and nothing changes.
    let before = arena.state().await;
    let failure =
        arena.admin.try_call(&format!("report_progress({})", arena.live.unnumbered())).await.expect_err("it waits");
    assert_eq!(failure.code, "55P03", "{failure:?}");
    assert_eq!(arena.state().await, before);
    let mut controller = arena.attacker(By::Controller).await;
    assert_eq!(controller.number("SELECT palisade.end_blockers('1 second')").await, 0, "it may be an honest one");
    // An hour, made short.
    arena.admin.rewrite("end_blockers", None, "interval '1 hour'", "interval '1 second'").await;
    assert_eq!(controller.number("SELECT palisade.end_blockers('1 second')").await, 1);
    let ended = tokio::time::timeout(PATIENCE, attacker).await.expect("it ends").expect("no panic");
    assert_eq!(ended.expect_err("it is ended").code, "57P01");
    arena.admin.call(&format!("report_progress({})", arena.live.unnumbered())).await.is("applied");
}

/// Two logins of one group share nothing but rights: what the one sends, the other does not see. What it sends is a
/// statement with parameters, so that not even its own login sees a key.
#[tokio::test]
async fn no_key_stands_in_the_statements_that_the_program_sends() {
    use palisade::lease::{Session, SessionConfig};
    let arena = Arena::new().await;
    let url = arena.db.url_as(&arena.login(By::Worker));
    let store = crate::support::world::store(url, "honest");
    let session =
        Session::open(store.clone(), SessionConfig::new("w", Duration::from_secs(600))).await.expect("a session");
    let lease = session.acquire("deployment/ns/d", None).await.expect("a lease");
    lease.progress().await.expect("it is ours");
    let mut same = arena.attacker(By::Worker).await;
    let seen = same.list("SELECT query FROM pg_stat_activity WHERE application_name = 'honest'").await;
    assert!(seen.iter().any(|query| query.contains("palisade.") && query.contains("$1")), "{seen:?}");
    // A key, or a hash of one, would be a literal.
    assert!(seen.iter().all(|query| !query.contains('\'')), "{seen:?}");
    let mut other = arena.attacker(By::Registry).await;
    let seen = other.list("SELECT DISTINCT query FROM pg_stat_activity WHERE application_name = 'honest'").await;
    assert_eq!(seen, ["<insufficient privilege>"]);
}
