//! Rule 13, the comments and docs/sql-api.md, as the catalogue shows them.

use std::collections::BTreeSet;

use crate::support::postgres::{Conn, Db, root};

/// The functions that somebody may call. A trigger's function is granted to those who make the trigger.
const API: &str = "SELECT p.oid FROM pg_proc AS p WHERE p.pronamespace = 'palisade'::regnamespace
    AND p.prorettype <> 'trigger'::regtype AND EXISTS (
    SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee <> p.proowner AND a.privilege_type = 'EXECUTE')";

/// They work on a table of the caller's with the caller's rights: see migrations/0004_protect.sql.
const AS_THE_CALLER: &str = "'protect', 'unprotect', 'guard'";

async fn api(conn: &mut Conn) -> Vec<String> {
    conn.list(&format!("SELECT proname::text FROM pg_proc WHERE oid IN ({API}) ORDER BY proname")).await
}

#[tokio::test]
async fn every_function_of_the_api_runs_as_the_owner_with_a_fixed_search_path_and_lock_timeout() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    assert!(api(&mut conn).await.len() > 30, "the API is there");
    let wrong = conn
        .list(&format!(
            "SELECT proname::text FROM pg_proc WHERE oid IN ({API}) AND proname NOT IN ({AS_THE_CALLER}) AND NOT (
                 prosecdef AND proowner = 'palisade_owner'::regrole
                 AND coalesce(proconfig, '{{}}') @> ARRAY['search_path=pg_catalog, palisade, pg_temp', 'lock_timeout=5s'])"
        ))
        .await;
    assert!(wrong.is_empty(), "{wrong:?}");
    let helpers = conn
        .list(&format!(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace AND prosecdef AND oid NOT IN ({API})"
        ))
        .await;
    assert!(helpers.is_empty(), "helpers run as their caller, who is the owner already: {helpers:?}");
    let as_the_caller = conn
        .list(&format!(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace AND proname IN ({AS_THE_CALLER})
             AND NOT prosecdef AND proconfig @> ARRAY['search_path=pg_catalog, pg_temp', 'standard_conforming_strings=on']
             ORDER BY proname"
        ))
        .await;
    assert_eq!(
        as_the_caller,
        ["guard", "protect", "unprotect"],
        "a table owner's expression is never the owner role's"
    );
}

#[tokio::test]
async fn no_function_or_table_is_open_to_everybody() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let open = conn
        .list(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace
                 AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0))
             UNION ALL
             SELECT relname::text FROM pg_class, aclexplode(relacl) WHERE relnamespace = 'palisade'::regnamespace AND grantee = 0
             UNION ALL
             SELECT nspname::text FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'palisade' AND grantee = 0",
        )
        .await;
    assert!(open.is_empty(), "{open:?}");
    // What a later migration adds is closed as well, until somebody opens it.
    conn.run(
        "SET ROLE palisade_owner; CREATE FUNCTION palisade.later() RETURNS int LANGUAGE sql AS 'SELECT 1'; RESET ROLE",
    )
    .await;
    assert_eq!(
        conn.text("SELECT has_function_privilege('worker_login', 'palisade.later()', 'EXECUTE')").await,
        "false"
    );
}

#[tokio::test]
async fn the_group_roles_cannot_log_in_and_have_no_power_of_their_own() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let rows = conn
        .list(
            "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'palisade\\_%'
             AND NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls) ORDER BY rolname",
        )
        .await;
    assert_eq!(
        rows,
        ["palisade_controller", "palisade_owner", "palisade_reader", "palisade_registry", "palisade_worker"]
    );
    let owners = conn
        .list("SELECT rolname::text FROM pg_roles WHERE pg_has_role(rolname, 'palisade_owner', 'MEMBER') AND NOT rolsuper AND rolname <> 'palisade_owner'")
        .await;
    assert!(owners.is_empty(), "{owners:?}");
}

/// Names are found in the schema that is meant, whatever the caller's search_path: nothing is left to chance.
#[tokio::test]
async fn everything_in_the_schema_belongs_to_the_owner_role() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let others = conn
        .list(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relowner <> 'palisade_owner'::regrole
                 AND relname NOT LIKE 'migration%'
             UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace AND proowner <> 'palisade_owner'::regrole
             UNION ALL SELECT typname::text FROM pg_type WHERE typnamespace = 'palisade'::regnamespace AND typowner <> 'palisade_owner'::regrole
                 AND typname NOT LIKE '%migration%'",
        )
        .await;
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn every_function_of_the_api_every_table_and_every_type_has_a_comment() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let silent = conn
        .list(&format!(
            "SELECT 'function ' || proname FROM pg_proc WHERE oid IN ({API}) AND obj_description(oid, 'pg_proc') IS NULL
             UNION ALL
             SELECT 'table ' || relname FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relkind = 'r'
                 AND relname <> 'migration' AND obj_description(oid, 'pg_class') IS NULL
             UNION ALL
             SELECT 'type ' || typname FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
                 WHERE typnamespace = 'palisade'::regnamespace AND c.relkind = 'c' AND obj_description(t.oid, 'pg_type') IS NULL"
        ))
        .await;
    assert!(silent.is_empty(), "{silent:?}");
    // A comment speaks of each argument by its name.
    let incomplete = conn
        .list(&format!(
            "SELECT p.proname || ': ' || a.name FROM pg_proc AS p, unnest(p.proargnames[1:p.pronargs]) AS a(name)
             WHERE p.oid IN ({API}) AND obj_description(p.oid, 'pg_proc') !~ ('\\m' || a.name || '\\M')"
        ))
        .await;
    assert!(incomplete.is_empty(), "{incomplete:#?}");
}

/// `` `name` `` in a table row of the page.
fn documented(page: &str) -> BTreeSet<String> {
    page.split('`').skip(1).step_by(2).map(|code| code.split('(').next().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn the_page_of_the_sql_api_names_every_function_with_its_arguments() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let page = std::fs::read_to_string(root().join("docs/sql-api.md")).expect("docs/sql-api.md");
    let signatures = conn
        .list(&format!(
            "SELECT p.proname || '(' || coalesce(array_to_string(p.proargnames[1:p.pronargs], ', '), '') || ')' FROM pg_proc AS p
             WHERE p.oid IN ({API}) ORDER BY p.proname"
        ))
        .await;
    for signature in signatures {
        assert!(page.contains(&format!("`{signature}`")), "docs/sql-api.md lacks `{signature}`");
    }
}

#[tokio::test]
async fn the_page_of_the_sql_api_lists_every_reason_outcome_and_sqlstate_of_the_sql() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let page = std::fs::read_to_string(root().join("docs/sql-api.md")).expect("docs/sql-api.md");
    let listed = documented(&page);
    let sources = conn.list("SELECT prosrc FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace").await;
    let mut found = BTreeSet::new();
    for source in &sources {
        // Where the SQL names a reason: an answer's second field, a refusal, a variable or a column for it, a CASE's result.
        for line in source.lines() {
            let line = line.split("--").next().unwrap_or_default();
            let quoted: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
            let told = [
                "'rejected'",
                "palisade.refuse(",
                "v_reason :=",
                "RETURN '",
                "THEN '",
                "ELSE '",
                "palisade.leave(",
                "palisade.end_request(",
            ];
            if told.iter().any(|mark| line.contains(mark)) {
                found.extend(quoted.iter().filter(|word| is_word(word)).map(|word| (*word).to_owned()));
            }
        }
        for code in source.split("'PS").skip(1) {
            found.insert(format!("PS{}", &code[..3]));
        }
    }
    // Literals on those lines that are no reasons: names of functions, of steps and of columns.
    let functions = conn.list("SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace").await;
    for known in functions.iter().map(String::as_str).chain(NO_REASONS.iter().copied()) {
        found.remove(known);
    }
    assert!(found.len() > 20, "{found:?}");
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/sql-api.md lacks {missing:?}");
}

const NO_REASONS: &[&str] = &[
    "takeover",
    "grant",
    "infinity",
    "no progress",
    "plan",
    "version",
    "model",
    "alias",
    "generation",
    "number",
    "incarnation",
    "done",
    "removed",
    "palisade_new",
    "palisade_old",
];

fn is_word(text: &str) -> bool {
    text.len() > 2 && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// The reasons that callers were promised are really answered somewhere.
#[tokio::test]
async fn the_page_of_the_sql_api_lists_no_reason_that_the_sql_does_not_know() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let page = std::fs::read_to_string(root().join("docs/sql-api.md")).expect("docs/sql-api.md");
    let table = page.split("## Reasons").nth(1).expect("a section").split("\n## ").next().expect("its text");
    let source =
        conn.text("SELECT string_agg(prosrc, '') FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace").await;
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let reason = line.split('`').nth(1).expect("code");
        assert!(source.contains(&format!("'{reason}'")), "the SQL never answers {reason}");
    }
}
