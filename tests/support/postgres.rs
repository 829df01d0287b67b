//! A real Postgres for the tests.
//!
//! ```text
//! shared()  one server a test binary ── template database, migrated once, epoch 1 established
//!    └─ Db::new()  a database of its own for each test (CREATE DATABASE … TEMPLATE), dropped with the value
//! Server::start()   a server of its own, for tests that crash, restart or promote one
//! ```
//!
//! Tests wait for what they can see (`wait_until`, `wait_blocked`), never for time to pass.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

/// How long a test waits for something that must happen. Generous: two slow cores, many tests at once, and a server that
/// does not answer for a while.
pub const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// Login roles, one for each group role. They exist once a server.
pub const LOGINS: [(&str, &str); 4] = [
    ("worker_login", "palisade_worker"),
    ("controller_login", "palisade_controller"),
    ("registry_login", "palisade_registry"),
    ("reader_login", "palisade_reader"),
];

// ---------------------------------------------------------------- servers

/// A Postgres that ends with this process, however it ends.
#[derive(Debug)]
pub struct Server {
    pub dir: PathBuf,
    /// The superuser's URL, database `postgres`.
    pub url: String,
    /// Whether the value owns the processes: a server lent by a parent process is left alone.
    owned: bool,
}

impl Server {
    /// A server of its own. `fsync` matters to no test but slows all: a killed process loses nothing that the kernel was
    /// given, so even the crash tests do without. (The benchmarks, where it matters, are started with it.)
    pub fn start() -> Server {
        Server::start_with(&[])
    }

    /// With settings of hack/postgres.sh, as environment variables.
    pub fn start_with(settings: &[(&str, &str)]) -> Server {
        let dir = std::env::temp_dir().join(format!(
            "palisade-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let url = launch(&dir, &["--remove"], settings);
        Server { dir, url, owned: true }
    }

    /// One that is set as a server should be, with fsync.
    pub fn durable() -> Server {
        Server::start_with(&[("PALISADE_PG_FSYNC", "on")])
    }

    /// Goes on with the same data on the same port, after `crash` or `stop`.
    pub fn start_again(&self) {
        assert_eq!(launch(&self.dir, &[], &[]), self.url, "the port was kept");
    }

    pub fn stop(&self) {
        stop(&self.dir);
    }

    /// An orderly end: everything is on disk, nothing has to be recovered.
    pub fn shut_down(&self) {
        let postmaster = self.postmaster();
        let pid = rustix::process::Pid::from_raw(postmaster).expect("a PID");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("kill");
        let began = Instant::now();
        while self.dir.join("data/postmaster.pid").exists() {
            assert!(began.elapsed() < PATIENCE, "{} does not end", self.url);
            std::thread::sleep(Duration::from_millis(5));
        }
        stop(&self.dir);
    }

    /// SIGKILL to the postmaster: what it had not written is lost. Returns when the port is closed to newcomers and
    /// the orphaned backends are gone.
    pub fn crash(&self) {
        kill(self.postmaster());
        stop(&self.dir);
    }

    pub fn postmaster(&self) -> i32 {
        let text = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("postmaster.pid");
        text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a PID")
    }

    /// A copy that follows this server.
    pub fn standby(&self) -> Server {
        self.backup().start()
    }

    /// A base backup, as it is now. Started as it is, it follows this server; see [`Backup`].
    pub fn backup(&self) -> Backup {
        let dir = std::env::temp_dir().join(format!(
            "palisade-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&dir).expect("a folder");
        // pg_basebackup runs as the server's user, who is somebody else when we are root.
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        run_program(&[
            "pg_basebackup",
            "--pgdata",
            &dir.join("data").to_string_lossy(),
            "--dbname",
            &self.url,
            "--write-recovery-conf",
            "--wal-method",
            "stream",
            "--checkpoint",
            "fast",
            "--no-sync",
        ]);
        Backup(dir)
    }

    /// A database's URL for a user of this server.
    pub fn url_of(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port())
    }

    pub fn port(&self) -> u16 {
        let after = self.url.rsplit_once(':').expect("a port in the URL").1;
        after.split('/').next().and_then(|port| port.parse().ok()).expect("a port in the URL")
    }

    /// An empty, migrated database `name`, without an epoch.
    pub async fn migrated(&self, name: &str) -> String {
        let mut admin = Conn::open(&self.url).await;
        admin.run(&format!("CREATE DATABASE {name}")).await;
        let url = self.url_of("postgres", name);
        migrate(&url).await;
        for (login, group) in LOGINS {
            // Another test's database on the same server may have made it.
            admin
                .run(&format!(
                    "DO $$ BEGIN CREATE ROLE {login} LOGIN IN ROLE {group};
                     EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
                ))
                .await;
        }
        if let Ok(text) = std::env::var(BREAK) {
            let mut conn = Conn::open(&url).await;
            // Not a panic: that is what the caller takes for a test that noticed.
            if tokio::spawn(async move { conn.break_rule(&text).await }).await.is_err() {
                std::process::exit(UNBREAKABLE);
            }
        }
        url
    }
}

/// A base backup that was not started yet.
#[derive(Debug)]
pub struct Backup(PathBuf);

impl Backup {
    /// On the same timeline, as if nothing had been lost.
    pub fn restore(self) -> Server {
        self.forget_the_primary();
        self.start()
    }

    /// On a new timeline, as a point-in-time recovery ends.
    pub fn recover(self) -> Server {
        use std::io::Write;
        self.forget_the_primary();
        let data = self.0.join("data");
        std::fs::copy(data.join("PG_VERSION"), data.join("recovery.signal")).expect("recovery.signal");
        // Of the server's user, who is somebody else when we are root.
        own_as(&data.join("PG_VERSION"), &data.join("recovery.signal"));
        let conf = std::fs::File::options().append(true).open(data.join("postgresql.auto.conf"));
        writeln!(conf.expect("a file"), "restore_command = 'false'").expect("written");
        self.start()
    }

    fn forget_the_primary(&self) {
        std::fs::remove_file(self.0.join("data/standby.signal")).expect("a standby's file");
    }

    fn start(mut self) -> Server {
        let dir = std::mem::take(&mut self.0);
        let url = launch(&dir, &[], &[]);
        Server { dir, url, owned: true }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // Empty once it was started: then the folder is the server's.
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

pub fn own_as(model: &Path, path: &Path) {
    use std::os::unix::fs::{MetadataExt, chown};
    let model = std::fs::metadata(model).expect("a file");
    chown(path, Some(model.uid()), Some(model.gid())).expect("chown");
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.owned {
            stop(&self.dir);
            let _ = std::fs::remove_dir_all(&self.dir); // its parent's end does it otherwise
        }
    }
}

/// The repository's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn script(args: &[&str], settings: &[(&str, &str)]) -> std::process::Output {
    Command::new("hack/postgres.sh")
        .args(args)
        .current_dir(root())
        .env("PALISADE_PG_FSYNC", std::env::var("PALISADE_PG_FSYNC").unwrap_or_else(|_| "off".into()))
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("hack/postgres.sh runs")
}

fn launch(dir: &Path, options: &[&str], settings: &[(&str, &str)]) -> String {
    let (dir, parent) = (dir.to_string_lossy(), std::process::id().to_string());
    let out = script(&[&["start", &dir, "--parent", &parent], options].concat(), settings);
    assert!(out.status.success(), "Postgres starts: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("a URL").trim().to_owned()
}

fn stop(dir: &Path) {
    script(&["stop", &dir.to_string_lossy()], &[]);
}

/// Runs a program of the server's own version (pg_dump, …) and returns what it printed.
pub fn run_program(args: &[&str]) -> String {
    let out = script(&[&["run"], args].concat(), &[]);
    assert!(out.status.success(), "{}: {}", args[0], String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// SIGKILL to one process.
pub fn kill(pid: i32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a PID");
    rustix::process::kill_process(pid, signal).expect("kill");
}

/// Waits until a standby has what was written up to this place, and is told of what comes next: one that only begins to
/// follow cannot be cut off for good.
pub async fn follows(standby: &mut Conn, at: &str) {
    standby.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'")).await;
    standby.wait_until("SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')").await;
}

/// Applies ./migrations as the program does, but as the files are now: a changed one needs no build. That the program
/// holds the same is tested in tests/sql/migrations.rs.
pub async fn migrate(url: &str) {
    migrator().await.run(&mut open(url).await).await.expect("the migrations apply");
}

pub async fn migrator() -> sqlx::migrate::Migrator {
    let mut migrator = sqlx::migrate::Migrator::new(root().join("migrations")).await.expect("migrations");
    migrator.create_schema("palisade");
    migrator.dangerous_set_table_name("palisade.migration");
    migrator
}

struct Shared {
    server: Server,
    template: String,
}

static SHARED: tokio::sync::OnceCell<Shared> = tokio::sync::OnceCell::const_new();

/// The server that all tests of this binary share, with its template database.
async fn shared() -> &'static Shared {
    SHARED
        .get_or_init(|| async {
            let server = match std::env::var("PALISADE_TEST_SERVER") {
                Ok(url) => Server { dir: PathBuf::new(), url, owned: false },
                Err(_) => tokio::task::spawn_blocking(Server::start).await.expect("a server"),
            };
            let template = format!("template_{}", std::process::id());
            server.migrated(&template).await;
            Shared { server, template }
        })
        .await
}

/// The URL of the shared server, to be lent to a child process in PALISADE_TEST_SERVER.
pub async fn shared_server() -> &'static Server {
    &shared().await.server
}

/// Set to `function ==> what its source says ==> what it says instead`, or `sql ==> a statement`, one a line: the tests
/// then run against a database in which a rule is broken, and are expected to fail. See tests/sql/broken_rules.rs.
pub const BREAK: &str = "PALISADE_TEST_BREAK";
/// The exit code when `BREAK` does not fit the SQL (any more).
pub const UNBREAKABLE: i32 = 99;

// ---------------------------------------------------------------- databases

/// A database of its own: migrated, with epoch 1 established.
#[derive(Debug)]
pub struct Db {
    pub name: String,
    pub server: &'static Server,
}

impl Db {
    pub async fn new() -> Db {
        let db = Db::without_epoch().await;
        let mut conn = db.connect().await;
        conn.establish(1).await;
        conn.close().await;
        db
    }

    /// One whose calls wait for a lock for longer than a test waits for anything, for those in which a call is to wait until
    /// the test lets it go on: a busy machine may take longer than the five seconds after which a call gives up.
    pub async fn patient() -> Db {
        let db = Db::new().await;
        let mut conn = db.connect().await;
        conn.run(
            "DO $$ DECLARE f text; BEGIN
                FOR f IN SELECT p.oid::regprocedure FROM pg_proc AS p
                    WHERE p.pronamespace = 'palisade'::regnamespace AND p.proconfig @> ARRAY['lock_timeout=5s']
                LOOP EXECUTE format('ALTER FUNCTION %s SET lock_timeout = 300000', f); END LOOP; END $$",
        )
        .await;
        conn.close().await;
        db
    }

    /// Without an epoch, as after a migration.
    pub async fn without_epoch() -> Db {
        let shared = shared().await;
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut admin = Conn::open(&shared.server.url).await;
        // One at a time: Postgres refuses to copy a template that another copy is connected to.
        static COPYING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let copying = COPYING.lock().await;
        admin.run(&format!("CREATE DATABASE {name} TEMPLATE {}", shared.template)).await;
        drop(copying);
        admin.close().await;
        Db { name, server: &shared.server }
    }

    /// The superuser's URL.
    pub fn url(&self) -> String {
        self.url_as("postgres")
    }

    pub fn url_as(&self, user: &str) -> String {
        self.server.url_of(user, &self.name)
    }

    /// As the superuser, who can look at everything.
    pub async fn connect(&self) -> Conn {
        Conn::open(&self.url()).await
    }

    /// As one of `LOGINS`.
    pub async fn connect_as(&self, user: &str) -> Conn {
        Conn::open(&self.url_as(user)).await
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // A hundred databases of 8 MB each are worth the bother. The test's own runtime may be shutting down.
        let (url, name) = (self.server.url.clone(), self.name.clone());
        let _ = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                if let Ok(mut conn) = PgConnection::connect(&url).await {
                    let sql = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                    let _ = sqlx::raw_sql(sql).execute(&mut conn).await;
                }
            });
        })
        .join();
    }
}

// ---------------------------------------------------------------- connections

/// `palisade.answer`.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub outcome: String,
    pub reason: Option<String>,
    pub token: Option<i64>,
    pub result: Option<serde_json::Value>,
}

impl Answer {
    /// `applied`, or `rejected: stale`.
    pub fn word(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}: {reason}", self.outcome),
            None => self.outcome.clone(),
        }
    }

    #[track_caller]
    pub fn is(&self, word: &str) -> &Answer {
        assert_eq!(self.word(), word, "{self:?}");
        self
    }

    pub fn result(&self) -> &serde_json::Value {
        self.result.as_ref().unwrap_or(&serde_json::Value::Null)
    }
}

/// A statement that failed. Without a code: the connection did.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Failure {
        match &error {
            sqlx::Error::Database(inner) => Failure {
                code: inner.code().map(std::borrow::Cow::into_owned).unwrap_or_default(),
                message: inner.message().to_owned(),
            },
            other => Failure { code: String::new(), message: other.to_string() },
        }
    }
}

/// A worker's session: the id, and the secret that proves it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: Uuid,
    pub key: String,
}

impl Session {
    pub fn fresh() -> Session {
        Session { id: Uuid::now_v7(), key: format!("key-{}", Uuid::new_v4()) }
    }

    /// The first two arguments of the functions that take a session.
    pub fn args(&self) -> String {
        format!("'{}', '{}'", self.id, self.key)
    }
}

/// A granted lease.
#[derive(Clone, Debug)]
pub struct Lease {
    pub resource: String,
    pub token: i64,
    pub session: Session,
}

impl Lease {
    /// The first four arguments of the fenced functions.
    pub fn fence(&self, sequence: i64) -> String {
        format!("{}, {}, {sequence}, '{}'", quote(&self.resource), self.token, self.session.key)
    }

    /// The first three arguments of those that take no sequence.
    pub fn unnumbered(&self) -> String {
        format!("{}, {}, '{}'", quote(&self.resource), self.token, self.session.key)
    }
}

/// A literal, whatever is in it.
pub fn quote(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A connection that fails the test when a statement fails, unless it is asked to `try_`.
#[derive(Debug)]
pub struct Conn(pub PgConnection);

async fn open(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

impl Conn {
    pub async fn open(url: &str) -> Conn {
        Conn(open(url).await)
    }

    pub async fn try_open(url: &str) -> Result<Conn, Failure> {
        Ok(Conn(PgConnection::connect(url).await?))
    }

    pub async fn close(self) {
        let _ = self.0.close().await;
    }

    /// Any number of statements.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            if let Err(failure) = self.try_run(sql).await {
                panic!("{place}: {sql}: {failure:?}");
            }
        }
    }

    pub async fn try_run(&mut self, sql: &str) -> Result<(), Failure> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.0).await?;
        Ok(())
    }

    /// Calls a function that answers `palisade.answer`: `call("revoke('a', 'b')")`.
    #[track_caller]
    pub fn call(&mut self, function: &str) -> impl Future<Output = Answer> {
        let place = std::panic::Location::caller();
        async move {
            match self.try_call(function).await {
                Ok(answer) => answer,
                Err(failure) => panic!("{place}: {function}: {failure:?}"),
            }
        }
    }

    pub async fn try_call(&mut self, function: &str) -> Result<Answer, Failure> {
        let sql = format!("SELECT outcome, reason, current_token, result::text FROM palisade.{function}");
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut self.0).await?;
        let result: Option<String> = row.try_get(3)?;
        Ok(Answer {
            outcome: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
            reason: row.try_get(1)?,
            token: row.try_get(2)?,
            result: result.map(|text| serde_json::from_str(&text).expect("JSON")),
        })
    }

    /// One value as text; null is the empty text.
    #[track_caller]
    pub fn text(&mut self, sql: &str) -> impl Future<Output = String> {
        let place = std::panic::Location::caller();
        async move {
            match self.try_text(sql).await {
                Ok(text) => text,
                Err(failure) => panic!("{place}: {sql}: {failure:?}"),
            }
        }
    }

    pub async fn try_text(&mut self, sql: &str) -> Result<String, Failure> {
        let sql = format!("SELECT ({sql})::text");
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut self.0).await?;
        Ok(row.try_get::<Option<String>, _>(0)?.unwrap_or_default())
    }

    pub async fn number(&mut self, sql: &str) -> i64 {
        self.text(sql).await.parse().unwrap_or_else(|_| panic!("{sql}: not a number"))
    }

    /// The first column of each row, which must be text.
    pub async fn list(&mut self, sql: &str) -> Vec<String> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.0).await;
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.iter().map(|row| row.try_get::<Option<String>, _>(0).expect("text").unwrap_or_default()).collect()
    }

    pub async fn pid(&mut self) -> i32 {
        self.number("SELECT pg_backend_pid()").await as i32
    }

    // ------------------------------------------------ Palisade's own

    pub async fn establish(&mut self, number: i64) -> Answer {
        let answer =
            self.call(&format!("establish_epoch({number}, (SELECT incarnation FROM palisade.epoch_status()))")).await;
        answer.is("applied");
        answer
    }

    /// A new session; `ttl` as in Postgres: `1 minute`.
    pub async fn session(&mut self, ttl: &str) -> Session {
        let session = Session::fresh();
        self.call(&format!("open_session({}, 'worker-a', '{ttl}')", session.args())).await.is("applied");
        session
    }

    /// A grant, which must succeed.
    #[track_caller]
    pub fn acquire(&mut self, session: &Session, resource: &str) -> impl Future<Output = Lease> {
        let place = std::panic::Location::caller();
        async move {
            let answer = self.call(&format!("acquire({}, {})", session.args(), quote(resource))).await;
            assert_eq!(answer.word(), "applied", "{place}: acquire {resource}: {answer:?}");
            Lease {
                resource: resource.to_owned(),
                token: answer.token.expect("a grant has a token"),
                session: session.clone(),
            }
        }
    }

    /// A new session and a lease.
    pub async fn owner(&mut self, resource: &str) -> Lease {
        let session = self.session("1 minute").await;
        self.acquire(&session, resource).await
    }

    /// Lets a session's time run out at once. Only the superuser can.
    pub async fn expire(&mut self, session: &Session) {
        self.run(&format!(
            "UPDATE palisade.session SET expires_at = clock_timestamp() - interval '1 millisecond' WHERE id = '{}'",
            session.id
        ))
        .await;
    }

    /// Lets the owner's time run out, and gives the lease to a new session.
    pub async fn take_over(&mut self, lease: &Lease) -> Lease {
        self.expire(&lease.session).await;
        self.owner(&lease.resource).await
    }

    /// Empties the database but for the epoch: much faster than another database, for tests that run over a table.
    pub async fn clear(&mut self) {
        let tables = self
            .list(
                "SELECT relname::text FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relkind = 'r'
                   AND relname NOT IN ('epoch', 'established', 'migration') ORDER BY relname <> 'model_version'",
            )
            .await;
        let sql: String = tables.iter().map(|table| format!("DELETE FROM palisade.{table};")).collect();
        self.run(&sql).await;
    }

    // ------------------------------------------------ waiting for signals

    /// Asks until the answer is true.
    #[track_caller]
    pub fn wait_until(&mut self, condition: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let began = Instant::now();
            while self.text(condition).await != "true" {
                assert!(began.elapsed() < PATIENCE, "{place}: not true within {PATIENCE:?}: {condition}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Waits until the backend waits for a lock. What it was asked last is its PID, and then the statement in question.
    #[track_caller]
    pub fn wait_blocked(&mut self, pid: i32) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let began = Instant::now();
            let blocked = format!("SELECT cardinality(pg_blocking_pids({pid})) > 0");
            let ended = format!(
                "SELECT coalesce(bool_and(state LIKE 'idle%' AND query NOT LIKE '%pg_backend_pid%'), true)
                 FROM pg_stat_activity WHERE pid = {pid}"
            );
            while self.text(&blocked).await != "true" {
                let ended = self.text(&ended).await == "true";
                assert!(!ended, "{place}: backend {pid} came to its end without waiting for anybody");
                assert!(began.elapsed() < PATIENCE, "{place}: backend {pid} waits for nobody");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

/// A call that runs on a connection of its own while the test goes on.
pub struct Running {
    pub pid: i32,
    pub task: tokio::task::JoinHandle<(Result<Answer, Failure>, Conn)>,
}

impl Running {
    pub async fn call(mut conn: Conn, function: String) -> Running {
        let pid = conn.pid().await;
        let task = tokio::spawn(async move { (conn.try_call(&function).await, conn) });
        Running { pid, task }
    }

    /// Its answer, which must come.
    pub async fn answer(self) -> Answer {
        self.outcome().await.expect("the call answers")
    }

    pub async fn outcome(self) -> Result<Answer, Failure> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the call ends").expect("the call does not panic").0
    }
}

// ---------------------------------------------------------------- breaking rules

impl Conn {
    /// Replaces the n-th occurrence (from 0; None: all) of `from` in a function's source by `to`.
    pub async fn rewrite(&mut self, function: &str, nth: Option<usize>, from: &str, to: &str) {
        let source = self.text(&format!("SELECT pg_get_functiondef('palisade.{function}'::regproc)")).await;
        let count = source.matches(from).count();
        assert!(count > nth.unwrap_or(0), "palisade.{function} has {count} times {from:?}");
        let source = match nth {
            None => source.replace(from, to),
            Some(nth) => {
                let (at, _) = source.match_indices(from).nth(nth).expect("counted");
                format!("{}{to}{}", &source[..at], &source[at + from.len()..])
            }
        };
        self.run(&source).await;
    }

    /// Breaks a rule as `BREAK` describes it.
    pub async fn break_rule(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match line.split("==>").collect::<Vec<_>>()[..] {
                [what, statement] if what.trim() == "sql" => self.run(statement).await,
                [function, from, to] => self.rewrite(function.trim(), None, from.trim(), to.trim()).await,
                _ => panic!("{BREAK}: {line:?} is neither function ==> from ==> to nor sql ==> statement"),
            }
        }
    }
}
