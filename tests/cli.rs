//! The command line as its users meet it: the real program on a real Postgres. What is promised in docs/cli.md is held
//! here: output, exit codes, errors that say what to do next.

mod support;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use serde_json::Value;
use support::postgres::{Conn, Db, quote, shared_server};
use support::proxy::{Fault, Proxy};
use support::ran::{Ran, finish};
use tokio::process::Command;

/// The program in an environment of its own: nothing of the caller's settings leaks in.
fn program(url: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.env_clear().env("LC_ALL", "C.UTF-8").env("COLUMNS", "100").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command
}

async fn palisade<S: AsRef<OsStr>>(url: &str, args: &[S]) -> Ran {
    finish(program(Some(url)).args(args)).await
}

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

async fn register(url: &str, model: &str) -> Ran {
    palisade(url, &["model", "register", model, "--source", "s3://models/1", "--digest", DIGEST]).await
}

// ---------------------------------------------------------------- migrate

#[tokio::test]
async fn migrate_makes_the_schema_once_and_check_changes_nothing() {
    let server = shared_server().await;
    let name = format!("cli_migrate_{}", std::process::id());
    Conn::open(&server.url).await.run(&format!("CREATE DATABASE {name}")).await;
    let url = server.url_of("postgres", &name);

    palisade(&url, &["migrate", "--check"]).await.is(1).says("next: palisade migrate");
    palisade(&url, &["migrate", "--check"]).await.is(1); // the first one changed nothing
    palisade(&url, &["migrate"]).await.is(0).says("migrations applied");
    palisade(&url, &["migrate"]).await.is(0).says("it was there already");
    palisade(&url, &["migrate", "--check"]).await.is(0).says("up to date");

    let mut conn = Conn::open(&url).await;
    conn.run(
        "INSERT INTO palisade.migration (version, description, success, checksum, execution_time)
         VALUES (9999, 'of a later release', true, '', 0)",
    )
    .await;
    palisade(&url, &["migrate"]).await.is(1).says("newer palisade");
    palisade(&url, &["migrate", "--check"]).await.is(1).says("newer palisade");
}

// ---------------------------------------------------------------- model

#[tokio::test]
async fn a_version_is_registered_shown_and_found_by_its_alias() {
    let db = Db::new().await;
    let url = db.url();
    assert_eq!(register(&url, "churn").await.is(0).out, "1\n", "only the number: a script wants it");
    assert_eq!(register(&url, "churn").await.is(0).out, "2\n");
    let args = ["model", "register", "churn", "--description", "ignored"];
    palisade(&url, &args).await.is(0).says("is there already").says("its description stays");

    palisade(&url, &["model", "alias", "churn", "candidate", "2"]).await.is(0).says("churn@candidate");
    let shown = palisade(&url, &["model", "show", "churn", "-o", "json"]).await.is(0).json();
    assert_eq!(shown["versions"][0]["version"], 2);
    assert_eq!(shown["versions"][0]["aliases"][0], "candidate");
    assert_eq!(shown["aliases"]["candidate"], 2);
    palisade(&url, &["model", "alias", "churn", "candidate", "--delete"]).await.is(0);
    let listed = palisade(&url, &["model", "ls", "-o", "json"]).await.is(0).json();
    assert_eq!(listed[0]["aliases"], serde_json::json!({}));
    let yaml = palisade(&url, &["model", "ls", "-o", "yaml"]).await;
    let yaml: Value = serde_yaml::from_str(&yaml.is(0).out).expect("YAML");
    assert_eq!(yaml, listed, "the same in both");
    palisade(&url, &["model", "show", "churn"]).await.is(0).says("VERSION").says(DIGEST);
}

#[tokio::test]
async fn a_lost_answer_does_not_register_a_version_twice() {
    let db = Db::new().await;
    let proxy = Proxy::start(db.server.port()).await;
    let lost = proxy.on_next("palisade.register_version", Fault::LoseAnswer);
    assert_eq!(register(&proxy.url(&db.url()), "churn").await.is(0).out, "1\n");
    assert!(lost.has_fired(), "the answer was lost");
    assert_eq!(db.connect().await.number("SELECT count(*) FROM palisade.model_version").await, 1);

    // By hand, as the message for an unknown outcome advises.
    let again = ["model", "register", "churn", "--source", "s3://models/1", "--digest", DIGEST, "--request"];
    let request = "b2f1c1de-6a3c-4a4e-9a57-0d5a3f6f2f10";
    let args = [&again[..], &[request]].concat();
    assert_eq!(palisade(&db.url(), &args).await.is(0).out, "2\n");
    assert_eq!(palisade(&db.url(), &args).await.is(0).out, "2\n", "the first answer again");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_exit_code_4_and_names_the_request() {
    let db = Db::new().await;
    let proxy = Proxy::start(db.server.port()).await;
    // Each of the five tries meets the next one.
    for _ in 1..=5 {
        proxy.on_next("palisade.register_version", Fault::LoseAnswer);
    }
    let args = ["model", "register", "churn", "--source", "s3://a", "--digest", DIGEST, "-o", "json", "--log", "error"];
    let ran = palisade(&proxy.url(&db.url()), &args).await;
    let error = ran.is(4).error();
    assert_eq!(error["kind"], "unknown");
    assert!(error["next"].as_str().is_some_and(|next| next.contains("--request ")), "{error}");
    // What it advises works: the version is the one that was registered without anybody hearing of it.
    let next = error["next"].as_str().unwrap_or_default();
    let request = next.split("--request ").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or_default();
    let again = palisade(&db.url(), &[&args[..7], &["--request", request]].concat()).await;
    assert_eq!(again.is(0).out, "1\n");
}

// ---------------------------------------------------------------- leases, history, operations

#[tokio::test]
async fn leases_are_listed_shown_and_revoked_only_when_somebody_confirms() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner("deployment/shop/churn").await;
    conn.owner("controller/default").await;
    let url = db.url();

    let all = palisade(&url, &["lease", "ls", "-o", "json"]).await.is(0).json();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    let some = palisade(&url, &["lease", "ls", "deployment/"]).await;
    assert!(some.is(0).out.contains("worker-a") && !some.out.contains("controller/default"), "{some:?}");
    let shown = palisade(&url, &["lease", "show", "shop/churn", "-o", "yaml"]).await;
    let shown: Value = serde_yaml::from_str(&shown.is(0).out).expect("YAML");
    assert_eq!((&shown["token"], &shown["state"]), (&lease.token.into(), &"held".into()), "NAMESPACE/NAME is enough");
    palisade(&url, &["lease", "show", "controller/default"]).await.is(0).says("held");

    let revoke = ["lease", "revoke", "shop/churn", "--reason", "a drill"];
    palisade(&url, &revoke).await.is(2).says("--yes");
    assert_eq!(
        conn.number("SELECT token FROM palisade.lease WHERE resource = 'deployment/shop/churn'").await,
        lease.token
    );
    let yes = [&revoke[..], &["--yes", "-o", "json"]].concat();
    let revoked = palisade(&url, &yes).await.is(0).json();
    assert_eq!(revoked["revoked"], lease.token);
    let call = format!("set_alias({}, 'm', 'a', NULL)", lease.fence(1));
    assert!(conn.call(&call).await.word().starts_with("rejected"), "its owner can change nothing");
    let error = palisade(&url, &yes).await.is(3).error();
    assert_eq!(error["kind"], "rejected", "nobody holds it now");
}

#[tokio::test]
async fn a_revocation_whose_answer_is_lost_is_not_repeated_and_is_exit_code_4() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    conn.owner("deployment/shop/churn").await;
    let proxy = Proxy::start(db.server.port()).await;
    let lost = proxy.on_next("palisade.revoke", Fault::LoseAnswer);
    let args = ["lease", "revoke", "shop/churn", "--reason", "a drill", "--yes"];
    palisade(&proxy.url(&db.url()), &args).await.is(4).says("palisade history deployment/shop/churn");
    assert!(lost.has_fired());
    let kinds = "SELECT count(*) FROM palisade.grant_history WHERE kind = 'revoke'";
    assert_eq!(conn.number(kinds).await, 1, "a second call could hit the next owner");
}

/// A resource with a story: an applied write, a takeover, a stale write, and one under a token that somebody made up.
async fn story(db: &Db) -> (Conn, support::postgres::Lease, support::postgres::Lease) {
    let mut conn = db.connect().await;
    register(&db.url(), "churn").await.is(0);
    let old = conn.owner("deployment/shop/churn").await;
    conn.call(&format!("set_alias({}, 'churn', 'champion', 1)", old.fence(1))).await.is("applied");
    let new = conn.take_over(&old).await;
    conn.call(&format!("set_alias({}, 'churn', 'champion', NULL)", old.fence(2))).await.is("rejected: stale");
    let forged = support::postgres::Lease { token: new.token + 50, ..new.clone() };
    conn.call(&format!("set_alias({}, 'churn', 'champion', 1)", forged.fence(1))).await.is("rejected: not_issued");
    (conn, old, new)
}

#[tokio::test]
async fn history_tells_what_has_no_number_and_what_was_tried_again_where_it_happened() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    register(&db.url(), "churn").await.is(0);
    let old = conn.owner("deployment/shop/churn").await;
    let mut stranger = old.clone();
    stranger.session.key = "of another session".to_owned();
    let set = |fence: String| format!("set_alias({fence}, 'churn', 'champion', 1)");
    let progress = |lease: &support::postgres::Lease| format!("report_progress({})", lease.unnumbered());
    conn.call(&progress(&stranger)).await.is("rejected: wrong_key");
    conn.call(&set(old.fence(1))).await.is("applied");
    conn.call(&progress(&stranger)).await.is("rejected: wrong_key");
    conn.call(&set(stranger.fence(2))).await.is("rejected: wrong_key");
    conn.call(&set(old.fence(2))).await.is("applied");
    conn.take_over(&old).await;
    conn.call(&progress(&old)).await.is("rejected: stale");

    let told = palisade(&db.url(), &["history", "shop/churn", "-o", "json"]).await.is(0).json();
    let line = |entry: &Value| format!("{} {} {}", entry["kind"], entry["sequence"], entry["outcome"]).replace('"', "");
    let lines: Vec<_> = told["entries"].as_array().expect("entries").iter().map(line).collect();
    let happened = [
        "grant null granted",
        "report_progress null rejected",
        "set_alias 1 applied",
        "report_progress null rejected",
        "set_alias 2 rejected",
        "set_alias 2 applied",
        "report_progress null rejected",
        "takeover null granted",
    ];
    assert_eq!(lines, happened);
    let newest = palisade(&db.url(), &["history", "shop/churn", "-o", "json", "--limit", "3"]).await.is(0).json();
    assert_eq!(newest["entries"].as_array().expect("entries"), &told["entries"].as_array().expect("entries")[5..]);
}

#[tokio::test]
async fn history_tells_grants_applied_and_refused_writes_in_fence_order() {
    let db = Db::new().await;
    let (_conn, old, new) = story(&db).await;
    let ran = palisade(&db.url(), &["history", "shop/churn"]).await;
    let lines: Vec<_> = ran.is(0).out.lines().collect();
    let place = |text: &str| {
        lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text:?} in\n{}", ran.out))
    };
    assert!(place(&old.token.to_string()) < place("├─ ✔ /1"), "{}", ran.out);
    assert!(place("├─ ✔ /1") < place("└─ ✘ /2"), "the late write stands below its own grant: {}", ran.out);
    assert!(place("└─ ✘ /2") < place("takeover"), "{}", ran.out);
    assert!(lines[place("└─ ✘ /2")].contains(&format!("stale; the newest token was {}", new.token)), "{}", ran.out);
    assert!(place("takeover") < place("never granted"), "{}", ran.out);
    assert!(!ran.out.contains('\x1b'), "no colours in a pipe");

    let ascii = finish(program(Some(&db.url())).env("LC_ALL", "C").args(["history", "shop/churn"])).await;
    assert!(ascii.is(0).out.is_ascii() && ascii.out.contains("`- no /2"), "{}", ascii.out);
    let told = palisade(&db.url(), &["history", "shop/churn", "-o", "json"]).await.is(0).json();
    let outcomes: Vec<_> = told["entries"].as_array().into_iter().flatten().map(|e| e["outcome"].clone()).collect();
    assert_eq!(outcomes, ["granted", "applied", "rejected", "granted", "rejected"]);
    palisade(&db.url(), &["history", "shop/churn", "--limit", "1"]).await.is(0).says("--limit shows more");
}

#[tokio::test]
async fn an_abandoned_fence_is_closed_for_good() {
    let db = Db::new().await;
    let (mut conn, old, new) = story(&db).await;
    let url = db.url();
    let show = |token: i64, sequence: i64| {
        let (url, fence) = (url.clone(), format!("{token}/{sequence}"));
        async move {
            let ran = palisade(&url, &["operation", "show", "shop/churn", &fence, "-o", "json"]).await;
            ran.is(0).json()["status"].as_str().map(str::to_owned).unwrap_or_default()
        }
    };
    assert_eq!(show(old.token, 1).await, "applied");
    assert_eq!(show(old.token, 2).await, "never");
    assert_eq!(show(new.token, 1).await, "pending");
    let fence = format!("{}/1", new.token);
    palisade(&url, &["operation", "abandon", "shop/churn", &fence]).await.is(0).says("never");
    palisade(&url, &["operation", "abandon", "shop/churn", &fence]).await.is(0).says("never");
    let call = format!("set_alias({}, 'churn', 'champion', 1)", new.fence(1));
    conn.call(&call).await.is("rejected: superseded");
    palisade(&url, &["operation", "show", "shop/churn", &format!("{}/1", old.token)])
        .await
        .is(0)
        .says("alias=champion");
}

#[tokio::test]
async fn operation_show_says_what_each_word_means_and_what_comes_next() {
    let db = Db::new().await;
    let (mut conn, old, new) = story(&db).await;
    let url = db.url();
    conn.call(&format!("set_alias({}, 'churn', 'champion', 99)", new.fence(9))).await.is("rejected: no_such_version");
    let told = [
        (old.token, 1, "applied", "sent again, it only gets its first answer"),
        (old.token, 2, "never", "under a new fence"),
        (new.token, 9, "rejected", "no_such_version"),
        (new.token, 10, "pending", "operation abandon"),
    ];
    for (token, sequence, word, next) in told {
        let args = ["operation", "show", "shop/churn", &format!("{token}/{sequence}")];
        palisade(&url, &args).await.is(0).says(word).says("next: ").says(next);
    }
    conn.run("UPDATE palisade.operation SET at = at - interval '2 days'; SELECT palisade.clean('ledger', '1 day')")
        .await;
    let args = ["operation", "show", "shop/churn", &format!("{}/1", old.token)];
    palisade(&url, &args).await.is(0).says("forgotten").says("palisade history deployment/shop/churn");
}

#[tokio::test]
async fn a_retention_that_cannot_be_meant_is_a_usage_error() {
    for (args, said) in [
        (&["--keep-ledger", "59m"][..], "from 1h to 3650d"),
        (&["--keep-events", "4000d"], "from 1h to 3650d"),
        (&["--keep-refusals", "-1d"], "unexpected argument"),
        (&["--keep-refusals", "5x"], "in days, such as"),
        (&["--keep-history", "1d"], "must not be shorter than --keep-ledger"),
    ] {
        let args = [&["controller"], args].concat();
        palisade("postgres://nobody@127.0.0.1:1/nowhere", &args).await.is(2).says(said);
    }
}

// ---------------------------------------------------------------- exit codes and errors

#[tokio::test]
async fn what_is_not_there_is_exit_code_5_and_what_is_guarded_3() {
    let db = Db::new().await;
    let url = db.url();
    for args in [
        &["model", "show", "nope"][..],
        &["model", "alias", "nope", "a", "1"],
        &["lease", "show", "no/such"],
        &["lease", "revoke", "no/such", "--reason", "x", "--yes"],
        &["history", "no/such"],
        &["operation", "show", "no/such", "1/1"],
        &["operation", "abandon", "no/such", "1/1"],
    ] {
        let error = palisade(&url, &[args, &["-o", "json"]].concat()).await.is(5).error();
        assert_eq!(error["kind"], "not_found", "{args:?}");
        palisade(&url, args).await.is(5).says("error: ");
    }
    let _story = story(&db).await;
    palisade(&url, &["model", "alias", "churn", "x", "99"]).await.is(5).says("no_such_version");
    palisade(&url, &["model", "alias", "churn", "champion", "1"]).await.is(3).says("guarded");
}

#[tokio::test]
async fn without_a_database_the_exit_code_is_6_without_its_url_2() {
    let all = [&["model", "ls"][..], &["lease", "ls"], &["history", "a/b"], &["migrate"], &["migrate", "--check"]];
    let each = all.map(|args| async move {
        // Port 1 is nobody's.
        palisade("postgres://x:secret@127.0.0.1:1/x", args).await.is(6).says("DATABASE_URL");
        let ran = palisade("no URL with a secret", args).await;
        assert!(matches!(ran.code, 2 | 6), "{ran:?}");
        assert!(!ran.err.contains("secret"), "a password is not repeated: {ran:?}");
        finish(program(None).args(args)).await.is(2).says("--database-url");
    });
    futures::future::join_all(each).await;
    let error = palisade("postgres://x@127.0.0.1:1/x", &["lease", "ls", "-o", "json"]).await.is(6).error();
    assert_eq!(error["kind"], "unavailable");
}

#[tokio::test]
async fn a_login_that_may_not_is_told_so_and_a_reader_may_read() {
    let db = Db::new().await;
    let _story = story(&db).await;
    let reader = db.url_as("reader_login");
    for args in [&["history", "shop/churn"][..], &["lease", "ls"], &["model", "ls"], &["model", "show", "churn"]] {
        palisade(&reader, args).await.is(0);
    }
    let revoke = ["lease", "revoke", "shop/churn", "--reason", "x", "--yes"];
    palisade(&reader, &revoke).await.is(1).says("docs/cli.md");
    palisade(&db.url_as("worker_login"), &["lease", "ls"]).await.is(1).says("docs/cli.md");
    palisade(&db.url_as("controller_login"), &revoke).await.is(0);
    register(&db.url_as("registry_login"), "other").await.is(0);
}

#[tokio::test]
async fn hostile_arguments_are_usage_errors_and_change_nothing() {
    let db = Db::new().await;
    let url = db.url();
    let huge = "x".repeat(100_000);
    let escape = "a\x1b[2Jb";
    for args in [
        &["model", "register", ""][..],
        &["model", "register", &huge],
        &["model", "register", escape],
        &["model", "register", "a/b"],
        &["model", "register", "a", "--source", "s3://x"],
        &["model", "register", "a", "--source", "s3://x", "--digest", "md5:1"],
        &["model", "register", "a", "--source", &huge, "--digest", DIGEST],
        &["model", "register", "a", "--tag", "novalue"],
        &["model", "register", "a", "--description", &huge],
        &["model", "register", "a", "--request", "7"],
        &["model", "alias", "a", "b"],
        &["model", "alias", "a", "b", "0"],
        &["model", "alias", "a", "b", "99999999999999999999"],
        &["model", "alias", "a", "b", "1", "--delete"],
        &["lease", "show", ""],
        &["lease", "show", &huge],
        &["lease", "show", escape],
        &["lease", "revoke", "a/b", "--yes"],
        &["lease", "revoke", "a/b", "--yes", "--reason", ""],
        &["lease", "revoke", "a/b", "--yes", "--reason", escape],
        &["history", "a/b", "--limit", "0"],
        &["history", "a/b", "--limit", "-1"],
        &["operation", "show", "a/b", "1"],
        &["operation", "show", "a/b", "1/1/1"],
        &["operation", "show", "a/b", "9007199254740992/1"],
        &["operation", "abandon", "a/b", "0/1"],
        &["lease", "ls", "-o", "xml"],
        &["lease", "ls", "--log", "palisade=[broken"],
        &["lease", "ls", "--log-format", "xml"],
        &["demo", "--fenced"],
        &["nonsense"],
        &[],
    ] {
        let ran = palisade(&url, args).await;
        ran.is(2);
        assert!(!ran.err.is_empty() && !ran.err.contains('\x1b'), "{args:?}: {:?}", &ran.err[..ran.err.len().min(300)]);
    }
    let broken = OsString::from_vec(vec![b'a', 0xff]);
    palisade(&url, &[OsString::from("lease"), "show".into(), broken]).await.is(2);
    let rows = "SELECT (SELECT count(*) FROM palisade.registered_model) + (SELECT count(*) FROM palisade.lease)";
    assert_eq!(db.connect().await.number(rows).await, 0, "nothing was changed");
}

#[tokio::test]
async fn what_others_wrote_cannot_steer_the_readers_terminal() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let hostile = quote("red \x1b[31m \u{202e}back\nnext");
    conn.run(&format!(
        "SELECT palisade.register_model('churn', {hostile}, jsonb_build_object('k', {hostile}), gen_random_uuid());
         SELECT palisade.register_version('churn', 's3://x', '{DIGEST}', jsonb_build_object('k', {hostile}), gen_random_uuid())"
    ))
    .await;
    for args in [&["model", "ls"][..], &["model", "show", "churn"]] {
        let ran = palisade(&db.url(), args).await;
        assert!(!ran.is(0).out.contains(['\x1b', '\u{202e}']), "{ran:?}");
        assert!(ran.out.contains("\\u{1b}"), "it is shown, not hidden: {ran:?}");
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let db = Db::new().await;
    register(&db.url(), "churn").await.is(0);
    for args in [&["model", "ls"][..], &["--help"], &["model", "show", "churn", "-o", "json"]] {
        let mut command = program(Some(&db.url()));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().await.expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

// ---------------------------------------------------------------- help

/// Every command there is, as the program itself lists them.
async fn commands(prefix: &[String]) -> Vec<Vec<String>> {
    let ran = finish(program(None).args(prefix).arg("--help")).await;
    let mut found = vec![prefix.to_vec()];
    let list = ran.is(0).out.split("Commands:\n").nth(1).unwrap_or_default().to_owned();
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let name = line.trim().split(' ').next().unwrap_or_default();
        if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
            found.extend(Box::pin(commands(&[prefix, &[name.to_owned()]].concat())).await);
        }
    }
    found
}

#[tokio::test]
async fn help_is_as_others_know_it_and_every_command_teaches_by_examples() {
    let mut text = String::new();
    let all = commands(&[]).await;
    assert!(all.len() > 15, "{all:?}");
    for command in &all {
        let ran = finish(program(None).args(command).arg("--help")).await;
        let leaf = !all.iter().any(|other| other.len() > command.len() && other.starts_with(command));
        if leaf && command[0] != "crd" {
            assert!(ran.out.matches("\n  palisade ").count() >= 2 || ran.out.contains("Examples:"), "{command:?}");
        }
        text += &format!("==== palisade {}\n{}\n", command.join(" "), ran.is(0).out);
    }
    let path = support::postgres::root().join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs; look at the difference after UPDATE_GOLDEN=1", path.display());
}

// ---------------------------------------------------------------- as kubectl's plugin

/// As `kubectl palisade` runs it: by a link of that name.
fn plugin(folder: &tempfile::TempDir) -> Command {
    let link = folder.path().join("kubectl-palisade");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_palisade"), &link).expect("a link");
    let mut command = Command::new(link);
    command.env_clear().env("COLUMNS", "100").stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn as_kubectls_plugin_it_tells_what_kubectls_user_types() {
    let dir = || tempfile::tempdir().expect("a folder");
    let (one, two, three) = (dir(), dir(), dir());
    let help = finish(plugin(&one).arg("--help")).await;
    help.is(0).says("Usage: kubectl palisade [OPTIONS] <COMMAND>").says("happen: kubectl palisade demo");
    let wrong = finish(plugin(&two).args(["model", "shwo"])).await;
    wrong.is(2).says("Usage: kubectl palisade model");
    let db = Db::new().await;
    let args = ["model", "show", "nobody", "-o", "json", "--database-url", &db.url()];
    let error = finish(plugin(&three).args(args)).await.error();
    assert!(error["next"].as_str().is_some_and(|next| next.starts_with("kubectl palisade model ls")), "{error}");
    // By its own name it says its own name.
    let own = palisade(&db.url(), &args[..5]).await;
    assert!(own.error()["next"].as_str().is_some_and(|next| next.starts_with("palisade model ls")), "{own:?}");
}

#[tokio::test]
async fn kubeconfig_and_context_choose_the_cluster_as_kubectl_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |name: &str, contexts: &[(&str, u16)]| {
        let list = |f: &dyn Fn(&str, u16) -> String| contexts.iter().map(|(n, port)| f(n, *port)).collect::<String>();
        let clusters = list(&|n, port| format!("- {{name: {n}, cluster: {{server: 'http://127.0.0.1:{port}'}}}}\n"));
        let names = list(&|n, _| format!("- {{name: {n}, context: {{cluster: {n}, user: u}}}}\n"));
        let first = contexts[0].0;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {first}\nusers: [{{name: u, user: {{}}}}]\n\
             clusters:\n{clusters}contexts:\n{names}"
        );
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("it is ours");
        path.display().to_string()
    };
    // Each context is a port of its own: whoever is called was chosen.
    let listen = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port") };
    let (a, b, c) = (listen().await, listen().await, listen().await);
    let port = |l: &tokio::net::TcpListener| l.local_addr().expect("an address").port();
    let environment = config("environment", &[("a", port(&a)), ("b", port(&b))]);
    let given = config("given", &[("c", port(&c))]);
    for (args, called) in [(vec![], &a), (vec!["--context", "b"], &b), (vec!["--kubeconfig", &given], &c)] {
        let mut command = program(None);
        command.env("KUBECONFIG", &environment).args(["doctor", "--only", "cluster", "--timeout", "200ms"]).args(&args);
        let (ran, connection) = tokio::join!(
            finish(&mut command),
            tokio::time::timeout(std::time::Duration::from_secs(60), called.accept())
        );
        assert!(connection.is_ok(), "{args:?}: {ran:?}");
    }
    let mut command = program(None);
    let args = ["worker", "--context", "nobody", "--database-url", "postgres://x@127.0.0.1:1/x"];
    finish(command.env("KUBECONFIG", &environment).args(args)).await.is(6).says("no cluster").says("--kubeconfig");
}

/// What krew asks of a manifest (its `validation` package): names, a version, platforms with an archive each, and a
/// program that is among the files.
#[tokio::test]
async fn the_krew_manifest_is_complete_and_its_archive_holds_the_plugin() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = folder.path().join("program");
    std::fs::write(&small, "#!/bin/sh\necho plugin\n").expect("it is ours");
    let make = |out: &str| {
        let mut command = Command::new(support::postgres::root().join("hack/krew.sh"));
        command.arg(folder.path().join(out)).arg(&small).env("SOURCE_DATE_EPOCH", "1700000000").kill_on_drop(true);
        command
    };
    let (ran, again) = (finish(&mut make("out")).await, finish(&mut make("again")).await);
    let path = std::path::PathBuf::from(ran.is(0).out.trim());
    let text = std::fs::read_to_string(&path).expect("a manifest");
    assert!(!text.contains("${"), "everything is filled in: {text}");
    assert_eq!(
        text,
        std::fs::read_to_string(again.is(0).out.trim()).expect("a manifest"),
        "the same program, the same hash"
    );

    let manifest: Value = serde_yaml::from_str(&text).expect("YAML");
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!((&manifest["kind"], &manifest["metadata"]["name"]), (&"Plugin".into(), &"palisade".into()));
    assert_eq!(path.file_stem().and_then(OsStr::to_str), manifest["metadata"]["name"].as_str());
    let spec = &manifest["spec"];
    assert_eq!(spec["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    assert!(spec["shortDescription"].as_str().is_some_and(|s| (1..=50).contains(&s.len()) && !s.ends_with('.')));
    assert!(["description", "homepage"].iter().all(|field| spec[*field].as_str().is_some_and(|s| !s.is_empty())));
    let platforms = spec["platforms"].as_array().expect("a list");
    assert_eq!(platforms.len(), 1);
    let platform = &platforms[0];
    let labels = &platform["selector"]["matchLabels"];
    assert!(["linux", "darwin"].contains(&labels["os"].as_str().unwrap_or_default()), "{labels}");
    assert!(["amd64", "arm64"].contains(&labels["arch"].as_str().unwrap_or_default()), "{labels}");
    let uri = platform["uri"].as_str().expect("a text");
    let archive =
        path.with_file_name(uri.strip_prefix("https://").and_then(|uri| uri.rsplit('/').next()).expect("https"));
    let bytes = std::fs::read(&archive).expect("the archive that the URI names");
    assert_eq!(platform["sha256"].as_str(), Some(hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes)).as_str()));

    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    let there: Vec<(String, u32)> = archive
        .entries()
        .expect("an archive")
        .map(|entry| {
            let entry = entry.expect("an entry");
            assert_eq!(entry.header().mtime().ok(), Some(1_700_000_000), "not the time at which it was packed");
            (entry.path().expect("a name").display().to_string(), entry.header().mode().expect("a mode"))
        })
        .collect();
    let files = platform["files"].as_array().expect("a list");
    for file in files {
        assert!(there.iter().any(|(name, _)| Some(name.as_str()) == file["from"].as_str()), "{file} of {there:?}");
        assert_eq!(file["to"], ".");
    }
    let bin = platform["bin"].as_str().expect("a text");
    assert!(there.contains(&(bin.to_owned(), 0o755)), "{there:?}");
    assert!(files.iter().any(|file| file["from"] == bin), "{files:?}");
}
