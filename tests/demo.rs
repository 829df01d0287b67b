//! The demo keeps its promise, both ways, with real processes. How long it takes is not asserted: it depends on the machine.

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::postgres::{Conn, PATIENCE, shared_server};
use tokio::process::Command;

fn demo(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.env_clear().env("DATABASE_URL", url).env("LC_ALL", "C.UTF-8").arg("demo").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// An empty database: the demo migrates by itself.
async fn empty(name: &str) -> String {
    let server = shared_server().await;
    let name = format!("demo_{name}_{}", std::process::id());
    Conn::open(&server.url).await.run(&format!("CREATE DATABASE {name}")).await;
    server.url_of("postgres", &name)
}

async fn tell(url: &str, args: &[&str]) -> Value {
    let output = demo(url, args).output().await.expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[tokio::test]
async fn the_late_write_of_a_paused_worker_is_rejected_with_both_fences_named() {
    let url = empty("fenced").await;
    let told = tell(&url, &["-o", "json"]).await;
    assert_eq!(told["outcome"], "rejected", "{told:#}");
    assert_eq!(told["reason"], "stale");
    assert_eq!(told["champion"], 2);
    let fence = |name: &str| -> Vec<i64> {
        told[name].as_str().unwrap_or_default().split('/').filter_map(|part| part.parse().ok()).collect()
    };
    let (late, newer) = (fence("lateFence"), fence("newerFence"));
    assert!(late.len() == 2 && newer.len() == 2 && late < newer, "{told:#}");
    assert!(told["overdueMs"].as_u64() > Some(0), "its own clock would have stopped it: {told:#}");

    // Not only what the demo says: what the database has.
    let mut conn = Conn::open(&url).await;
    let model = told["model"].as_str().unwrap_or_default();
    let champion = format!("SELECT version FROM palisade.alias WHERE model = '{model}' AND alias = 'champion'");
    assert_eq!(conn.number(&champion).await, 2);
    let refused = format!("SELECT count(*) FROM palisade.refusal WHERE token = {} AND reason = 'stale'", late[0]);
    assert_eq!(conn.number(&refused).await, 1, "the write did arrive, and was refused there");
}

#[tokio::test]
async fn where_the_gate_was_taken_out_the_late_write_lands_and_the_demo_says_so() {
    let url = empty("broken").await;
    let migrated =
        Command::new(env!("CARGO_BIN_EXE_palisade")).args(["migrate", "--database-url", &url]).output().await;
    assert!(migrated.expect("it runs").status.success());
    let mut conn = Conn::open(&url).await;
    let begin = "IF current_setting('transaction_isolation')";
    let open = format!("RETURN (NULL, NULL, p_token, NULL)::palisade.answer;\n    {begin}");
    conn.rewrite("enter", None, begin, &open).await;
    conn.rewrite("write_alias", None, " AND (a.guard IS NULL OR p_token >= a.token)", "").await;

    let output = demo(&url, &["-o", "json"]).output().await.expect("it runs");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["outcome"], "applied", "{told:#}");
    assert_eq!(told["champion"], 1, "the old version is back");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn without_fencing_the_same_story_ends_with_an_overwrite_and_leaves_no_table() {
    let url = empty("unfenced").await;
    let told = tell(&url, &["--unfenced", "-o", "json"]).await;
    assert_eq!(told["outcome"], "overwritten", "{told:#}");
    assert_eq!(told["champion"], 1);
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'palisade_demo%'";
    assert_eq!(Conn::open(&url).await.number(left).await, 0);
}

#[tokio::test]
async fn for_eyes_the_story_is_drawn_in_three_lanes_with_its_history() {
    let url = empty("drawn").await;
    let output = demo(&url, &[]).output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in ["worker A", "worker B", "Postgres", "SIGSTOP", "SIGCONT", "┊", "✘ /1", "takeover", "rejected"]
    {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[tokio::test]
async fn an_interrupted_demo_leaves_no_process_and_no_table() {
    let url = empty("interrupted").await;
    let mut child = demo(&url, &["--unfenced", "-o", "json"]).spawn().expect("it runs");
    let pid = child.id().expect("it runs") as i32;
    // Worker A is there, and is stopped.
    let stopped = wait_for(|| children(pid).into_iter().find(|child| state(*child) == Some('T'))).await;
    let pid = rustix::process::Pid::from_raw(pid).expect("a PID");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("SIGINT");
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").expect("it ends");
    assert_eq!(status.code(), Some(1));
    wait_for(|| matches!(state(stopped), None | Some('Z')).then_some(())).await;
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'palisade_demo%'";
    assert_eq!(Conn::open(&url).await.number(left).await, 0);
}

#[tokio::test]
async fn a_killed_demo_takes_its_stopped_worker_along() {
    let url = empty("killed").await;
    let mut child = demo(&url, &["-o", "json"]).spawn().expect("it runs");
    let pid = child.id().expect("it runs") as i32;
    let stopped = wait_for(|| children(pid).into_iter().find(|child| state(*child) == Some('T'))).await;
    child.kill().await.expect("SIGKILL");
    wait_for(|| matches!(state(stopped), None | Some('Z')).then_some(())).await;
}

/// A process's state and parent, from /proc.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn state(pid: i32) -> Option<char> {
    stat(pid).map(|(state, _)| state)
}

fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

async fn wait_for<T>(mut seen: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = seen() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "it never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
