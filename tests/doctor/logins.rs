//! Who may log in, and what is set for them. Roles belong to the whole server, so each test makes its own.

use super::ran::database;
use crate::support::postgres::{Conn, Db};

/// A login of this test's own in these groups, gone with the value's drop of the server.
async fn login(db: &Db, name: &str, groups: &str) -> (Conn, String) {
    let mut admin = db.connect().await;
    let login = format!("{name}_{}", std::process::id());
    let member = if groups.is_empty() { String::new() } else { format!("IN ROLE {groups}") };
    admin.run(&format!("CREATE ROLE {login} LOGIN {member}")).await;
    (admin, login)
}

#[tokio::test]
async fn a_login_is_told_which_groups_it_lacks_or_has_too_many_of() {
    let db = Db::new().await;
    let ran = database(&db.url(), &[]).await;
    assert!(ran.finds("database/login-superuser", "info").contains("postgres"));
    ran.finds("database/roles", "ok");

    let (mut admin, stranger) = login(&db, "stranger", "").await;
    let ran = database(&db.url_as(&stranger), &[]).await;
    assert!(ran.exits(8).finds("database/login-without-group", "error").contains(&stranger));

    let (_, both) = login(&db, "both", "palisade_worker, palisade_registry").await;
    assert!(database(&db.url(), &[]).await.finds("database/login-several-groups", "warning").contains(&both));
    let (_, mighty) = login(&db, "mighty", "palisade_worker, palisade_owner").await;
    let (_, few) = login(&db, "few", "palisade_worker").await;
    admin.run(&format!("ALTER ROLE {few} CONNECTION LIMIT 2")).await;
    let ran = database(&db.url(), &[]).await;
    assert!(ran.finds("database/rights-excess", "warning").contains(&mighty));
    assert!(ran.finds("database/connections-short", "warning").contains(&few));
    for role in [stranger, both, mighty, few] {
        admin.run(&format!("DROP ROLE {role}")).await;
    }
}

#[tokio::test]
async fn a_worker_that_runs_as_a_superuser_is_noticed() {
    let db = Db::new().await;
    database(&db.url(), &[]).await.lacks("database/rights-excess");
    let mut worker = db.connect().await;
    worker.run("SET application_name = 'palisade worker one'").await;
    let what = database(&db.url(), &[]).await.finds("database/rights-excess", "warning");
    assert!(what.contains("connected as postgres"), "{what}");
}

#[tokio::test]
async fn settings_that_are_in_the_way_are_found_on_logins_and_on_the_database() {
    let db = Db::new().await;
    let (mut admin, name) = login(&db, "slow", "palisade_worker").await;
    for (setting, check, severity, says) in [
        ("default_transaction_isolation = 'repeatable read'", "database/isolation", "error", "repeatable read"),
        ("default_transaction_read_only = on", "database/read-only", "error", "read_only is on"),
        ("synchronous_commit = off", "database/commit-asynchronous", "info", "is off"),
        ("statement_timeout = '2s'", "database/timeout-short", "warning", "statement_timeout is 2 s"),
        ("idle_session_timeout = '10s'", "database/timeout-short", "warning", "idle_session_timeout is 10 s"),
    ] {
        for whose in
            [format!("ROLE {name}"), format!("DATABASE {}", db.name), format!("ROLE {name} IN DATABASE {}", db.name)]
        {
            admin.run(&format!("ALTER {whose} SET {setting}")).await;
            let what = database(&db.url(), &[]).await.finds(check, severity);
            assert!(what.contains(says), "{whose}: {what}");
            let variable = setting.split(' ').next().unwrap_or_default();
            admin.run(&format!("ALTER {whose} RESET {variable}")).await;
        }
    }
    // What counts is the nearest: the database's setting is overridden for this login in this database, and for the
    // others by their own.
    let others = ["worker_login", "controller_login", "registry_login", &name];
    admin.run(&format!("ALTER DATABASE {} SET statement_timeout = '1s'", db.name)).await;
    for login in others {
        admin.run(&format!("ALTER ROLE {login} IN DATABASE {} SET statement_timeout = '1min'", db.name)).await;
    }
    let said = database(&db.url(), &[]).await;
    let short = said.problems().contains(&"database/timeout-short");
    assert!(!short || !said.finds("database/timeout-short", "warning").contains("the database"), "{}", said.out);
    admin.run(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await;
}

#[tokio::test]
async fn a_group_that_has_settings_is_told_that_no_login_inherits_them() {
    let db = Db::new().await;
    let mut admin = db.connect().await;
    assert!(database(&db.url(), &[]).await.finds("database/idle-timeout-none", "info").contains("worker_login"));
    let of = format!("palisade_worker IN DATABASE {}", db.name);
    admin.run(&format!("ALTER ROLE {of} SET idle_in_transaction_session_timeout = '10s'")).await;
    let ran = database(&db.url(), &[]).await;
    let what = ran.finds("database/setting-on-group", "warning");
    assert!(what.contains("idle_in_transaction_session_timeout is set for the group palisade_worker"), "{what}");
    assert!(ran.finds("database/idle-timeout-none", "info").contains("worker_login"), "it has not helped");
    admin.run(&format!("ALTER ROLE {of} RESET ALL")).await;
    admin.run(&format!("ALTER DATABASE {} SET idle_in_transaction_session_timeout = '10s'", db.name)).await;
    database(&db.url(), &[]).await.lacks("database/idle-timeout-none");
}
