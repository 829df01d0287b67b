//! What concerns a whole server: each test has one of its own.

use super::ran::database;
use crate::support::postgres::{Conn, Server};

async fn server(start: fn() -> Server) -> Server {
    tokio::task::spawn_blocking(start).await.expect("a server")
}

#[tokio::test]
async fn of_a_database_that_is_as_it_should_be_only_good_things_are_said() {
    let server = server(Server::durable).await;
    let url = server.migrated("app").await;
    let mut conn = Conn::open(&url).await;
    conn.establish(1).await;
    conn.run("ALTER DATABASE app SET idle_in_transaction_session_timeout = '10s'").await;
    let ran = database(&url, &["--fail-on", "warning"]).await;
    assert_eq!(ran.exits(0).problems(), [""; 0], "{}", ran.out);
    for check in [
        "database/version",
        "database/primary",
        "database/encoding",
        "database/tls",
        "database/durability",
        "database/replication",
        "database/connections",
        "database/clock",
        "database/connection",
        "database/schema",
        "database/functions",
        "database/epoch",
        "database/roles",
        "database/settings",
        "database/upkeep",
        "database/transactions",
    ] {
        ran.finds(check, "ok");
    }
    // The logins of the parts, too: what they may not see is all that is new.
    for login in ["worker_login", "controller_login"] {
        let ran = database(&server.url_of(login, "app"), &["--fail-on", "warning"]).await;
        assert_eq!(ran.exits(0).problems(), [""; 0], "{login}: {}", ran.out);
        assert!(ran.finds("database/login", "ok").contains(login));
    }
    // A warning, and an error, by their exit codes.
    conn.run("ALTER TABLE palisade.lease SET (autovacuum_enabled = off)").await;
    database(&url, &[]).await.exits(0).finds("database/autovacuum-off", "warning");
    database(&url, &["--fail-on", "warning"]).await.exits(7);
    conn.run("DELETE FROM palisade.epoch").await;
    database(&url, &["--fail-on", "warning"]).await.exits(8);
    database(&url, &["--fail-on", "never"]).await.exits(0);
}

#[tokio::test]
async fn roles_and_rights_that_were_taken_away_are_missed() {
    let server = server(Server::start).await;
    let url = server.migrated("app").await;
    let mut admin = Conn::open(&url).await;
    admin.establish(1).await;
    assert!(database(&url, &[]).await.finds("database/durability-off", "error").contains("fsync"));

    admin.run("REVOKE pg_signal_backend FROM palisade_owner").await;
    database(&url, &[]).await.finds("database/owner-cannot-end", "warning");
    admin.run("REVOKE pg_read_all_stats FROM palisade_owner").await;
    database(&url, &[]).await.exits(8).finds("database/owner-cannot-see", "error");

    admin.run("DROP ROLE worker_login").await;
    assert!(database(&url, &[]).await.finds("database/login-missing", "warning").contains("palisade_worker"));
    admin.run("ALTER ROLE palisade_reader RENAME TO somebody_else").await;
    assert!(database(&url, &[]).await.finds("database/roles-missing", "error").contains("palisade_reader"));

    admin.run("ALTER SYSTEM SET autovacuum = off").await;
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("current_setting('autovacuum') = 'off'").await;
    assert_eq!(database(&url, &[]).await.finds("database/autovacuum-off", "warning"), "autovacuum is off");
}

#[tokio::test]
async fn a_standby_a_replication_that_nobody_waits_for_and_a_restart_are_found() {
    let primary = server(Server::start).await;
    let url = primary.migrated("app").await;
    let mut admin = Conn::open(&url).await;
    admin.establish(1).await;
    admin.run("SELECT pg_create_physical_replication_slot('forgotten', true)").await;
    assert!(database(&url, &[]).await.finds("database/slot-unread", "warning").contains("forgotten"));
    admin.run("SELECT pg_drop_replication_slot('forgotten')").await;

    let standby = primary.standby();
    admin.wait_until("EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')").await;
    assert!(database(&url, &[]).await.finds("database/replication-asynchronous", "warning").contains("1 standby"));
    let ran = database(&standby.url_of("postgres", "app"), &[]).await;
    ran.exits(8).finds("database/standby", "error");
    ran.lacks("database/no-answer");
    admin.run("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')").await;
    assert!(database(&url, &[]).await.finds("database/replication", "ok").contains("commits wait for *"));

    admin.close().await;
    primary.stop();
    primary.start_again();
    database(&url, &[]).await.exits(8).finds("database/epoch-not-established", "error");
}
