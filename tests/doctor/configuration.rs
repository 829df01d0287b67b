//! Times and variables against what is measured, by way of a proxy that takes its time.

use std::time::Duration;

use super::ran::{Ran, database, run};
use crate::support::postgres::Db;
use crate::support::proxy::{Fault, Proxy};

const TRIP: &str = "extract(epoch FROM clock_timestamp()) * 1000000";
const FINE: &str = "configuration/latency";

/// As often as the machine needs, which may be busy just when a time is measured, until it finds this and nothing worse;
/// not for ever.
async fn until(check: &str, measured: impl AsyncFn() -> Ran) -> Ran {
    let mut ran = measured().await;
    for _ in 0..9 {
        let slow = ["configuration/latency-high", "configuration/latency-beyond-limit"];
        if ran.has(check) && !slow.iter().any(|worse| *worse != check && ran.has(worse)) {
            break;
        }
        ran = measured().await;
    }
    ran
}

#[tokio::test]
async fn latency_is_held_against_the_time_that_a_call_may_take() {
    let db = Db::new().await;
    let args = ["--only", "configuration", "--ttl", "9s"];
    // At this TTL a call may take 3 s, and a quarter of that is a warning.
    for (millis, check, severity, code) in
        [(900, "configuration/latency-high", "warning", 0), (3100, "configuration/latency-beyond-limit", "error", 8)]
    {
        let ran = until(check, async || {
            let proxy = Proxy::start(db.server.port()).await;
            let late = proxy.on(TRIP, 7, Fault::Delay(Duration::from_millis(millis)));
            let ran = run(&[("DATABASE_URL", &proxy.url(&db.url()))], &args).await;
            assert!(late.has_fired());
            ran
        })
        .await;
        assert!(ran.exits(code).finds(check, severity).contains("trips to the database"), "{}", ran.out);
    }
    let url = db.url();
    let ran = until(FINE, async || run(&[("DATABASE_URL", &url)], &args).await).await;
    ran.exits(0).finds(FINE, "ok");
}

#[tokio::test]
async fn a_session_is_opened_only_when_writes_are_to_be_measured() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let before = conn.text("SELECT pg_current_xact_id_if_assigned() IS NULL").await;
    let url = db.url_as("worker_login");
    until(FINE, async || run(&[("DATABASE_URL", &url)], &["--only", "configuration"]).await).await.exits(0);
    database(&url, &["--fail-on", "never"]).await.exits(0);
    assert_eq!((before.as_str(), conn.number("SELECT count(*) FROM palisade.session").await), ("true", 0));

    let measure = ["--only", "configuration", "--measure-writes"];
    let what = until(FINE, async || run(&[("DATABASE_URL", &url)], &measure).await).await.exits(0).finds(FINE, "ok");
    assert!(what.contains("10 heartbeats"), "{what}");
    assert_eq!(conn.text("SELECT bool_and(closed_at IS NOT NULL) FROM palisade.session").await, "true");
    let url = db.url_as("reader_login");
    let reader = until("configuration/unmeasured", async || run(&[("DATABASE_URL", &url)], &measure).await).await;
    assert!(reader.exits(0).finds("configuration/unmeasured", "info").contains("permission denied"));
}

#[tokio::test]
async fn variables_that_cannot_be_read_or_that_nobody_reads_are_named() {
    let env = [
        ("PALISADE_LISTEN", "8080"),
        ("PALISADE_KEEP_LEDGER", "forever"),
        ("PALISADE_WORKERNAME", "one"),
        ("PALISADE_WORKER_NAME", "two"),
    ];
    let ran = run(&env, &["--only", "configuration"]).await;
    let what = ran.exits(8).finds("configuration/variable", "error");
    assert!(what.contains("PALISADE_LISTEN") && what.contains("PALISADE_KEEP_LEDGER"), "each by itself: {what}");
    assert_eq!(ran.finds("configuration/variable-unknown", "warning"), "nothing reads PALISADE_WORKERNAME");
    assert!(!ran.out.contains("WORKER_NAME"), "{}", ran.out);
}

#[tokio::test]
async fn a_poll_that_is_slower_than_the_ttl_is_noticed() {
    let ran = run(&[], &["--only", "configuration", "--ttl", "10s", "--poll", "30s"]).await;
    ran.exits(0).finds("configuration/poll-slow", "warning");
    run(&[], &["--only", "configuration"]).await.exits(0).finds("configuration/times", "ok");
}
