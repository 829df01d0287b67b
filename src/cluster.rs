//! The API server's client, for controller and workers.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A client for the cluster that `KUBECONFIG`, `~/.kube/config` or the pod's ServiceAccount names, unless a file, or a
/// context of it, is given: then a pod's own account is not asked for.
///
/// It never repeats a call by itself: kube's default client repeats writes for minutes (429, 503, 504, POST too), under a
/// lease that may be over by then. There is no read timeout, since watches are open for long: each call has its own.
///
/// # Errors
/// When no cluster is configured, or what is configured cannot be read.
pub async fn client(file: Option<&Path>, context: Option<&str>) -> Result<Client, String> {
    if file.is_none() && context.is_none() {
        return client_for(Config::infer().await.map_err(|e| e.to_string())?);
    }
    let read = file.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let kubeconfig = read.map_err(|e| e.to_string())?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    client_for(config.map_err(|e| e.to_string())?)
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
