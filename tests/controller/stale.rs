//! Two replicas: one leads, and one that was replaced writes nothing that sticks.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use kube::api::PostParams;
use palisade::crd::ModelDeployment;
use rustix::process::Signal;
use serde_json::json;

use crate::stage::Stage;
use crate::support::cluster::{PATIENCE, wait_until};

/// A real `palisade controller`, which stops itself at a point.
struct Process {
    child: Child,
    log: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start(stage: &Stage, stop_at: &str) -> Process {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .args(["controller", "--replica-name", "stale", "--ttl", "3s"])
            .args(["--namespace", &stage.namespace, "--watch-namespace", &stage.namespace])
            .env("DATABASE_URL", stage.db.url_as("controller_login"))
            .env("KUBECONFIG", &stage.cluster.kubeconfig)
            .env("PALISADE_LOG", "palisade=debug")
            .env("PALISADE_STOP_AT", stop_at)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"));
        Process { child: command.spawn().expect("it starts"), log, _folder: folder }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a PID");
        rustix::process::kill_process(pid, signal).expect("it is there");
    }

    /// Waits until it has stopped itself.
    async fn stopped(&self) {
        wait_until("it stops itself", || async {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
            let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
            if state == Some('T') { Ok(()) } else { Err(self.text()) }
        })
        .await;
    }

    async fn says(&self, text: &str) {
        wait_until(&format!("it says {text:?}"), || async {
            let log = self.text();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// SIGTERM, and the exit code.
    async fn end(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(tokio::time::Instant::now() < deadline, "it does not end:\n{}", self.text());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LEADER: &str = "SELECT s.worker FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session \
                      WHERE l.resource = 'controller/default'";

#[tokio::test]
async fn the_plan_of_a_controller_that_was_paused_and_replaced_is_refused() {
    let stage = Stage::new("stale-plan").await;
    stage.create("churn", json!({})).await;
    let stale = Process::start(&stage, "-/put_plan/before");
    stale.stopped().await;
    let successor = stage.replica("successor").await;
    stage.planned("churn", "n.rollout = 1").await;
    stage.patch("churn", json!({"spec": {"replicas": 7}})).await;
    stage.planned("churn", "n.spec->>'replicas' = '7'").await;

    stale.signal(Signal::CONT);
    stale.says("no longer leading").await;
    stage.planned("churn", "n.spec->>'replicas' = '7' AND n.rollout = 2").await;
    assert_eq!(stale.end().await, Some(0));
    successor.stop().await;
}

#[tokio::test]
async fn a_statement_of_a_replaced_controller_that_arrives_late_is_refused() {
    let stage = Stage::new("stale-late").await;
    let mut sql = stage.sql().await;
    let stale = sql.owner("controller/default").await;
    sql.expire(&stale.session).await;
    stage.create("churn", json!({})).await;
    let successor = stage.replica("successor").await;
    stage.planned("churn", "n.rollout = 1").await;
    // Its last write for now: the status takes a revision.
    stage.holds("churn", "Reconciling", "WaitingForWorker").await;

    let resource = stage.resource("churn");
    let before = sql.text(&format!("SELECT to_jsonb(n) FROM palisade.plan AS n WHERE n.resource = '{resource}'")).await;
    let uid = sql.text(&format!("SELECT uid FROM palisade.plan WHERE resource = '{resource}'")).await;
    let put = format!("put_plan({}, '{resource}', '{uid}', 9, '{{}}', false, true, '5s', false)", stale.fence(1));
    sql.call(&put).await.is("rejected: stale");
    sql.call(&format!("next_revision({}, '{resource}', 0)", stale.unnumbered())).await.is("rejected: stale");
    let after = sql.text(&format!("SELECT to_jsonb(n) FROM palisade.plan AS n WHERE n.resource = '{resource}'")).await;
    assert!(!before.is_empty() && before == after, "{after}");
    successor.stop().await;
}

#[tokio::test]
async fn the_status_of_a_controller_that_was_paused_and_replaced_does_not_stick() {
    let stage = Stage::new("stale-status").await;
    stage.create("churn", json!({})).await;
    // It has been given a revision, and stops before it writes the status.
    let stale = Process::start(&stage, "-/put_status/before");
    stale.stopped().await;
    let resource = stage.resource("churn");
    let given = format!("SELECT status_revision FROM palisade.plan WHERE resource = '{resource}'");
    let given = stage.sql().await.number(&given).await;

    let successor = stage.replica("successor").await;
    stage.sql().await.wait_until(&format!("({LEADER}) = 'successor'")).await;
    stage.work("worker-a").await;
    let status = stage.rests("churn").await;
    assert!(status.revision > given);

    stale.signal(Signal::CONT);
    stale.says("no longer leading").await;
    let after = stage.crs.get("churn").await.expect("there");
    assert_eq!(after.status.as_ref(), Some(&status));

    // The same write with a resourceVersion that is right: the revision alone refuses it.
    let mut late: ModelDeployment = after.clone();
    let written = late.status.as_mut().expect("a status");
    (written.revision, written.owner) = (given, Some("stale".into()));
    let refused = stage.crs.replace_status("churn", &PostParams::default(), &late).await.expect_err("it is refused");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 422), "{refused}");
    assert_eq!(stale.end().await, Some(0));
    successor.stop().await;
}

#[tokio::test]
async fn a_leader_whose_lease_is_revoked_stops_and_another_one_leads() {
    let stage = Stage::new("revoked").await;
    let a = stage.replica("a").await;
    stage.sql().await.wait_until(&format!("({LEADER}) = 'a'")).await;
    let b = stage.replica("b").await;
    wait_until("b follows", || async { b.readiness.reasons().map_or(Ok(()), Err) }).await;
    let epoch = "SELECT token FROM palisade.lease WHERE resource = 'controller/default'";
    let before = stage.sql().await.number(epoch).await;
    stage.store.revoke("controller/default", "a drill").await.expect("an answer").applied().expect("revoked");
    stage.sql().await.wait_until(&format!("({epoch}) > {before} + 1")).await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "n.rollout = 1").await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_replica_that_stops_hands_over_at_once() {
    let stage = Stage::new("handover").await;
    let a = stage.lasting("a").await;
    stage.sql().await.wait_until(&format!("({LEADER}) = 'a'")).await;
    let b = stage.replica("b").await;
    a.stop().await;
    stage.sql().await.wait_until(&format!("({LEADER}) = 'b'")).await;
    let takeovers =
        "SELECT count(*) FROM palisade.grant_history WHERE resource = 'controller/default' AND kind = 'takeover'";
    assert_eq!(stage.sql().await.number(takeovers).await, 0, "it was released, not taken");
    b.stop().await;
}
