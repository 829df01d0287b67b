//! The cluster with policies in force and an epoch allocated, and who acts in it.

use std::sync::OnceLock;

use kube::Client;
use palisade::manifests::{CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, Settings, WORKER_ACCOUNT};
use tokio::sync::RwLock;

use crate::support::cluster::{Cluster, account, block_on_elsewhere};

/// The epoch that is allocated.
pub const EPOCH: u64 = 3;

/// Held for writing by the tests that take the epoch object away; all others hold it for reading.
pub static EPOCH_OBJECT: RwLock<()> = RwLock::const_new(());

pub fn settings() -> Settings {
    Settings::new(SYSTEM_NAMESPACE, [], None).expect("the defaults are good")
}

/// Installs the policies at its first call.
pub fn cluster() -> &'static Cluster {
    static READY: OnceLock<&'static Cluster> = OnceLock::new();
    READY.get_or_init(|| {
        let cluster = Cluster::shared();
        block_on_elsewhere(prepare(cluster));
        cluster
    })
}

pub async fn prepare(cluster: &Cluster) {
    cluster.install_policies(&settings()).await;
    cluster.allocate_epoch(SYSTEM_NAMESPACE, EPOCH as u32, "test").await;
}

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
