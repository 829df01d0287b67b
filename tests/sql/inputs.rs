//! Hostile, huge, missing and mistyped arguments: a clear error, nothing changed.

use super::scenarios::{A, SCENARIOS, UID, World, furnish};
use crate::support::postgres::{Conn, Db, quote};

/// What each API function is called with when all is well, argument by argument.
async fn baselines(conn: &mut Conn) -> Vec<(String, Vec<String>)> {
    let scenario = SCENARIOS.iter().find(|s| s.function == "set_alias").expect("a scenario");
    let World { lease, peer } = scenario.world(conn).await;
    let controller = conn.owner("controller/main").await;
    let text = |value: &str| format!("{}::text", quote(value));
    let number = |value: i64| format!("{value}::bigint");
    let json = |value: &str| format!("'{value}'::jsonb");
    let uuid = |value: &str| format!("'{value}'::uuid");
    let span = |value: &str| format!("'{value}'::interval");
    let fence =
        |l: &crate::support::postgres::Lease| vec![text(&l.resource), number(l.token), number(1), text(&l.session.key)];
    let unnumbered =
        |l: &crate::support::postgres::Lease| vec![text(&l.resource), number(l.token), text(&l.session.key)];
    let session = vec![uuid(&lease.session.id.to_string()), text(&lease.session.key)];
    let with = |head: &[String], tail: &[String]| [head, tail].concat();
    let request = uuid("00000000-0000-4000-8000-0000000000bb");
    let work = [uuid(UID), number(1)];
    let plain = [text("m"), text("live")];
    let bool_ = "false::boolean".to_owned();
    let table: Vec<(&str, Vec<String>)> = vec![
        ("open_session", vec![uuid(UID), text("a key of sixteen"), text("w"), span("1 minute")]),
        ("heartbeat", session.clone()),
        ("held", session.clone()),
        ("close_session", session.clone()),
        ("acquire", with(&session, &[text(A), span("1 minute")])),
        ("claim", with(&session, &["5::integer".into(), span("1 minute")])),
        ("report_progress", with(&unnumbered(&lease), &[span("1 minute")])),
        ("release", with(&fence(&lease), &[span("1 minute")])),
        ("revoke", vec![text(A), text("drill")]),
        ("check_lease", unnumbered(&lease)),
        ("use_lease", with(&unnumbered(&lease), &["false::boolean".into()])),
        ("check_row", vec!["'public.mine'::regclass".into(), text(A)]),
        ("protect", vec!["'public.mine'::regclass".into(), text("a")]),
        ("unprotect", vec!["'public.mine'::regclass".into()]),
        ("operation_status", fence(&lease)),
        ("abandon", fence(&lease)),
        ("operation_show", vec![text(A), number(lease.token), number(1)]),
        ("operation_abandon", vec![text(A), number(lease.token), number(1)]),
        ("record_step", with(&with(&fence(&lease), &work), &[text("s"), json("{}")])),
        (
            "record_serving",
            with(&with(&fence(&lease), &work), &[text("s"), json("{}"), text("m"), number(1), text("r"), text("live")]),
        ),
        ("record_done", with(&with(&fence(&lease), &work), &[json("{}")])),
        (
            "record_failure",
            with(&with(&fence(&lease), &work), &[text("s"), json("{}"), text("R"), text("m"), span("1 minute")]),
        ),
        ("record_removed", with(&fence(&lease), &work)),
        ("set_alias", with(&with(&fence(&lease), &plain), &[number(1)])),
        ("move_guard", with(&with(&fence(&lease), &fence(&peer)), &plain)),
        (
            "put_plan",
            with(
                &fence(&controller),
                &[text(A), uuid(UID), number(2), json("{}"), bool_.clone(), bool_.clone(), span("1 minute"), bool_],
            ),
        ),
        ("drop_plan", with(&fence(&controller), &[text(A), uuid(UID)])),
        ("next_revision", with(&unnumbered(&controller), &[text(A), number(0)])),
        ("register_model", vec![text("n"), text(""), json("{}"), request.clone()]),
        (
            "register_version",
            vec![text("m"), text("s"), text(&format!("sha256:{}", "0".repeat(64))), json("{}"), request.clone()],
        ),
        ("put_alias", vec![text("m"), text("plain"), number(1), request]),
        ("version_show", vec![text("m"), number(1)]),
        ("plan_show", vec![text(A)]),
        ("observe", vec![text(A), text("m"), number(1), text("live"), text("guarded")]),
        ("events", vec!["'0'::xid8".into(), number(0), "5::integer".into()]),
        ("figures", vec![]),
        ("schema_version", vec![]),
        ("epoch_status", vec![]),
        ("establish_epoch", vec![number(2), text("x")]),
        ("withdraw_epoch", vec![number(2), text("x")]),
        ("end_blockers", vec![span("1 minute")]),
        ("clean", vec![text("ledger"), span("1 day"), "10::integer".into(), text("a")]),
        ("sizes", vec![]),
    ];
    table.into_iter().map(|(name, arguments)| (name.to_owned(), arguments)).collect()
}

/// Values of a type that somebody may send by mistake or on purpose.
fn hostile(argument: &str) -> Vec<String> {
    let kind = argument.rsplit("::").next().unwrap_or_default();
    let values: &[&str] = match kind {
        "text" => &[
            "''",
            "' '",
            "E'a\\nb'",
            "E'\\x01\\x7f'",
            "repeat('x', 1000000)",
            "repeat(U&'\\+01F600', 600)",
            "E'\\'; DROP TABLE palisade.lease; --'",
            "U&'\\202Eevil'",
            "'../../etc/passwd'",
            "'%s%n$1{}'",
            "'deployment/../x'",
            "'\"palisade\".\"lease\"'",
            "'null'",
        ],
        "bigint" => &["0", "-1", "9223372036854775807", "(-9223372036854775808)", "9007199254740992"],
        "integer" => &["0", "-1", "2147483647"],
        "jsonb" => &[
            "'null'",
            "'[]'",
            "'\"x\"'",
            "'1e400'",
            "'{\"a\": {\"b\": null}}'",
            "jsonb_build_object('a', repeat('x', 2000000))",
        ],
        "uuid" => &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
        "interval" => &["'0'", "'-1 day'", "'1 microsecond'", "'170000000 years'", "'1 month -1 day'"],
        "boolean" => &["true"],
        "xid8" => &["'18446744073709551615'"],
        "regclass" => {
            &["0", "2147483647", "'palisade.lease'", "'palisade.protected'", "'pg_catalog.pg_class_oid_index'"]
        }
        other => panic!("hostile values for {other}"),
    };
    let mut values: Vec<String> = values.iter().map(|value| format!("{value}::{kind}")).collect();
    values.push(format!("NULL::{kind}"));
    values
}

/// Everything that matters, as one text: refusals and what they occupy do not.
const STATE: &str = "SELECT md5(concat(
    (SELECT string_agg(concat_ws(' ', resource, token, session), ',' ORDER BY resource) FROM palisade.lease WHERE token > 0),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.session AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.alias AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.plan AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.deployment AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.queue AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.registered_model AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.model_version AS x),
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM palisade.event AS x)))";

#[tokio::test]
async fn a_hostile_argument_of_any_function_is_a_clear_error_or_a_refusal_that_changes_nothing() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let baselines = baselines(&mut conn).await;
    conn.run("CREATE TABLE public.mine (a text)").await;
    let known = conn
        .list(
            "SELECT p.proname::text FROM pg_proc AS p WHERE p.pronamespace = 'palisade'::regnamespace
             AND p.prorettype <> 'trigger'::regtype
             AND EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee <> p.proowner) ORDER BY proname",
        )
        .await;
    let mut named: Vec<_> = baselines.iter().map(|(name, _)| name.clone()).collect();
    named.sort();
    assert_eq!(known, named, "every function of the API is tried");

    let answers = conn
        .list("SELECT proname::text FROM pg_proc WHERE pronamespace = 'palisade'::regnamespace AND prorettype = 'palisade.answer'::regtype AND NOT proretset")
        .await;
    let before = conn.text(STATE).await;
    let (mut problems, mut refused) = (Vec::new(), 0);
    for (name, arguments) in &baselines {
        for place in 0..arguments.len() {
            for value in hostile(&arguments[place]) {
                let mut call = arguments.clone();
                call[place] = value;
                let call = format!("{name}({})", call.join(", "));
                conn.run("BEGIN").await;
                let outcome = if answers.contains(name) {
                    conn.try_call(&call).await.map(|answer| answer.outcome)
                } else {
                    conn.try_run(&format!("SELECT * FROM palisade.{call}")).await.map(|()| String::new())
                };
                let shown: String = call.chars().take(300).collect();
                match outcome {
                    // The caller's mistake by our own codes, or by the types'. PS006 would be a mistake of ours.
                    Err(failure)
                        if failure.code.starts_with("22")
                            || (failure.code.starts_with("PS00") && failure.code != "PS006") => {}
                    Err(failure) => problems.push(format!("{shown}: {failure:?}")),
                    Ok(outcome) if outcome == "rejected" => {
                        refused += 1;
                        if conn.text(STATE).await != before {
                            problems.push(format!("{shown}: refused, and something changed"));
                        }
                    }
                    Ok(_) => {}
                }
                conn.run("ROLLBACK").await;
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(refused > 100, "{refused} were refused as rows");
    assert_eq!(conn.text(STATE).await, before);
}

#[tokio::test]
async fn arguments_of_a_wrong_type_are_refused_by_the_type() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    for (call, code) in [
        ("heartbeat('not a uuid', 'key')", "22P02"),
        ("heartbeat(1, 'key')", "42883"),
        ("release('a', 'one', 1, 'key')", "22P02"),
        ("release('a', 99999999999999999999, 1, 'key')", "42883"),
        ("open_session(gen_random_uuid(), 'a key of sixteen', 'w', 'soon')", "22007"),
        ("put_alias('m', 'a', 1.5, gen_random_uuid())", "42883"),
        ("register_model('m', '', '{not json', gen_random_uuid())", "22P02"),
        ("register_model('m', '', '{\"a\": \"\\u0000\"}', gen_random_uuid())", "22P05"),
        ("acquire(gen_random_uuid(), 'k', E'nul\\000here')", "22021"),
        ("acquire(gen_random_uuid(), 'k', E'\\xff\\xfe')", "22021"),
    ] {
        let failure = conn.try_call(call).await.expect_err(call);
        assert_eq!(failure.code, code, "{call}: {failure:?}");
    }
}

#[tokio::test]
async fn names_that_look_like_sql_are_only_names() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let session = conn.session("1 minute").await;
    for (n, name) in
        ["'; DROP TABLE palisade.lease; --", "a\" b", "%s $1 \\", "ünïcödé/模型", "$$ $body$", "NULL", "-1"]
            .into_iter()
            .enumerate()
    {
        let lease = conn.acquire(&session, name).await;
        conn.call(&format!("set_alias({}, 'm', 'of-{n}', 1)", lease.fence(1))).await.is("applied");
        let guard = conn.text("SELECT guard FROM palisade.alias ORDER BY updated_at DESC LIMIT 1").await;
        assert_eq!(guard, name);
    }
}

/// Two names that look the same are two names; one that differs by a space is another one.
#[tokio::test]
async fn a_resource_is_exactly_its_name() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    for name in ["a", "a ", "A", "\u{430}"] {
        conn.acquire(&session, name).await;
    }
    assert_eq!(conn.number("SELECT count(*) FROM palisade.lease").await, 4);
}

#[tokio::test]
async fn the_longest_names_that_are_allowed_work_everywhere() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    // Four bytes a character: the indexes' rows are as large as they can be.
    let name = "\u{1F600}".repeat(512);
    let lease = conn.owner(&name).await;
    let alias = "a".repeat(253);
    conn.call(&format!("set_alias({}, 'm', '{alias}', 1)", lease.fence(1))).await.is("applied");
    conn.call(&format!("revoke({}, 'drill')", quote(&name))).await.is("applied");
    conn.call(&format!("set_alias({}, 'm', '{alias}', 2)", lease.fence(2))).await.is("rejected: stale");
    conn.call(&format!("register_model('{}', '', '{{}}', gen_random_uuid())", "m".repeat(253))).await.is("applied");
    let failure = conn
        .try_call(&format!("acquire({}, {})", lease.session.args(), quote(&"x".repeat(513))))
        .await
        .expect_err("too long");
    assert_eq!(failure.code, "PS004");
}
