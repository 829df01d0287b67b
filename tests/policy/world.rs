//! The cluster with policies in force and an epoch allocated, and who acts in it.

use kube::Client;
use palisade::manifests::{CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, WORKER_ACCOUNT};
use tokio::sync::RwLock;

use crate::support::cluster::{Cluster, account};
pub use crate::support::cluster::{EPOCH, fenced as cluster, prepare, settings};

/// Held for writing by the tests that take the epoch object away; all others hold it for reading.
pub static EPOCH_OBJECT: RwLock<()> = RwLock::const_new(());

/// Who writes. RBAC lets all of them do anything here, so that what refuses is the policy; `rights.rs` is about RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Worker,
    Controller,
    Person,
    /// Kubernetes' own: scales, and collects what has no owner.
    Autoscaler,
}

impl Actor {
    pub async fn client(self, cluster: &Cluster) -> Client {
        let username = match self {
            Actor::Worker => account(SYSTEM_NAMESPACE, WORKER_ACCOUNT).username(),
            Actor::Controller => account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT).username(),
            Actor::Person => "alice@example.com".to_owned(),
            Actor::Autoscaler => "system:serviceaccount:kube-system:horizontal-pod-autoscaler".to_owned(),
        };
        cluster.client_as(&username, &["system:masters"]).await
    }
}

/// A client for each of them and for the admin. A client is worth keeping: each makes a TLS connection.
pub struct Clients {
    pub admin: Client,
    worker: Client,
    controller: Client,
    person: Client,
    autoscaler: Client,
}

impl Clients {
    pub async fn new(cluster: &Cluster) -> Self {
        Self {
            admin: cluster.admin().await,
            worker: Actor::Worker.client(cluster).await,
            controller: Actor::Controller.client(cluster).await,
            person: Actor::Person.client(cluster).await,
            autoscaler: Actor::Autoscaler.client(cluster).await,
        }
    }

    pub fn of(&self, actor: Actor) -> Client {
        match actor {
            Actor::Worker => &self.worker,
            Actor::Controller => &self.controller,
            Actor::Person => &self.person,
            Actor::Autoscaler => &self.autoscaler,
        }
        .clone()
    }
}
