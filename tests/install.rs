//! What an installation relies on, whoever makes it: a migration that waits, logins that it makes, programs that wait for
//! database and schema, TLS that checks the server, a doctor that runs in a pod.

mod support;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use palisade::manifests::Settings;
use serde_json::Value;
use support::cluster::Cluster;
use support::helm;
use support::postgres::{Conn, PATIENCE, Server, own_as};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

fn program(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.env_clear().env("DATABASE_URL", url).env("LC_ALL", "C.UTF-8").args(args);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

async fn run(command: &mut Command) -> (i32, String, String) {
    texts(&command.output().await.expect("the program runs"))
}

async fn server() -> Server {
    tokio::task::spawn_blocking(Server::start).await.expect("a server")
}

/// A program whose log is read while it runs.
struct Running {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    seen: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("stderr")).lines();
        Self { child, log, seen: String::new() }
    }

    /// The next line that has this text.
    async fn says(&mut self, text: &str) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let line = tokio::time::timeout_at(deadline, self.log.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("{text:?} was not said: {}", self.seen)).expect("a log");
            let line = line.unwrap_or_else(|| panic!("{text:?} was not said, and it ended: {}", self.seen));
            self.seen += &line;
            self.seen += "\n";
            if line.contains(text) {
                return line;
            }
        }
    }
}

// ---------------------------------------------------------------- migrate

#[tokio::test]
async fn a_migration_waits_for_a_database_that_is_not_up_yet_and_says_so() {
    let server = server().await;
    server.shut_down();
    let mut migration = Running::start(program(&server.url, &["migrate", "--wait", "5m"]));
    migration.says("waiting for the database, for ").await;
    server.start_again();
    let status = tokio::time::timeout(PATIENCE, migration.child.wait()).await.expect("in time").expect("an end");
    assert!(status.success(), "{}", migration.seen);
    let state = run(&mut program(&server.url, &["migrate", "--check"])).await;
    assert_eq!(state.0, 0, "{state:?}");
}

#[tokio::test]
async fn a_wait_ends_and_what_waiting_does_not_help_against_is_said_at_once() {
    let began = std::time::Instant::now();
    let (code, _, err) = run(&mut program("postgres://x@127.0.0.1:1/x", &["migrate", "--wait", "2s"])).await;
    assert!(code == 6 && began.elapsed() >= Duration::from_secs(2), "{code} {err}");

    let server = server().await;
    let nobody = server.url_of("nobody_of_this_name", "postgres");
    let answer = tokio::time::timeout(PATIENCE, run(&mut program(&nobody, &["migrate", "--wait", "24h"]))).await;
    let (code, _, err) = answer.expect("it does not wait");
    assert!(code == 6 && err.contains("nobody_of_this_name") && err.contains("mend the URL"), "{code} {err}");
}

#[tokio::test]
async fn the_older_program_of_a_rollback_leaves_a_newer_schema_alone() {
    let server = server().await;
    let url = server.migrated("app").await;
    let mut conn = Conn::open(&url).await;
    conn.run(
        "INSERT INTO palisade.migration (version, description, success, checksum, execution_time)
         VALUES (9999, 'of a later release', true, '', 0)",
    )
    .await;
    assert_eq!(run(&mut program(&url, &["migrate"])).await.0, 1);
    let (code, out, err) = run(&mut program(&url, &["migrate", "--allow-newer"])).await;
    assert!(code == 0 && out.contains("schema version 9999: of a later release"), "{out}{err}");
    assert_eq!(conn.number("SELECT max(version) FROM palisade.migration").await, 9999);
}

// ---------------------------------------------------------------- logins

/// A server that asks for passwords, and logs every statement.
async fn careful() -> Server {
    let server = server().await;
    let mut admin = Conn::open(&server.url).await;
    admin.run("ALTER ROLE postgres PASSWORD 'of the superuser'").await;
    admin.run("ALTER SYSTEM SET log_statement = 'all'").await;
    std::fs::write(server.dir.join("data/pg_hba.conf"), "host all all 127.0.0.1/32 scram-sha-256\n")
        .expect("pg_hba.conf");
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("(SELECT count(*) FROM pg_hba_file_rules) = 1 AND current_setting('log_statement') = 'all'").await;
    server
}

fn url(server: &Server, user: &str, password: &str) -> String {
    format!("postgres://{user}:{password}@127.0.0.1:{}/postgres?sslmode=disable", server.port())
}

#[tokio::test]
async fn a_migration_makes_the_logins_whose_urls_it_is_given_and_no_password_reaches_the_servers_log() {
    let server = careful().await;
    let admin = url(&server, "postgres", "of%20the%20superuser");
    let urls = |password: &str| {
        [
            ("PALISADE_CONTROLLER_URL", url(&server, "my_controller", &format!("{password}-c%27%25"))),
            ("PALISADE_WORKER_URL", url(&server, "My%20Worker%22", &format!("{password}-w"))),
            ("PALISADE_REGISTRY_URL", url(&server, "ci", &format!("{password}-g"))),
        ]
    };
    let args = ["migrate", "--create-logins"];
    let (code, out, err) = run(program(&admin, &args).envs(urls("hunter2"))).await;
    assert!(code == 0 && out.contains("login my_controller in palisade_controller: made"), "{out}{err}");
    // They connect with their passwords, and have their groups' rights.
    for (_, url) in urls("hunter2") {
        assert_eq!(
            run(&mut program(&url, &["model", "ls"])).await.0,
            if url.contains("Worker") { 1 } else { 0 },
            "{url}"
        );
    }
    let (code, ..) = run(&mut program(&url(&server, "ci", "another"), &["model", "ls"])).await;
    assert_eq!(code, 6, "the password is asked for");

    // Again, with new passwords: the old ones are worth nothing.
    let (code, out, err) = run(program(&admin, &args).envs(urls("swordfish"))).await;
    assert!(code == 0 && out.contains("login ci in palisade_registry: was there already"), "{out}{err}");
    for (password, expected) in [("hunter2", 6), ("swordfish", 0)] {
        assert_eq!(run(&mut program(&urls(password)[2].1, &["model", "ls"])).await.0, expected, "{password}");
    }
    // What the doctor wants to see of them.
    let (_, out, _) = run(&mut program(&admin, &["doctor", "--only", "database", "-o", "json"])).await;
    let report: Value = serde_json::from_str(&out).expect("JSON");
    let of_logins = report["findings"].as_array().expect("findings").iter().filter(|finding| {
        let check = finding["check"].as_str().unwrap_or_default();
        finding["severity"] != "ok"
            && ["login-", "rights", "timeout", "idle", "setting"].iter().any(|part| check.contains(part))
    });
    let of_logins: Vec<_> = of_logins.filter(|finding| finding["check"] != "database/login-superuser").collect();
    assert!(of_logins.is_empty(), "{of_logins:?}");

    let log = std::fs::read_dir(&server.dir).expect("a folder").filter_map(|entry| {
        let path = entry.expect("a file").path();
        path.is_file().then(|| String::from_utf8_lossy(&std::fs::read(path).expect("read")).into_owned())
    });
    let log: String = log.collect();
    assert!(log.contains("ALTER ROLE my_controller LOGIN PASSWORD 'SCRAM-SHA-256$"), "statements are logged");
    for password in ["hunter2", "swordfish"] {
        assert!(!log.contains(password), "{password} is in the server's log");
    }
}

#[tokio::test]
async fn a_url_that_names_the_migrating_role_or_one_login_twice_makes_nothing() {
    let server = careful().await;
    let admin = url(&server, "postgres", "of%20the%20superuser");
    let one = url(&server, "both", "x");
    for (controller, worker, says) in [
        (admin.clone(), one.clone(), "the URL for palisade_controller names postgres, which may migrate"),
        (one.clone(), one.clone(), "the URLs for palisade_controller and palisade_worker both name the login both"),
    ] {
        let mut command = program(&admin, &["migrate", "--create-logins"]);
        command.env("PALISADE_CONTROLLER_URL", controller).env("PALISADE_WORKER_URL", worker);
        let (code, _, err) = run(&mut command).await;
        assert!(code == 6 && err.contains(says), "{code} {err}");
    }
    let (code, _, err) = run(&mut program(&admin, &["migrate", "--create-logins"])).await;
    assert!(code == 2 && err.contains("PALISADE_WORKER_URL"), "{code} {err}");
    let (_, out, _) = run(&mut program(&admin, &["doctor", "--only", "database", "-o", "json"])).await;
    assert!(out.contains("no login is in the group palisade_worker"), "{out}");
}

// ---------------------------------------------------------------- waiting

async fn readyz(address: &str) -> (bool, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    (answer.starts_with("HTTP/1.1 200"), answer)
}

async fn until_ready_says(address: &str, text: &str) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (ready, answer) = readyz(address).await;
        if (text == "ready" && ready) || answer.contains(text) {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "/readyz never said {text:?}, but {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// In this order they are met when a database comes with the release: not up, empty, of an older release, right.
#[tokio::test]
async fn a_worker_waits_for_the_database_and_for_its_schema_and_says_which() {
    let server = server().await;
    let folder = tempfile::tempdir().expect("a folder");
    // Nobody is asked there: it waits before.
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).expect("written");
    server.shut_down();
    let mut command = program(&server.url_of("worker_login", "app"), &["worker", "--ttl", "15s"]);
    command.env("KUBECONFIG", &kubeconfig);
    let mut worker = Running::start(command);
    let line = worker.says("listening for").await;
    let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
    let address = address.to_owned();

    until_ready_says(&address, "schema: the database cannot be reached").await;
    server.start_again();
    let mut admin = Conn::open(&server.url).await;
    admin.run("CREATE ROLE worker_login LOGIN").await;
    admin.run("CREATE DATABASE app").await;
    until_ready_says(&address, "schema: there is none yet").await;
    assert!(worker.says("there is none yet").await.contains("palisade migrate"));

    let app = server.url_of("postgres", "app");
    assert_eq!(run(&mut program(&app, &["migrate"])).await.0, 0);
    admin.run("GRANT palisade_worker TO worker_login").await;
    until_ready_says(&address, "session: ").await;
    // An older release's schema: as if the last migration were still to come.
    let mut conn = Conn::open(&app).await;
    conn.establish(1).await;
    until_ready_says(&address, "ready").await;
    assert!(worker.child.try_wait().expect("a state").is_none(), "it never ended");

    conn.run(
        "UPDATE palisade.migration SET success = false WHERE version = (SELECT max(version) FROM palisade.migration)",
    )
    .await;
    let mut command = program(&server.url_of("worker_login", "app"), &["worker", "--ttl", "15s"]);
    command.env("KUBECONFIG", &kubeconfig);
    let mut newer = Running::start(command);
    newer.says("waiting for the database's schema: it has version").await;
    conn.run("UPDATE palisade.migration SET success = true").await;
    newer.says("session opened").await;
}

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: 'https://127.0.0.1:1'}}]
users: [{name: none, user: {token: none}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
";

// ---------------------------------------------------------------- TLS

/// A CA of its own, and a certificate for 127.0.0.1 by it.
fn certificate(folder: &Path, name: &str) {
    let script = format!(
        "set -e; cd '{}'; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}-ca \
           -keyout {name}-ca.key -out {name}-ca.crt
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db -keyout {name}.key -out {name}.csr
         printf 'subjectAltName=IP:127.0.0.1,DNS:db.example' >{name}.ext
         openssl x509 -req -in {name}.csr -CA {name}-ca.crt -CAkey {name}-ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt",
        folder.display()
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn tls_checks_the_servers_ca_and_name_as_the_environment_says() {
    let server = server().await;
    let mut admin = Conn::open(&server.url).await;
    if admin.text("SELECT current_setting('ssl_library')").await != "OpenSSL" {
        eprintln!("SKIPPED: this Postgres was built without TLS");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "right");
    certificate(folder.path(), "wrong");
    for (from, to) in [("right.crt", "data/server.crt"), ("right.key", "data/server.key")] {
        let to = server.dir.join(to);
        std::fs::copy(folder.path().join(from), &to).expect("copied");
        std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        own_as(&server.dir.join("data/PG_VERSION"), &to);
    }
    admin.run("ALTER SYSTEM SET ssl = on").await;
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("current_setting('ssl') = 'on'").await;
    let port = server.port();
    let ca = |name: &str| folder.path().join(format!("{name}-ca.crt")).display().to_string();
    let migrate = |host: &'static str, ca: Option<String>, query: &'static str| {
        let url = format!("postgres://postgres@{host}:{port}/postgres{query}");
        let mut command = program(&url, &["migrate", "--check"]);
        command
            .envs(ca.map(|ca| [("PGSSLMODE", "verify-full".to_owned()), ("PGSSLROOTCERT", ca)]).into_iter().flatten());
        async move { run(&mut command).await }
    };
    // 1: it connected, and there is no schema. 6: it did not.
    let (code, _, err) = migrate("127.0.0.1", Some(ca("right")), "").await;
    assert_eq!(code, 1, "{err}");
    for (what, answer) in [
        ("another CA", migrate("127.0.0.1", Some(ca("wrong")), "").await),
        ("another name", migrate("localhost", Some(ca("right")), "").await),
        ("a CA that is not there", migrate("127.0.0.1", Some("/nowhere/ca.crt".to_owned()), "").await),
        ("public roots only", migrate("127.0.0.1", None, "?sslmode=verify-full").await),
    ] {
        assert_eq!(answer.0, 6, "{what}: {answer:?}");
    }
    // A URL that says otherwise wins: nobody is told that it does not.
    assert_eq!(migrate("127.0.0.1", Some(ca("wrong")), "?sslmode=require").await.0, 1);
    // The doctor sees the same.
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let doctor = |ca: String| {
        let mut command = program(&url, &["doctor", "--only", "database", "--pre", "-o", "json"]);
        command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", ca);
        async move { run(&mut command).await.1 }
    };
    let (right, wrong) = (doctor(ca("right")).await, doctor(ca("wrong")).await);
    assert!(right.contains("database/tls\""), "{right}");
    assert!(!wrong.contains("database/tls\"") && wrong.contains("ertificate"), "{wrong}");
    // And a program that has waited in vain says why.
    let mut command = program(&url, &["worker"]);
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).expect("written");
    command.env("KUBECONFIG", kubeconfig).env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", ca("wrong"));
    Running::start(command).says("waiting for the database's schema").await;
}

// ---------------------------------------------------------------- the doctor in its pod

/// `helm test` runs the doctor with the controller's login and these rights, no more.
#[tokio::test]
async fn the_doctor_of_helm_test_may_look_at_all_that_it_wants_to() {
    let server = server().await;
    for (release, watched) in [("palisade", None), ("palisade-two", Some("team"))] {
        // Each installation has a cluster of its own, or the one that watches all namespaces would refuse in the other one's,
        // too; and a database.
        let cluster = Cluster::start().await;
        let database = release.replace('-', "_");
        server.migrated(&database).await;
        let namespace = cluster.namespace(release).await;
        if watched.is_some() {
            assert!(cluster.kubectl(&["create", "namespace", "team"]).status.success());
        }
        let settings =
            Settings::named(release, &namespace, [], None).and_then(|s| s.watching(watched)).expect("settings");
        cluster.apply(&palisade::manifests::everything(&settings)).await;
        let mut args = vec!["--set".to_owned(), "database.existingSecret=db".to_owned()];
        args.extend(
            watched.map(|watched| ["--set".to_owned(), format!("watchNamespace={watched}")]).into_iter().flatten(),
        );
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let objects = helm::objects(release, &namespace, &args);
        let doctors = objects.into_iter().filter(|object| object["metadata"]["annotations"]["helm.sh/hook"] == "test");
        let (pods, others): (Vec<_>, Vec<_>) = doctors.partition(|object| object["kind"] == "Pod");
        let others: Vec<_> = others.into_iter().map(|object| serde_yaml::to_value(object).expect("YAML")).collect();
        cluster.apply(&others).await;
        let kubeconfig = cluster.kubeconfig_for(&namespace, &format!("{release}-doctor")).await;

        // A controller, for the epoch.
        let controller = cluster.kubeconfig_for(&namespace, &format!("{release}-controller")).await;
        let login = server.url_of("controller_login", &database);
        let mut command = program(&login, &["controller", "--namespace", &namespace]);
        command.env("KUBECONFIG", controller);
        if let Some(watched) = watched {
            command.env("PALISADE_WATCH_NAMESPACE", watched);
        }
        let mut running = Running::start(command);
        running.says("epoch established").await;

        let container = &pods[0]["spec"]["containers"][0];
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().expect("a list").iter().map(|v| v.as_str().expect("a text").to_owned()).collect()
        };
        let mut command = program(&login, &[]);
        command.args(texts(&container["args"])).args(["-o", "json"]).env("KUBECONFIG", kubeconfig);
        for variable in container["env"].as_array().expect("env") {
            if let Some(value) = variable["value"].as_str() {
                command.env(variable["name"].as_str().expect("a name"), value);
            }
        }
        let (code, out, err) = run(&mut command).await;
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        let findings: Vec<_> = report["findings"].as_array().expect("findings").iter().collect();
        let of_cluster: Vec<_> = findings
            .iter()
            .filter(|f| f["check"].as_str().is_some_and(|check| check.starts_with("cluster/")) && f["severity"] != "ok")
            .collect();
        assert!(of_cluster.is_empty(), "{release}: {of_cluster:#?}");
        for check in ["cluster/policies", "cluster/rights", "cluster/epoch", "cluster/crd"] {
            assert!(findings.iter().any(|finding| finding["check"] == check), "{release}: {check}: {out}");
        }
        // The tests' server has no fsync: the one error that there is.
        let errors: Vec<_> = findings.iter().filter(|f| f["severity"] == "error").map(|f| &f["check"]).collect();
        assert_eq!((code, errors.as_slice()), (8, &[&Value::from("database/durability-off")][..]), "{out}");
        drop(running);
        cluster.stop();
    }
}
