//! Rule 16: a table of one's own as a protected resource.
//!
//! The same writes go to a plain table, by a view, to a partitioned table and to its partition; and to those whose
//! partition was attached later and is checked row by row.

use std::sync::Arc;

use crate::support::postgres::{Conn, Db, Failure, Lease, Running, Server, quote};

const CHURN: &str = "features/churn";
const FRAUD: &str = "features/fraud";
/// What the writes go to. `seen` is a view of `plain`, `part` the partition of `parted`, `added` that of `grown`.
const TARGETS: [&str; 6] = ["plain", "seen", "parted", "part", "grown", "added"];

struct World {
    admin: Conn,
    /// Owns the tables, and writes.
    worker: Conn,
    lease: Lease,
    db: Db,
}

/// Protected tables with one row of either resource, and a lease of one.
async fn world() -> World {
    let db = Db::patient().await;
    let mut admin = db.connect().await;
    admin.run("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    let mut worker = db.connect_as("worker_login").await;
    worker
        .run(
            "CREATE TABLE plain (set_name text, id int, value int, PRIMARY KEY (set_name, id));
             CREATE TABLE parted (LIKE plain INCLUDING ALL) PARTITION BY RANGE (id);
             CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (1000);
             CREATE VIEW seen AS SELECT * FROM plain;
             INSERT INTO plain VALUES ('churn', 1, 0), ('fraud', 2, 0);
             INSERT INTO parted TABLE plain;
             CREATE TABLE grown (LIKE plain INCLUDING ALL) PARTITION BY RANGE (id);
             CREATE TABLE added (LIKE plain INCLUDING ALL);
             INSERT INTO added TABLE plain;
             SELECT palisade.protect(t, $$'features/' || set_name$$) FROM unnest('{plain,parted,grown}'::regclass[]) AS t;
             ALTER TABLE grown ATTACH PARTITION added FOR VALUES FROM (0) TO (1000)",
        )
        .await;
    let lease = admin.owner(CHURN).await;
    World { admin, worker, lease, db }
}

/// A write of each kind, to rows of churn only.
const WRITES: &[&str] = &[
    "INSERT INTO {} VALUES ('churn', 3, 1)",
    "UPDATE {} SET value = 1 WHERE set_name = 'churn'",
    "DELETE FROM {} WHERE set_name = 'churn'",
    "INSERT INTO {} VALUES ('churn', 3, 1) ON CONFLICT (set_name, id) DO UPDATE SET value = 9",
    "INSERT INTO {} VALUES ('churn', 1, 1) ON CONFLICT (set_name, id) DO UPDATE SET value = 9",
    "MERGE INTO {} AS t USING (VALUES ('churn', 1), ('churn', 3)) AS s (set_name, id) ON t.set_name = s.set_name AND t.id = s.id
         WHEN MATCHED THEN UPDATE SET value = 8 WHEN NOT MATCHED THEN INSERT VALUES (s.set_name, s.id, 8)",
    "MERGE INTO {} AS t USING (VALUES ('churn')) AS s (set_name) ON t.set_name = s.set_name WHEN MATCHED THEN DELETE",
    "WITH w AS (DELETE FROM {} WHERE set_name = 'churn' RETURNING id) SELECT count(*) FROM w",
    "DO $$ BEGIN UPDATE {} SET value = 1 WHERE set_name = 'churn'; END $$",
    "COPY {} FROM STDIN",
];

async fn write(conn: &mut Conn, sql: &str, target: &str) -> Result<(), Failure> {
    let sql = sql.replace("{}", target);
    if !sql.starts_with("COPY") {
        return conn.try_run(&sql).await;
    }
    let mut copy = conn.0.copy_in_raw(&sql).await?;
    copy.send(&b"churn\t3\t1\nchurn\t4\t1\n"[..]).await?;
    copy.finish().await?;
    Ok(())
}

/// Every write there is on this server to every target (before version 17, MERGE knows no views; COPY never does).
fn writes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = WRITES.iter().flat_map(|sql| TARGETS.map(|target| (*sql, target)));
    all.filter(|(sql, target)| *target != "seen" || !(sql.starts_with("MERGE") || sql.starts_with("COPY")))
}

async fn content(conn: &mut Conn, target: &str) -> String {
    conn.text(&format!("SELECT string_agg(t::text, ' ' ORDER BY t) FROM {target} AS t")).await
}

/// Tells the connection a lease without asking the gate, as somebody could who wants to deceive.
async fn claim_to_use(conn: &mut Conn, resource: &str, token: &str, key: &str) {
    for (name, value) in [("resource", resource), ("token", token), ("key", key)] {
        conn.text(&format!("set_config('palisade.{name}', {}, false)", quote(value))).await;
    }
}

/// Tells it this lease for good.
async fn use_lease(conn: &mut Conn, lease: &Lease) {
    conn.text(&format!("palisade.use_lease({}, true)", lease.unnumbered())).await;
}

#[track_caller]
fn refused(result: Result<(), Failure>, code: &str, words: &str) {
    let failure = result.expect_err(words);
    assert!(failure.code == code && failure.message.contains(words), "{code} {words}: {failure:?}");
}

#[tokio::test]
async fn every_kind_of_write_to_a_protected_table_lands_under_the_newest_token_of_its_resource() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    for (sql, target) in writes() {
        let before = content(&mut w.admin, target).await;
        w.worker.run("BEGIN").await;
        write(&mut w.worker, sql, target).await.unwrap_or_else(|failure| panic!("{sql} {target}: {failure:?}"));
        assert_ne!(content(&mut w.worker, target).await, before, "{sql} {target}: it writes");
        w.worker.run("ROLLBACK").await;
    }
}

#[tokio::test]
async fn every_kind_of_write_to_a_protected_table_is_refused_without_the_newest_token_its_key_and_its_resource() {
    let mut w = world().await;
    let other = w.admin.owner(FRAUD).await;
    let next = w.admin.take_over(&w.lease).await;
    let (stale, key) = (w.lease.token.to_string(), w.lease.session.key.clone());
    let (newest, forged) = (next.token.to_string(), (next.token + 1).to_string());
    let (new_key, other_token) = (next.session.key.clone(), other.token.to_string());
    let tries: [(&str, &str, &str, &str, &str); 8] = [
        (CHURN, &stale, &key, "PS003", "refused: stale"),
        (CHURN, &forged, &new_key, "PS003", "refused: not_issued"),
        (CHURN, &newest, &key, "PS003", "refused: wrong_key"),
        (FRAUD, &other_token, &other.session.key, "PS005", "the lease in use is that of features/fraud"),
        ("", "", "", "PS005", "no lease is in use"),
        (CHURN, "", &new_key, "PS005", "no lease is in use"),
        (CHURN, &newest, "", "PS005", "no lease is in use"),
        (CHURN, "1e3", &new_key, "PS005", "palisade.token is 1e3"),
    ];
    for (resource, token, key, code, words) in tries {
        claim_to_use(&mut w.worker, resource, token, key).await;
        for (sql, target) in writes() {
            let before = content(&mut w.admin, target).await;
            refused(write(&mut w.worker, sql, target).await, code, words);
            assert_eq!(content(&mut w.admin, target).await, before, "{sql} {target}");
        }
    }
    // Nobody was locked out by it.
    use_lease(&mut w.worker, &next).await;
    write(&mut w.worker, WRITES[1], "plain").await.expect("the owner writes");
}

#[tokio::test]
async fn a_row_moves_neither_from_nor_to_another_resource() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    for target in TARGETS {
        for sql in [
            "UPDATE {} SET set_name = 'fraud' WHERE set_name = 'churn'",
            "UPDATE {} SET set_name = 'churn' WHERE set_name = 'fraud'",
            "UPDATE {} SET value = 1",
            "INSERT INTO {} VALUES ('churn', 3, 1), ('fraud', 4, 1)",
        ] {
            refused(
                write(&mut w.worker, sql, target).await,
                "PS005",
                "belongs to features/fraud, and the lease in use",
            );
        }
    }
}

#[tokio::test]
async fn truncate_is_refused_for_everybody() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    for conn in [&mut w.worker, &mut w.admin] {
        for target in ["plain", "parted", "part", "grown"] {
            refused(conn.try_run(&format!("TRUNCATE {target}")).await, "PS005", "TRUNCATE would remove");
        }
    }
}

#[tokio::test]
async fn a_superuser_is_checked_too_also_with_triggers_for_replicas_only() {
    let mut w = world().await;
    for role in ["origin", "replica"] {
        w.admin.run(&format!("SET session_replication_role = {role}")).await;
        for (sql, target) in writes() {
            refused(write(&mut w.admin, sql, target).await, "PS005", "no lease is in use");
        }
        refused(w.admin.try_run("TRUNCATE part").await, "PS005", "TRUNCATE");
    }
}

#[tokio::test]
async fn a_partition_that_comes_later_is_checked_and_one_that_is_detached_keeps_what_is_its_own() {
    let mut w = world().await;
    w.worker.run("CREATE TABLE later (LIKE parted INCLUDING ALL)").await;
    w.worker.run("ALTER TABLE parted ATTACH PARTITION later FOR VALUES FROM (1000) TO (2000)").await;
    w.worker.run("CREATE TABLE made PARTITION OF parted FOR VALUES FROM (2000) TO (3000)").await;
    for target in ["later", "parted"] {
        let sql = "INSERT INTO {} VALUES ('churn', 1001, 1)";
        refused(write(&mut w.worker, sql, target).await, "PS005", "no lease is in use");
    }
    // Another partition is another row: deleted there, inserted here.
    let moved = "UPDATE parted SET id = 2001 WHERE set_name = 'churn'";
    refused(w.worker.try_run(moved).await, "PS005", "no lease is in use");
    w.admin.run("SET session_replication_role = replica").await;
    refused(w.admin.try_run("INSERT INTO made VALUES ('churn', 2001, 1)").await, "PS005", "no lease is in use");

    // Nor does a row move there that is somebody else's, by way of the parent.
    use_lease(&mut w.worker, &w.lease).await;
    let moved = "UPDATE parted SET id = id + 2000 WHERE set_name = 'fraud'";
    refused(w.worker.try_run(moved).await, "PS005", "belongs to features/fraud");
    claim_to_use(&mut w.worker, "", "", "").await;

    // Their rows are safe; for TRUNCATE, the table is to be protected again, and says so.
    let gap = "SELECT gap FROM palisade.protected WHERE target = 'parted'::regclass";
    assert!(w.admin.text(gap).await.contains("can be truncated"));
    w.worker.run("SELECT palisade.protect('parted', $$'features/' || set_name$$)").await;
    assert_eq!(w.admin.text(gap).await, "");
    refused(w.worker.try_run("TRUNCATE later").await, "PS005", "TRUNCATE");

    // One that is detached keeps the triggers of its own, and loses those of its parent.
    w.worker.run("ALTER TABLE parted DETACH PARTITION later; ALTER TABLE grown DETACH PARTITION added").await;
    let sql = "INSERT INTO {} VALUES ('churn', 1001, 1)";
    refused(write(&mut w.worker, sql, "later").await, "PS005", "no lease is in use");
    write(&mut w.worker, sql, "added").await.expect("nothing is left");
    w.worker.run("SELECT palisade.unprotect('later'); INSERT INTO later VALUES ('churn', 1001, 1)").await;
}

/// Triggers run in the order of their names: one that comes late could rewrite what was checked.
#[tokio::test]
async fn a_row_is_checked_as_it_is_after_all_other_triggers() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    w.worker
        .run(
            "CREATE FUNCTION rename() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.set_name := CASE WHEN NEW.value = 7 THEN 'fraud' ELSE NEW.set_name END; RETURN NEW; END $$;
             CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION rename();
             CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON parted FOR EACH ROW EXECUTE FUNCTION rename();
             CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON grown FOR EACH ROW EXECUTE FUNCTION rename();
             CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN DELETE FROM plain WHERE set_name = 'fraud' AND NEW.value = 6; RETURN NULL; END $$;
             CREATE TRIGGER zz_after AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION again()",
        )
        .await;
    for target in TARGETS {
        for sql in ["INSERT INTO {} VALUES ('churn', 3, 7)", "UPDATE {} SET value = 7, id = 4 WHERE set_name = 'churn'"]
        {
            refused(write(&mut w.worker, sql, target).await, "PS005", "belongs to features/fraud");
        }
    }
    refused(w.worker.try_run("INSERT INTO plain VALUES ('churn', 3, 6)").await, "PS005", "belongs to features/fraud");
}

#[tokio::test]
async fn a_foreign_keys_cascade_is_checked_as_any_write() {
    let mut w = world().await;
    w.worker
        .run(
            "CREATE TABLE parent (id int PRIMARY KEY);
             CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, set_name text);
             INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 'features/churn');
             SELECT palisade.protect('child', 'set_name')",
        )
        .await;
    for sql in ["DELETE FROM parent WHERE id = 1", "UPDATE parent SET id = 3 WHERE id = 1"] {
        refused(w.worker.try_run(sql).await, "PS005", "no lease is in use");
    }
    w.worker.run("DELETE FROM parent WHERE id = 2").await; // nobody's row
    use_lease(&mut w.worker, &w.lease).await;
    w.worker.run("UPDATE parent SET id = 3 WHERE id = 1; DELETE FROM parent").await;
    assert_eq!(w.admin.number("SELECT count(*) FROM child").await, 0);
}

/// What the trigger reads must not depend on what the writer has set, or has made.
#[tokio::test]
async fn temporary_objects_and_settings_of_the_writer_deceive_no_trigger() {
    let mut w = world().await;
    w.admin.run(&format!("GRANT CREATE ON DATABASE {} TO worker_login", w.db.name)).await;
    w.worker
        .run(
            "CREATE TABLE slash AS SELECT 1 AS id;
             SELECT palisade.protect('slash', $$CASE length('\\\\') WHEN 2 THEN 'features/fraud' ELSE 'features/churn' END$$)",
        )
        .await;
    use_lease(&mut w.worker, &w.lease).await;
    w.worker
        .run(
            "CREATE SCHEMA mine;
             CREATE FUNCTION mine.churn(text, text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'features/churn' $$;
             CREATE OPERATOR mine.|| (FUNCTION = mine.churn, LEFTARG = text, RIGHTARG = text);
             CREATE TEMPORARY TABLE palisade_old AS SELECT * FROM plain WHERE set_name = 'churn';
             CREATE TEMPORARY TABLE palisade_new (LIKE plain);
             CREATE TEMPORARY TABLE lease (LIKE plain);
             SET search_path = mine, pg_temp, pg_catalog, public;
             SET standard_conforming_strings = off",
        )
        .await;
    for target in TARGETS.map(|target| format!("public.{target}")) {
        for sql in ["DELETE FROM {} WHERE set_name = 'fraud'", "UPDATE {} SET value = 1 WHERE set_name = 'fraud'"] {
            refused(write(&mut w.worker, sql, &target).await, "PS005", "belongs to features/fraud");
        }
    }
    refused(w.worker.try_run("DELETE FROM public.slash").await, "PS005", "belongs to features/fraud");
}

/// Whether the server was built with it: it refuses to make a collation otherwise.
pub async fn has_icu(conn: &mut Conn) -> bool {
    let try_one = "BEGIN; CREATE COLLATION public.probe (provider = icu, locale = 'und')";
    let made = conn.try_run(try_one).await.is_ok();
    conn.run("ROLLBACK").await;
    made
}

/// Under a collation of the table's two names that differ may be equal, and one of them go unseen.
#[tokio::test]
async fn names_that_the_tables_collation_calls_equal_are_two_resources() {
    let mut w = world().await;
    if !has_icu(&mut w.admin).await {
        return; // only ICU has such collations
    }
    w.admin
        .run(
            "CREATE COLLATION public.careless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE names (set_name text COLLATE public.careless);
             INSERT INTO names VALUES ('features/churn'), ('FEATURES/CHURN');
             SELECT palisade.protect('names', 'set_name')",
        )
        .await;
    use_lease(&mut w.admin, &w.lease).await;
    refused(w.admin.try_run("DELETE FROM names").await, "PS005", "belongs to FEATURES/CHURN");
    refused(w.admin.try_run("DELETE FROM names WHERE set_name = 'features/churn'").await, "PS005", "FEATURES/CHURN");
    let careless = "SELECT palisade.check_row('names', 'FEATURES/CHURN' COLLATE public.careless)";
    refused(w.admin.try_run(careless).await, "PS005", "belongs to FEATURES/CHURN");
}

#[tokio::test]
async fn a_table_owners_expression_runs_as_the_writer_and_never_as_the_owner_role() {
    let mut w = world().await;
    w.worker
        .run(
            "CREATE FUNCTION public.spy(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
                 $$ BEGIN RETURN current_user || ' ' || pg_has_role('palisade_owner', 'USAGE'); END $$;
             SELECT palisade.protect(t, 'public.spy(set_name)') FROM unnest('{plain,parted,grown}'::regclass[]) AS t",
        )
        .await;
    for target in TARGETS {
        refused(write(&mut w.worker, WRITES[0], target).await, "PS005", "belongs to worker_login false");
    }
    // Nor is it more than one expression.
    for expression in [
        "set_name)::text)); DROP TABLE parted; CREATE INDEX ON pg_temp.palisade_probe (((set_name",
        "set_name; DROP TABLE parted",
    ] {
        let sql = format!("SELECT palisade.protect('plain', {})", quote(expression));
        let _ = w.worker.try_run(&sql).await;
        let written = write(&mut w.worker, WRITES[0], "plain").await;
        assert!(written.is_err(), "{expression}");
        assert_eq!(w.admin.text("to_regclass('public.parted') IS NOT NULL").await, "true", "{expression}");
    }
}

#[tokio::test]
async fn what_names_a_resource_depends_on_the_row_alone_or_is_refused() {
    let mut w = world().await;
    w.worker.run(r#"CREATE TABLE odd ("a ""b" text, day date, n int); SELECT palisade.unprotect('plain')"#).await;
    for (expression, why) in [
        ("random()::text", "IMMUTABLE"),
        ("current_user || ''", "IMMUTABLE"),
        ("day", "IMMUTABLE"), // as text it depends on the writer's DateStyle
        ("concat('features/', n)", "IMMUTABLE"),
        ("(SELECT 'x')", "subquery"),
        ("count(*)", "aggregate"),
        ("nothing", "does not exist"),
        ("n +", "syntax error"),
    ] {
        let sql = format!("SELECT palisade.protect('odd', {})", quote(expression));
        let failure = w.worker.try_run(&sql).await.expect_err(expression);
        assert!(failure.code == "PS004" && failure.message.contains(why), "{expression}: {failure:?}");
    }
    for expression in [r#"a "b"#, r#""a ""b""#, "n", "'features/' || n", "md5(n::text)"] {
        w.worker.run(&format!("SELECT palisade.protect('odd', {})", quote(expression))).await;
        refused(w.worker.try_run("INSERT INTO odd VALUES ('x', NULL, 1)").await, "PS005", "no lease is in use");
    }
    // A generated column will do where it is stored; a virtual one (since version 18) has no value in a trigger.
    let kinds = if w.admin.number("current_setting('server_version_num')::int").await < 180_000 {
        vec![("STORED", true)]
    } else {
        vec![("STORED", true), ("VIRTUAL", false)]
    };
    for (kind, fit) in kinds {
        let table = format!("CREATE TABLE made_{kind} (a text, r text GENERATED ALWAYS AS ('features/' || a) {kind})");
        w.worker.run(&table).await;
        let done = w.worker.try_run(&format!("SELECT palisade.protect('made_{kind}', 'coalesce(r, a)')")).await;
        assert_eq!(done.is_ok(), fit, "{kind}: {done:?}");
        let written = w.worker.try_run(&format!("INSERT INTO made_{kind} VALUES ('churn')")).await;
        assert_eq!(written.is_err(), fit, "{kind}: checked where it is protected");
    }
    for sql in [
        "SELECT palisade.protect(NULL, 'n')",
        "SELECT palisade.protect('odd', NULL)",
        "SELECT palisade.protect('odd', '')",
        "SELECT palisade.protect('seen', 'set_name')",
    ] {
        refused(w.worker.try_run(sql).await, "PS004", "must be a ");
    }
    refused(w.worker.try_run("SELECT palisade.protect('part', 'set_name')").await, "PS004", "is a partition");
    refused(w.worker.try_run("SELECT palisade.unprotect('part')").await, "PS004", "is a partition");
}

#[tokio::test]
async fn a_row_without_a_resource_is_refused() {
    let mut w = world().await;
    w.worker.run("CREATE TABLE loose (set_name text); SELECT palisade.protect('loose', 'set_name')").await;
    use_lease(&mut w.worker, &w.lease).await;
    refused(w.worker.try_run("INSERT INTO loose VALUES ('features/churn'), (NULL)").await, "PS005", "has no resource");
}

/// A rename is its owner's own doing: the writes stop, and nothing slips through.
#[tokio::test]
async fn after_its_column_was_renamed_a_table_refuses_every_write_until_it_is_protected_again() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    w.worker.run("ALTER TABLE plain RENAME set_name TO name").await;
    refused(w.worker.try_run("DELETE FROM plain WHERE name = 'churn'").await, "42703", "set_name");
    w.worker.run("SELECT palisade.protect('plain', $$'features/' || name$$)").await;
    w.worker.run("DELETE FROM plain WHERE name = 'churn'").await;
}

#[tokio::test]
async fn a_write_by_way_of_a_relative_is_impossible_where_a_table_inherits() {
    let mut w = world().await;
    w.worker.run("CREATE TABLE above (id int, set_name text); CREATE TABLE below () INHERITS (above)").await;
    for target in ["above", "below"] {
        let sql = format!("SELECT palisade.protect('{target}', 'set_name')");
        refused(w.worker.try_run(&sql).await, "PS004", "inherits, or is inherited from");
    }
    // What its owner does later shows.
    let gaps = "SELECT string_agg(target || ': ' || gap, E'\n' ORDER BY target::text) FROM palisade.protected";
    assert!(!w.admin.text(gaps).await.contains("plain"));
    w.worker.run("CREATE TABLE heir () INHERITS (plain); ALTER TABLE part DISABLE TRIGGER palisade_rows").await;
    let gaps = w.admin.text(gaps).await;
    assert!(gaps.contains("parted: a partition came later, or a trigger of one is disabled"), "{gaps}");
    assert!(gaps.contains("plain: it inherits, or is a partition"), "{gaps}");
}

#[tokio::test]
async fn only_a_tables_owner_protects_it_and_only_its_owner_takes_that_away() {
    let mut w = world().await;
    w.admin.run("GRANT ALL ON plain TO reader_login, registry_login").await;
    let mut other = w.db.connect_as("reader_login").await;
    for sql in ["SELECT palisade.protect('plain', 'id')", "SELECT palisade.unprotect('plain')"] {
        refused(other.try_run(sql).await, "42501", "belongs to worker_login");
    }
    refused(other.try_run("DROP TRIGGER palisade_delete ON plain").await, "42501", "must be owner");
    refused(other.try_run("ALTER TABLE plain DISABLE TRIGGER ALL").await, "42501", "must be owner");
    // Whoever may not use leases is told what to grant.
    for login in ["reader_login", "registry_login"] {
        let mut stranger = w.db.connect_as(login).await;
        refused(stranger.try_run("DELETE FROM plain").await, "42501", &format!("the role {login} may not use leases"));
    }
    assert_eq!(w.worker.text("palisade.unprotect('plain')").await, "true");
    assert_eq!(w.worker.text("palisade.unprotect('plain')").await, "false");
    w.worker.run("TRUNCATE plain").await;
}

#[tokio::test]
async fn a_lease_is_in_use_until_the_transaction_ends_or_for_the_session() {
    let mut w = world().await;
    let once = format!("SELECT palisade.use_lease({})", w.lease.unnumbered());
    w.worker.run(&format!("BEGIN; {once}; {}; COMMIT", WRITES[1].replace("{}", "plain"))).await;
    refused(write(&mut w.worker, WRITES[1], "plain").await, "PS005", "no lease is in use");
    // Several statements sent at once are one transaction, in one round trip.
    w.worker.run(&format!("{once}; {}", WRITES[1].replace("{}", "plain"))).await;
    refused(write(&mut w.worker, WRITES[1], "plain").await, "PS005", "no lease is in use");
    // So is a function of one's own, which takes parameters.
    w.worker
        .run(
            "CREATE FUNCTION put(token bigint, key text, value int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM palisade.use_lease('features/churn', put.token, put.key);
                 UPDATE plain AS p SET value = put.value WHERE set_name = 'churn'; END $$",
        )
        .await;
    w.worker.run(&format!("SELECT put({}, '{}', 5)", w.lease.token, w.lease.session.key)).await;
    refused(write(&mut w.worker, WRITES[1], "plain").await, "PS005", "no lease is in use");
    // What was rolled back is not in use.
    w.worker.run(&format!("BEGIN; SELECT palisade.use_lease({}, true); ROLLBACK", w.lease.unnumbered())).await;
    refused(write(&mut w.worker, WRITES[1], "plain").await, "PS005", "no lease is in use");
    use_lease(&mut w.worker, &w.lease).await;
    write(&mut w.worker, WRITES[1], "plain").await.expect("the session's");
    // A program that cannot be changed: its connection's options.
    let options = format!(
        "{}&options[palisade.resource]={CHURN}&options[palisade.token]={}&options[palisade.key]={}",
        w.db.url_as("worker_login"),
        w.lease.token,
        w.lease.session.key
    );
    let mut unchanged = Conn::open(&options).await;
    write(&mut unchanged, WRITES[1], "plain").await.expect("by the connection's options");

    w.admin.take_over(&w.lease).await;
    refused(w.worker.try_run(&once).await, "PS003", "refused: stale");
    refused(write(&mut unchanged, WRITES[1], "plain").await, "PS003", "refused: stale");
}

/// `WITH` does not order it: the trigger is before the common table expression.
#[tokio::test]
async fn a_lease_named_in_the_same_statement_comes_too_late_and_the_write_is_refused() {
    let mut w = world().await;
    let sql = format!(
        "WITH l AS MATERIALIZED (SELECT palisade.use_lease({})) UPDATE plain SET value = 1 FROM l WHERE set_name = 'fraud'",
        w.lease.unnumbered()
    );
    refused(w.worker.try_run(&sql).await, "PS005", "belongs to features/fraud");
    // Nor does one that changes hands in the middle: what counts is the lease at the statement's end.
    use_lease(&mut w.worker, &w.lease).await;
    let sql = "UPDATE plain SET value = length(set_config('palisade.resource', 'features/fraud', true)) WHERE set_name = 'fraud'";
    refused(w.worker.try_run(sql).await, "PS003", "is refused: no_lease");
}

#[tokio::test]
async fn a_takeover_that_commits_while_a_statement_waits_at_the_gate_of_a_protected_table_makes_it_stale() {
    let mut w = world().await;
    w.admin.expire(&w.lease.session).await;
    let next = w.admin.session("1 minute").await;
    for target in TARGETS {
        let mut late = w.db.connect_as("worker_login").await;
        w.admin.run("BEGIN").await;
        let before = w.lease.clone();
        claim_to_use(&mut late, CHURN, &before.token.to_string(), &before.session.key).await;
        w.admin.acquire(&next, CHURN).await;
        let pid = late.pid().await;
        let task = tokio::spawn(async move { write(&mut late, WRITES[1], target).await });
        let mut watcher = w.db.connect().await;
        watcher.wait_blocked(pid).await;
        w.admin.run("COMMIT").await;
        refused(task.await.expect("it ends"), "PS003", "refused: stale");
        w.lease.token =
            w.admin.number(&format!("SELECT token FROM palisade.lease WHERE resource = '{CHURN}'")).await - 1;
    }
}

/// The lease's row is locked before any row of the table is, as everywhere: no deadlock with those who check first.
#[tokio::test]
async fn a_takeover_waits_for_a_statement_that_waits_for_a_row_of_a_protected_table() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    w.admin.expire(&w.lease.session).await;
    let next = w.admin.session("1 minute").await;
    for target in ["plain", "parted"] {
        let mut holder = w.db.connect().await;
        holder.run(&format!("BEGIN; SELECT FROM {target} WHERE set_name = 'churn' FOR UPDATE")).await;
        let mut writer = w.db.connect_as("worker_login").await;
        let lease = w.lease.clone();
        claim_to_use(&mut writer, CHURN, &lease.token.to_string(), &lease.session.key).await;
        let pid = writer.pid().await;
        let task = tokio::spawn(async move {
            write(&mut writer, "UPDATE {} SET value = 4 WHERE set_name = 'churn'", target).await
        });
        let mut watcher = w.db.connect().await;
        watcher.wait_blocked(pid).await;
        let grant = Running::call(w.db.connect().await, format!("acquire({}, '{CHURN}')", next.args())).await;
        watcher.wait_blocked(grant.pid).await;
        holder.run("COMMIT").await;
        task.await.expect("it ends").expect("it was there first");
        let granted = grant.answer().await;
        granted.is("applied");
        w.lease = Lease { token: granted.token.expect("a token"), session: next.clone(), ..lease };
    }
}

#[tokio::test]
async fn a_statement_is_refused_unless_the_isolation_is_read_committed() {
    let mut w = world().await;
    use_lease(&mut w.worker, &w.lease).await;
    w.worker.run("BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    refused(write(&mut w.worker, WRITES[1], "plain").await, "PS002", "read committed");
}

#[tokio::test]
async fn a_statement_asks_the_gate_twice_however_many_rows_it_writes() {
    let mut w = world().await;
    use_lease(&mut w.admin, &w.lease).await;
    w.admin.run("SET track_functions = 'pl'; BEGIN; INSERT INTO plain SELECT 'churn', n FROM generate_series(10, 10009) AS n").await;
    let calls = "SELECT calls FROM pg_stat_xact_user_functions WHERE funcid = 'palisade.check_lease'::regproc";
    assert_eq!(w.admin.number(calls).await, 2);
    w.admin.run("UPDATE plain SET value = 3 WHERE set_name = 'churn'").await;
    assert_eq!(w.admin.number(calls).await, 4);
    w.admin.run("COMMIT").await;
}

/// Eight workers that take the lease from one another and write, each in its own way. A row remembers the highest token
/// that wrote it: a stale landing is an error. So is a deadlock.
#[tokio::test]
async fn a_storm_of_takeovers_and_writes_to_a_protected_table_has_no_deadlock_and_no_stale_landing() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 25;
    let mut w = world().await;
    w.admin.run(&format!("ALTER DATABASE {} SET deadlock_timeout = '20ms'", w.db.name)).await;
    w.worker
        .run(
            "CREATE TABLE storm (set_name text, id int, token bigint NOT NULL DEFAULT 0);
             INSERT INTO storm SELECT 'features/churn', n FROM generate_series(1, 20) AS n;
             CREATE FUNCTION forward() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.token < OLD.token THEN RAISE EXCEPTION 'a stale write landed after %', OLD.token; END IF; RETURN NULL; END $$;
             CREATE TRIGGER forward AFTER UPDATE ON storm FOR EACH ROW EXECUTE FUNCTION forward();
             SELECT palisade.protect('storm', 'set_name')",
        )
        .await;
    let db = Arc::new(w.db);
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let (mut conn, mut admin) = (db.connect_as("worker_login").await, db.connect().await);
        tasks.push(tokio::spawn(async move {
            let (mut landed, mut stale) = (0, 0);
            for round in 0..ROUNDS {
                // Everybody's time is always up, so everybody takes over from whoever it is.
                admin.run("UPDATE palisade.session SET expires_at = clock_timestamp() - interval '1 second' WHERE id IN (SELECT session FROM palisade.lease)").await;
                let session = conn.session("1 minute").await;
                let answer = conn.call(&format!("acquire({}, '{CHURN}')", session.args())).await;
                if answer.outcome != "applied" {
                    continue;
                }
                let (token, key) = (answer.token.expect("a token"), session.key.clone());
                claim_to_use(&mut conn, CHURN, &token.to_string(), &key).await;
                let check = format!("SELECT palisade.check_lease('{CHURN}', {token}, '{key}')");
                for write in 0..4 {
                    let update = format!("UPDATE storm SET token = {token} WHERE id % 3 = {}", (round + write) % 3);
                    let sql = match (client + write) % 3 {
                        0 => update,
                        1 => format!("BEGIN; {check}; {update}; COMMIT"),
                        _ => format!("BEGIN; {update}; {check}; {update}; COMMIT"),
                    };
                    match conn.try_run(&sql).await {
                        Ok(()) => landed += 1,
                        Err(failure) if failure.code == "PS003" => {
                            stale += 1;
                            conn.run("ROLLBACK").await;
                        }
                        Err(failure) => panic!("{sql}: {failure:?}"),
                    }
                }
            }
            (landed, stale)
        }));
    }
    let (mut landed, mut stale) = (0, 0);
    for task in tasks {
        let (l, s) = task.await.expect("no deadlock, no stale landing");
        (landed, stale) = (landed + l, stale + s);
    }
    assert!(landed > 20 && stale > 5, "it was a storm: {landed} landed, {stale} were stale");
    assert_eq!(w.admin.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await, 0);
}

/// A limit, as docs/protect-a-table.md states it: the apply worker fires no triggers for statements.
#[tokio::test]
async fn of_logical_replication_the_rows_are_not_checked_and_the_first_copy_and_truncate_are_refused() {
    let server = Server::start();
    Conn::open(&server.url).await.run("ALTER SYSTEM SET wal_level = logical").await;
    server.stop();
    server.start_again();
    let mut here = Conn::open(&server.migrated("here").await).await;
    here.run("CREATE DATABASE there").await;
    let mut there = Conn::open(&server.url_of("postgres", "there")).await;
    let table = "CREATE TABLE plain (set_name text PRIMARY KEY)";
    there.run(&format!("{table}; INSERT INTO plain VALUES ('a'); CREATE PUBLICATION p FOR TABLE plain")).await;
    here.run(&format!("{table}; SELECT palisade.protect('plain', 'set_name')")).await;

    for (name, copy) in [("copying", true), ("following", false)] {
        there.run(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
        let from = format!("host=127.0.0.1 port={} dbname=there user=postgres", server.port());
        let options = format!("create_slot = false, copy_data = {copy}");
        here.run(&format!("CREATE SUBSCRIPTION {name} CONNECTION '{from}' PUBLICATION p WITH ({options})")).await;
        let errors = |kind: &str| {
            format!("SELECT {kind}_error_count > 0 FROM pg_stat_subscription_stats WHERE subname = '{name}'")
        };
        if copy {
            here.wait_until(&errors("sync")).await;
            here.run(&format!("ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"))
                .await;
            here.run(&format!("DROP SUBSCRIPTION {name}")).await;
        } else {
            there.run("INSERT INTO plain VALUES ('b')").await;
            here.wait_until("SELECT string_agg(set_name, '') = 'b' FROM plain").await;
            there.run("TRUNCATE plain").await;
            here.wait_until(&errors("apply")).await;
        }
    }
    assert_eq!(here.text("SELECT string_agg(set_name, '') FROM plain").await, "b");
}
