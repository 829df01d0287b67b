//! Connection, schema, epoch, upkeep: on databases of the shared server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::ran::{database, run};
use crate::support::postgres::{Conn, Db, PATIENCE, shared_server};
use crate::support::proxy::{Fault, Proxy};

#[tokio::test]
async fn each_way_of_not_being_connected_is_told_apart() {
    let server = shared_server().await;
    let cases = [
        ("churn".to_owned(), "database/url"),
        ("postgres://postgres@127.0.0.1:1/registry".to_owned(), "database/unreachable"),
        (server.url_of("nobody_at_all", "postgres"), "database/login-refused"),
        (server.url_of("postgres", "no_such_database"), "database/none"),
    ];
    for (url, check) in cases {
        let ran = database(&url, &[]).await;
        ran.exits(8).finds(check, "error");
        assert_eq!(ran.problems(), [check]);
        assert!(ran.err.is_empty(), "the report is the answer: {}", ran.err);
    }
    run(&[], &["--only", "database"]).await.exits(8).finds("database/unnamed", "error");
}

#[tokio::test]
async fn the_other_half_is_still_looked_at_when_one_is_out_of_reach() {
    let db = Db::new().await;
    let ran = run(&[("DATABASE_URL", &db.url()), ("KUBECONFIG", "/nonexistent")], &[]).await;
    ran.exits(8).finds("cluster/unconfigured", "error");
    ran.finds("database/epoch", "ok");
    let ran = run(&[("DATABASE_URL", "postgres://postgres@127.0.0.1:1/x"), ("KUBECONFIG", "/nonexistent")], &[]).await;
    ran.finds("database/unreachable", "error");
    ran.finds("cluster/unconfigured", "error");
    ran.finds("configuration/times", "ok");
}

/// PgBouncer refuses a parameter that it does not know in these words.
#[tokio::test]
async fn a_pooler_that_passes_no_options_on_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut startup = [0; 512];
            let _ = client.read(&mut startup).await;
            let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
            let length = u32::try_from(fields.len() + 4).expect("short");
            let _ = client.write_all(&[&b"E"[..], &length.to_be_bytes(), fields].concat()).await;
        }
    });
    let ran = database(&format!("postgres://worker@127.0.0.1:{port}/registry?sslmode=disable"), &[]).await;
    assert!(ran.exits(8).finds("database/pooler", "error").contains("unsupported startup parameter"));
}

#[tokio::test]
async fn a_question_that_is_not_answered_is_an_error_and_the_others_are_still_asked() {
    let db = Db::new().await;
    let proxy = Proxy::start(db.server.port()).await;
    let silent = proxy.on_next("pg_options_to_table", Fault::LoseAnswer);
    let ran = database(&proxy.url(&db.url()), &["--timeout", "2s"]).await;
    assert!(silent.has_fired());
    let what = ran.exits(8).finds("database/no-answer", "error");
    assert!(what.contains("the schema's functions"), "{what}");
    ran.finds("database/version", "ok");

    let hung = Proxy::start(db.server.port()).await;
    hung.on_next("server_version_num", Fault::HangAnswer);
    let ran = database(&hung.url(&db.url()), &["--timeout", "1s"]).await;
    assert!(ran.exits(8).finds("database/no-answer", "error").contains("version and settings"));
}

#[tokio::test]
async fn what_a_login_may_not_see_is_said_and_is_no_error() {
    let db = Db::new().await;
    let ran = database(&db.url_as("reader_login"), &[]).await;
    let what = ran.finds("database/unseen", "info");
    assert!(what.contains("the schema's version") && what.contains("other logins' transactions"), "{what}");
    assert!(ran.finds("database/login", "ok").contains("palisade_reader"));
    ran.finds("database/epoch", "ok");
    ran.finds("database/upkeep", "ok");
    ran.lacks("database/no-answer");
}

// ---------------------------------------------------------------- schema

#[tokio::test]
async fn a_schema_that_is_not_this_programs_is_told_by_how_it_differs() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    database(&db.url(), &[]).await.finds("database/schema", "ok");

    conn.run("INSERT INTO palisade.migration (version, description, success, checksum, execution_time) VALUES (9999, '', true, '', 0)").await;
    assert!(database(&db.url(), &[]).await.exits(8).finds("database/schema-newer", "error").contains("9999"));
    conn.run("DELETE FROM palisade.migration WHERE version = 9999; UPDATE palisade.migration SET checksum = 'x' WHERE version = 2").await;
    let ran = database(&db.url(), &[]).await;
    assert!(ran.exits(8).finds("database/schema-changed", "error").contains("migration 2"));
    // Of another schema nothing more is asked.
    ran.lacks("database/functions").lacks("database/epoch").lacks("database/no-answer");
    conn.run("DELETE FROM palisade.migration WHERE version >= 2").await;
    database(&db.url(), &[]).await.exits(8).finds("database/schema-older", "error");
    conn.run("DROP SCHEMA palisade CASCADE").await;
    database(&db.url(), &[]).await.exits(8).finds("database/schema-missing", "error");
}

#[tokio::test]
async fn a_function_that_was_changed_by_hand_is_found() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    database(&db.url(), &[]).await.finds("database/functions", "ok");

    conn.rewrite("enter", None, "stale", "fresh").await;
    conn.run("ALTER FUNCTION palisade.heartbeat SECURITY INVOKER; DROP FUNCTION palisade.figures").await;
    let what = database(&db.url(), &[]).await.exits(8).finds("database/functions-changed", "error");
    for part in ["enter were changed", "figures are missing", "heartbeat run with other rights"] {
        assert!(what.contains(part), "{part}: {what}");
    }
    conn.run("GRANT EXECUTE ON FUNCTION palisade.revoke TO PUBLIC; ALTER TABLE palisade.session SET (autovacuum_enabled = off)").await;
    let ran = database(&db.url(), &[]).await;
    assert!(ran.finds("database/functions-public", "warning").contains("revoke"));
    assert!(ran.finds("database/autovacuum-off", "warning").contains("session"));
}

// ---------------------------------------------------------------- epoch

#[tokio::test]
async fn a_database_without_an_epoch_of_its_own_is_an_error() {
    let db = Db::without_epoch().await;
    database(&db.url(), &[]).await.exits(8).finds("database/epoch-none", "error");

    let mut conn = db.connect().await;
    conn.establish(1).await;
    conn.close().await;
    assert!(database(&db.url(), &[]).await.finds("database/epoch", "ok").contains("epoch 1"));

    let copy = format!("{}_copy", db.name);
    let mut admin = Conn::open(&db.server.url).await;
    // A copy is refused while somebody, a program that has just ended for example, is still connected.
    let began = std::time::Instant::now();
    while let Err(failure) = admin.try_run(&format!("CREATE DATABASE {copy} TEMPLATE {}", db.name)).await {
        assert!(failure.code == "55006" && began.elapsed() < PATIENCE, "{failure:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let url = db.server.url_of("postgres", &copy);
    database(&url, &[]).await.exits(8).finds("database/epoch-of-a-copy", "error");
    admin.run(&format!("DROP DATABASE {copy} WITH (FORCE)")).await;
}

// ---------------------------------------------------------------- activity

#[tokio::test]
async fn a_transaction_that_idles_and_a_prepared_one_are_named() {
    let server = tokio::task::spawn_blocking(crate::support::postgres::Server::start).await.expect("a server");
    Conn::open(&server.url).await.run("ALTER SYSTEM SET max_prepared_transactions = 5").await;
    server.stop();
    server.start_again();
    let url = server.migrated("app").await;
    let mut idle = Conn::open(&url).await;
    let pid = idle.pid().await;
    idle.run("BEGIN; SELECT pg_current_xact_id()").await;
    let mut prepared = Conn::open(&url).await;
    prepared.run("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'left behind'").await;

    let mut ran = database(&url, &[]).await;
    for _ in 0..9 {
        if !ran.has("database/transaction-idle") {
            break; // on a machine that is busy for 10 s it may be one
        }
        idle.run("SELECT 1").await;
        ran = database(&url, &[]).await;
    }
    assert!(
        ran.finds("database/transactions", "ok").contains(&format!("backend {pid}")),
        "young, and seen: {}",
        ran.out
    );
    let began = std::time::Instant::now();
    loop {
        let ran = database(&url, &[]).await;
        if ran.problems().contains(&"database/transaction-idle")
            && ran.problems().contains(&"database/prepared-transaction")
        {
            assert!(ran.finds("database/transaction-idle", "warning").contains(&format!("backend {pid}")));
            assert!(ran.finds("database/prepared-transaction", "warning").contains("left behind"));
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{}", ran.out);
    }
}

#[tokio::test]
async fn a_protected_table_that_lets_writes_through_is_noticed() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    conn.run("CREATE TABLE features (name text); SELECT palisade.protect('features', 'name')").await;
    assert!(database(&db.url(), &[]).await.finds("database/protected", "ok").contains('1'));
    conn.run("ALTER TABLE features DISABLE TRIGGER ALL").await;
    let ran = database(&db.url(), &[]).await;
    assert!(ran.finds("database/protected-gap", "warning").contains("features"));
}

#[tokio::test]
async fn what_should_have_been_cleaned_away_is_noticed() {
    let db = Db::new().await;
    database(&db.url(), &[]).await.finds("database/upkeep", "ok");
    db.connect().await.run("UPDATE palisade.event SET at = at - interval '40 days'").await;
    assert!(database(&db.url(), &[]).await.finds("database/upkeep-behind", "warning").contains("40 d"));
    database(&db.url(), &["--keep-events", "40d"]).await.finds("database/upkeep", "ok");
}

#[tokio::test]
async fn a_database_that_is_nearly_full_is_noticed_before_a_worker_finds_no_connection() {
    let db = Db::new().await;
    database(&db.url(), &[]).await.finds("database/connections", "ok");
    Conn::open(&db.server.url).await.run(&format!("ALTER DATABASE {} CONNECTION LIMIT 5", db.name)).await;
    assert!(database(&db.url(), &[]).await.finds("database/connections-short", "warning").contains("of 5"));
}

// ---------------------------------------------------------------- before installing

#[tokio::test]
async fn before_the_installation_nothing_is_missed_and_what_stands_in_its_way_is_named() {
    let server = shared_server().await;
    let name = format!("pre_{}", std::process::id());
    let mut admin = Conn::open(&server.url).await;
    admin.run(&format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")).await;
    let url = server.url_of("postgres", &name);
    let ran = database(&url, &["--pre"]).await;
    ran.finds("database/may-migrate", "ok");
    ran.finds("database/schema", "ok");
    assert!(ran.finds("database/encoding-not-utf8", "warning").contains("LATIN1"));

    admin.run("DO $$ BEGIN CREATE ROLE pre_login LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$").await;
    // Another database's migration left the roles; the schema cannot be made all the same.
    let ran = database(&server.url_of("pre_login", &name), &["--pre"]).await;
    assert!(ran.exits(8).finds("database/may-not-migrate", "error").contains("a schema in this database"));
    admin.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
}
