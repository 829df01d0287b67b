//! The examples and the page of protected tables do what they say, with real processes: paused, replaced, resumed, and
//! cut off from an answer.

#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "each test binary uses a part of the support")]
mod postgres;
#[path = "support/proxy.rs"]
#[allow(dead_code, reason = "each test binary uses a part of the support")]
mod proxy;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use postgres::{Conn, Db, root};
use proxy::{Fault, Proxy};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// A TTL that no busy machine uses up, in seconds. Where a worker's own clock is to find the time over, it has less.
const LASTING: u64 = 60;
const ALIAS: &str = "SELECT version FROM palisade.alias WHERE model = 'churn' AND alias = 'candidate'";

/// The Python that hack/test.sh has made before; this only asks for its path.
fn python() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let out =
            std::process::Command::new("hack/python.sh").current_dir(root()).output().expect("hack/python.sh runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("a path").trim().to_owned()
    })
}

/// The psql of the server's own version, or the one that is installed.
fn psql() -> PathBuf {
    match std::env::var_os("PALISADE_PG_BIN") {
        Some(bin) => PathBuf::from(bin).join("psql"),
        None => "psql".into(),
    }
}

/// A process whose output is watched.
struct Run {
    child: Child,
    said: watch::Receiver<String>,
}

async fn listen(stream: impl AsyncRead + Unpin, said: watch::Sender<String>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.send_modify(|text| text.push_str(&(line + "\n")));
    }
}

impl Run {
    fn start(mut command: Command) -> Run {
        command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).kill_on_drop(true).spawn().expect("it starts");
        let (sender, said) = watch::channel(String::new());
        tokio::spawn(listen(child.stdout.take().expect("stdout"), sender.clone()));
        tokio::spawn(listen(child.stderr.take().expect("stderr"), sender));
        Run { child, said }
    }

    /// Waits until it has said this.
    async fn until(&mut self, words: &str) {
        let waiting = self.said.wait_for(|text| text.contains(words));
        let found = tokio::time::timeout(PATIENCE, waiting).await.is_ok_and(|said| said.is_ok());
        assert!(found, "never said {words:?}: {}", self.said.borrow().as_str());
    }

    /// To it and to all that it started.
    fn signal(&self, signal: rustix::process::Signal) {
        let group = rustix::process::Pid::from_raw(self.child.id().expect("it runs") as i32).expect("a PID");
        rustix::process::kill_process_group(group, signal).expect("a signal");
    }

    fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Its exit code and all that it said.
    async fn end(mut self) -> (i32, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let Ok(status) = status else { panic!("does not end: {}", self.said.borrow().as_str()) };
        while self.said.changed().await.is_ok() {} // what is still in the pipes
        let said = self.said.borrow().clone();
        (status.expect("a status").code().unwrap_or(-1), said)
    }
}

/// Which example.
#[derive(Clone, Copy, Debug)]
enum Worker {
    Python,
    Psql,
}
use Worker::{Psql, Python};

impl Worker {
    fn start(self, url: &str, version: i64, ttl: u64, work: u64) -> Run {
        let mut command = match self {
            Python => {
                let mut command = Command::new(python());
                command.args(["examples/worker.py", "--model", "churn", "--version", &version.to_string()]);
                command.args(["--ttl", &ttl.to_string(), "--work", &work.to_string()]);
                command
            }
            Psql => {
                let mut command = Command::new("examples/worker.sh");
                command.args(["churn", &version.to_string()]).env("PSQL", psql());
                command.env("WORKER_TTL", ttl.to_string()).env("WORKER_SECONDS", work.to_string());
                command
            }
        };
        command.env("DATABASE_URL", url);
        Run::start(command)
    }
}

/// With each of them, side by side: they wait most of the time.
async fn both(story: impl AsyncFn(Worker)) {
    tokio::join!(story(Python), story(Psql));
}

struct World {
    db: Db,
    admin: Conn,
    url: String,
}

impl World {
    /// A model with two versions.
    async fn new() -> World {
        let db = Db::new().await;
        let mut admin = db.connect().await;
        let request = || uuid::Uuid::new_v4();
        admin.call(&format!("register_model('churn', '', '{{}}', '{}')", request())).await.is("applied");
        for digit in [1, 2] {
            let digest = digit.to_string().repeat(64);
            let call =
                format!("register_version('churn', 's3://models/{digit}', 'sha256:{digest}', '{{}}', '{}')", request());
            admin.call(&call).await.is("applied");
        }
        World { url: db.url_as("worker_login"), admin, db }
    }

    async fn applied(&mut self) -> i64 {
        self.admin
            .number("SELECT count(*) FROM palisade.operation WHERE kind = 'set_alias' AND outcome = 'applied'")
            .await
    }
}

#[tokio::test]
async fn a_worker_keeps_its_lease_through_work_that_is_longer_than_its_ttl() {
    both(async |worker| {
        let mut world = World::new().await;
        let (code, said) = worker.start(&world.url, 2, 9, 12).end().await;
        assert_eq!(code, 0, "{worker:?}: {said}");
        assert_eq!(world.admin.number(ALIAS).await, 2, "{worker:?}");
        // Not only because nobody came to take it.
        let beaten = "SELECT bool_and(expires_at > opened_at + interval '12 seconds') FROM palisade.session";
        assert_eq!(world.admin.text(beaten).await, "true", "{worker:?}");
        let kinds = "SELECT string_agg(kind, ' ' ORDER BY token) FROM palisade.grant_history";
        assert_eq!(world.admin.text(kinds).await, "grant release", "{worker:?}");
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_was_paused_at_its_work_and_replaced_changes_nothing_and_says_so() {
    both(async |worker| {
        let mut world = World::new().await;
        let mut first = worker.start(&world.url, 1, 8, 9);
        first.until("working").await;
        first.pause();
        // It waits until the other one's time is up, and takes over.
        let (code, said) = worker.start(&world.url, 2, LASTING, 0).end().await;
        assert_eq!(code, 0, "{worker:?}: {said}");
        first.resume();
        let (code, said) = first.end().await;
        assert_eq!(code, 1, "{worker:?}: {said}");
        assert!(said.contains("lost: ") || said.contains("stale"), "{worker:?}: {said}");
        assert_eq!((world.admin.number(ALIAS).await, world.applied().await), (2, 1), "{worker:?}");
    })
    .await;
}

/// Its own clock cannot help it: the write was on its way before the pause.
#[tokio::test]
async fn the_write_of_a_worker_that_was_paused_between_check_and_write_is_refused() {
    for worker in [Python, Psql] {
        let mut world = World::new().await;
        let proxy = Proxy::start(world.db.server.port()).await;
        let held = proxy.on_next("palisade.set_alias(", Fault::HangRequest);
        let first = worker.start(&proxy.url(&world.url), 1, LASTING, 0);
        tokio::time::timeout(PATIENCE, held.fired()).await.expect("it writes");
        first.pause();
        world.admin.run("UPDATE palisade.session SET expires_at = clock_timestamp()").await;
        let (code, said) = worker.start(&world.url, 2, LASTING, 0).end().await;
        assert_eq!(code, 0, "{worker:?}: {said}");
        held.deliver();
        held.answered().await;
        let refused = "SELECT string_agg(kind || ' ' || reason, ',') FROM palisade.refusal WHERE kind = 'set_alias'";
        assert_eq!(world.admin.text(refused).await, "set_alias stale", "{worker:?}");
        first.resume();
        let (code, said) = first.end().await;
        assert_eq!(code, 1, "{worker:?}: {said}");
        assert!(said.contains("rejected") && said.contains("stale"), "{worker:?}: {said}");
        assert_eq!((world.admin.number(ALIAS).await, world.applied().await), (2, 1), "{worker:?}");
    }
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_found_to_be_applied_once() {
    for worker in [Python, Psql] {
        let mut world = World::new().await;
        let proxy = Proxy::start(world.db.server.port()).await;
        let lost = proxy.on_next("palisade.set_alias(", Fault::LoseAnswer);
        let (code, said) = worker.start(&proxy.url(&world.url), 1, LASTING, 0).end().await;
        assert!(lost.has_fired());
        assert_eq!(code, 0, "{worker:?}: {said}");
        let unknown = said.find("unknown").unwrap_or_else(|| panic!("{worker:?}: {said}"));
        assert!(said[unknown..].contains("\napplied"), "{worker:?}: {said}");
        assert_eq!((world.admin.number(ALIAS).await, world.applied().await), (1, 1), "{worker:?}");
    }
}

#[tokio::test]
async fn a_write_that_never_arrived_is_sent_again_by_python_and_closed_by_psql() {
    for (worker, code, writes) in [(Python, 0, 1), (Psql, 1, 0)] {
        let mut world = World::new().await;
        let proxy = Proxy::start(world.db.server.port()).await;
        proxy.on_next("palisade.set_alias(", Fault::LoseRequest);
        let (ended, said) = worker.start(&proxy.url(&world.url), 1, LASTING, 0).end().await;
        assert_eq!(ended, code, "{worker:?}: {said}");
        assert!(said.contains("unknown"), "{worker:?}: {said}");
        assert_eq!(world.applied().await, writes, "{worker:?}: {said}");
        assert_eq!(said.contains("\nnever"), matches!(worker, Psql), "{worker:?}: {said}");
    }
}

/// Paused with a write on its way, and out of time: it must not send it again, and closes it.
#[tokio::test]
async fn a_worker_out_of_time_abandons_an_unknown_write_which_is_then_refused_on_arrival() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.server.port()).await;
    let late = proxy.on_next("palisade.set_alias(", Fault::LateRequest);
    let first = Python.start(&proxy.url(&world.url), 1, 8, 0);
    tokio::time::timeout(PATIENCE, late.fired()).await.expect("it writes");
    first.pause();
    world.admin.wait_until("(SELECT expires_at < clock_timestamp() FROM palisade.session)").await;
    first.resume();
    let (code, said) = first.end().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("unknown") && said.contains("\nnever"), "{said}");
    late.deliver();
    late.answered().await;
    let refused = "SELECT string_agg(kind || ' ' || reason, ',') FROM palisade.refusal";
    assert_eq!(world.admin.text(refused).await, "set_alias superseded");
}

/// A terminal with psql in it.
struct Terminal {
    child: Child,
    input: ChildStdin,
    said: watch::Receiver<String>,
    blocks: usize,
}

impl Terminal {
    fn open(url: &str) -> Terminal {
        // Both streams in one, in the order in which they were written.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$1\" -X 2>&1"])
            .args([psql().into_os_string(), url.into()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("psql starts");
        let (sender, said) = watch::channel(String::new());
        tokio::spawn(listen(child.stdout.take().expect("stdout"), sender));
        Terminal { input: child.stdin.take().expect("stdin"), said, child, blocks: 0 }
    }

    /// What psql answers to a block.
    async fn paste(&mut self, sql: &str) -> String {
        self.blocks += 1;
        let (mark, before) = (format!("=== {} ===\n", self.blocks), self.said.borrow().len());
        let text = format!("{sql}\n\\echo {mark}");
        self.input.write_all(text.as_bytes()).await.expect("it reads");
        let waiting = self.said.wait_for(|text| text.ends_with(&mark));
        let done = tokio::time::timeout(PATIENCE, waiting).await.is_ok_and(|said| said.is_ok());
        let said = self.said.borrow()[before..].to_owned();
        assert!(done, "{sql}\n{said}\n{:?}", self.child.try_wait());
        said.trim_end_matches(&mark).to_owned()
    }
}

/// The blocks of a page: what follows the opening fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let fences = page.split("```").skip(1).step_by(2);
    fences
        .map(|block| block.split_once('\n').map(|(info, text)| (info.to_owned(), text.to_owned())).expect("lines"))
        .collect()
}

#[tokio::test]
async fn the_page_of_protected_tables_followed_literally_ends_with_the_paused_job_refused() {
    let mut world = World::new().await;
    let page = std::fs::read_to_string(root().join("docs/protect-a-table.md")).expect("the page");
    let (mut a, mut b) = (Terminal::open(&world.db.url()), Terminal::open(&world.db.url()));
    let (mut answers, mut sessions, mut compared) = (String::new(), 0, 0);
    for (info, text) in blocks(&page) {
        match info.as_str() {
            "sql" => {
                a.paste(&text).await;
                b.paste(&text).await;
            }
            "sql A" | "sql B" => {
                sessions += text.matches("open_session").count();
                if sessions == 2 && info == "sql B" {
                    // "Wait until the 30 seconds are over."
                    let over = "UPDATE palisade.session SET expires_at = clock_timestamp() WHERE worker = 'backfill-a'";
                    world.admin.run(over).await;
                }
                answers = if info == "sql A" { a.paste(&text).await } else { b.paste(&text).await };
            }
            "text" if !text.starts_with("ALTER ROLE") => {
                compared += 1;
                assert!(answers.ends_with(&text), "the page says:\n{text}\nand psql says:\n{answers}");
            }
            // A role is the server's: not one that other tests use.
            "text" => world.admin.run(&format!("CREATE ROLE backfill; {text}; DROP ROLE backfill")).await,
            other => panic!("a block {other:?}"),
        }
    }
    assert_eq!((compared, sessions), (5, 2), "the page's answers were compared");
}

#[tokio::test]
async fn each_example_explains_itself() {
    for (program, arguments) in [(python(), &["examples/worker.py", "--help"][..]), ("examples/worker.sh", &["--help"])]
    {
        let out = Command::new(program).args(arguments).current_dir(root()).output().await.expect("it runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && text.contains("DATABASE_URL") && text.contains("Exit code"), "{text}");
    }
}
