//! `--kubeconfig` and `--context`, for every command that talks to a cluster.

use std::path::PathBuf;

use kube::Client;

use super::Error;
use crate::cluster;

/// Which cluster, as kubectl is told.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Kubeconfig {
    /// The kubeconfig file [default: as kubectl: KUBECONFIG, or ~/.kube/config; in a pod its ServiceAccount]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Kubeconfig {
    /// A client for that cluster, or why there is none.
    ///
    /// # Errors
    /// When what is configured cannot be read.
    pub async fn look(&self) -> Result<Client, String> {
        cluster::client(self.kubeconfig.as_deref(), self.context.as_deref()).await
    }

    /// A client for that cluster.
    ///
    /// # Errors
    /// When what is configured cannot be read: says what to do.
    pub async fn client(&self) -> Result<Client, Error> {
        let next =
            "give --kubeconfig or set KUBECONFIG, give a --context that it has, or run in a pod with a ServiceAccount";
        self.look().await.map_err(|e| Error::unavailable_next(format!("no cluster: {e}"), next))
    }
}
