//! The API server's client, for controller and workers.

use std::time::Duration;

use kube::{Client, Config};

/// A client for the cluster that `KUBECONFIG`, `~/.kube/config` or the pod's ServiceAccount names.
///
/// It never repeats a call by itself: kube's default client repeats writes for minutes (429, 503, 504, POST too), under a
/// lease that may be over by then. There is no read timeout, since watches are open for long: each call has its own.
///
/// # Errors
/// When no cluster is configured, or what is configured cannot be read.
pub async fn client() -> Result<Client, String> {
    let config = Config::infer().await.map_err(|e| e.to_string())?;
    client_for(config)
}

/// The same for a given configuration.
///
/// # Errors
/// When its certificates cannot be read.
pub fn client_for(mut config: Config) -> Result<Client, String> {
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(Duration::from_secs(10));
    config.read_timeout = None;
    Client::try_from(config).map_err(|e| e.to_string())
}
