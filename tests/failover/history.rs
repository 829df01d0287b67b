//! What was acknowledged, on whichever database, and what must hold of it whatever happened in between.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use palisade::crd::ModelDeployment;

use crate::support::postgres::{Answer, Conn, Lease, Session};

/// Every token that anybody was granted.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    /// Resource and token: a fence that was given twice is found here.
    granted: BTreeSet<(String, i64)>,
    writes: usize,
    refused: usize,
}

impl History {
    fn granted(&self, resource: &str, token: i64) {
        let mut told = self.0.lock().expect("not poisoned");
        assert!(
            told.granted.insert((resource.to_owned(), token)),
            "{resource} was granted under {token} twice: {told:?}"
        );
    }

    fn wrote(&self, applied: bool) {
        let mut told = self.0.lock().expect("not poisoned");
        *(if applied { &mut told.writes } else { &mut told.refused }) += 1;
    }

    /// A run in which nothing was written, or nothing refused, shows nothing.
    pub fn is_not_vacuous(&self) {
        let told = self.0.lock().expect("not poisoned");
        assert!(told.writes >= 2 && told.refused >= 1 && told.granted.len() >= 2, "{told:?}");
    }
}

/// A worker of one database, who owns one resource.
pub struct Owner {
    pub conn: Conn,
    pub lease: Lease,
    sequence: i64,
    history: History,
}

impl Owner {
    /// Is granted the resource, which may be taken from whoever held it. Newer than every grant before, on any database.
    pub async fn new(url: &str, resource: &str, history: &History) -> Owner {
        let owner = Owner::branched(url, resource, history).await;
        owner.is_the_newest(url);
        owner
    }

    fn is_the_newest(&self, url: &str) {
        let told = self.history.0.lock().expect("not poisoned");
        let highest = told.granted.iter().filter(|(r, _)| *r == self.lease.resource).map(|(_, token)| *token).max();
        assert_eq!(highest, Some(self.lease.token), "a grant on {url} is below an earlier one");
    }

    /// The same on a database that was left behind: no fence twice, but not above what the other branch granted.
    pub async fn branched(url: &str, resource: &str, history: &History) -> Owner {
        let mut conn = Conn::open(url).await;
        conn.run(&format!("UPDATE palisade.lease SET session = NULL WHERE resource = '{resource}'")).await;
        let lease = conn.owner(resource).await;
        history.granted(resource, lease.token);
        Owner { conn, lease, sequence: 0, history: history.clone() }
    }

    async fn send(&mut self, fence: String) -> Answer {
        let answer = self.conn.call(&format!("set_alias({fence}, 'churn', 'live', 1)")).await;
        self.history.wrote(answer.outcome == "applied");
        answer
    }

    /// A fenced write, which must be applied.
    pub async fn writes(&mut self) {
        self.sequence += 1;
        let fence = self.lease.fence(self.sequence);
        self.send(fence).await.is("applied");
        let row = self.conn.number("SELECT token FROM palisade.alias WHERE alias = 'live'").await;
        assert_eq!(row, self.lease.token, "the row carries the fence of its last write");
    }

    /// The same fence on this database, which must refuse it for one of these reasons.
    pub async fn is_refused(&mut self, url: &str, reasons: &[&str]) {
        self.conn = Conn::open(url).await;
        let fence = self.lease.fence(self.sequence + 1);
        let answer = self.send(fence).await;
        let reason = answer.reason.as_deref().unwrap_or_default();
        assert!(answer.outcome == "rejected" && reasons.contains(&reason), "{answer:?}");
    }
}

/// A client that comes to this database gets nothing.
pub async fn is_closed(url: &str) {
    let mut conn = Conn::open(url).await;
    let session = Session::fresh();
    conn.call(&format!("open_session({}, 'w', '1 minute')", session.args()))
        .await
        .is("rejected: epoch_not_established");
    conn.close().await;
}

/// Revision and fencing token of each status that was seen.
pub type Statuses = Arc<Mutex<Vec<(i64, i64)>>>;

/// Follows the statuses of a namespace from the beginning: revision and fencing token never go back.
pub fn follow(crs: Api<ModelDeployment>) -> (tokio::task::JoinHandle<()>, Statuses) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        let mut events = watcher(crs, watcher::Config::default()).default_backoff().applied_objects().boxed();
        while let Some(event) = events.next().await {
            let status = event.ok().and_then(|object| object.status);
            if let Some(status) = status {
                kept.lock().expect("not poisoned").push((status.revision, status.fencing_token));
            }
        }
    });
    (task, seen)
}
