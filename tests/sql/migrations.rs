//! Migrations, and the schema that they make.

use palisade::store::{MigrateError, migrate};

use crate::support::postgres::{Conn, Db, Server, root, run_program, shared_server};

/// A database that nobody has migrated yet.
async fn empty(name: &str) -> (String, Conn) {
    let server = shared_server().await;
    let name = format!("{name}_{}", std::process::id());
    let mut admin = Conn::open(&server.url).await;
    admin.run(&format!("CREATE DATABASE {name}")).await;
    (server.url_of("postgres", &name), admin)
}

/// The schema as text, without what differs between versions of pg_dump.
fn dump(url: &str) -> String {
    let text = run_program(&[
        "pg_dump",
        "--schema-only",
        "--no-comments",
        "--schema",
        "palisade",
        "--exclude-table",
        "palisade.migration",
        url,
    ]);
    let mut out = String::new();
    for line in text.lines() {
        let noise = line.is_empty()
            || line.starts_with("--")
            || line.starts_with("SET ")
            || line.starts_with("SELECT pg_catalog.set_config")
            || line.starts_with("\\restrict")
            || line.starts_with("\\unrestrict");
        if !noise {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[tokio::test]
async fn the_schema_is_the_one_in_the_golden_dump() {
    let db = Db::new().await;
    // Each version writes views in its own words.
    if !db.connect().await.text("SELECT current_setting('server_version')").await.starts_with("15.") {
        return;
    }
    let path = root().join("tests/golden/schema.sql");
    let schema = dump(&db.url());
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(&path, &schema).expect("the golden file is written");
    }
    let golden = std::fs::read_to_string(&path).expect("tests/golden/schema.sql");
    let first = golden.lines().zip(schema.lines()).find(|(golden, now)| golden != now);
    assert!(golden == schema, "tests/golden/schema.sql differs (UPDATE_GOLDEN=1 rewrites it), first here: {first:#?}");
}

#[tokio::test]
async fn the_program_holds_the_migrations_that_are_in_the_repository() {
    let (url, _admin) = empty("program").await;
    let done = migrate(&url).await.expect("it applies");
    assert!(done.applied >= 5 && done.version >= 5, "{done:?}");
    let db = Db::new().await;
    assert_eq!(dump(&url), dump(&db.url()));
    let sums =
        "SELECT string_agg(version || ' ' || encode(checksum, 'hex'), ',' ORDER BY version) FROM palisade.migration";
    let (mut program, mut files) = (Conn::open(&url).await, db.connect().await);
    assert_eq!(program.text(sums).await, files.text(sums).await, "build again: a migration was changed");
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let (url, _admin) = empty("again").await;
    let first = migrate(&url).await.expect("it applies");
    let before = dump(&url);
    let again = migrate(&url).await.expect("it is safe to repeat");
    assert_eq!((again.version, again.applied), (first.version, 0));
    assert_eq!(dump(&url), before);
}

#[tokio::test]
async fn processes_that_migrate_at_once_agree() {
    let (url, _admin) = empty("at_once").await;
    let runs: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { migrate(&url).await }
            })
        })
        .collect();
    let mut applied = 0;
    for run in runs {
        applied += run.await.expect("no panic").expect("each is content").version;
    }
    assert!(applied >= 4 * 5);
    let mut conn = Conn::open(&url).await;
    assert_eq!(conn.text("SELECT count(*) = max(version) FROM palisade.migration WHERE success").await, "true");
}

/// Roles are the server's, so two databases' first migrations meet there.
#[tokio::test]
async fn first_migrations_of_several_databases_of_a_server_do_not_get_in_each_others_way() {
    let mut urls = Vec::new();
    for n in 0..4 {
        urls.push(empty(&format!("several_{n}")).await.0);
    }
    let runs: Vec<_> = urls.into_iter().map(|url| tokio::spawn(async move { migrate(&url).await })).collect();
    for run in runs {
        run.await.expect("no panic").expect("each applies");
    }
}

#[tokio::test]
async fn a_database_newer_than_the_program_is_refused_and_left_alone() {
    let (url, _admin) = empty("newer").await;
    migrate(&url).await.expect("it applies");
    let mut conn = Conn::open(&url).await;
    conn.run(
        "INSERT INTO palisade.migration (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', true, '\\x00', 0)",
    )
    .await;
    let before = dump(&url);
    let error = migrate(&url).await.expect_err("it is refused");
    assert!(matches!(error, MigrateError::NewerDatabase { database: 9999, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("9999") && text.contains("newer palisade"), "it says what to do: {text}");
    assert_eq!(dump(&url), before);
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let (url, _admin) = empty("changed").await;
    migrate(&url).await.expect("it applies");
    let mut conn = Conn::open(&url).await;
    conn.run("UPDATE palisade.migration SET checksum = '\\x00' WHERE version = 2").await;
    let error = migrate(&url).await.expect_err("it is refused");
    assert!(matches!(error, MigrateError::Changed(2)), "{error:?}");
}

/// No superuser is needed where the roles exist, or where one ran before.
#[tokio::test]
async fn the_owner_of_a_database_may_migrate_it_once_the_roles_are_there() {
    let server = shared_server().await;
    let mut admin = Conn::open(&server.url).await;
    let (name, user) = (format!("owned_{}", std::process::id()), format!("migrator_{}", std::process::id()));
    admin.run(&format!("CREATE ROLE {user} LOGIN IN ROLE palisade_owner")).await;
    admin.run(&format!("CREATE DATABASE {name} OWNER {user}")).await;
    let url = server.url_of(&user, &name);
    let done = migrate(&url).await;
    assert!(done.is_ok(), "{done:?}");
    let again = migrate(&url).await.expect("and again");
    assert_eq!(again.applied, 0);
}

/// As on a managed service, where nobody is given a superuser. From Postgres 16 on, a role that made another one is a
/// member of it, and may yet not act as it.
#[tokio::test]
async fn a_role_with_createrole_that_may_grant_the_predefined_roles_migrates_from_the_beginning() {
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let mut admin = Conn::open(&server.url).await;
    admin.run("CREATE ROLE creator LOGIN CREATEROLE").await;
    admin.run("CREATE DATABASE first OWNER creator").await;
    admin.run("CREATE DATABASE second OWNER creator").await;
    let first = server.url_of("creator", "first");
    if server_version(&mut admin).await >= 160_000 {
        let error = migrate(&first).await.expect_err("it may not grant what it does not administer").to_string();
        assert!(error.contains("GRANT pg_read_all_stats TO palisade_owner"), "it says what helps: {error}");
        admin.run("GRANT pg_read_all_stats, pg_signal_backend TO creator WITH ADMIN OPTION").await;
    }
    migrate(&first).await.expect("it applies");
    migrate(&server.url_of("creator", "second")).await.expect("and in another database, where the roles are there");
    assert_eq!(migrate(&first).await.expect("and again").applied, 0);
    let mut conn = Conn::open(&server.url_of("postgres", "first")).await;
    let owner = "SELECT string_agg(DISTINCT pg_get_userbyid(proowner), ',') FROM pg_proc
                 WHERE pronamespace = 'palisade'::regnamespace";
    assert_eq!(conn.text(owner).await, "palisade_owner");
}

/// The test matrix says which one it wants: tests on another one would prove nothing.
#[tokio::test]
async fn the_tests_run_on_the_version_of_postgres_that_was_asked_for() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let version = server_version(&mut conn).await / 10_000;
    assert!(version >= 15, "{version}");
    if let Ok(wanted) = std::env::var("PALISADE_PG_VERSION")
        && !wanted.is_empty()
    {
        assert_eq!(version.to_string(), wanted);
    }
}

async fn server_version(conn: &mut Conn) -> i64 {
    conn.text("SELECT current_setting('server_version_num')").await.parse().expect("a number")
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_said_to_be_unavailable() {
    let error = migrate("postgres://postgres@127.0.0.1:1/none").await.expect_err("nobody listens");
    assert!(matches!(error, MigrateError::Unavailable(_)), "{error:?}");
}
